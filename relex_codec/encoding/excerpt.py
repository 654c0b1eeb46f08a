"""The elements of a tensor that a search works on: all of a small one, few of a large one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import F32, from_float32, to_float32
from relex_codec.format.factors import Factors
from relex_codec.kernels.reference import factor_sum

from .delta_sums import working_array
from .large_direction import decoded_over
from .quality import Quality
from .quantizer import Chosen
from .stored_direction import StoredDirection
from .weight_error import Rule, SampledWeights, squared_distance, squared_miss

LIMIT: Final = 1 << 16
"""Elements of an excerpt. With so many the bits of a quantiser are known to a few thousandths; what must be exact, the
error of the weights, is measured on all elements in the end."""


class Excerpt:
    """Elements at even distances in the pieces of a sample, flat.

    Args:
        sampled: the pieces.
        shape: of the tensor.
        distance: of the elements; 1 for all.

    Attributes:
        values: of the direction, float32 [count].
        count: number of elements.
        complete: whether all elements of the sample are in it.
    """

    def __init__(self, sampled: SampledWeights, shape: tuple[int, ...], distance: int) -> None:
        def some(pieces: Sequence[F32]) -> F32:
            chosen = [piece[::distance] if distance == 1 else piece[::distance].copy() for piece in pieces]
            return np.ascontiguousarray(chosen[0]) if len(chosen) == 1 else np.concatenate(chosen)

        sample = sampled.sample
        self._dtype, self._shape, self._g = sample.dtype, shape, sampled.g
        self._origin, self._target, self._other = some(sample.origins), some(sample.targets), some(sampled.others)
        self.values = some(sampled.values)
        self.count, self.complete = len(self.values), distance == 1
        large = not self.complete and not self._other.any()
        self._bits = from_float32(self._target, sample.dtype) if large else None
        """Of the targets, where the error is measured by what is compiled: of a large tensor with one direction."""
        self._spans = sample.spans
        self._distance, self._sampled = distance, sampled
        self._sums: tuple[Factors | None, F32 | None] = (None, None)

    @classmethod
    def of(cls, sampled: SampledWeights, shape: tuple[int, ...], limit: int = LIMIT) -> Excerpt:
        """Return an excerpt of at most `limit` elements, or of all where they are fewer.

        The distance of its elements shares no factor with the width of the rows, so that all columns occur.
        """
        distance = -(-sum(hi - lo for lo, hi in sampled.sample.spans) // limit)
        while distance > 1 and np.gcd(distance, shape[-1]) > 1:
            distance += 1
        return cls(sampled, shape, distance)

    def rule(self, quality: Quality, share: float) -> Rule:
        """What these weights allow."""
        if self.complete:
            return self._sampled.rule(quality, share)
        before = self._error(self.values)
        unquantised = self._sampled.unquantised
        if unquantised is not None:  # known for the whole sample only, where other directions are stored already
            all_before = self._sampled.before()
            unquantised *= before / all_before if all_before > 0 else 1.0
        return Rule.of(squared_distance(self._origin, self._target), before, unquantised, quality, share)

    def error(self, stored: StoredDirection) -> float:
        """Squared error with the direction stored so."""
        sums = self._factor_sums(stored.factors)
        if self._bits is None:
            return self._error(stored.decoded_with(self.values, sums))
        from .loops.weights import STRIP, squared_miss_of  # numba is only needed here
        from .loops.widening import KINDS

        out = np.zeros(self.count, np.float32) if sums is None else sums.copy()
        values, strips = decoded_over(stored, self.values, out), working_array("strips", (3, STRIP), np.float32)
        origin = self._origin.view(np.uint32)
        return squared_miss_of(origin, KINDS["F32"], self._bits, KINDS[self._dtype], values, self._g, strips)

    def errors(self, factors: Factors | None, chosen: Chosen) -> list[float]:
        """Return the squared errors with several quantisers for what factors leave: for few elements."""
        sums, values = self._factor_sums(factors), chosen.values(self.rest(factors))
        if sums is not None:
            values += sums
        with np.errstate(over="ignore", invalid="ignore"):
            weights = self._origin + (self._other + values * self._g)
            miss = to_float32(from_float32(weights, self._dtype), self._dtype) - self._target.astype(np.float64)
            errors = np.einsum("ij,ij->i", miss, miss)
            if np.isnan(errors).any():
                miss[np.isnan(miss)] = 0  # the same infinity or NaN on both sides
                errors = np.einsum("ij,ij->i", miss, miss)
        found: list[float] = errors.tolist()
        return found

    def rest(self, factors: Factors | None) -> F32:
        """Return what factors leave of the direction."""
        sums = self._factor_sums(factors)
        return self.values if sums is None else self.values - sums

    def _error(self, values: F32) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return squared_miss(self._origin, self._target, self._other + values * self._g, self._dtype)

    def _factor_sums(self, factors: Factors | None) -> F32 | None:
        if factors is not self._sums[0]:
            self._sums = factors, None if factors is None else self._summed(factors)
        return self._sums[1]

    def _summed(self, factors: Factors) -> F32:
        """The sum of factors at the elements, in the order and with the rounding of every decoder."""
        if self.complete:
            return np.concatenate([factor_sum(factors, lo, hi) for lo, hi in self._spans])
        m, n = self._shape[-2:]
        at = np.concatenate([np.arange(lo, hi, self._distance) for lo, hi in self._spans])
        matrix, at = np.divmod(at, m * n)
        row, column = np.divmod(at, n)
        a, b = _rows(factors.a), _rows(factors.b)
        total = np.zeros(self.count, np.float32)
        for j in range(factors.a.shape[1]):
            total += a[j].take(matrix * m + row) * b[j].take(matrix * n + column)
        return total


def _rows(factor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[H, r, x] to contiguous [r, H * x]."""
    return np.ascontiguousarray(factor.transpose(1, 0, 2)).reshape(factor.shape[1], -1)
