"""Choosing how one direction is stored: factor rank, packing, scale and shift under the quality rule.

The rule: the weights decoded at the last observed step, rounded to the checkpoint's dtype, may miss the checkpoint by
at most ``1 + growth`` times what they miss it by when the direction is not quantised. Both are measured by decoding:

    error of a direction p = sum over the weights of (round(w0 + others + p * g) - w)^2

A `DirectionSearch` works on an excerpt of the tensor: it estimates which factor ranks are worth it from their singular
values and the entropy of the remainder, takes the cheapest quantiser under a bound on the direction's own error, and
moves that bound until the rule is just held there. Where the excerpt is not all that the rule is measured on, the bound
is then moved on until the rule is held on all of it: usually twice.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from relex_codec.core.dtypes import F32
from relex_codec.format.chunks import compress
from relex_codec.format.constants import NONE, PIECE, TERNARY, WORD
from relex_codec.format.factors import Factors
from relex_codec.format.packing import pack_codes

from .excerpt import Excerpt
from .low_rank import FULL_SVD, ReadElements, decompose, explained_by_rank, round_factors
from .quality import Quality
from .quantizer import Magnitudes, Quantizer, cheapest_quantizers
from .stored_direction import FLOAT32_DIRECTION, StoredDirection, factor_bytes
from .weight_error import Rule, Sample, SampledWeights, Weights, squared_norm

RANKS: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
"""Factor ranks that are tried beside none."""
FIRST_RANKS: Final = 8
"""Ranks up to this one are looked at first, more only where they could be worth it: decomposing costs by the rank."""
SMALLEST_SIDE: Final = 8
"""Matrices with a shorter side get no factors: they would cost as much as the matrix."""
SMALLEST_FACTORED: Final = 512
"""Tensors of fewer elements get none either, unless asked for: they could save a few dozen bytes."""
MANTISSA: Final = 2
"""Mantissa bits of factors that a remainder corrects."""
MANTISSA_ALONE: Final = 3
"""Mantissa bits of factors without a remainder."""
LARGEST_LOSS: Final = 0.25
"""Share of its squared norm that a direction may lose at most, whatever the rule allows: rounding hides small
coefficients at the last observed step, but an extrapolated step multiplies the direction by more."""
RELAXATION: Final = 4.0
"""How far the bound on the direction's own error may be relaxed while the measured weight error holds the rule."""
SAMPLE_PIECES: Final = 4
TRIALS: Final = 6
"""How often the bound is moved, at most, once the rule has been held."""
FAILURES: Final = 12
"""How often it is moved at most where the rule is not held."""
ROUNDS: Final = 3
"""How often quantisers around the best are measured, where elements are few."""
ON_ALL: Final = 3
"""How often all of a large tensor is measured, at most, once the rule was held."""
NEAR: Final = 1.015
"""The bound is where it should be when the room that the rule leaves is at most so many times what is used of it."""
AIM: Final = 0.995
"""Share of the room that the next bound aims at."""
SKETCH: Final = 1 << 13
"""Elements on which ranks are compared."""
CONVEX: Final = 1.25
"""No further ranks are compared where one costs so many times the least, as the cost is nearly convex in the rank."""
RANK_MARGIN: Final = 1.08
"""The two ranks of least cost are both tried in full where their costs are within so many times."""
NEARLY: Final = 1.03
"""Factors alone are tried on all weights where their error in the excerpt is within so many times what is allowed."""


def sample_starts(energies: list[float]) -> list[int]:
    """Return the first elements of the pieces to sample: evenly spread over the pieces ordered by energy.

    The one that moved most is among them, as training may move few rows of a large tensor (those of an embedding whose
    tokens occur).

    Args:
        energies: squared norm of the last observed delta, of each piece.
    """
    order = np.argsort(energies, kind="stable")
    at = np.unique(np.linspace(0, len(order) - 1, min(len(order), SAMPLE_PIECES)).round().astype(int))
    return sorted(int(order[i]) * PIECE for i in at)


_Found = tuple[float, float, StoredDirection]
"""Bytes, how far the bound was moved, and how the direction is stored."""


