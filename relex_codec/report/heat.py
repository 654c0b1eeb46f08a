"""A number of each tensor as a table of layers and kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from relex_codec.run.places import Place

MOST_KINDS: Final = 40
"""Rows of a table; the kinds with the fewest tensors are left out, and counted."""


WIDE: Final = 8.0
"""How many times the median the largest number may be before colours become logarithmic."""


@dataclass(frozen=True, eq=False)
class HeatTable:
    """Medians of a number over the tensors of each kind in each layer.

    Attributes:
        kinds: rows.
        layers: columns; None for what is in no layer.
        values: float64 [kinds, layers], NaN where there is no tensor that moves.
        left_out: kinds that are not shown.
    """

    kinds: list[str]
    layers: list[int | None]
    values: npt.NDArray[np.float64]
    left_out: int


def log_low(values: npt.NDArray[np.float64]) -> float | None:
    """Return where a logarithmic scale begins, where few large numbers would leave no colours for the others."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive) or float(positive.max()) < WIDE * float(np.median(positive)):
        return None
    return max(float(positive.min()), float(positive.max()) / 1e4)


def heat_table(places: Sequence[Place], numbers: npt.NDArray[np.float64]) -> HeatTable:
    """Arrange a number of each tensor, in the order in which kinds come up.

    Examples:
        >>> places = [Place(0, "q"), Place(0, "k"), Place(1, "q"), Place(None, "norm")]
        >>> found = heat_table(places, np.array([1.0, 2.0, 3.0, 4.0]))
        >>> found.kinds, found.layers, found.values[0].tolist()
        (['q', 'k', 'norm'], [0, 1, None], [1.0, 3.0, nan])
    """
    cells: dict[tuple[str, int | None], list[float]] = {}
    for place, number in zip(places, numbers, strict=True):
        cells.setdefault((place.kind, place.layer), []).append(float(number))
    counts: dict[str, int] = {}
    for place in places:
        counts[place.kind] = counts.get(place.kind, 0) + 1
    shown = set(sorted(counts, key=lambda kind: -counts[kind])[:MOST_KINDS])
    kinds = [kind for kind in counts if kind in shown]
    kinds.sort(key=lambda kind: all(layer is None for k, layer in cells if k == kind))  # those of no layer come last
    numbered = sorted({place.layer for place in places if place.layer is not None})
    layers: list[int | None] = [*numbered, *([None] if any(place.layer is None for place in places) else [])]
    values = np.full((len(kinds), len(layers)), np.nan)
    for i, kind in enumerate(kinds):
        for j, layer in enumerate(layers):
            found = [x for x in cells.get((kind, layer), []) if np.isfinite(x)]
            if found:
                values[i, j] = float(np.median(found))
    return HeatTable(kinds, layers, values, len(counts) - len(kinds))
