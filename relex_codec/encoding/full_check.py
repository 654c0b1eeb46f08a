"""Measuring the quality rule on all of a tensor that the search sees only an excerpt of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from relex_codec.core.dtypes import F32, Bits, to_float32
from relex_codec.core.threads import parallel_map
from relex_codec.format.constants import PIECE

from .fit import F64
from .quality import Quality
from .stored_direction import StoredDirection
from .tensor_history import TensorHistory, Vectors
from .weight_error import DECODED, Rule, squared_distance, squared_miss

BATCH: Final = 8
"""Pieces in memory at a time."""
_Measure = Callable[[int, F32, F32, F32], F64]
"""Squared errors of a block: of its first element, origins, targets and values of the direction."""


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

        def measure(start: int, origin: F32, target: F32, values: F32) -> F64:
            return np.array([squared_distance(origin, target), self._miss(origin, target, values)])

        delta, before = self._sum(measure)
        return Rule.of(float(delta), float(before), None, quality, share)

    def error(self, stored: StoredDirection) -> float:
        """Squared error with the direction stored so."""

        def measure(start: int, origin: F32, target: F32, values: F32) -> F64:
            return np.array([self._miss(origin, target, stored.decoded(values, start))])

        return float(self._sum(measure)[0])

    def _miss(self, origin: F32, target: F32, values: F32) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return squared_miss(origin, target, values * self._g, self._history.info.dtype)

    def _sum(self, measure: _Measure) -> F64:
        """Sum over the tensor, block by block in the same order whatever the number of threads."""
        dtype, origin_dtype = self._history.info.dtype, self._history.origin.dtype

        def of_piece(piece: tuple[int, Bits, Bits, F32]) -> F64:
            start, origin, target, values = piece
            total = np.zeros(1)
            for lo in range(0, len(values), DECODED):
                part = slice(lo, lo + DECODED)
                floats = to_float32(origin[part], origin_dtype), to_float32(target[part], dtype)
                total = total + measure(start + lo, *floats, values[part])
            return total

        total = np.zeros(1)
        for pieces in self._batches():
            for of_one in parallel_map(of_piece, pieces):
                total = total + of_one
        return total

    def _batches(self) -> Iterator[list[tuple[int, Bits, Bits, F32]]]:
        info, history = self._history.info, self._history
        pieces: list[tuple[int, Bits, Bits, F32]] = []
        for lo in range(0, info.size, PIECE):
            hi = min(lo + PIECE, info.size)
            bits = history.origin.read(lo, hi), history.at_last_observed(lo, hi)
            pieces.append((lo, *bits, self._vectors.read(0, lo, hi)))
            if len(pieces) == BATCH:
                yield pieces
                pieces = []
        yield pieces
