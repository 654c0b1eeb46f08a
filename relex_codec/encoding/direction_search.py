"""Choosing how one direction is stored: factor rank, packing, scale and shift under the quality rule.

The rule: the weights decoded at the last observed step, rounded to the checkpoint's dtype, may miss the checkpoint by
at most ``1 + growth`` times what they miss it by when the direction is not quantised. Both are measured by decoding:

    error of a direction p = sum over the sample of (round(w0 + others + p * g) - w)^2

A `DirectionSearch` estimates which factor ranks are worth it from the entropy of the remainder, tries quantisers for
these under a bound on the direction's own error, and moves that bound until the rule is just held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from relex_codec.core.dtypes import F32, Bits, Bytes, from_float32, to_float32
from relex_codec.format.chunks import compress
from relex_codec.format.constants import FLOAT32, NONE, PIECE, TERNARY, WORD, Packing
from relex_codec.format.factors import Factors, stream
from relex_codec.format.packing import pack_codes, split_planes, to_planes
from relex_codec.kernels.interface import PackedDirection
from relex_codec.kernels.reference import direction_piece, factor_sum

from .low_rank import ReadElements, decompose, round_factors
from .quality import Quality
from .quantizer import Magnitudes, Quantizer, cheapest_quantizers

RANKS: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
"""Factor ranks that are tried beside none."""
SMALLEST_SIDE: Final = 8
"""Matrices with a shorter side get no factors: they would cost as much as the matrix."""
MANTISSA: Final = 2
"""Mantissa bits of factors that a remainder corrects."""
MANTISSA_ALONE: Final = 3
"""Mantissa bits of factors without a remainder."""
ERROR_FLOOR: Final = 1e-4
"""Share of the squared delta that counts as the unquantised error where that is smaller: at the rank-1 limit (one
observed step, say) it is 0, and no growth of 0 can be asked for."""
LARGEST_LOSS: Final = 0.25
"""Share of its squared norm that a direction may lose at most, whatever the rule allows: rounding hides small
coefficients at the last observed step, but an extrapolated step multiplies the direction by more."""
RELAXATION: Final = 4.0
"""How far the bound on the direction's own error may be relaxed while the measured weight error holds the rule."""
SAMPLE_PIECES: Final = 4
TRIALS: Final = 6


@dataclass(frozen=True, slots=True)
class Sample:
    """The pieces of a tensor on which the search measures; all of them where there are at most ``SAMPLE_PIECES``.

    Attributes:
        starts: first element of each piece.
        origins: float32 W0 of each piece.
        targets: float32 weights of the last observed step.
        dtype: the checkpoint's.
    """

    starts: list[int]
    origins: list[F32]
    targets: list[F32]
    dtype: str

    def error(self, products: Sequence[F32]) -> float:
        """Squared error of decoding with the sum of directions times coefficients `products`, one array a piece."""
        total = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for origin, target, product in zip(self.origins, self.targets, products, strict=True):
                decoded = to_float32(from_float32(origin + product, self.dtype), self.dtype)
                miss = (decoded - target).astype(np.float64)
                miss[np.isnan(miss)] = 0  # the same infinity or NaN on both sides
                total += float(miss @ miss)
        return total

    def error_of(self, values: Sequence[F32]) -> float:
        """Squared distance of `values` from the targets; non-finite elements do not count."""
        total = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for value, target in zip(values, self.targets, strict=True):
                miss = (value - target).astype(np.float64)
                miss = miss[np.isfinite(miss)]
                total += float(miss @ miss)
        return total


def sample_starts(energies: Sequence[float]) -> list[int]:
    """Return the first elements of the pieces to sample: evenly spread over the pieces ordered by energy.

    The one that moved most is among them, as training may move few rows of a large tensor (those of an embedding whose
    tokens occur).

    Args:
        energies: squared norm of the last observed delta, of each piece.
    """
    order = np.argsort(energies, kind="stable")
    at = np.unique(np.linspace(0, len(order) - 1, min(len(order), SAMPLE_PIECES)).round().astype(int))
    return sorted(int(order[i]) * PIECE for i in at)


