"""Holding the quality rule on tensors that the search saw only a sample of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from relex_codec.core.dtypes import F32
from relex_codec.core.threads import parallel_map
from relex_codec.format.constants import FLOAT32, PIECE

from .direction_search import ERROR_FLOOR, Sample, StoredDirection, sample_from_bits
from .quality import Quality
from .tensor_history import TensorHistory, Vectors

TIGHTER: Final = (1.0, 0.5, 0.25)
"""Shares of the allowed growth that are tried on the sample until the whole tensor holds the rule."""
BATCH: Final = 8


class FullCheck:
    """All pieces of a tensor with one direction: weights of the last observed step are decoded and compared.

    Args:
        history: of the tensor: its weights at all steps.
        vectors: its directions, not quantised.
    """

    def __init__(self, history: TensorHistory, vectors: Vectors) -> None:
        self._history, self._vectors = history, vectors

    def hold(self, search: Callable[[float], StoredDirection], quality: Quality, coefficient: float) -> StoredDirection:
        """Return what `search` finds with the largest share for which the whole tensor holds the rule.

        Its errors are those of the whole tensor. Float32 where no share does; a direction that has no bound (``raw``,
        factors alone by request) is only measured.

        Args:
            search: returns the way to store the direction when so large a share of the allowed growth may be used.
            quality: what was asked.
            coefficient: of the direction at the last observed step.
        """
        for share in TIGHTER:
            stored = self._measured(search(share), coefficient)
            allowed = max(stored.error_line, ERROR_FLOOR**0.5) * (1 + (quality.growth or 0.0))
            if quality.growth is None or quality.factor_rank is not None or stored.error_stored <= allowed:
                return stored
        return self._measured(StoredDirection(None, FLOAT32, None, 0.0, 0.0), coefficient)

    def _measured(self, stored: StoredDirection, coefficient: float) -> StoredDirection:
        g = np.float32(coefficient)

        def errors(work: tuple[Sample, F32]) -> tuple[float, float, float]:
            sample, values = work
            decoded = stored.decoded(values, sample.starts[0])
            return sample.error_of(sample.origins), sample.error([values * g]), sample.error([decoded * g])

        delta = line = kept = 0.0
        for works in self._batches():
            for a, b, c in parallel_map(errors, works):
                delta, line, kept = delta + a, line + b, kept + c
        norm = delta or 1.0
        return replace(stored, error_line=float(np.sqrt(line / norm)), error_stored=float(np.sqrt(kept / norm)))

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
