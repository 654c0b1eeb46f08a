"""Finding the best step of a line with few scores. Pure functions.

Scores over the logarithm of the step have one peak, are nearly a parabola around it, and are noisy. So the search

1. scores five steps, from the lowest to the highest, evenly in the logarithm;
2. fits a parabola to the best one and the two on either side of it, and scores where that is highest, between the
   neighbours of the best; where a step near that has been scored, it takes the middle of the wider of the two gaps;
3. ends when the neighbours of the best step are near it, or so many steps have been scored.

Where the best step is the lowest or the highest, and the caller allows it, it goes on beyond by the same ratio. The
least-squares parabola, unlike a golden section, is not led astray for good by one score that is too high by chance:
every score near the peak has its part in where the next one is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

FIRST: Final = 5
"""Steps that are scored at first."""
NEAR: Final = 0.04
"""Steps whose logarithms differ by less are not worth two scores."""
CLOSE: Final = 0.12
"""A search ends when both neighbours of the best step are so near, in logarithms."""


def next_step(
    scores: Mapping[float, float], low: float, high: float, *, most: int, beyond: bool = False
) -> float | None:
    """Return the step that is to be scored next; None: the search is over.

    Args:
        scores: of the steps so far; a higher score is a better one, and one that is not finite is worse than any.
        low, high: the steps to search between, both above 0.
        most: how many are scored at most.
        beyond: whether the search may leave these ends.

    Returns:
        A whole number, as a float.

    Examples:
        >>> known = {}
        >>> while (step := next_step(known, 100, 2000, most=9)) is not None:
        ...     known[step] = -(math.log(step / 700) ** 2)
        >>> len(known) <= 9, abs(max(known, key=known.get) - 700) < 30
        (True, True)
    """
    grid = _grid(low, high)
    missing = next((step for step in grid if step not in scores), None)
    if len(scores) >= most:
        return None
    if missing is not None:
        return missing
    found = {step: score if math.isfinite(score) else -math.inf for step, score in scores.items() if step > 0}
    steps = sorted(found)
    best = max(steps, key=lambda step: (found[step], -step))
    if not math.isfinite(found[best]):
        return None
    i = steps.index(best)
    if i in (0, len(steps) - 1) and len(steps) > 1:
        if beyond:
            other = steps[1] if i == 0 else steps[-2]
            further = float(round(best * best / other))
            return further if further >= 1 and further not in found else None
        gaps = [(steps[1], best)] if i == 0 else [(steps[-2], best)]
    else:
        gaps = [(steps[j], best) for j in (i - 1, i + 1) if 0 <= j < len(steps)]
    widest = max((abs(math.log(a / b)) for a, b in gaps), default=0.0)
    if widest <= CLOSE:
        return None
    ends = [step for gap in gaps for step in gap]
    wanted = _vertex(steps, found, i)
    if wanted is not None:
        rounded = float(round(min(max(wanted, min(ends)), max(ends))))
        if rounded >= 1 and all(abs(math.log(rounded / step)) > NEAR for step in steps):
            return rounded
    a, b = max(gaps, key=lambda gap: abs(math.log(gap[0] / gap[1])))
    middle = float(round(math.sqrt(a * b)))
    return middle if middle not in found else None


def _grid(low: float, high: float) -> list[float]:
    """Return the steps that are scored at first."""
    return sorted({float(round(step)) for step in np.geomspace(low, high, FIRST)})


def _vertex(steps: list[float], scores: Mapping[float, float], best: int) -> float | None:
    """Return where the parabola through the scores around the best one is highest; None where it has no top."""
    near = [step for step in steps[max(best - 2, 0) : best + 3] if math.isfinite(scores[step])]
    if len(near) < 3:
        return None
    x = np.log(near)
    a, b, _ = np.polyfit(x - x.mean(), [scores[step] for step in near], 2)
    if not a < 0:
        return None
    return float(math.exp(min(x.mean() - b / (2 * a), 700.0)))
