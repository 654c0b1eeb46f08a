"""What an axis of steps shows: how far it goes, and whether it has to be logarithmic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .numbers import Numbers

BEYOND: Final = 1.3
"""How many times the last step of interest an axis goes to."""
WIDE: Final = 4.0
"""How many times the last observed step the last one of interest may be before the axis becomes logarithmic."""
MOST_STEPS: Final = 200
"""Points of a line in a picture; more are not told apart."""


@dataclass(frozen=True)
class StepAxis:
    """An axis of steps.

    Attributes:
        low, high: ends.
        log: whether it is logarithmic.
    """

    low: float
    high: float
    log: bool

    def between(self, low: float, high: float, count: int = MOST_STEPS) -> npt.NDArray[np.float64]:
        """Return steps at even distances on the axis."""
        return np.geomspace(low, high, count) if self.log and low > 0 else np.linspace(low, high, count)


def step_axis(numbers: Numbers, extrapolated: bool = True) -> StepAxis:
    """Return an axis that shows all steps, and where peaks lie if lines are drawn beyond the observed steps.

    A band that is very far away does not squeeze the run: an axis ends at a thousand times the last observed step.
    """
    first, last, observed = float(numbers.steps[0]), float(numbers.steps[-1]), max(float(numbers.last), 1.0)
    high = last
    if extrapolated:
        far = min(numbers.peaks[1], 1000 * observed) if numbers.peaks else 1.5 * observed
        high = BEYOND * max(last, far, 1.2 * observed)
    log = high > WIDE * observed and last > 0
    low = (max(first, observed / 100, 0.5) if log else min(0.0, first)) if extrapolated else first
    return StepAxis(low, high if high > low else low + 1, log)


def thinned(count: int, most: int = MOST_STEPS) -> npt.NDArray[np.int64]:
    """Return places of at most so many of `count` things, first and last among them."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, most)).round().astype(np.int64))