class _Remainder:
    """What factors leave of a direction in the excerpt, and the quantisers for it.

    Args:
        factors: rounded, or None.
        rest: flat.
        size: elements of the tensor.
    """

    def __init__(self, factors: Factors | None, rest: F32, size: int) -> None:
        self.factors, self.magnitudes = factors, Magnitudes(rest)
        self._rest, self._size, self._factor_bytes = rest, size, factor_bytes(factors)
        self._over_entropy: dict[str, float] = {}

    def cheapest(self, bound: float) -> tuple[float, StoredDirection] | None:
        """Return (bytes, how) with the cheapest quantiser whose mean squared error is at most `bound`; None without."""
        magnitudes = self.magnitudes
        if magnitudes.energy <= bound * magnitudes.count:
            return self._factor_bytes, StoredDirection(self.factors, NONE if self.factors else TERNARY, ZERO)
        found = list(cheapest_quantizers(magnitudes, bound)) or list(cheapest_quantizers(magnitudes, bound, (WORD,)))
        if not found:
            return None
        sizes = [q.bits * self._over(q) if len(found) > 1 else q.bits for q in found]
        best = int(np.argmin(sizes))
        cost = sizes[best] * self._size / 8 + self._factor_bytes
        return cost, StoredDirection(self.factors, found[best].packing, found[best])

    def bytes_of(self, quantizer: Quantizer) -> float:
        """Estimate the bytes of all of the tensor by the entropy of the codes."""
        return self._factor_bytes + quantizer.bits * self._size / 8

    def _over(self, quantizer: Quantizer) -> float:
        """Return how many times their entropy codes in this packing take: measured by compressing them, once."""
        packing = quantizer.packing
        if self.magnitudes.few:  # they share a chunk with those of other tensors
            return 1.0
        if packing.name not in self._over_entropy:
            codes = quantizer.codes(self._rest)
            packed = [pack_codes(codes[lo : lo + PIECE], packing) for lo in range(0, len(codes), PIECE)]
            entropy = max(quantizer.bits * len(codes) / 8, 1.0)
            self._over_entropy[packing.name] = sum(len(compress(p).data) for p in packed) / entropy
        return self._over_entropy[packing.name]


ZERO: Final = Quantizer(TERNARY, 1.0, 0.5, np.float32(0), np.float32(0), 0.0, 0.0)


