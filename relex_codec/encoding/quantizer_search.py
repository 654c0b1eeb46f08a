"""Finding the cheapest quantiser within an error bound: pure functions on a sample of a direction's remainder.

The error is not monotonic in the width, because the remainders of real runs are clustered (weights that never moved,
weights that moved by exactly one unit of rounding), so a grid is searched instead of a closed form for a Gaussian. The
grid is evaluated at once, for all packings, and serves every bound that is asked for: only a few quantisers around the
best of the grid are evaluated anew for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import F32
from relex_codec.format.constants import BYTE, NIBBLE, QUINARY, TERNARY, WORD, Packing

from .quantizer import F64, Chosen, Quantizer, Trials

PACKINGS: Final = (TERNARY, QUINARY, NIBBLE, BYTE)
BIASES: Final = (0.0, 0.1, 0.2, 0.3)
OTHER_BIASES: Final = np.array([0.0, 0.08, 0.16, 0.24, 0.32, 0.4])
OTHER_WIDTHS: Final = 1.02 ** np.arange(-6, 10)
"""Biases that are tried at a given number of bits, and ratios of widths among which these bits are looked for."""
GRID_RATIO: Final = 1.08
"""Ratio of neighbouring widths of the grid."""
FEW: Final = 4096
"""Samples of at most so many elements get a coarser grid, as what is found there is measured."""
FEW_BIASES: Final = (0.0, 0.15, 0.3)
FEW_RATIO: Final = 1.15
MEASURED: Final = 32
"""Quantisers that are measured together where elements are few."""
CANDIDATES_FROM: Final = 0.4
"""Smallest bound on the error for which the grid then has the widths, in units of what is estimated."""
NEIGHBOUR_WIDTHS: Final = 1.04 ** np.arange(-3, 5)
NEIGHBOUR_BIASES: Final = np.array([-0.08, -0.04, 0.0, 0.04, 0.08])
"""What is tried around the best of these: ratios of widths, differences of biases."""
NARROWEST: Final = 0.75
"""Narrowest width of a grid, in units of sqrt(12 * bound): the width whose error is the bound where levels are many."""
WIDEST: Final = 2.0
"""Widest width, in units of the largest magnitude: there all codes are 0."""
WORD_WIDTHS: Final = (1.15, 1.0, 0.9, 0.75, 0.5)
"""Widths that are tried for 16-bit codes, in units of sqrt(12 * bound)."""
CLOSE: Final = 1.15
"""Packings whose codes cost more than so many times the cheapest are not refined."""
STAGES: Final = ((1.02, 0.05, range(-3, 6), (-1, 0, 1)), (1.005, 0.0125, range(-3, 5), (-1, 0, 1)))
LAST: Final = 1.0 + np.arange(0, 6) * 1e-3
"""Ratios of widths in the last refinement, which only uses up what is left of the bound."""


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
        self._grid: Trials | None = None
        self._grid_bound = np.inf

    @property
    def few(self) -> bool:
        """Whether elements are so few that many quantisers can be measured."""
        return self.count <= FEW

    def evaluate(self, packing: Packing, width: float, bias: float) -> Quantizer | None:
        """Return the quantiser with these thresholds, with scale and shift fitted; None where all codes would be 0."""
        found = self.evaluate_all((packing,), np.array([width]), np.array([bias]))
        return found.at(0, 0) if len(found.width) and np.isfinite(found.error[0, 0]) else None

    def evaluate_all(self, packings: tuple[Packing, ...], width: F64, bias: F64) -> Trials:
        """Evaluate many thresholds at once, cut off where each of several packings ends.

        Sums over elements are sums over thresholds, as the code of x is the number of thresholds that it reaches: the
        sum of codes is the sum over thresholds of how many elements reach them, and so on. So one look at each
        threshold serves all packings.

        Args:
            packings: those with fewer levels first.
            width, bias: [count]; those for which all codes are 0 are left out of what is returned.
        """
        self.trials += len(width)
        levels = np.minimum(self.sorted[-1] / width + 0.5 - bias, packings[-1].zero).astype(np.int64)
        some = levels >= 1
        if not some.all():
            width, bias, levels = width[some], bias[some], levels[some]
        begin = np.cumsum(levels) - levels
        q = np.arange(1, 1 + int(levels.sum())) - np.repeat(begin, levels)
        at = np.searchsorted(self.sorted, (q - np.repeat(0.5 - bias, levels)) * np.repeat(width, levels))
        reach = (self.count - at).astype(np.float64)
        above = self.sum1[-1] - self.sum1[at]
        exactly = reach.copy()  # elements of each level
        exactly[:-1] -= reach[1:]
        exactly[begin[1:] - 1] = reach[begin[1:] - 1]
        sums = np.zeros((4, len(q) + 1))
        np.cumsum(np.stack([reach, (2 * q - 1) * reach, above, _x_log_x(exactly)]), axis=1, out=sums[:, 1:])
        zeros = np.array([[packing.zero] for packing in packings])
        end = begin + np.minimum(levels, zeros)
        sum_q, sum_q2, sum_qx = sums[:3, end] - sums[:3, None, begin]
        # the last level has all that lies beyond
        order = sums[3, end - 1] - sums[3, begin] + _x_log_x(reach[end - 1])
        scale, shift, bits, error = self._fitted(reach[begin], above[begin], sum_q, sum_q2, sum_qx, order)
        error[1:][levels <= zeros[:-1]] = np.inf
        return Trials(packings, width, bias, scale, shift, bits, error)

    def _fitted(
        self, moved: F64, sum_x: F64, sum_q: F64, sum_q2: F64, sum_qx: F64, order: F64
    ) -> tuple[F32, F32, F64, F64]:
        """Fit scale and shift to the sums over all elements whose code is not 0; also return bits and error."""
        mean_q, mean_x = sum_q / np.maximum(moved, 1.0), sum_x / np.maximum(moved, 1.0)
        spread = sum_q2 - sum_q * mean_q
        one = spread <= 1e-9 * sum_q2  # one level only
        steep = np.maximum((sum_qx - mean_q * sum_x) / np.where(one, 1.0, spread), 0.0)
        scale = np.where(one, mean_x / np.maximum(mean_q, 1.0), steep).astype(np.float32)
        shift = np.where(one, 0.0, steep * mean_q - mean_x).astype(np.float32)
        a, h = scale.astype(np.float64), shift.astype(np.float64)
        error = self.energy - 2 * (a * sum_qx - h * sum_x) + a * a * sum_q2 - 2 * a * h * sum_q + h * h * moved
        error = np.where(moved > 0, np.maximum(error, 0.0) / self.count, np.inf)
        n = float(self.count)
        entropy = np.log2(n) - (order + _x_log_x(n - moved)) / n
        return scale, shift, moved / n + entropy, error  # a bit for each sign

    def with_bits(self, quantizer: Quantizer, bits: float, most: float) -> list[Quantizer]:
        """Return quantisers of the same packing with other biases and at most so many bits, about as many.

        Their mean squared error is at most `most`; that of least error comes first.
        """
        width = np.outer(quantizer.width * (0.5 + quantizer.bias) / (0.5 + OTHER_BIASES), OTHER_WIDTHS)
        found = self.evaluate_all((quantizer.packing,), width.ravel(), np.repeat(OTHER_BIASES, len(OTHER_WIDTHS)))
        fits = np.where((found.bits[0] <= bits) & (found.error[0] <= most), found.bits[0], -1.0)
        result = []
        for bias in OTHER_BIASES:
            these = np.where(found.bias == bias, fits, -1.0)
            if len(these) and these[best := int(these.argmax())] >= 0:
                result.append(found.at(0, best))
        return sorted(result, key=lambda q: q.error)

    def candidates(self, bound: float, most: float) -> Chosen:
        """Return at most `MEASURED` quantisers of the grid that are worth measuring.

        Args:
            bound: on the mean squared error, as it is estimated.
            most: of it, whatever is measured.
        """
        grid = self.grid(CANDIDATES_FROM * bound)
        rows, columns = np.nonzero(grid.error <= most)
        order = np.argsort(grid.bits[rows, columns], kind="stable")
        if len(order) > MEASURED:
            order = order[np.arange(MEASURED) * (len(order) - 1) // (MEASURED - 1)]
        return Chosen(grid, rows[order], columns[order])

    def neighbours(self, best: Quantizer, most: float) -> Chosen:
        """Return quantisers around one that are cheaper than it, with errors up to `most`."""
        bias = np.minimum(np.maximum(best.bias + NEIGHBOUR_BIASES, 0.0), 0.45)
        width = (best.width * (0.5 + best.bias) / (0.5 + bias))[:, None] * NEIGHBOUR_WIDTHS
        found = self.evaluate_all((best.packing,), width.ravel(), np.repeat(bias, len(NEIGHBOUR_WIDTHS)))
        fits = np.flatnonzero((found.error[0] <= most) & (found.bits[0] < best.bits))
        order = fits[np.argsort(found.bits[0, fits], kind="stable")][:MEASURED]
        return Chosen(found, np.zeros(len(order), np.int64), order)

    def grid(self, bound: float) -> Trials:
        """Return a grid over all packings; it is made again where `bound` is below those it was made for."""
        if self._grid is None or bound < self._grid_bound:
            self._grid_bound = bound if self._grid is None else bound / 1.5
            low, high = NARROWEST * np.sqrt(12 * self._grid_bound), WIDEST * self.sorted[-1]
            ratio, biases = (FEW_RATIO, FEW_BIASES) if self.few else (GRID_RATIO, BIASES)
            count = max(2, int(np.log(high / low) / np.log(ratio)) + 1) if high > low else 1
            width = low * ratio ** np.arange(count)
            self._grid = self.evaluate_all(PACKINGS, np.repeat(width, len(biases)), np.tile(biases, count))
        return self._grid

    def least_bits(self, bound: float) -> float:
        """Return the bits an element of the cheapest quantiser of the grid; infinite where there is none."""
        if bound * self.count >= self.energy or not self.energy:
            return 0.0
        return self.grid(bound).least_bits(bound)


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
        yield from (q for q in sample.evaluate_all((BYTE, WORD), width, 0 * width).cheapest(bound) if q.packing is WORD)
        return
    found = [q for q in sample.grid(bound).cheapest(bound) if q.packing in packings]
    least = min((q.bits for q in found), default=0.0)
    yield from (_refined(sample, bound, q) for q in found if q.bits <= CLOSE * least)


def _refined(sample: Magnitudes, bound: float, best: Quantizer) -> Quantizer:
    """Search around the best of the grid, ever closer, and at last use up what is left of the bound."""

    def better(width: npt.NDArray[Any], bias: npt.NDArray[Any]) -> Quantizer:
        ok = (bias >= 0) & (bias < 0.5)
        found = sample.evaluate_all((best.packing,), width[ok], bias[ok]).cheapest(bound)
        return found[0] if found and found[0].bits < best.bits else best

    for ratio, difference, exponents, sides in STAGES:
        powers = np.float64(ratio) ** np.array(exponents)
        width = np.repeat(best.width * powers, len(sides))
        best = better(width, np.tile(best.bias + difference * np.array(sides), len(powers)))
    return better(best.width * LAST, np.full(len(LAST), best.bias))
