"""How far a step is from the base in weight space, and at which step a distance is reached.

The distance of a step S is

    D(S) = sum over k of |c_k(S)| ||v_k||_1 / sum over tensors of ||W0||_1

with one k for each direction: a ratio, the mean change of a weight over the mean weight. With one direction a tensor
that is the L1 norm of the change over that of the base; with several it is an upper bound of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Norms:
    """The L1 norms that distances are made of, of unquantised values where a file brings them.

    Attributes:
        base: sum of ||W0||_1 over the tensors; masks, which hold infinities or huge constants, are left out.
        directions: ||v||_1 of each direction, float64 [directions].
        read: whether they were computed from the stored directions, which are quantised, as the file lacks them.
    """

    base: float
    directions: F64
    read: bool = False


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines of the directions, ``c(t) = slope t + intercept``, each float64 [directions]."""

    slope: F64
    intercept: F64

    def at(self, step: float) -> F64:
        """Return the coefficients at a step."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(self.slope * step + self.intercept, np.float64)


def distance(coefficients: F64, norms: Norms) -> float:
    """Return D for the coefficients at a step: a ratio, NaN where the base has no norm, infinite where they overflow.

    Examples:
        >>> distance(np.array([2.0, -1.0]), Norms(400.0, np.array([1.0, 2.0])))
        0.01
    """
    if not norms.base > 0:
        return math.nan
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(np.abs(coefficients) @ norms.directions) / norms.base
    return math.inf if math.isnan(found) else found


def step_at(lines: Lines, norms: Norms, wanted: float) -> float | None:
    """Return the last step at which D of the lines is at most `wanted`.

    D is convex and piecewise linear in the step, so that Newton's steps from beyond end at the crossing.

    Returns:
        None where D never gets there, as nothing moves, or is larger at every step.

    Examples:
        >>> lines = Lines(np.array([1.0, 2.0]), np.array([0.0, -10.0]))
        >>> step_at(lines, Norms(1000.0, np.array([1.0, 1.0])), 0.05)
        20.0
    """
    rate = float(np.abs(lines.slope) @ norms.directions)
    if not norms.base > 0 or not rate > 0 or not math.isfinite(rate):
        return None
    with np.errstate(over="ignore"):
        step = (wanted * norms.base + float(np.abs(lines.intercept) @ norms.directions)) / rate  # D is not smaller here
    if not math.isfinite(step):
        return None
    for _ in range(len(lines.slope) + 2):
        values = lines.at(step)
        over = float(np.abs(values) @ norms.directions) - wanted * norms.base
        # Where a coefficient is 0, that of the left side: the next step goes there.
        signs = np.where(values == 0, -np.sign(lines.slope), np.sign(values))
        slope = float((signs * lines.slope) @ norms.directions)
        if over <= 0:
            return step
        if slope <= 0:
            return None  # the lowest point of D lies above
        if step - over / slope == step:
            return step
        step -= over / slope
    return step


def mirrored(lines: Lines) -> Lines:
    """Return lines that are at step S where `lines` are at -S."""
    return Lines(-lines.slope, lines.intercept)
