"""The passes over the bits of a tensor: Gram matrix and directions, strip by strip, with float64 where it must be.

The compiled loops are in loops/deltas.py. What they leave to float64 (deltas that are not finite, or whose squares
float32 does not hold) is computed here, and so is everything where more than one direction is wanted: what the Gram
matrix is off by, a ten-millionth of its largest eigenvalue, would be a thousandth of a small one. Strips begin at
multiples of `STRIP` from the beginning of a piece, whatever the slices that a piece is read in, so sums do not depend
on them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import F32, Bits, to_float32
from relex_codec.format.constants import PIECE

from .fit import F64, deltas, directions_from_deltas, gram_of

ROWS: Final = 4
"""Steps that are worked on together: what has a row for each step has a multiple of it."""
FEW: Final = 1 << 17
"""Deltas of a tensor, over all steps, up to which they are for float64: a small model needs no compiler."""
WIDE_STRIP: Final = 4096
"""Elements of a strip where all products are float64."""
LARGEST_WEIGHT: Final = 1e30
"""Weights of deltas above this are for float64: a tensor that moved by less than float32's smallest numbers."""
_local = threading.local()


def working_array(name: str, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Return an array of this thread, all 0 when it is made; whoever uses it keeps 0 what has to be.

    Args:
        name: of its use.
    """
    kept: dict[str, npt.NDArray[Any]] = _local.__dict__.setdefault("arrays", {})
    if name not in kept or kept[name].shape != shape:
        kept[name] = np.zeros(shape, dtype)
    return kept[name]


def forget_working_arrays() -> None:
    """Let go of the arrays of this thread, which may go on to do something else."""
    _local.__dict__.clear()


def widened(bits: Bits, dtype: str) -> F32:
    """Return bits as float32, in an array that this thread uses again for the next ones."""
    if dtype != "BF16":
        return to_float32(bits, dtype)
    wide = working_array("wide", (PIECE,), np.uint32)[: len(bits)]
    np.left_shift(bits, 16, out=wide, dtype=np.uint32)  # said, as numpy 1 would shift 16 bits out of uint16
    values: F32 = wide.view(np.float32)
    return values


def magnitude(values: F32) -> float:
    """Return the sum of the magnitudes; NaN or infinite where one of them is."""
    if len(values) > FEW:
        from .loops.deltas import sum_of_magnitudes  # numba is only needed here

        return float(sum_of_magnitudes(values))
    total = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for lo in range(0, len(values), WIDE_STRIP):
            part = np.abs(values[lo : lo + WIDE_STRIP])
            found = float(part.sum())  # in pairs, so float32 is good to seven digits, and takes half the time
            total += found if np.isfinite(found) else float(part.sum(dtype=np.float64))
    return total


@dataclass(slots=True)
class GramSums:
    """What is summed up over the deltas of a piece, slice by slice.

    Attributes:
        steps: T.
        observed: how many of the steps are fitted on.
        wide: whether all products are float64.
        gram: float64, the lower triangle; with rows and columns of 0 beyond T.
        squares: float64 [T], sums of squares.
        infinite: of each step, whether it had deltas that are not finite; they count as 0.
    """

    steps: int
    observed: int
    wide: bool = False
    gram: F64 = field(init=False)
    squares: F64 = field(init=False)
    infinite: npt.NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        rows = -(-self.steps // ROWS) * ROWS
        self.gram, self.squares = np.zeros((rows, rows)), np.zeros(self.steps)
        self.infinite = np.zeros(self.steps, bool)

    def add(self, bits: Bits, dtype: str, at: int, origin: F32, origin_bits: Bits, origin_dtype: str) -> None:
        """Add a slice.

        Args:
            bits: [T, any], contiguous; from element `at` on.
            origin: float32, the elements of the slice.
            origin_bits: the same in `origin_dtype`.
        """
        count, done = len(origin), 0
        if self.wide:
            for lo in range(0, count, WIDE_STRIP):
                some = slice(lo, min(lo + WIDE_STRIP, count))
                self._add_wide(deltas(bits[:, at + lo : at + some.stop], dtype, origin_bits[some], origin_dtype))
            return
        from .loops.deltas import STRIP, add_gram  # numba is only needed here
        from .loops.widening import KINDS

        strip = working_array("gram", (len(self.gram), STRIP), np.float32)
        while True:
            left, kind = count - done, KINDS[dtype]
            done += add_gram(bits, kind, at + done, left, origin, done, strip, self.gram, self.squares)
            if done == count:
                return
            some = slice(done, min(done + STRIP, count))
            self._add_wide(deltas(bits[:, at + some.start : at + some.stop], dtype, origin_bits[some], origin_dtype))
            done = some.stop

    def _add_wide(self, delta: F32) -> None:
        finite = np.isfinite(delta)
        if not finite.all():
            self.infinite |= ~finite.all(axis=1)
            delta = np.where(finite, delta, np.float32(0))
        products = gram_of(delta)
        self.gram[: self.steps, : self.steps] += products
        self.squares += np.diagonal(products)

    @property
    def moved(self) -> bool:
        """Whether a delta of an observed step is not 0."""
        return bool(self.squares[: self.observed].any() or self.infinite[: self.observed].any())

    def matrix(self) -> F64:
        """Return the Gram matrix, [T, T]."""
        low = np.tril(self.gram[: self.steps, : self.steps])
        return low + np.tril(low, -1).T


def directions(
    weights: F64,
    bits: Bits,
    dtype: str,
    at: int,
    origin: F32,
    origin_bits: Bits,
    origin_dtype: str,
    out: F32,
    *,
    wide: bool = False,
) -> None:
    """Set `out`, float32 [k, x], to the directions over a slice.

    Args:
        weights: float64 [k, K].
        bits: [K or more, any], contiguous; from element `at` on.
        origin: float32 [x].
        origin_bits: the same in `origin_dtype`.
        wide: whether all products are float64.
    """
    count, observed = len(origin), weights.shape[1]
    if wide or np.abs(weights).max(initial=0.0) > LARGEST_WEIGHT:
        for lo in range(0, count, WIDE_STRIP):
            some = slice(lo, min(lo + WIDE_STRIP, count))
            delta = deltas(bits[:observed, at + lo : at + some.stop], dtype, origin_bits[some], origin_dtype)
            out[:, some] = directions_from_deltas(weights, delta)
        return
    from .loops.deltas import STRIP, combine  # numba is only needed here
    from .loops.widening import KINDS

    part, total = working_array("part", (STRIP,), np.float32), working_array("total", (STRIP,), np.float64)
    for row, values in zip(weights, out, strict=True):
        combine(bits, KINDS[dtype], at, origin, row.astype(np.float32), part, total, values)
    if not np.isfinite(out).all():  # an infinity at the origin, that is still there
        these = np.flatnonzero(~np.isfinite(out).all(axis=0))
        delta = deltas(bits[:observed, at + these], dtype, origin_bits[these], origin_dtype)
        out[:, these] = directions_from_deltas(weights, delta)
