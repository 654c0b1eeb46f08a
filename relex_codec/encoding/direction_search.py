"""Choosing how one direction is stored: factor rank, packing, scale and shift under the quality rule.

The rule: the weights decoded at the last observed step, rounded to the checkpoint's dtype, may miss the checkpoint by
at most ``1 + growth`` times what they miss it by when the direction is not quantised. Both are measured by decoding:

    error of a direction p = sum over the weights of (round(w0 + others + p * g) - w)^2

A `DirectionSearch` works on an excerpt of the tensor: it compares factor ranks by the entropy of what they leave, takes
the cheapest quantiser under a bound on the direction's own error, and moves that bound until the rule is just held
there. Where the excerpt is not all that the rule is measured on, the width of the quantiser is then moved until it is
held on all of it, mostly in two or three steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from relex_codec.core.dtypes import F32
from relex_codec.format.constants import NONE, PIECE
from relex_codec.format.factors import Factors

from .excerpt import Excerpt
from .low_rank import FULL_SVD, ReadElements, decompose, explained_by_rank, round_factors
from .quality import Quality
from .remainder import Remainder
from .stored_direction import FLOAT32_DIRECTION, StoredDirection, factor_bytes
from .tuning import RELAXATION, Found, move_bound, tune_in_excerpt, tune_width, with_errors
from .weight_error import ReadPieces, Rule, Sample, SampledWeights, Weights, squared_norm

RANKS: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
"""Factor ranks that are tried beside none."""
FIRST_RANKS: Final = 8
"""Ranks up to this one are looked at first, more only where they could be worth it: decomposing costs by the rank."""
SMALLEST_SIDE: Final = 8
"""Matrices with a shorter side get no factors: they would cost as much as the matrix."""
SMALLEST_FACTORED: Final = 128
"""Tensors of fewer elements get none either, unless asked for: they could save a dozen bytes."""
FEW_FACTORED: Final = 512
FEW_EXPLAINED: Final = 0.5
"""Of tensors of at most so many elements ranks are compared only where one pair explains such a share."""
MANTISSA: Final = 2
"""Mantissa bits of factors that a remainder corrects."""
MANTISSA_ALONE: Final = 3
"""Mantissa bits of factors without a remainder."""
LARGEST_LOSS: Final = 0.25
"""Share of its squared norm that a direction may lose at most, whatever the rule allows: rounding hides small
coefficients at the last observed step, but an extrapolated step multiplies the direction by more."""
SAMPLE_PIECES: Final = 4
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
        others: Sequence[F32],
        coefficient: float,
        quality: Quality,
        share: float = 1.0,
        unquantised: float | None = None,
    ) -> None:
        self.read, self.shape, self.quality, self.share = read, shape, quality, share
        self.g = np.float32(coefficient)
        self.size = int(np.prod(shape, dtype=np.int64))
        values = ReadPieces(sample.spans, read)
        self.sampled = SampledWeights(sample, values, others, self.g, unquantised)
        self.remainders: list[Remainder] = []

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
        options: list[tuple[Found, Remainder]] = []
        for rank in ranks:
            factors = round_factors(pairs, rank, MANTISSA) if pairs is not None and rank else None
            remainder = self._remainder(factors, excerpt)
            found = tune_in_excerpt(remainder, excerpt, rule, bound, most)
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
        stored = tune_width(remainder, tuned[2], weights, final, top)
        if stored is None:  # the excerpt knows too little of the tensor: from the start, on all of it
            again = move_bound(remainder, weights, final, bound, most, 0.5)
            stored = again[2] if again else self._measured(FLOAT32_DIRECTION, weights)
        return stored

    def _remainder(self, factors: Factors | None, excerpt: Excerpt) -> Remainder:
        self.remainders.append(Remainder(factors, excerpt.rest(factors), self.size))
        return self.remainders[-1]

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
        if self.size <= FEW_FACTORED and explained_by_rank(pairs)[1] < FEW_EXPLAINED * self._energy():
            return None, [0]
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
                return with_errors(stored, final, error)
        return None

    def _measured(self, stored: StoredDirection, weights: Weights) -> StoredDirection:
        return with_errors(stored, weights.rule(self.quality, self.share), weights.error(stored))
