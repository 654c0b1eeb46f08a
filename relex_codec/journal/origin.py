"""What the first step is compared with: the base, in the run's dtypes, and its digests."""

from __future__ import annotations

from collections.abc import Sequence

from relex_codec.checkpoints.checkpoint import TensorInfo, TensorReader
from relex_codec.core.digests import digest
from relex_codec.core.dtypes import Bits, as_dtype
from relex_codec.core.threads import parallel_map
from relex_codec.format.constants import PIECE

from .boxes import Box
from .format import Part


class BaseStep(TensorReader):
    """What the first step is compared with: the base in the run's dtypes, zeros where it has no such tensor."""

    def __init__(self, base: TensorReader, parts: Sequence[Part]) -> None:
        self.path, self._base = base.path, base
        self._parts = {part.name: part for part in parts}
        self.tensors = {part.name: TensorInfo(part.name, part.dtype, part.box.shape) for part in parts}

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out` with the bits of a tensor from element `lo` on."""
        part = self._parts[name]
        if part.base is None:
            out[:] = 0
        elif part.base == part.dtype:
            self._base.read_into(name, lo, out)
        else:
            out[:] = as_dtype(self._base.read(name, lo, lo + out.size), part.base, part.dtype)


def digests_of(base: TensorReader, parts: Sequence[Part]) -> bytes:
    """Return the digests of the pieces of the base that this rank answers for."""
    tasks = [(part, piece) for part in parts for piece in part.pieces]

    def one(task: tuple[Part, int]) -> bytes:
        part, piece = task
        size = Box.whole(part.box.shape).elements
        return digest(base.read(part.name, piece * PIECE, min((piece + 1) * PIECE, size)))

    return b"".join(parallel_map(one, tasks))