@dataclass(frozen=True, slots=True)
class StoredDirection:
    """How a direction is stored, and what that does to the weights of the last observed step.

    Attributes:
        factors: rounded factors, or None.
        packing: of the remainder.
        quantizer: for packings 2 to 6, or None.
        error_line: relative error of the weights with the direction as it is, not quantised.
        error_stored: the same with the direction as it is stored.
    """

    factors: Factors | None
    packing: Packing
    quantizer: Quantizer | None
    error_line: float
    error_stored: float

    @property
    def rank(self) -> int:
        """Factor pairs per matrix."""
        return 0 if self.factors is None else self.factors.a.shape[1]

    @property
    def scale(self) -> np.float32:
        """Scale of the quantiser; 0 where there is none."""
        return np.float32(0) if self.quantizer is None else self.quantizer.scale

    @property
    def shift(self) -> np.float32:
        """Shift of the quantiser; 0 where there is none."""
        return np.float32(0) if self.quantizer is None else self.quantizer.shift

    def remainder_piece(self, values: F32, start: int) -> Bytes:
        """Pack the remainder of the elements `values` of the direction, which begin at element `start`: its planes
        one after another, or its blocks."""
        rest = values if self.factors is None else values - factor_sum(self.factors, start, start + len(values))
        if self.quantizer is None:
            return to_planes(rest.view(np.uint32))
        return pack_codes(self.quantizer.codes(rest), self.packing)

    def factor_pieces(self) -> list[Bytes]:
        """Return the raw bytes of the factors, plane by plane of each piece."""
        return _factor_planes(self.factors)

    def remainder_pieces(self, read: ReadElements, count: int) -> Iterator[Bytes]:
        """Yield the raw bytes of the remainder, plane by plane of each piece."""
        for lo in range(0, count, PIECE) if self.packing is not NONE else ():
            yield from self.remainder_piece(read(lo, min(lo + PIECE, count)), lo).reshape(self.packing.planes, -1)

    def decoded(self, values: F32, start: int) -> F32:
        """Return the stored direction over the elements of `values`, as every decoder will."""
        packed = self.remainder_piece(values, start) if self.packing is not NONE else np.zeros(0, np.uint8)
        direction = PackedDirection(self.factors, self.packing, packed, self.scale, self.shift)
        return direction_piece(direction, packed, start, len(values))


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
        self.read, self.shape, self.sample, self.others = read, shape, sample, others
        self.g, self.quality = np.float32(coefficient), quality
        self.values = [read(lo, lo + len(target)) for lo, target in zip(sample.starts, sample.targets, strict=True)]
        self.count = sum(map(len, self.values))
        self.size = int(np.prod(shape, dtype=np.int64))
        self.energy = sum(float(v.astype(np.float64) @ v) for v in self.values)
        self.delta = sample.error_of(sample.origins)
        self.before = self._error(self.values)
        self.unquantised = self.before if unquantised is None else unquantised
        self.allowed = max(self.unquantised, ERROR_FLOOR * self.delta) * (
            1 + ((1 + (quality.growth or 0.0)) ** 2 - 1) * share
        )

    def run(self) -> StoredDirection:
        """Return the cheapest way found that holds the rule; as float32 if none does."""
        matrix = len(self.shape) >= 2 and min(self.shape[-2:]) >= SMALLEST_SIDE
        if self.quality.growth is None:
            return self._stored(None, FLOAT32, None)
        if self.quality.factor_rank is not None and matrix:
            rank = min(self.quality.factor_rank, max(1, min(self.shape[-2:]) // 2))
            return self._stored(round_factors(decompose(self.read, self.shape, rank), rank, MANTISSA_ALONE), NONE, None)
        ranks = [r for r in RANKS if r <= min(self.shape[-2:]) // 6] if matrix else []
        pairs = decompose(self.read, self.shape, ranks[-1]) if ranks else None
        bound = self._bound()
        best: tuple[float, StoredDirection] | None = None
        for factors in self._likely(pairs, ranks, bound):
            for trial in self._trials(factors, bound):
                if best is None or trial[0] < best[0]:
                    best = trial
        if pairs is not None:
            best = self._factors_alone(pairs, ranks, best)
        return best[1] if best is not None else self._stored(None, FLOAT32, None)

    def _likely(self, pairs: Factors | None, ranks: list[int], bound: float) -> list[Factors | None]:
        """Return the factors, or None for none, with which a remainder is estimated to be cheapest: two choices."""

        def of_rank(rank: int) -> Factors | None:
            return round_factors(pairs, rank, MANTISSA) if pairs is not None and rank else None

        options: list[tuple[float, int]] = []
        for rank in (0, *ranks):
            options.append((self._estimate(of_rank(rank), bound), rank))
            if options[-1][0] > 1.2 * min(options)[0]:
                break  # the cost is nearly convex in the rank
        return [of_rank(rank) for _, rank in sorted(options)[:2]]

    def _factors_alone(
        self, pairs: Factors, ranks: list[int], best: tuple[float, StoredDirection] | None
    ) -> tuple[float, StoredDirection] | None:
        """Return `best`, or the fewest factors that hold the rule without a remainder, if they are cheaper.

        What factors leave out of a direction is to a large part the rounding of the checkpoints, which is no loss.
        """
        for rank in ranks:
            factors = round_factors(pairs, rank, MANTISSA_ALONE)
            cost = _factor_bytes(factors)
            if best is not None and cost >= best[0]:
                break
            stored = self._stored(factors, NONE, None)
            if self._allowed(stored.error_stored) and self._loss(factors) <= LARGEST_LOSS:
                return cost, stored
        return best

    def _bound(self) -> float:
        """Squared error an element of the direction by which the weights' error grows as the rule says, if additive."""
        room = self.allowed - max(self.before, ERROR_FLOOR * self.delta)
        scale = float(self.g) ** 2
        return min(room / scale if scale > 0 else np.inf, LARGEST_LOSS * self.energy) / self.count

    def _allowed(self, relative: float) -> bool:
        return relative**2 * self.delta <= self.allowed * (1 + 1e-9)

    def _loss(self, factors: Factors | None) -> float:
        rest = self._rest(factors)
        return float(rest.astype(np.float64) @ rest) / self.energy if self.energy else 0.0

    def _rest(self, factors: Factors | None) -> F32:
        if factors is None:
            return np.concatenate(self.values)
        starts = self.sample.starts
        return np.concatenate(
            [v - factor_sum(factors, lo, lo + len(v)) for v, lo in zip(self.values, starts, strict=True)]
        )

    def _estimate(self, factors: Factors | None, bound: float) -> float:
        """Bytes by entropy, infinite where no quantiser holds the bound."""
        bits = [q.bits for q in cheapest_quantizers(Magnitudes(self._rest(factors)), bound)]
        return _factor_bytes(factors) + (min(bits) * self.size / 8 if bits else np.inf)

    def _trials(self, factors: Factors | None, bound: float) -> Iterator[tuple[float, StoredDirection]]:
        """Yield (bytes, how) of trials that hold the rule, moving the bound to where the rule is just held."""
        magnitudes = Magnitudes(self._rest(factors))
        relax, held, trial = 1.0, False, 0
        while trial < TRIALS or not (held or trial > 4 * TRIALS):
            trial += 1
            found = self._cheapest(factors, magnitudes, min(bound * relax, LARGEST_LOSS * self.energy / self.count))
            if found is None:
                return  # below what 16-bit codes can hold: float32 it is
            cost, stored = found
            used = max(stored.error_stored**2 * self.delta - max(self.before, ERROR_FLOOR * self.delta), 0.0)
            room = bound * self.count * float(self.g) ** 2
            ratio = room / used if used > 0 else np.inf
            if self._allowed(stored.error_stored):
                held = True
                yield cost, stored
                if relax >= RELAXATION or ratio < 1.02:
                    return
                relax = min(relax * min(max(ratio, 1.05), 1.5), RELAXATION)
            else:
                relax *= min(max(ratio, 0.5), 0.95)

    def _cheapest(
        self, factors: Factors | None, magnitudes: Magnitudes, bound: float
    ) -> tuple[float, StoredDirection] | None:
        """Measure the packings whose entropy comes close to the best, in real bytes of the sample."""
        if magnitudes.energy == 0 or magnitudes.energy <= bound * self.count * 1e-6:
            zero = Quantizer(TERNARY, 1.0, 0.0, np.float32(0), np.float32(0), 0.0, 0.0)
            return _factor_bytes(factors), self._stored(factors, TERNARY, zero)
        found = list(cheapest_quantizers(magnitudes, bound)) or list(cheapest_quantizers(magnitudes, bound, (WORD,)))
        if not found:
            return None
        least = min(q.bits for q in found)
        measured: list[tuple[float, int, Quantizer]] = []
        rest = self._rest(factors)
        for number, quantizer in enumerate(found):
            if quantizer.bits > least * 1.15:
                continue
            codes = quantizer.codes(rest)
            size = sum(
                len(compress(pack_codes(codes[lo : lo + PIECE], quantizer.packing)).data)
                for lo in range(0, len(codes), PIECE)
            )
            measured.append((size * self.size / self.count, number, quantizer))
        cost, _, quantizer = min(measured)
        return cost + _factor_bytes(factors), self._stored(factors, quantizer.packing, quantizer)

    def _stored(self, factors: Factors | None, packing: Packing, quantizer: Quantizer | None) -> StoredDirection:
        draft = StoredDirection(factors, packing, quantizer, 0.0, 0.0)
        decoded = [draft.decoded(v, lo) for v, lo in zip(self.values, self.sample.starts, strict=True)]
        norm = self.delta or 1.0
        line, stored = (float(np.sqrt(e / norm)) for e in (self.unquantised, self._error(decoded)))
        return StoredDirection(factors, packing, quantizer, line, stored)

    def _error(self, values: Sequence[F32]) -> float:
        return self.sample.error([other + v * self.g for other, v in zip(self.others, values, strict=True)])


def _factor_bytes(factors: Factors | None) -> int:
    return sum(len(compress(plane).data) for plane in _factor_planes(factors))


def _factor_planes(factors: Factors | None) -> list[Bytes]:
    if factors is None:
        return []
    bits = stream(factors)
    return [plane for lo in range(0, len(bits), PIECE) for plane in split_planes(bits[lo : lo + PIECE])]


def sample_from_bits(
    starts: list[int], origins: list[Bits], origin_dtype: str, targets: list[Bits], dtype: str
) -> Sample:
    """Return a `Sample` of pieces whose elements are given as bits.

    Args:
        starts: first element of each piece.
        origins: bits of each piece at the origin, in `origin_dtype`.
        targets: bits of each piece at the last observed step, in `dtype`.
    """
    return Sample(
        starts, [to_float32(b, origin_dtype) for b in origins], [to_float32(b, dtype) for b in targets], dtype
    )
