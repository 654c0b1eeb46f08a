"""Fitting a tensor on the steps that say something about it: those where it exists and is finite. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from relex_codec.core.steps import name_steps
from relex_codec.core.text import quote

from .fit import F64, Fit, fit_directions


def fit_usable(gram: F64, steps: npt.NDArray[np.int64], observed: int, rank: int, usable: npt.NDArray[np.bool_]) -> Fit:
    """Fit as `fit_directions` does, on the steps that are usable only.

    Args:
        gram: float64 [T, T], inner products of the deltas; rows and columns of other steps may hold anything.
        steps: int64 [T].
        observed: K, how many steps from the first on are fitted on.
        rank: number of directions that are wanted.
        usable: bool [T]; at least one of the first K.

    Returns:
        A `Fit` over all steps. Other steps have weight 0 in the directions, and the line's value as coefficient.

    Examples:
        >>> deltas = np.array([[1.0], [2.0], [np.nan], [4.0]])
        >>> fit = fit_usable(deltas @ deltas.T, np.array([1, 2, 3, 4]), 4, 1, np.array([True, True, False, True]))
        >>> fit.coefficients.round(9).tolist(), fit.slope.round(9).tolist()
        ([[1.0, 2.0, 3.0, 4.0]], [1.0])
    """
    if usable.all():
        return fit_directions(gram, steps, observed, rank)
    kept = np.flatnonzero(usable)
    count = int(usable[:observed].sum())
    fit = fit_directions(gram[np.ix_(kept, kept)], steps[kept], count, rank)
    weights = np.zeros((len(fit.slope), observed))
    weights[:, kept[:count]] = fit.weights
    coefficients = fit.slope[:, None] * steps.astype(np.float64) + fit.intercept[:, None]
    coefficients[:, kept] = fit.coefficients
    return Fit(weights, coefficients, fit.slope, fit.intercept, fit.explained, fit.r2)


def last_usable(usable: npt.NDArray[np.bool_], observed: int) -> int | None:
    """Return the number of the last observed step that is usable; None if none is."""
    found = np.flatnonzero(usable[:observed])
    return int(found[-1]) if len(found) else None


def left_out_of_fits(bad: Mapping[str, Collection[int]], steps: list[int], tensors: int) -> list[str]:
    """Say at which steps weights were not finite, so that no line was fitted on them there.

    Args:
        bad: such steps by the name of each tensor that has any.
        steps: of the run.
        tensors: how many of the run could have a line.

    Returns:
        A line for each set of steps.

    Examples:
        >>> left_out_of_fits({"a": [4], "b": [4]}, [1, 2, 3, 4], 2)
        ['not finite at step 4: all 2 tensors; lines are fitted on the other steps']
    """
    by_steps: dict[tuple[int, ...], list[str]] = {}
    for name, found in bad.items():
        by_steps.setdefault(tuple(sorted(found)), []).append(name)
    lines = []
    for found, names in by_steps.items():
        which = f"tensor {quote(names[0])}" if len(names) == 1 else f"{len(names)} tensors, the first {quote(names[0])}"
        if len(names) == tensors > 1:
            which = f"all {tensors} tensors"
        if len(found) == len(steps):
            lines.append(f"not finite at any step: {which}; no line there, stored steps only")
        else:
            lines.append(f"not finite at {name_steps(found, steps)}: {which}; lines are fitted on the other steps")
    return lines
