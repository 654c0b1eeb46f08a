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
weights that moved by exactly one unit of rounding), so a grid is searched instead of a closed form for a Gaussian. The
grid is evaluated at once, for all packings, and serves every bound that is asked for: only a few quantisers around the
best of the grid are evaluated anew for each.
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

F64 = npt.NDArray[np.float64]

PACKINGS: Final = (TERNARY, QUINARY, NIBBLE, BYTE)
BIASES: Final = (0.0, 0.1, 0.2, 0.3)
OTHER_BIASES: Final = (0.0, 0.08, 0.16, 0.24, 0.32, 0.4)
"""Biases that are tried at a given number of bits."""
GRID_RATIO: Final = 1.08
"""Ratio of neighbouring widths of the grid."""
FEW: Final = 4096
"""Samples of at most so many elements get a coarse grid: a per cent of their bits is less than one byte."""
FEW_BIASES: Final = (0.05, 0.2)
FEW_RATIO: Final = 1.25
NARROWEST: Final = 0.75
"""Narrowest width of a grid, in units of sqrt(12 * bound): the width whose error is the bound where levels are many."""
WIDEST: Final = 2.0
"""Widest width, in units of the largest magnitude: there all codes are 0."""
WORD_WIDTHS: Final = (1.15, 1.0, 0.9, 0.75, 0.5)
"""Widths that are tried for 16-bit codes, in units of sqrt(12 * bound)."""
CLOSE: Final = 1.15
"""Packings whose codes cost more than so many times the cheapest are not refined."""
STAGES: Final = ((1.02, 0.05, range(-3, 6), (-1, 0, 1)), (1.005, 0.0125, range(-3, 5), (-1, 0, 1)))
FEW_STAGES: Final = ((1.06, 0.075, range(-2, 4), (-1, 0, 1)),)
"""Refinements: ratio of widths and difference of biases, how often they are applied."""
LAST: Final = 1.0 + np.arange(0, 6) * 1e-3
"""Ratios of widths in the last refinement, which only uses up what is left of the bound."""


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
        levels = np.abs(x)
        levels /= np.float32(self.width)
        levels += np.float32(0.5 - self.bias)
        np.minimum(levels, np.float32(self.packing.zero), out=levels)
        return np.copysign(levels, x, out=levels).astype(np.int32)  # which cuts off the fraction


@dataclass(frozen=True, slots=True)
class _Trials:
    """Quantisers of one packing that were evaluated together: arrays [count]."""

    packing: Packing
    width: F64
    bias: F64
    scale: F32
    shift: F32
    bits: F64
    error: F64

    def cheapest(self, bound: float) -> Quantizer | None:
        """Return the one of fewest bits whose error is at most `bound`."""
        bits = np.where(self.error <= bound, self.bits, np.inf)
        best = int(bits.argmin()) if len(bits) else 0
        return self[best] if len(bits) and bits[best] < np.inf else None

    def __getitem__(self, i: int) -> Quantizer:
        return Quantizer(
            self.packing, float(self.width[i]), float(self.bias[i]), self.scale[i], self.shift[i],
            float(self.bits[i]), float(self.error[i]),
        )  # fmt: skip


