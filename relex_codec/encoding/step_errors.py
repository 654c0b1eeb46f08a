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
from .large_direction import decoded_values
from .stored_direction import StoredDirection
from .tensor_history import TensorHistory, Vectors

EXCERPT: Final = 1 << 18
STRETCH: Final = 1 << 13
"""Elements of each of the stretches that an excerpt consists of."""
TIERS: Final = 2
"""Track and line, in this order."""


def excerpt_spans(size: int) -> list[tuple[int, int]]:
    """Return the elements that are measured: first of each stretch, and the one after its last.

    Examples:
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
    few = len(stored) > 1 or unit.info.size * len(steps) <= FEW
    for lo, hi in spans:
        origin, targets = unit.at_origin(lo, hi), unit.at_all_steps(lo, hi)
        values = [vectors.read(j, lo, hi) for j in range(len(stored))]
        if few:
            decoded = [one.decoded(value, lo) for one, value in zip(stored, values, strict=True)]
        else:
            decoded = [decoded_values(stored[0], values[0], lo)]
        miss, delta = measure(origin, unit.origin.dtype, targets, unit.info.dtype, decoded, factors, few=few)
        found += miss
        deltas += delta
    return scaled(found, deltas, squares, unit.info.size)


def scaled(found: F64, deltas: F64, squares: F64, size: int) -> F64:
    """Return the squared errors of a tensor from those of its excerpt.

    Args:
        found: float64 [2, T], squared errors in the excerpt.
        deltas: float64 [T], squared deltas in it.
        squares: float64 [T], of all of the tensor.
        size: of the tensor.
    """
    if size <= EXCERPT:
        return found
    ratio = np.where(deltas > 0, squares / np.where(deltas > 0, deltas, 1.0), size / EXCERPT)
    return found * ratio


def measure(
    origin: Bits,
    origin_dtype: str,
    targets: Bits,
    dtype: str,
    decoded: list[F32],
    factors: npt.NDArray[np.float32],
    *,
    few: bool,
) -> tuple[F64, F64]:
    """Return the squared errors of a stretch in both tiers, float64 [2, T], and its squared deltas, float64 [T].

    Args:
        targets: bits [T, x].
        decoded: each direction, as decoders have it.
        factors: float32 [2, k, T], what they are multiplied by.
        few: whether all steps are measured at once, with nothing compiled; so are several directions.
    """
    if few or len(decoded) > 1:
        return _few(origin, origin_dtype, targets, dtype, decoded, factors)
    return _many(origin, origin_dtype, targets, dtype, decoded[0], factors)


def _many(
    origin: Bits, origin_dtype: str, targets: Bits, dtype: str, decoded: F32, factors: npt.NDArray[np.float32]
) -> tuple[F64, F64]:
    from .loops.weights import STRIP, squared_distance_of, squared_miss_of  # numba is only needed here
    from .loops.widening import KINDS

    kinds, strips = (KINDS[origin_dtype], KINDS[dtype]), working_array("strips", (3, STRIP), np.float32)
    miss, delta = np.zeros(factors.shape[::2]), np.zeros(factors.shape[2])
    for i, target in enumerate(targets):
        delta[i] = squared_distance_of(origin, kinds[0], target, kinds[1], strips)
        for tier in range(TIERS):
            g = factors[tier, 0, i]
            miss[tier, i] = squared_miss_of(origin, kinds[0], target, kinds[1], decoded, g, strips)
    return miss, delta


def _few(
    origin: Bits, origin_dtype: str, targets: Bits, dtype: str, decoded: list[F32], factors: npt.NDArray[np.float32]
) -> tuple[F64, F64]:
    start, wanted = to_float32(origin, origin_dtype), to_float32(targets, dtype)
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
