"""Small pictures of how far a run has moved: one line of text, or some pixels of SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from relex_codec.errors import RelexError
from relex_codec.format import constants as f
from relex_codec.format import reader
from relex_codec.format.reader import FileReader

BLOCKS: Final = "▁▂▃▄▅▆▇█"
MOST_POINTS: Final = 40


def movement(container: FileReader) -> list[float]:
    """Return the distance from the base at each step, by the coefficients: the root of their summed squares.

    Returns:
        Nothing where no tensor moves, or where the coefficients are not at hand since the file was opened.
    """
    index = container.index
    entry = index.entries[f.COEFFICIENTS]
    if not len(index.directions) or entry.end - entry.begin > reader.COEFFICIENTS_AT_OPEN:
        return []
    try:
        values = container.coefficients(0, len(index.directions))
    except RelexError:  # a picture is no place to complain of a damaged table
        return []
    scale = float(np.abs(values).max())
    return [] if not scale else [float(x) for x in scale * np.sqrt(((values / scale) ** 2).sum(axis=0))]


def as_text(values: Sequence[float], width: int = MOST_POINTS) -> str:
    """Return a line of blocks, the lowest for 0 and the highest for the largest value.

    Example:
        >>> as_text([0, 1, 2, 3, 4])
        '▁▂▄▆█'
    """
    shown, top = _thinned(values, width), max(values, default=0)
    return "".join(BLOCKS[min(7, int(value / top * 7.5))] for value in shown) if top > 0 else ""


def as_svg(values: Sequence[float], width: int = 120, height: int = 20) -> str:
    """Return a line as SVG, from 0 at the bottom to the largest value; it takes the colour of the text around it."""
    shown, top = _thinned(values, width), max(values, default=0) or 1
    points = " ".join(
        f"{1 + i * (width - 2) / max(len(shown) - 1, 1):.1f},{height - 1 - (height - 2) * value / top:.1f}"
        for i, value in enumerate(shown)
    )
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="distance from the base over the steps">'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def _thinned(values: Sequence[float], most: int) -> list[float]:
    """Return at most so many of the values, first and last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
