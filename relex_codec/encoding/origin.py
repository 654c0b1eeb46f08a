"""Where a tensor starts from: elements of the base, one stretch after another, or the run's own first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorReader
from relex_codec.core.dtypes import Bits
from relex_codec.format.constants import PIECE
from relex_codec.format.manifest import BaseRange


@dataclass(frozen=True)
class Origin:
    """What a tensor's deltas are taken from.

    Attributes:
        dtype: of what `read` returns.
        read: returns the bits of elements `lo` to `hi`.
    """

    dtype: str
    read: Callable[[int, int], Bits]

    @classmethod
    def in_base(cls, base: TensorReader, sources: Sequence[BaseRange]) -> Origin:
        """Elements of the base."""
        return cls(base.info(sources[0].name).dtype, lambda lo, hi: read_sources(base, sources, lo, hi))

    @classmethod
    def in_run(cls, run: CheckpointSeries, name: str, step: int = 0) -> Origin:
        """A checkpoint of the run, by its number."""
        checkpoint = run.checkpoint(step)
        return cls(checkpoint.info(name).dtype, lambda lo, hi: checkpoint.read(name, lo, hi))

    def pieces(self, size: int) -> Iterator[Bits]:
        """Yield all `size` elements piece by piece."""
        for lo in range(0, size, PIECE):
            yield self.read(lo, min(lo + PIECE, size))


def read_sources(base: TensorReader, sources: Sequence[BaseRange], lo: int, hi: int) -> Bits:
    """Return the bits of elements `lo` to `hi` of what several stretches of the base are together.

    Examples:
        >>> import numpy as np
        >>> from relex_codec.checkpoints.checkpoint import TensorInfo
        >>> from relex_codec.format.manifest import whole_tensor
        >>> class Two(TensorReader):
        ...     tensors = {name: TensorInfo(name, "U8", (4,)) for name in ("a", "b")}
        ...
        ...     def read_into(self, name, lo, out):
        ...         out[:] = np.arange(lo, lo + out.size) + (100 if name == "b" else 0)
        >>> read_sources(Two(), [BaseRange(0, "a", (4,), 1, 3), *whole_tensor(0, "b", (4,))], 2, 5)
        array([  3, 100, 101], dtype=uint8)
    """
    parts: list[Bits] = []
    begin = 0
    for source in sources:
        low, high = max(lo, begin), min(hi, begin + source.elements)
        if low < high or (lo == hi and not parts):
            high = max(low, high)
            at = min(max(low - begin, 0), source.elements)
            parts.append(base.read(source.name, source.first + at, source.first + at + high - low))
        begin += source.elements
        if begin >= hi:
            break
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
