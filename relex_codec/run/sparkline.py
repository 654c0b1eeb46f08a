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
"""Heights of a sparkline, the lowest first."""
PLAIN: Final = "_.:-=+*#"
"""The same where only ASCII can be shown."""
WIDTH: Final = 40
"""Columns of a sparkline at most."""


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


def sparkline(values: Sequence[float | None], blocks: str = BLOCKS) -> str:
    """Return a character for each value, a space for one that is not known; the largest is the highest.

    With more values than columns, each column stands for the largest of its values: no peak is hidden.

    Examples:
        >>> sparkline([0.0, 0.5, None, 1.0])
        '▁▅ █'
    """
    columns = [values[i * len(values) // WIDTH : (i + 1) * len(values) // WIDTH] for i in range(WIDTH)]
    cells = [[value] for value in values] if len(values) <= WIDTH else columns
    most = [max((value for value in cell if value is not None), default=None) for cell in cells]
    top = max((value for value in most if value is not None), default=0.0) or 1.0
    last = len(blocks) - 1
    return "".join(" " if value is None else blocks[round(last * max(value, 0.0) / top)] for value in most)


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
