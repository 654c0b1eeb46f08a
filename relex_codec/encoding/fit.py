"""Fitting one tensor: the Gram matrix of its deltas, and from it directions, coefficients, lines (FORMAT.md section 1).

The directions are the first right singular vectors of the T x d matrix of deltas of the observed steps. As T is far
smaller than d they come from the T x T Gram matrix, which is accumulated in float64 over slices of d, so that the
whole matrix is never in memory. Source: the method of snapshots (Sirovich 1987); rank 1 and a linear fit of the
coefficients over the step are RELEX (arXiv 2605.21468).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import F32, Bits, to_float32

F64 = npt.NDArray[np.float64]


def deltas(weights: Bits, dtype: str, origin: Bits, origin_dtype: str) -> F32:
    """Return float32(W) - float32(W0) for a slice of one tensor over all steps.

    Args:
        weights: bits [T, x] of safetensors dtype `dtype`.
        origin: bits [x] of `origin_dtype`.

    Returns:
        float32 [T, x]. Where the bits equal the origin's the delta is 0, also for infinities and NaNs; another
        infinity or NaN gives a delta that is not finite, which the caller refuses.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        result: F32 = to_float32(weights, dtype) - to_float32(origin, origin_dtype)
    if dtype == origin_dtype and not np.isfinite(result).all():
        result[weights == origin] = 0
    return result


@dataclass(frozen=True, slots=True)
class Fit:
    """Directions of one tensor in terms of its observed deltas, with coefficients and lines.

    Attributes:
        weights: float64 [k, K]; direction j is ``weights[j] @ deltas[:K]``.
        coefficients: float64 [k, T], of all steps.
        slope, intercept: float64 [k]; ``c(t) = slope * t + intercept`` over the observed steps.
        explained: float64 [k], share of the observed squared deltas.
        r2: float64 [k], R^2 of each line over the observed steps; NaN where the coefficients are constant or one.
    """

    weights: F64
    coefficients: F64
    slope: F64
    intercept: F64
    explained: F64
    r2: F64


def gram_of(delta: F32) -> F64:
    """Return the inner products, float64 [T, T], of a slice of deltas, float32 [T, x]; slices add up."""
    wide = delta.astype(np.float64)
    return wide @ wide.T  # numpy sees A @ A.T and calls BLAS syrk: half the work


def fit_directions(gram: F64, steps: npt.NDArray[np.int64], observed: int, rank: int) -> Fit:
    """Find up to `rank` directions from the Gram matrix of all steps, fitted on the first `observed` ones.

    Args:
        gram: float64 [T, T], inner products of the deltas.
        steps: int64 [T].
        observed: K, how many steps from the first on are fitted on.
        rank: number of directions that are wanted.

    Returns:
        A `Fit` of at most `rank` directions: one always, and further ones only where the deltas have that rank.
    """
    inner = gram[:observed, :observed]
    eigenvalues, vectors = np.linalg.eigh(inner)
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    # Beyond float64's noise in the Gram matrix an eigenvector is no direction.
    noise = max(float(eigenvalues[0]) * observed * np.finfo(np.float64).eps, np.finfo(np.float64).tiny)
    count = max(1, min(rank, int((eigenvalues > noise).sum())))
    sigma = np.sqrt(np.maximum(eigenvalues[:count], np.finfo(np.float64).tiny))
    weights = (vectors[:, :count] / sigma).T
    total = float(np.trace(inner))
    explained = eigenvalues[:count] / total if total > 0 else np.zeros(count)
    coefficients = weights @ gram[:observed, :]
    lines = [fit_line(steps[:observed], row[:observed]) for row in coefficients]
    slope, intercept, r2 = (np.array(column, np.float64) for column in zip(*lines, strict=True))
    # The sign of a singular vector is free: the line rises; a level one is made positive at the last observed step.
    sign = np.where((slope < 0) | ((slope == 0) & (coefficients[:, observed - 1] < 0)), -1.0, 1.0)
    return Fit(
        weights * sign[:, None], coefficients * sign[:, None], slope * sign, intercept * sign, explained, r2
    )  # fmt: skip


def fit_line(steps: npt.NDArray[np.int64], values: F64) -> tuple[float, float, float]:
    """Fit a line by ordinary least squares: slope = cov(t, c) / var(t), intercept = mean(c) - slope * mean(t).

    One step alone does not make a line: then it goes through the base, which has coefficient 0 at step 0.

    Args:
        steps: t, int64 [K].
        values: c, float64 [K].

    Returns:
        (slope, intercept, R^2); R^2 is NaN where it is undefined (one step, or equal values).
    """
    t = steps.astype(np.float64)
    if len(t) == 1:
        return (float(values[0] / t[0]), 0.0, float("nan")) if t[0] else (0.0, float(values[0]), float("nan"))
    centred, mean = t - t.mean(), float(values.mean())
    slope = float(centred @ values / (centred @ centred))
    intercept = mean - slope * float(t.mean())
    spread = float(((values - mean) ** 2).sum())
    rest = float(((values - mean - slope * centred) ** 2).sum())
    return slope, intercept, 1 - rest / spread if spread > 0 and np.ptp(values) > 0 else float("nan")


def directions_from_deltas(weights: F64, delta: npt.NDArray[Any]) -> F32:
    """Return a slice of the directions, float32 [k, x], from `weights` [k, K] and the observed deltas [K, x]."""
    result: F32 = (weights @ delta.astype(np.float64)).astype(np.float32)
    return result
