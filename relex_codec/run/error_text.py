"""How far a tier is from the checkpoints, step by step, as a line of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .sparkline import BLOCKS, sparkline

SHOWN: Final = 3
"""Steps whose error is written out."""


def error_line(steps: Sequence[int], values: Sequence[float | None], blocks: str = BLOCKS) -> str | None:
    """Return first, middle and last error that are known, with their steps, and a sparkline; None if none is known.

    Args:
        values: relative to how far the step is from where it started, one for each step.

    Examples:
        >>> error_line([10, 20, 30], [0.5, 0.25, 0.125])
        '50 % of the way at step 10, 25 % at 20, 12 % at 30  █▅▃'
    """
    known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    if not known:
        return None
    count = min(SHOWN, len(known))
    places = sorted({i * (len(known) - 1) // max(count - 1, 1) for i in range(count)})
    found = [f"{_percent(known[i][1])} % at {known[i][0]}" for i in places]
    first = found[0].replace(" % at ", " % of the way at step ")
    return ", ".join([first, *found[1:]]) + "  " + sparkline(values, blocks)


def _percent(ratio: float) -> str:
    value = 100 * ratio
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"
