"""Reading what a tensor starts from: the base, or what the file holds in its place (FORMAT.md section 9)."""

from __future__ import annotations

import numpy as np

from relex_codec.core.digests import digest
from relex_codec.core.dtypes import Bits, bits_dtype, from_float32, to_float32
from relex_codec.core.text import quote
from relex_codec.errors import Corrupt
from relex_codec.format import constants as f
from relex_codec.format.reader import FileReader
from relex_codec.format.tensor_record import TensorRecord

from .base_locator import BaseLocator
from .planning import plan_origin
from .read_plan import OriginPieces
from .scratch import Allocate
from .stored_pieces import elements


class OriginReader:
    """Reads origins as planned, and checks them against the digests of the file."""

    def __init__(self, container: FileReader, base: BaseLocator) -> None:
        self._container, self._base = container, base

    def read(self, pieces: OriginPieces, *, check: bool = True, allocate: Allocate | None = None) -> Bits:
        """Return the bits of planned pieces, one-dimensional, in the dtype of the origin.

        Args:
            check: False for who checks what is made of them.
            allocate: gives the memory for them.

        Raises:
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged.
        """
        tensor, start, end = pieces.tensor, pieces.start, pieces.end
        dtype = bits_dtype(tensor.origin_dtype)
        out: Bits | None = None if allocate is None else allocate((end - start) * dtype.itemsize).view(dtype)
        if pieces.in_base:
            return self._base.read_origin(tensor, start, end, check=check, out=out)
        bits = elements(self._container, pieces.places, tensor.origin_dtype)
        if check:
            self._check_digests(tensor, bits, start)
        if out is None:
            return bits
        out[:] = bits
        return out

    def read_span(self, tensor: TensorRecord, start: int, end: int) -> Bits:
        """Return the bits of elements `start` to `end`, whole pieces of a tensor, checked; otherwise as `read`."""
        tensor = self._container.index.target(tensor)
        if start == end:
            return np.empty(0, bits_dtype(tensor.origin_dtype))
        (pieces,) = plan_origin(self._container.index, tensor, [(start, end)], self._base.places)
        return self.read(pieces)

    def check_held(self, tensor: TensorRecord, start: int, end: int) -> None:
        """Read whole pieces of an origin that the file holds, even if another base is read, and check them.

        Raises:
            Corrupt: a digest differs.
        """
        (pieces,) = plan_origin(self._container.index, tensor, [(start, end)], None)
        self.read(pieces)

    def _check_digests(self, tensor: TensorRecord, bits: Bits, start: int) -> None:
        """Check whole pieces of an embedded origin; there is no digest of a stored one."""
        index = self._container.index
        for i, at in zip(tensor.digests[start // f.PIECE :], range(0, len(bits), f.PIECE), strict=False):
            if digest(bits[at : at + f.PIECE]) != index.digests[i].tobytes():
                raise Corrupt(
                    f"{self._container.source.path}: embedded tensor {quote(tensor.name)} differs from its digest"
                )


def converted(bits: Bits, tensor: TensorRecord) -> Bits:
    """Return elements of an origin in the tensor's own dtype; the same array if that is the origin's too."""
    if tensor.dtype == tensor.origin_dtype:
        return bits
    return from_float32(to_float32(bits, tensor.origin_dtype), tensor.dtype)
