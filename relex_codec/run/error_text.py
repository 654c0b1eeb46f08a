"""How far a tier is from the checkpoints, step by step, as a line of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

BLOCKS: Final = "▁▂▃▄▅▆▇█"
"""Heights of a sparkline, the lowest first."""
PLAIN: Final = "_.:-=+*#"
"""The same where only ASCII can be shown."""
WIDTH: Final = 40
"""Columns of a sparkline at most."""
SHOWN: Final = 3
"""Steps whose error is written out."""


def sparkline(values: Sequence[float | None], blocks: str = BLOCKS) -> str:
    """Return a character for each value, a space for one that is not known; the largest is the highest.

    With more values than columns, each column stands for the largest of its values: no peak is hidden.

    Example:
        >>> sparkline([0.0, 0.5, None, 1.0])
        '▁▅ █'
    """
    columns = [values[i * len(values) // WIDTH : (i + 1) * len(values) // WIDTH] for i in range(WIDTH)]
    cells = [[value] for value in values] if len(values) <= WIDTH else columns
    most = [max((value for value in cell if value is not None), default=None) for cell in cells]
    top = max((value for value in most if value is not None), default=0.0) or 1.0
    last = len(blocks) - 1
    return "".join(" " if value is None else blocks[round(last * max(value, 0.0) / top)] for value in most)


def error_line(steps: Sequence[int], values: Sequence[float | None], blocks: str = BLOCKS) -> str | None:
    """Return first, middle and last error that are known, with their steps, and a sparkline; None if none is known.

    Args:
        values: relative to how far the step is from where it started, one for each step.

    Example:
        >>> error_line([10, 20, 30], [0.5, 0.25, 0.125])
        '50 % of the way at step 10, 25 % at 20, 12 % at 30  █▅▃'
    """
    known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    if not known:
        return None
    count = min(SHOWN, len(known))
    places = sorted({i * (len(known) - 1) // max(count - 1, 1) for i in range(count)})
    found = [f"{100 * known[i][1]:.2g} % at {known[i][0]}" for i in places]
    first = found[0].replace(" % at ", " % of the way at step ")
    return ", ".join([first, *found[1:]]) + "  " + sparkline(values, blocks)