class Magnitudes:
    """Sorted magnitudes of a sample with prefix sums, on which any quantiser is evaluated by its thresholds alone.

    Args:
        sample: finite float32, flat, at least one.

    Attributes:
        trials: how many pairs of width and bias were evaluated so far: what the search costs.
    """

    def __init__(self, sample: F32) -> None:
        self.count = len(sample)
        self.sorted = np.sort(np.abs(sample)).astype(np.float64)
        self.sum1 = np.concatenate([[0.0], np.cumsum(self.sorted)])
        self.energy = float(self.sorted @ self.sorted)
        """Sum of squares."""
        self.trials = 0
        self._grid: dict[str, _Trials] = {}
        self._grid_bound = np.inf

    @property
    def few(self) -> bool:
        """Whether a coarse search does."""
        return self.count <= FEW

    def evaluate(self, packing: Packing, width: float, bias: float) -> Quantizer | None:
        """Return the quantiser with these thresholds, with scale and shift fitted; None where all codes would be 0."""
        found = self.evaluate_all((packing,), np.array([width]), np.array([bias]))[0]
        return found[0] if len(found.bits) and np.isfinite(found.error[0]) else None

    def evaluate_all(self, packings: Sequence[Packing], width: F64, bias: F64) -> list[_Trials]:
        """Evaluate many thresholds at once, cut off where each of several packings ends.

        Args:
            packings: those with fewer levels first.
            width, bias: [count].

        Returns:
            For each packing those quantisers whose codes do not fit the packing before. Sums over levels are sums over
            thresholds, as the code of x is the number of thresholds that it reaches: the sum of codes is the sum over
            thresholds of how many elements reach them, and so on. So one look at each threshold serves all packings.
        """
        self.trials += len(width)
        levels = np.minimum(self.sorted[-1] / width + 0.5 - bias, packings[-1].zero).astype(np.int64)
        width, bias, levels = (a[levels >= 1] for a in (width, bias, levels))
        begin = np.cumsum(levels) - levels
        q = np.arange(1, 1 + int(levels.sum())) - np.repeat(begin, levels)
        at = np.searchsorted(self.sorted, (q - 0.5 + np.repeat(bias, levels)) * np.repeat(width, levels))
        reach = (self.count - at).astype(np.float64)
        above = self.sum1[-1] - self.sum1[at]
        exactly = reach.copy()  # elements of each level
        exactly[:-1] -= reach[1:]
        exactly[begin[1:] - 1] = reach[begin[1:] - 1]
        sums = [_prefixes(x) for x in (reach, (2 * q - 1) * reach, above, _x_log_x(exactly))]
        result, fewer = [], 0
        for packing in packings:
            chosen = levels > fewer
            fewer, first = packing.zero, begin[chosen]
            end = first + np.minimum(levels[chosen], packing.zero)
            sum_q, sum_q2, sum_qx = (s[end] - s[first] for s in sums[:3])
            # the last level has all that lies beyond
            order = sums[3][end - 1] - sums[3][first] + _x_log_x(reach[end - 1])
            result.append(
                self._fitted(packing, width[chosen], bias[chosen], reach[first], above[first],
                             sum_q, sum_q2, sum_qx, order)
            )  # fmt: skip
        return result

    def _fitted(
        self, packing: Packing, width: F64, bias: F64, moved: F64, sum_x: F64,
        sum_q: F64, sum_q2: F64, sum_qx: F64, order: F64,
    ) -> _Trials:  # fmt: skip
        """Fit scale and shift to the sums over all elements whose code is not 0, and compute bits and error."""
        some = np.maximum(moved, 1.0)
        mean_q, mean_x = np.maximum(sum_q / some, 1.0), sum_x / some
        spread = sum_q2 - sum_q * mean_q
        one = spread < 1e-9 * sum_q2  # one level only
        spread[one] = 1.0
        steep = np.maximum((sum_qx - mean_q * sum_x) / spread, 0.0)
        scale = np.where(one, mean_x / mean_q, steep).astype(np.float32)
        shift = np.where(one, 0.0, steep * mean_q - mean_x).astype(np.float32)
        a, h = scale.astype(np.float64), shift.astype(np.float64)
        error = self.energy - 2 * (a * sum_qx - h * sum_x) + a * a * sum_q2 - 2 * a * h * sum_q + h * h * moved
        error = np.where(moved > 0, np.maximum(error, 0.0) / self.count, np.inf)
        n = float(self.count)
        entropy = np.log2(n) - (order + _x_log_x(n - moved)) / n
        return _Trials(packing, width, bias, scale, shift, moved / n + entropy, error)  # a bit for each sign

    def with_bits(self, quantizer: Quantizer, bits: float) -> list[Quantizer]:
        """Return quantisers of the same packing with other biases and at most so many bits, about as many."""
        powers = 1.02 ** np.arange(-6, 10)
        width = np.outer(quantizer.width * (0.5 + quantizer.bias) / (0.5 + np.array(OTHER_BIASES)), powers)
        bias = np.broadcast_to(np.array(OTHER_BIASES)[:, None], width.shape)
        found = self.evaluate_all((quantizer.packing,), width.ravel(), bias.ravel())[0]
        result = []
        for b in OTHER_BIASES:
            fits = np.flatnonzero((found.bias == b) & (found.bits <= bits) & (found.error < np.inf))
            if len(fits):
                result.append(found[int(fits[found.bits[fits].argmax()])])
        return sorted(result, key=lambda q: q.error)

    def grid(self, bound: float) -> dict[str, _Trials]:
        """Return the grid of each packing; it is made again where `bound` is below those it was made for."""
        if bound < self._grid_bound:
            self._grid_bound = bound / 1.5 if self._grid else bound
            low, high = NARROWEST * np.sqrt(12 * self._grid_bound), WIDEST * self.sorted[-1]
            ratio, biases = (FEW_RATIO, FEW_BIASES) if self.few else (GRID_RATIO, BIASES)
            count = max(2, int(np.log(high / low) / np.log(ratio)) + 1) if high > low else 1
            width = low * ratio ** np.arange(count)
            found = self.evaluate_all(PACKINGS, np.repeat(width, len(biases)), np.tile(biases, count))
            self._grid = {trials.packing.name: trials for trials in found}
        return self._grid

    def least_bits(self, bound: float) -> float:
        """Return the bits an element of the cheapest quantiser of the grid; infinite where there is none."""
        if bound * self.count >= self.energy or not self.energy:
            return 0.0
        found = [trials.cheapest(bound) for trials in self.grid(bound).values()]
        return min((q.bits for q in found if q), default=np.inf)


