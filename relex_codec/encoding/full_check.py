"""Measuring the quality rule on all of a tensor that the search sees only an excerpt of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from relex_codec.core.dtypes import F32, Bits
from relex_codec.format.constants import PIECE

from .delta_sums import working_array
from .fit import F64
from .large_direction import decoded_values
from .quality import Quality
from .stored_direction import StoredDirection
from .tensor_history import TensorHistory, Vectors
from .weight_error import Rule


class FullCheck:
    """All pieces of a tensor with one direction as weights: those of the last observed step are decoded and compared.

    Args:
        history: of the tensor: its weights at all steps.
        vectors: its directions, not quantised.
        coefficient: of the direction at the last observed step.
    """

    def __init__(self, history: TensorHistory, vectors: Vectors, coefficient: float) -> None:
        self._history, self._vectors, self._g = history, vectors, np.float32(coefficient)

    def rule(self, quality: Quality, share: float) -> Rule:
        """What these weights allow."""
        from .loops.weights import STRIP, squared_distance_of  # numba is only needed here

        def measure(start: int, origin: Bits, target: Bits, values: F32) -> F64:
            kinds, strips = self._kinds, working_array("strips", (3, STRIP), np.float32)
            delta = squared_distance_of(origin, kinds[0], target, kinds[1], strips)
            return np.array([delta, self._miss(origin, target, values)])

        delta, before = self._sum(measure)
        return Rule.of(float(delta), float(before), None, quality, share)

    def error(self, stored: StoredDirection) -> float:
        """Squared error with the direction stored so."""

        def measure(start: int, origin: Bits, target: Bits, values: F32) -> F64:
            return np.array([self._miss(origin, target, decoded_values(stored, values, start))])

        return float(self._sum(measure)[0])

    @property
    def _kinds(self) -> tuple[int, int]:
        from .loops.widening import KINDS

        return KINDS[self._history.origin.dtype], KINDS[self._history.info.dtype]

    def _miss(self, origin: Bits, target: Bits, values: F32) -> float:
        from .loops.weights import STRIP, squared_miss_of

        strips, kinds = working_array("strips", (3, STRIP), np.float32), self._kinds
        return squared_miss_of(origin, kinds[0], target, kinds[1], values, self._g, strips)

    def _sum(self, measure: Callable[[int, Bits, Bits, F32], F64]) -> F64:
        """Sum over the tensor, piece by piece in the same order whatever the number of threads."""

        def of_piece(start: int) -> F64:
            end = min(start + PIECE, self._history.info.size)
            origin, target = self._history.at_origin(start, end), self._history.at_last_observed(start, end)
            return measure(start, origin, target, self._vectors.read(0, start, end))

        total = np.zeros(1)
        for of_one in self._history.spread(of_piece):
            total = total + of_one
        return total
