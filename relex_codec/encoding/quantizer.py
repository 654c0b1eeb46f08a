"""Finding the cheapest quantiser within an error bound: pure functions on a sample of a direction's remainder.

A quantiser maps x to a code q, and q back to a value:

    q = sign(x) * min(floor(|x| / width + 1/2 - bias), levels)
    value = q * scale - sign(q) * shift                           # FORMAT.md section 8

Width and bias place the thresholds: a bias above 0 widens the zone that becomes 0. Scale and shift are fitted to the
centroids of the levels by least squares, so they need not be equal to width and bias. A code's cost is its entropy, as
chunks are entropy coded. Sources: thresholds and centroids of S. P. Lloyd, "Least squares quantization in PCM" (1982),
with levels in even distances and entropy as the cost; the wide zone around 0 as in G. J. Sullivan, "Efficient scalar
quantization of exponential and Laplacian random variables" (1996).

The error is not monotonic in the width, because the remainders of real runs are clustered (weights that never moved,
weights that moved by exactly one unit of rounding), so a grid is searched instead of a closed form for a Gaussian.
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
        packing: that its codes fit.
        width: distance of its thresholds.
        bias: how far they lie beyond the middle between two levels, in units of width.
        scale, shift: what a code stands for, see above.
        bits: order-0 entropy of the codes, bits an element.
        error: mean squared error an element.
    """

    packing: Packing
    width: float
    bias: float
    scale: np.float32
    shift: np.float32
    bits: float
    error: float

    def codes(self, x: F32) -> Codes:
        """Return the codes of float32 values, int32 of the same shape, in ``-zero .. zero`` of the packing.

        Example:
            >>> tenths = Quantizer(QUINARY, 0.1, 0.0, np.float32(0.1), np.float32(0), 0.0, 0.0)
            >>> tenths.codes(np.array([0.04, 0.06, -0.21, 7.0], np.float32)).tolist()
            [0, 1, -2, 2]
        """
        levels = np.minimum(
            np.floor(np.abs(x) / np.float32(self.width) + np.float32(0.5 - self.bias)), self.packing.zero
        )
        return (np.sign(x) * np.maximum(levels, 0)).astype(np.int32)


class Magnitudes:
    """Sorted magnitudes of a sample with prefix sums, on which any quantiser is evaluated by its thresholds alone.

    Args:
        sample: finite float32, flat, at least one.
    """

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
        """Return the quantiser with these thresholds, with scale and shift fitted; None where all codes would be 0."""
        levels = int(min(packing.zero, self.sorted[-1] / width + 0.5 - bias))
        if levels < 1:
            return None
        q = np.arange(1, levels + 1)
        at = np.concatenate([np.searchsorted(self.sorted, (q - 0.5 + bias) * width), [self.count]])
        number, first = np.diff(at).astype(np.float64), np.diff(self.sum1[at])
        moved = float(number.sum())
        if not moved:
            return None
        scale, shift = _fit_scale_and_shift(q, number, first)
        values = q * np.float64(scale) - np.float64(shift)
        error = self.energy - 2 * float(values @ first) + float(number @ values**2)
        p = np.concatenate([[at[0]], number]) / self.count
        p = p[p > 0]
        bits = moved / self.count - float(p @ np.log2(p))  # one bit for each sign
        return Quantizer(packing, width, bias, scale, shift, bits, max(error, 0.0) / self.count)


def _fit_scale_and_shift(
    q: npt.NDArray[Any], number: npt.NDArray[np.float64], first: npt.NDArray[np.float64]
) -> tuple[np.float32, np.float32]:
    """Fit ``q * scale - shift`` to the sums of the levels by least squares; scale is kept non-negative.

    Args:
        q: the levels, 1 and up.
        number: of elements at each.
        first: sum of the magnitudes of these.
    """
    total = number.sum()
    mean_q, mean_x = float(number @ q) / total, float(first.sum()) / total
    spread = float(number @ (q - mean_q) ** 2)
    if spread <= 0:  # one level only
        return np.float32(mean_x / mean_q), np.float32(0)
    scale = max(float((q - mean_q) @ first) / spread, 0.0)
    return np.float32(scale), np.float32(scale * mean_q - mean_x)


def cheapest_quantizers(
    sample: Magnitudes, bound: float, packings: Sequence[Packing] = PACKINGS
) -> Iterator[Quantizer]:
    """Yield, for each packing, the quantiser of fewest bits whose mean squared error is at most `bound`.

    None for a packing that has no such quantiser, or whose codes the next smaller packing holds too.

    Args:
        sample: of the remainder.
        bound: on the mean squared error an element.
        packings: in the order in which they are tried.
    """
    if not sample.energy:
        return
    rms = np.sqrt(sample.energy / sample.count)
    for packing in packings:
        best: Quantizer | None = None
        for width in (WORD_WIDTHS if packing is WORD else WIDTHS) * rms:
            if packing in (BYTE, WORD) and sample.sorted[-1] / width < _largest_smaller_code(packing):
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
    for ratio, difference in ((1.02, 0.05), (1.006, 0.0125)):
        centre = best
        for exponent in range(-3, 6):
            for side in (-1, 0, 1):
                width, bias = centre.width * ratio**exponent, centre.bias + side * difference
                found = sample.evaluate(best.packing, width, bias) if 0 <= bias < 0.5 else None
                if found and found.error <= bound and found.bits < best.bits:
                    best = found
    return best


def _largest_smaller_code(packing: Packing) -> float:
    """The largest code of the next smaller packing."""
    return 7.0 if packing is BYTE else 127.0
