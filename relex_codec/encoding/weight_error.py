"""The error of decoded weights: what the quality rule is about, measured on some pieces of a tensor or on all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, overload

import numpy as np

from relex_codec.core.dtypes import F32, from_float32, to_float32
from relex_codec.core.threads import parallel_map

from .quality import Quality
from .stored_direction import StoredDirection

ERROR_FLOOR: Final = 1e-4
"""Share of the squared delta that counts as the unquantised error where that is smaller: at the rank-1 limit (one
observed step, say) it is 0, and no growth of 0 can be asked for."""
BLOCK: Final = 1 << 13
"""Elements that are worked on at a time: their arrays stay in the second-level cache, and sums of so few are not spread
over threads by BLAS, which would make the last digits depend on the number of threads."""
DECODED: Final = 1 << 15
"""Elements that are decoded at a time; more, as the sum of factors begins and ends with whole rows."""


class ReadPieces(Sequence[F32]):
    """Pieces that are read whenever they are asked for, where all of them would take much memory.

    Args:
        spans: first element of each piece, and the one after its last.
        read: gives elements, float32.
    """

    def __init__(self, spans: Sequence[tuple[int, int]], read: Callable[[int, int], F32]) -> None:
        self.spans, self._read = spans, read

    def __len__(self) -> int:
        return len(self.spans)

    @overload
    def __getitem__(self, i: int) -> F32: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[F32]: ...
    def __getitem__(self, i: int | slice) -> F32 | Sequence[F32]:
        return ReadPieces(self.spans[i], self._read) if isinstance(i, slice) else self._read(*self.spans[i])


@dataclass(frozen=True, slots=True)
class Sample:
    """Pieces of a tensor, at its origin and at the last observed step.

    Attributes:
        starts: first element of each piece.
        origins: float32 W0 of each piece.
        targets: float32 weights of the last observed step.
        dtype: the checkpoint's.
    """

    starts: list[int]
    origins: Sequence[F32]
    targets: Sequence[F32]
    dtype: str

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First element of each piece, and the one after its last."""
        if isinstance(self.targets, ReadPieces):
            return list(self.targets.spans)
        return [(start, start + len(target)) for start, target in zip(self.starts, self.targets, strict=True)]

    def error(self, products: Sequence[F32]) -> float:
        """Squared error of decoding with the sum of directions times coefficients `products`, one array a piece."""
        pairs = zip(self.origins, self.targets, products, strict=True)
        return sum(squared_miss(origin, target, product, self.dtype) for origin, target, product in pairs)

    def error_of(self, values: Sequence[F32]) -> float:
        """Squared distance of `values` from the targets; non-finite elements do not count."""
        return sum(squared_distance(value, target) for value, target in zip(values, self.targets, strict=True))


def squared_miss(origin: F32, target: F32, product: F32, dtype: str) -> float:
    """Squared error of the weights ``origin + product``, rounded to `dtype`, against `target`."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for lo in range(0, len(target), BLOCK):
            part = slice(lo, lo + BLOCK)
            decoded = to_float32(from_float32(origin[part] + product[part], dtype), dtype)
            miss = np.subtract(decoded, target[part], dtype=np.float64)
            square = float(miss @ miss)
            if np.isnan(square):  # the same infinity or NaN on both sides
                miss[np.isnan(miss)] = 0
                square = float(miss @ miss)
            total += square
    return total


def squared_distance(value: F32, target: F32) -> float:
    """Squared distance of two arrays; non-finite elements do not count."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for lo in range(0, len(target), BLOCK):
            miss = np.subtract(value[lo : lo + BLOCK], target[lo : lo + BLOCK], dtype=np.float64)
            square = float(miss @ miss)
            if not np.isfinite(square):
                miss = miss[np.isfinite(miss)]
                square = float(miss @ miss)
            total += square
    return total


def squared_norm(value: F32) -> float:
    """Sum of squares, in float64."""
    total = 0.0
    for lo in range(0, len(value), BLOCK):
        wide = value[lo : lo + BLOCK].astype(np.float64)
        total += float(wide @ wide)
    return total


@dataclass(frozen=True, slots=True)
class Rule:
    """The quality rule in numbers, squared errors of the weights all of them.

    Attributes:
        delta: squared norm of the last observed delta.
        before: error with this direction as it is; others are stored or as they are.
        unquantised: error with no direction quantised.
        allowed: error that the rule allows.
    """

    delta: float
    before: float
    unquantised: float
    allowed: float

    @classmethod
    def of(cls, delta: float, before: float, unquantised: float | None, quality: Quality, share: float) -> Rule:
        """Return the rule for a direction that may use `share` of the extra error, together with those before it."""
        unquantised = before if unquantised is None else unquantised
        growth = ((1 + (quality.growth or 0.0)) ** 2 - 1) * share
        return cls(delta, before, unquantised, max(unquantised, ERROR_FLOOR * delta) * (1 + growth))

    @property
    def _floor(self) -> float:
        return max(self.before, ERROR_FLOOR * self.delta)

    @property
    def room(self) -> float:
        """How much error quantising this direction may add."""
        return self.allowed - self._floor

    def used(self, error: float) -> float:
        """How much of the room is used where the weights have this error."""
        return max(error - self._floor, 0.0)

    def holds(self, error: float) -> bool:
        """Whether so large an error is allowed."""
        return error <= self.allowed * (1 + 1e-9)

    def relative(self, error: float) -> float:
        """An error as it is recorded: of the norm of the delta."""
        return float(np.sqrt(error / (self.delta or 1.0)))


class Weights(Protocol):
    """Weights on which a direction is measured."""

    def rule(self, quality: Quality, share: float) -> Rule:
        """What these weights allow."""

    def error(self, stored: StoredDirection) -> float:
        """Squared error with the direction stored so."""


class SampledWeights:
    """The pieces of a `Sample` as weights.

    Args:
        sample: origins and targets.
        values: elements of the direction, per piece.
        others: per piece, the sum of the other directions times their coefficients.
        g: coefficient of the direction.
        unquantised: squared error with no direction quantised; measured with `others` if not given.
    """

    def __init__(
        self, sample: Sample, values: Sequence[F32], others: Sequence[F32], g: np.float32, unquantised: float | None
    ) -> None:
        self.sample, self.values, self.others, self.g, self.unquantised = sample, values, others, g, unquantised

    def rule(self, quality: Quality, share: float) -> Rule:
        """What these weights allow."""
        return Rule.of(self.sample.error_of(self.sample.origins), self.before(), self.unquantised, quality, share)

    def before(self) -> float:
        """Squared error with the direction as it is."""
        return self._error(self.values)

    def error(self, stored: StoredDirection) -> float:
        """Squared error with the direction stored so."""
        sample = self.sample

        def of_piece(i: int) -> float:
            total = 0.0
            for lo in range(0, len(self.values[i]), DECODED):
                part = slice(lo, lo + DECODED)
                product = stored.decoded(self.values[i][part], sample.starts[i] + lo) * self.g
                product += self.others[i][part]
                total += squared_miss(sample.origins[i][part], sample.targets[i][part], product, sample.dtype)
            return total

        with np.errstate(over="ignore", invalid="ignore"):
            return sum(parallel_map(of_piece, range(len(self.values))))

    def _error(self, values: Sequence[F32]) -> float:
        return self.sample.error([other + v * self.g for other, v in zip(self.others, values, strict=True)])
