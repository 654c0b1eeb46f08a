"""Measuring the quality rule on all of a tensor that the search sees only an excerpt of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from relex_codec.core.dtypes import F32
from relex_codec.core.threads import parallel_map
from relex_codec.format.constants import PIECE

from .quality import Quality
from .stored_direction import StoredDirection
from .tensor_history import TensorHistory, Vectors
from .weight_error import Rule, Sample, sample_from_bits, squared_distance, squared_miss

BATCH: Final = 8
"""Pieces in memory at a time."""
BLOCK: Final = 1 << 15
"""Elements that are decoded at a time: they stay in the second-level cache."""


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
        delta = self._sum(lambda sample, values: squared_distance(sample.origins[0], sample.targets[0]))
        return Rule.of(delta, self._sum(self._miss), None, quality, share)

    def error(self, stored: StoredDirection) -> float:
        """Squared error with the direction stored so."""

        def miss(sample: Sample, values: F32) -> float:
            total = 0.0
            for lo in range(0, len(values), BLOCK):
                part = slice(lo, lo + BLOCK)
                block = Sample(
                    [sample.starts[0] + lo], [sample.origins[0][part]], [sample.targets[0][part]], sample.dtype
                )
                total += self._miss(block, stored.decoded(values[part], block.starts[0]))
            return total

        return self._sum(miss)

    def _miss(self, sample: Sample, values: F32) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return squared_miss(sample.origins[0], sample.targets[0], values * self._g, sample.dtype)

    def _sum(self, function: Callable[[Sample, F32], float]) -> float:
        total = 0.0
        for works in self._batches():
            for part in parallel_map(lambda work: function(*work), works):
                total += part
        return total

    def _batches(self) -> Iterator[list[tuple[Sample, F32]]]:
        info, origin = self._history.info, self._history.origin
        works: list[tuple[Sample, F32]] = []
        for lo in range(0, info.size, PIECE):
            hi = min(lo + PIECE, info.size)
            bits = [origin.read(lo, hi)], origin.dtype, [self._history.at_last_observed(lo, hi)], info.dtype
            works.append((sample_from_bits([lo], *bits), self._vectors.read(0, lo, hi)))
            if len(works) == BATCH:
                yield works
                works = []
        yield works