def _prefixes(x: F64) -> F64:
    return np.concatenate([[0.0], np.cumsum(x)])


def _x_log_x(x: Any) -> F64:
    result: F64 = x * np.log2(np.maximum(x, 1.0))
    return result


def cheapest_quantizers(
    sample: Magnitudes, bound: float, packings: Sequence[Packing] = PACKINGS
) -> Iterator[Quantizer]:
    """Yield, for each packing, the quantiser of fewest bits whose mean squared error is at most `bound`.

    None for a packing that has no such quantiser, whose codes the next smaller packing holds too, or that is far from
    the cheapest.

    Args:
        sample: of the remainder.
        bound: on the mean squared error an element.
        packings: in the order in which they are tried.
    """
    if not sample.energy or bound <= 0:
        return
    if WORD in packings:
        width = np.sqrt(12 * bound) * np.array(WORD_WIDTHS)
        word = sample.evaluate_all((BYTE, WORD), width, 0 * width)[1].cheapest(bound)
        if word is not None:
            yield word
        return
    grid = sample.grid(bound)
    found = [best for packing in packings if (best := grid[packing.name].cheapest(bound))]
    least = min((q.bits for q in found), default=0.0)
    for best in found:
        if best.bits <= CLOSE * least:
            yield _refined(sample, bound, best)


def _refined(sample: Magnitudes, bound: float, best: Quantizer) -> Quantizer:
    """Search around the best of the grid, ever closer, and at last use up what is left of the bound."""

    def better(width: F64, bias: F64) -> Quantizer:
        ok = (bias >= 0) & (bias < 0.5)
        found = sample.evaluate_all((best.packing,), width[ok], bias[ok])[0].cheapest(bound)
        return found if found is not None and found.bits < best.bits else best

    for ratio, difference, exponents, sides in FEW_STAGES if sample.few else STAGES:
        powers = float(ratio) ** np.array(exponents)
        width = np.repeat(best.width * powers, len(sides))
        best = better(width, np.tile(best.bias + difference * np.array(sides), len(powers)))
    return best if sample.few else better(best.width * LAST, np.full(len(LAST), best.bias))