class DirectionSearch:
    """The search for one direction.

    Args:
        read: elements of the direction, float32.
        shape: of the tensor.
        sample: pieces to measure on.
        others: per sampled piece, the sum of the other directions times their coefficients.
        coefficient: at the last observed step.
        quality: what was asked.
        share: of the rule's extra error that this direction and those stored before may use; 1 for the last one.
        unquantised: squared error with no direction quantised; measured with `others` if not given.
    """

    def __init__(
        self,
        read: ReadElements,
        shape: tuple[int, ...],
        sample: Sample,
        others: list[F32],
        coefficient: float,
        quality: Quality,
        share: float = 1.0,
        unquantised: float | None = None,
    ) -> None:
        self.read, self.shape, self.quality, self.share = read, shape, quality, share
        self.g = np.float32(coefficient)
        self.size = int(np.prod(shape, dtype=np.int64))
        values = [read(lo, lo + len(target)) for lo, target in zip(sample.starts, sample.targets, strict=True)]
        self.sampled = SampledWeights(sample, values, others, self.g, unquantised)
        self.remainders: list[_Remainder] = []

    @property
    def trials(self) -> int:
        """How many quantisers were evaluated so far."""
        return sum(remainder.magnitudes.trials for remainder in self.remainders)

    def run(self, whole: Weights | None = None) -> StoredDirection:
        """Return the cheapest way found that holds the rule; as float32 if none does.

        Args:
            whole: the weights on which the rule is to hold; those of the sample if not given.
        """
        weights = whole or self.sampled
        matrix = len(self.shape) >= 2 and min(self.shape[-2:]) >= SMALLEST_SIDE
        if self.quality.growth is None:
            return self._measured(FLOAT32_DIRECTION, weights)
        if self.quality.factor_rank is not None and matrix:
            rank = min(self.quality.factor_rank, max(1, min(self.shape[-2:]) // 2))
            factors = round_factors(decompose(self.read, self.shape, rank), rank, MANTISSA_ALONE)
            return self._measured(StoredDirection(factors, NONE, None), weights)
        excerpt = Excerpt.of(self.sampled, self.shape)
        if whole is None and excerpt.complete:
            weights = excerpt
        return self._search(excerpt, weights, matrix and self.size >= SMALLEST_FACTORED)

    def _search(self, excerpt: Excerpt, weights: Weights, matrix: bool) -> StoredDirection:
        rule = excerpt.rule(self.quality, self.share)
        final = rule if weights is excerpt else weights.rule(self.quality, self.share)
        energy = squared_norm(excerpt.values)
        scale = float(self.g) ** 2
        most = LARGEST_LOSS * energy / excerpt.count
        bound = min(rule.room / scale / excerpt.count if scale > 0 else np.inf, most)
        pairs, ranks = self._likely_ranks(bound) if matrix and bound > 0 else (None, [0])
        options: list[tuple[_Found, _Remainder]] = []
        for rank in ranks:
            factors = round_factors(pairs, rank, MANTISSA) if pairs is not None and rank else None
            remainder = self._remainder(factors, excerpt)
            found = self._in_excerpt(remainder, excerpt, rule, bound, most)
            if found is not None:
                options.append((found, remainder))
        cheapest = min(options, key=lambda option: option[0][0], default=None)
        if pairs is not None:
            limit = cheapest[0][0] if cheapest else np.inf
            alone = self._factors_alone(pairs, limit, excerpt, rule, weights, final, energy)
            if alone is not None:
                return alone
        if cheapest is None:
            return self._measured(FLOAT32_DIRECTION, weights)
        tuned, remainder = cheapest
        if weights is excerpt:
            return tuned[2]
        top = min(RELAXATION * bound, most)
        stored = self._on_all(remainder, tuned[2], weights, final, top)
        if stored is None:  # the excerpt knows too little of the tensor: from the start, on all of it
            again = self._tuned(remainder, weights, final, bound, most, 0.5)
            stored = again[2] if again else self._measured(FLOAT32_DIRECTION, weights)
        return stored

    def _on_all(
        self, remainder: _Remainder, found: StoredDirection, weights: Weights, rule: Rule, top: float
    ) -> StoredDirection | None:
        """Return what was found in an excerpt with the width at which all weights just hold the rule, if there is one.

        Args:
            top: the largest mean squared error of the direction that is allowed.
        """
        quantizer = found.quantizer
        if quantizer is None or not quantizer.scale:
            error = weights.error(found)
            return _with_errors(found, rule, error) if rule.holds(error) else None
        best: StoredDirection | None = None
        low, high = (0.0, 0.0), (np.inf, np.inf)
        at, most = 1.0, max(top / quantizer.error, 1.0)  # squares of widths, with which errors grow
        for trial in range(FAILURES):
            width = quantizer.width * float(np.sqrt(at))
            changed = remainder.magnitudes.evaluate(quantizer.packing, width, quantizer.bias)
            if changed is None:
                break
            stored = StoredDirection(found.factors, found.packing, changed)
            error = weights.error(stored)
            used = rule.used(error)
            if rule.holds(error):
                best, low = _with_errors(stored, rule, error), (at, used)
            else:
                high = (at, used)
            near = low[1] * NEAR >= rule.room or low[0] >= most or high[0] < low[0] * 1.02
            if best is not None and (near or trial + 1 >= ON_ALL):
                break
            at = min(_next(low, high, at, used, AIM * rule.room), most)
        return best

    def _remainder(self, factors: Factors | None, excerpt: Excerpt) -> _Remainder:
        self.remainders.append(_Remainder(factors, excerpt.rest(factors), self.size))
        return self.remainders[-1]

    def _in_excerpt(
        self, remainder: _Remainder, excerpt: Excerpt, rule: Rule, bound: float, most: float
    ) -> _Found | None:
        """Return the cheapest quantiser found that holds the rule in the excerpt."""
        if remainder.magnitudes.few and bound > 0 and remainder.magnitudes.energy > bound * excerpt.count:
            found = self._measured_together(remainder, excerpt, rule, bound, min(RELAXATION * bound, most))
            if found is not None:
                return found
        tuned = self._tuned(remainder, excerpt, rule, bound, most, 1.0)
        return tuned and self._descended(remainder, excerpt, rule, tuned)

    def _measured_together(
        self, remainder: _Remainder, excerpt: Excerpt, rule: Rule, bound: float, most: float
    ) -> _Found | None:
        """The same where elements are few: some dozen quantisers are measured at once, then those around the best."""
        best: tuple[Quantizer, float] | None = None
        chosen = remainder.magnitudes.candidates(bound, most)
        for left in range(ROUNDS - 1, -1, -1):
            errors = excerpt.errors(remainder.factors, chosen) if len(chosen) else []
            cheapest = next((i for i, error in enumerate(errors) if rule.holds(error)), None)
            if cheapest is None:
                break
            best = chosen[cheapest], errors[cheapest]
            if left:
                chosen = remainder.magnitudes.neighbours(best[0], most)
        if best is None:
            return None
        stored = StoredDirection(remainder.factors, best[0].packing, best[0])
        return remainder.bytes_of(best[0]), 1.0, _with_errors(stored, rule, best[1])

    def _tuned(
        self, remainder: _Remainder, weights: Weights, rule: Rule, bound: float, most: float, relax: float
    ) -> _Found | None:
        """Move the bound to where the rule is just held; return (bytes, how far it was moved, how).

        The error that is used grows nearly in proportion with the bound, so that a secant finds the place in two or
        three trials. None where no quantiser holds the rule.
        """
        best: _Found | None = None
        low, high = (0.0, 0.0), (np.inf, np.inf)  # bound and what it uses: where the rule is held, and where not
        top = min(RELAXATION, most / bound) if bound > 0 else RELAXATION
        relax, trial = min(relax, top), 0
        while trial < (TRIALS if best else FAILURES):
            trial += 1
            found = remainder.cheapest(bound * relax)
            if found is None:
                break  # below what 16-bit codes can hold: float32 it is
            cost, stored = found
            error = weights.error(stored)
            used = rule.used(error)
            if rule.holds(error):
                low = (relax, used)
                if best is None or cost < best[0]:
                    best = cost, relax, _with_errors(stored, rule, error)
                if relax >= top or used * NEAR >= rule.room:
                    break
            else:
                high = (relax, used)
            relax = min(_next(low, high, relax, used, AIM * rule.room), top)
            if high[0] < low[0] * 1.002:
                break
        return best

    def _descended(self, remainder: _Remainder, weights: Weights, rule: Rule, best: _Found) -> _Found:
        """Improve what was found by the error of the weights: the width of the zone of 0 against that of the levels.

        The bound on the direction's error does not know that small changes are rounded away in the weights, where they
        only cost bits. So at somewhat fewer bits several biases are tried, as long as one of them holds the rule.
        """
        for less in (0.04, 0.04, 0.02, 0.02, 0.01, 0.005):
            quantizer = best[2].quantizer
            if quantizer is None or quantizer.scale == 0 or quantizer.packing is WORD:
                return best
            for other in remainder.magnitudes.with_bits(quantizer, quantizer.bits * (1 - less)):
                stored = StoredDirection(remainder.factors, other.packing, other)
                error = weights.error(stored)
                if rule.holds(error):
                    cost = best[0] - (quantizer.bits - other.bits) * self.size / 8
                    best = cost, best[1], _with_errors(stored, rule, error)
                    break
        return best

    def _likely_ranks(self, bound: float) -> tuple[Factors | None, list[int]]:
        """Return the first pairs of the direction, and one or two ranks with which it is estimated to be cheapest.

        Estimated on a few thousand elements: their entropy. It cannot be told from the singular values, as what is left
        is distributed in another way: weights that moved by one unit of rounding are clusters in the direction alone.
        """
        ranks = [r for r in RANKS if r <= min(self.shape[-2:]) // 6]
        if not ranks:
            return None, [0]
        sketch = Excerpt.of(self.sampled, self.shape, SKETCH)
        m, n = self.shape[-2:]
        first = ranks if m * n <= FULL_SVD else [r for r in ranks if r <= FIRST_RANKS]
        pairs = decompose(self.read, self.shape, first[-1])
        costs: list[tuple[float, int]] = []
        for rank in (0, *ranks):
            if rank > first[-1] and rank == ranks[len(first)]:
                if not self._more_ranks(pairs, costs, ranks):
                    break
                pairs = decompose(self.read, self.shape, ranks[-1])
            factors = round_factors(pairs, rank, MANTISSA) if rank else None
            bits = self._remainder(factors, sketch).magnitudes.least_bits(bound)
            costs.append((factor_bytes(factors) + bits * self.size / 8, rank))
            if rank >= FIRST_RANKS and costs[-1][0] > CONVEX * min(costs)[0]:
                break
        costs.sort()
        return pairs, [rank for cost, rank in costs[:2] if cost <= RANK_MARGIN * costs[0][0]]

    def _more_ranks(self, pairs: Factors, costs: list[tuple[float, int]], ranks: list[int]) -> bool:
        """Whether more than the first ranks could be worth it, with a remainder or alone.

        A further pair explains no more than the last one known does, which bounds what more of them can explain.
        """
        if min(costs)[1] == costs[-1][1] or costs[-1][0] < RANK_MARGIN * min(costs)[0]:
            return True
        explained = explained_by_rank(pairs)
        each, number = factor_bytes(pairs) / costs[-1][1], costs[-1][1]
        worth = [r for r in ranks if r * each * 0.8 < min(costs)[0]]
        known, last = explained[number], explained[number] - explained[number - 1]
        return bool(worth) and known + (worth[-1] - number) * last >= (1 - LARGEST_LOSS) * self._energy()

    def _energy(self) -> float:
        pieces = range(0, self.size, PIECE)
        return sum(squared_norm(self.read(lo, min(lo + PIECE, self.size))) for lo in pieces) or 1.0

    def _factors_alone(
        self, pairs: Factors, limit: float, excerpt: Excerpt, rule: Rule, weights: Weights, final: Rule, energy: float
    ) -> StoredDirection | None:
        """Return the fewest factors that hold the rule without a remainder, if they are cheaper than `limit` bytes.

        What factors leave out of a direction is to a large part the rounding of the checkpoints, which is no loss.
        """
        explained, whole = explained_by_rank(pairs), self._energy()
        for rank in (r for r in RANKS if r < len(explained)):
            if 1 - explained[rank] / whole > 1.1 * LARGEST_LOSS:
                continue
            factors = round_factors(pairs, rank, MANTISSA_ALONE)
            if factor_bytes(factors) >= limit:
                return None
            stored = StoredDirection(factors, NONE, None)
            error = excerpt.error(stored)
            if error > NEARLY * rule.allowed or squared_norm(excerpt.rest(factors)) > LARGEST_LOSS * energy:
                continue
            if weights is not excerpt:
                error = weights.error(stored)
            if final.holds(error):
                return _with_errors(stored, final, error)
        return None

    def _measured(self, stored: StoredDirection, weights: Weights) -> StoredDirection:
        return _with_errors(stored, weights.rule(self.quality, self.share), weights.error(stored))


def _with_errors(stored: StoredDirection, rule: Rule, error: float) -> StoredDirection:
    line, kept = rule.relative(rule.unquantised), rule.relative(error)
    return StoredDirection(stored.factors, stored.packing, stored.quantizer, line, kept)


def _next(low: tuple[float, float], high: tuple[float, float], relax: float, used: float, wanted: float) -> float:
    """Return where the bound is tried next: between what held and what did not, by the error that both use."""
    if low[0] and np.isfinite(high[0]):
        slope = (high[1] - low[1]) / (high[0] - low[0])
        at = low[0] + (wanted - low[1]) / slope if slope > 0 else 0.0
        margin = 0.05 * (high[0] - low[0])
        return float(min(max(at, low[0] + margin), high[0] - margin))
    ratio = wanted / used if used > 0 else np.inf
    return float(relax * min(max(ratio, 1.02), RELAXATION) if low[0] else relax * min(max(ratio, 0.2), 0.97))
