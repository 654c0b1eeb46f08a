"""Sums over pairs of weights, which add up over parts of tensors and over tensors: what comparisons are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import FLOATS, Bits, to_float32

_ONES: Final = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)
"""How many bits of a byte are set."""


@dataclass(slots=True)
class PairSums:
    """Sums over the elements of two versions of some tensors, a and b, that started from one origin.

    The squares are over elements that are finite in all three.

    Attributes:
        elements, bits: how many there are.
        elements_differ, bits_differ: how many of them are not the same in a and b.
        ulps: the largest number of floats of the dtype between two elements; 0 if none differ. Elements that are NaN on
            one side only are as far apart as the dtype has floats.
        start, a, b: squares of the origin, of a less the origin, and of b less the origin.
        product: of a less the origin with b less the origin.
        difference: squares of b less a.
    """

    elements: int = 0
    bits: int = 0
    elements_differ: int = 0
    bits_differ: int = 0
    ulps: int = 0
    start: float = 0.0
    a: float = 0.0
    b: float = 0.0
    product: float = 0.0
    difference: float = 0.0

    def __iadd__(self, other: PairSums) -> PairSums:
        for one in fields(self):
            mine, its = getattr(self, one.name), getattr(other, one.name)
            setattr(self, one.name, max(mine, its) if one.name == "ulps" else mine + its)
        return self

    def as_steps(self) -> dict[str, Any]:
        """Return what is said of two steps of a run."""
        return {
            "weights": self.elements,
            "moved_a": _root(self.a),
            "moved_b": _root(self.b),
            "difference": _root(self.difference),
            "relative_difference": ratio(self.difference, self.start),
            "angle": _degrees(cosine(self.product, self.a, self.b)),
            "weights_differ": _share(self.elements_differ, self.elements),
            "bits_differ": _share(self.bits_differ, self.bits),
        }

    def as_against(self) -> dict[str, Any]:
        """Return what is said of a decoded step, a, against a checkpoint, b."""
        return {
            "weights": self.elements,
            "relative_error": ratio(self.difference, self.b),
            "error_of_weights": ratio(self.difference, self.start),
            "weights_equal": None if not self.elements else 1 - self.elements_differ / self.elements,
            "bits_equal": None if not self.bits else 1 - self.bits_differ / self.bits,
            "largest_ulps": self.ulps,
            "angle": _degrees(cosine(self.product, self.a, self.b)),
        }


def sums_of(origin: Bits, a: Bits, b: Bits, dtype: str) -> PairSums:
    """Return the sums over elements of which the bits are given, one-dimensional and of one dtype."""
    found = PairSums(elements=len(a), bits=8 * a.nbytes)
    differ = a != b
    found.elements_differ = int(differ.sum())
    if found.elements_differ:
        found.bits_differ = int(_ONES[(a[differ] ^ b[differ]).view(np.uint8)].sum(dtype=np.int64))
    if dtype not in FLOATS:
        return found
    if found.elements_differ:
        found.ulps = _ulps(a[differ], b[differ], dtype)
    start, x, y = (to_float32(bits, dtype).astype(np.float64) for bits in (origin, a, b))
    with np.errstate(over="ignore", invalid="ignore"):
        x, y, gap = x - start, y - start, y - x
    good = np.isfinite(start) & np.isfinite(x) & np.isfinite(y)
    if not good.all():
        start, x, y, gap = start[good], x[good], y[good], gap[good]
    found.start, found.a, found.b = float(start @ start), float(x @ x), float(y @ y)
    found.product, found.difference = float(x @ y), float(gap @ gap)
    return found


def _ulps(a: Bits, b: Bits, dtype: str) -> int:
    top = 1 << (8 * a.itemsize - 1)
    nan = np.isnan(to_float32(a, dtype)), np.isnan(to_float32(b, dtype))
    if (nan[0] != nan[1]).any():
        return 2 * top

    def ordered(bits: Bits) -> npt.NDArray[np.int64]:
        wide = bits.astype(np.int64)
        return np.where(wide & top, -(wide & (top - 1)), wide)

    return int(np.where(nan[0], 0, np.abs(ordered(a) - ordered(b))).max(initial=0))


def cosine(product: float, a: float, b: float) -> float | None:
    """Return the cosine of two vectors, by their product and their squares; None where one of them is 0."""
    size = math.sqrt(a) * math.sqrt(b)
    return max(-1.0, min(1.0, product / size)) if size > 0 else None


def ratio(part: float, whole: float) -> float | None:
    """Return the root of the ratio of two sums of squares; None where the second is 0."""
    return math.sqrt(part / whole) if whole > 0 else None


def _root(square: float) -> float:
    return math.sqrt(square)


def _degrees(cosine: float | None) -> float | None:
    return None if cosine is None else math.degrees(math.acos(cosine))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
