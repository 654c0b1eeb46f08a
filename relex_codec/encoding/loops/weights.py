"""Decoding a direction as every reader will, and the error of the weights that come of it.

Products and sums of decoding are rounded one by one (FORMAT.md section 8); only the squares of errors are added up in
any order.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import F32, Bits, Bytes
from relex_codec.core.jit import compiled, summing

from .widening import round_to, widen

Floats = npt.NDArray[np.float32]
"""float32 of more than one dimension."""

STRIP: Final = 1024


@compiled
def sum_of_factors(a: Floats, b: Floats, lo: int, out: F32) -> None:
    """Set `out` to the sum of factors over the elements from `lo` on; see `kernels.reference.factor_sum`.

    Args:
        a, b: float32 [H, r, m] and [H, r, n].
    """
    _, rank, rows = a.shape
    columns = b.shape[2]
    at = 0
    while at < len(out):
        row, first = divmod(lo + at, columns)
        matrix, row = divmod(row, rows)
        count = min(columns - first, len(out) - at)
        part = out[at : at + count]
        part[:] = 0
        for j in range(rank):
            value, other = a[matrix, j, row], b[matrix, j, first : first + count]
            for i in range(count):
                part[i] += value * other[i]
        at += count


@compiled
def quantised(
    values: F32,
    sums: F32,
    width: np.float32,
    offset: np.float32,
    most: np.float32,
    scale: np.float32,
    shift: np.float32,
) -> None:
    """Add to `sums`, what factors give, what becomes of the rest of `values` when it is quantised.

    Args:
        width, offset: thresholds, ``floor(|x| / width + offset)`` being the level of x.
        most: the highest level.
        scale, shift: what a code stands for.
    """
    for i in range(len(values)):
        rest = values[i] - sums[i]
        level = np.floor(min(np.divide(abs(rest), width) + offset, most))  # `/` would look for zeros
        value = level * scale
        if level > 0:
            value -= shift
        if rest < 0:
            value = -value
        sums[i] += value


@compiled
def digits_of(values: F32, sums: F32, width: np.float32, offset: np.float32, zero: np.float32, out: Bytes) -> None:
    """Set `out` to the codes of what `sums`, of factors, leave of `values`, each plus `zero`: the highest level.

    Args:
        width, offset: as of `quantised`.
    """
    for i in range(len(values)):
        rest = values[i] - sums[i]
        level = np.floor(min(np.divide(abs(rest), width) + offset, zero))
        if rest < 0:
            level = -level
        out[i] = np.uint8(np.int32(level + zero))


@compiled
def _add(origin: F32, values: F32, g: np.float32, out: F32) -> None:
    for j in range(len(out)):
        out[j] = origin[j] + values[j] * g


@summing
def _squares(one: F32, other: F32) -> float:
    """Return the squared distance of two arrays; where it is no number, both have the same infinity, or NaNs."""
    total = 0.0
    for j in range(len(one)):
        miss = np.float64(one[j] - other[j])
        total += miss * miss if miss == miss else 0.0
    return total


@compiled
def squared_miss_of(
    origin: Bits, origin_kind: int, target: Bits, kind: int, values: F32, g: np.float32, strips: Floats
) -> float:
    """Return the squared error of ``origin + values * g``, rounded to the dtype of `target`, against `target`.

    Args:
        origin, target: bits of the same elements, of kinds of widening.py.
        values: float32, of the direction.
        strips: float32 [3, STRIP] to work in.
    """
    total = 0.0
    for lo in range(0, len(target), STRIP):
        count = min(STRIP, len(target) - lo)
        start, weights, wanted = strips[0, :count], strips[1, :count], strips[2, :count]
        widen(origin[lo : lo + count], origin_kind, start)
        widen(target[lo : lo + count], kind, wanted)
        _add(start, values[lo : lo + count], g, weights)
        round_to(kind, weights)
        total += _squares(weights, wanted)
    return total


@compiled
def squared_distance_of(origin: Bits, origin_kind: int, target: Bits, kind: int, strips: Floats) -> float:
    """Return the squared distance of two arrays of bits; elements that are not finite do not count.

    Arguments are those of `squared_miss_of`.
    """
    total = 0.0
    for lo in range(0, len(target), STRIP):
        count = min(STRIP, len(target) - lo)
        start, wanted = strips[0, :count], strips[2, :count]
        widen(origin[lo : lo + count], origin_kind, start)
        widen(target[lo : lo + count], kind, wanted)
        found = _squares(start, wanted)
        if not found < np.inf:
            for j in range(count):
                if not abs(start[j] - wanted[j]) < np.inf:
                    start[j] = wanted[j] = 0
            found = _squares(start, wanted)
        total += found
    return total
