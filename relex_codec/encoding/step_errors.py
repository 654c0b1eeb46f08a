"""How far each step of a tensor is from what tiers ``track`` and ``line`` make of it: what the file says of its errors.

Measured are weights as every reader will decode them, with the directions as they are stored, rounded to the tensor's
dtype; on all of a tensor of at most `EXCERPT` elements, and on stretches at even distances of a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import F32, Bits, from_float32, to_float32

from .delta_sums import FEW, working_array
from .fit import F64, Fit
from .full_check import decoded_values
from .stored_direction import StoredDirection
from .tensor_history import TensorHistory, Vectors

EXCERPT: Final = 1 << 18
STRETCH: Final = 1 << 13
"""Elements of each of the stretches that an excerpt consists of."""
TIERS: Final = 2
"""Track and line, in this order."""


def excerpt_spans(size: int) -> list[tuple[int, int]]:
    """Return the elements that are measured: first of each stretch, and the one after its last.

    Example:
        >>> excerpt_spans(5)
        [(0, 5)]
        >>> spans = excerpt_spans(10**7)
        >>> len(spans), spans[0], spans[-1]
        (32, (0, 8192), (9991808, 10000000))
    """
    if size <= EXCERPT:
        return [(lo, min(lo + STRETCH, size)) for lo in range(0, size, STRETCH)] if size > STRETCH else [(0, size)]
    count = EXCERPT // STRETCH
    return [(lo, lo + STRETCH) for lo in (i * (size - STRETCH) // (count - 1) for i in range(count))]


def squared_errors(
    unit: TensorHistory, vectors: Vectors, stored: Sequence[StoredDirection], fitted: Fit, squares: F64
) -> F64:
    """Return the squared errors of a tensor's steps in both tiers, float64 [2, T].

    Args:
        vectors: directions, not quantised.
        stored: how they are stored.
        squares: float64 [T], of the deltas of all of the tensor: what is measured on an excerpt is scaled to them.
    """
    steps = np.array(unit.run.steps, np.float64)
    line = fitted.slope[:, None] * steps + fitted.intercept[:, None]
    factors = np.stack([fitted.coefficients, line]).astype(np.float32)
    found, deltas = np.zeros((TIERS, len(steps))), np.zeros(len(steps))
    spans = excerpt_spans(unit.info.size)
    for lo, hi in spans:
        values = [vectors.read(j, lo, hi) for j in range(len(stored))]
        origin, targets = unit.at_origin(lo, hi), unit.at_all_steps(lo, hi)
        few = len(stored) > 1 or unit.info.size * len(steps) <= FEW
        measure = _few if few else _many
        miss, delta = measure(unit, origin, targets, stored, values, lo, factors)
        found += miss
        deltas += delta
    if unit.info.size <= EXCERPT:
        return found
    share = sum(hi - lo for lo, hi in spans) / unit.info.size
    scale = np.where(deltas > 0, squares / np.where(deltas > 0, deltas, 1.0), 1 / share)
    return found * scale


def _many(
    unit: TensorHistory,
    origin: Bits,
    targets: Bits,
    stored: Sequence[StoredDirection],
    values: list[F32],
    lo: int,
    factors: npt.NDArray[np.float32],
) -> tuple[F64, F64]:
    """Measure a stretch, compiled: one direction."""
    from .loops.weights import STRIP, squared_distance_of, squared_miss_of  # numba is only needed here
    from .loops.widening import KINDS

    kinds, strips = (KINDS[unit.origin.dtype], KINDS[unit.info.dtype]), working_array("strips", (3, STRIP), np.float32)
    decoded = decoded_values(stored[0], values[0], lo)
    miss, delta = np.zeros(factors.shape[::2]), np.zeros(factors.shape[2])
    for i, target in enumerate(targets):
        delta[i] = squared_distance_of(origin, kinds[0], target, kinds[1], strips)
        for tier in range(TIERS):
            g = factors[tier, 0, i]
            miss[tier, i] = squared_miss_of(origin, kinds[0], target, kinds[1], decoded, g, strips)
    return miss, delta


def _few(
    unit: TensorHistory,
    origin: Bits,
    targets: Bits,
    stored: Sequence[StoredDirection],
    values: list[F32],
    lo: int,
    factors: npt.NDArray[np.float32],
) -> tuple[F64, F64]:
    """Measure a stretch with all steps at once."""
    dtype, start = unit.info.dtype, to_float32(origin, unit.origin.dtype)
    wanted = to_float32(targets, dtype)
    decoded = [one.decoded(value, lo) for one, value in zip(stored, values, strict=True)]
    miss = np.zeros(factors.shape[::2])
    with np.errstate(over="ignore", invalid="ignore"):
        for tier in range(TIERS):
            product = np.zeros(wanted.shape, np.float32)
            for direction, g in zip(decoded, factors[tier], strict=True):
                product += g[:, None] * direction
            weights = to_float32(from_float32(start + product, dtype), dtype)
            miss[tier] = _squares(weights - wanted)
        return miss, _squares(wanted - start)


def _squares(values: F32) -> F64:
    """Sum of squares of each row; what is no number does not count."""
    wide = np.where(np.isfinite(values), values, np.float32(0)).astype(np.float64)
    found: F64 = np.einsum("ij,ij->i", wide, wide)
    return found
