"""Finding the cheapest quantiser within an error bound: pure functions on a sample of a direction's remainder.

A quantiser maps x to ``q = sign(x) min(floor(|x| / width + 1/2 - bias), levels)`` and back to
``q * step - sign(q) * shift``. Width and bias place the thresholds; step and shift are fitted to the centroids of the
levels by least squares, so that they need not be equal to width and bias.

The error is not monotonic in the width, because the remainders of real runs are clustered (weights that never moved,
weights that moved by exactly one rounding step), so a grid is searched instead of a closed form for a Gaussian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import F32
from relex_codec.format.constants import BYTE, NIBBLE, QUINARY, TERNARY, WORD, Packing
from relex_codec.format.packing import Codes

WIDTHS: Final = np.geomspace(4, 0.04, 72)
"""Widths that are tried, in units of the remainder's root mean square."""
BIASES: Final = (0.0, 0.1, 0.2, 0.3)
PACKINGS: Final = (TERNARY, QUINARY, NIBBLE, BYTE)
WORD_WIDTHS: Final = np.geomspace(0.04, 0.0004, 24)


@dataclass(frozen=True, slots=True)
class Quantizer:
    """One quantiser with what it costs and loses on the sample it was fitted to.

    Attributes:
        bits: order-0 entropy of the codes, bits an element.
        error: mean squared error an element.
    """

    packing: Packing
    width: float
    bias: float
    step: np.float32
    shift: np.float32
    bits: float
    error: float

    def codes(self, x: F32) -> Codes:
        """Quantise float32 values to int32 codes."""
        levels = np.minimum(
            np.floor(np.abs(x) / np.float32(self.width) + np.float32(0.5 - self.bias)), self.packing.zero
        )
        return (np.sign(x) * np.maximum(levels, 0)).astype(np.int32)


class Magnitudes:
    """Sorted magnitudes of a sample with prefix sums, on which any quantiser is evaluated by its thresholds alone."""

    def __init__(self, sample: F32) -> None:
        self.count = len(sample)
        self.sorted = np.sort(np.abs(sample)).astype(np.float64)
        self.sum1 = np.concatenate([[0.0], np.cumsum(self.sorted)])
        self.sum2 = np.concatenate([[0.0], np.cumsum(self.sorted**2)])

    @property
    def energy(self) -> float:
        """Sum of squares."""
        return float(self.sum2[-1])

    def evaluate(self, packing: Packing, width: float, bias: float) -> Quantizer | None:
        """Fit step and shift for these thresholds; None where all codes would be zero."""
        levels = int(min(packing.zero, self.sorted[-1] / width + 0.5 - bias))
        if levels < 1:
            return None
        q = np.arange(1, levels + 1)
        at = np.concatenate([np.searchsorted(self.sorted, (q - 0.5 + bias) * width), [self.count]])
        number, first = np.diff(at).astype(np.float64), np.diff(self.sum1[at])
        moved = float(number.sum())
        if not moved:
            return None
        step, shift = _centroids(q, number, first)
        values = q * np.float64(step) - np.float64(shift)
        error = self.energy - 2 * float(values @ first) + float(number @ values**2)
        p = np.concatenate([[at[0]], number]) / self.count
        p = p[p > 0]
        bits = moved / self.count - float(p @ np.log2(p))  # one bit for each sign
        return Quantizer(packing, width, bias, step, shift, bits, max(error, 0.0) / self.count)


def _centroids(
    q: npt.NDArray[Any], number: npt.NDArray[np.float64], first: npt.NDArray[np.float64]
) -> tuple[np.float32, np.float32]:
    """Least squares of the levels' sums on ``q * step - shift``; step is kept non-negative."""
    total = number.sum()
    mean_q, mean_x = float(number @ q) / total, float(first.sum()) / total
    spread = float(number @ (q - mean_q) ** 2)
    if spread <= 0:  # one level only
        return np.float32(mean_x / mean_q), np.float32(0)
    step = max(float((q - mean_q) @ first) / spread, 0.0)
    return np.float32(step), np.float32(step * mean_q - mean_x)


def candidates(sample: Magnitudes, bound: float, packings: Sequence[Packing] = PACKINGS) -> Iterator[Quantizer]:
    """Yield, for each packing, the quantiser of fewest bits whose mean squared error is at most `bound`."""
    if not sample.energy:
        return
    rms = np.sqrt(sample.energy / sample.count)
    for packing in packings:
        best: Quantizer | None = None
        for width in (WORD_WIDTHS if packing is WORD else WIDTHS) * rms:
            if packing in (BYTE, WORD) and sample.sorted[-1] / width < _smaller(packing):
                continue  # the next smaller packing holds these codes in fewer bytes
            for bias in BIASES:
                found = sample.evaluate(packing, float(width), bias)
                if found and found.error <= bound and (best is None or found.bits < best.bits):
                    best = found
            if best is not None and width * width < bound:
                break  # so far below the bound that narrower ones only cost more
        if best is not None:
            yield _refined(sample, bound, best)


def _refined(sample: Magnitudes, bound: float, best: Quantizer) -> Quantizer:
    """Search around the best of the grid: between its neighbours in width and bias, twice, ever closer."""
    for width_step, bias_step in ((1.02, 0.05), (1.006, 0.0125)):
        centre = best
        for exponent in range(-3, 6):
            for shift in (-1, 0, 1):
                width, bias = centre.width * width_step**exponent, centre.bias + shift * bias_step
                found = sample.evaluate(best.packing, width, bias) if 0 <= bias < 0.5 else None
                if found and found.error <= bound and found.bits < best.bits:
                    best = found
    return best


def _smaller(packing: Packing) -> float:
    return 7.0 if packing is BYTE else 127.0
