"""Valid vectors in which another order of operations, or another precision, shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .contents import codes, mantissas, noise
from .recipe import Direction, Reads, Recipe, Tensor

STEPS = [3, 10, 37, 102]
BETWEEN = [(5.0, 0), (8.0, 0), (23.0, 1), (41.75, 2), (99.0, 2)]
"""Times of tier `track`, and the number of the step before each."""
FAR = 1000.3


def doubles(seed: str, n: int) -> list[float]:
    """Numbers from 1/2 to 2, and their negatives, with all bits of their mantissas."""
    random = noise(seed, 5 * n).reshape(n, 5).astype(np.float64)
    sizes = 0.5 + random[:, :4] @ np.array([2.0**-16, 2.0**-32, 2.0**-48, 2.0**-53]) * 1.5
    return list(map(float, np.where(random[:, 4] % 2 == 0, sizes, -sizes)))


def single(seed: str) -> float:
    """A number between 1/16 and 1/2 with all bits of an f32."""
    return abs(float(mantissas(seed, 1, "F32", -4, -2).view(np.float32)[0]))


def full(seed: str, shape: Sequence[int], packing: str, rank: int, lowest: int = -9) -> Direction:
    """A direction in which all numbers have random mantissas; `lowest` is the smallest exponent of its factors."""
    n = int(np.prod(shape))
    (slope, intercept), row = doubles(seed + " line", 2), doubles(seed + " row", len(STEPS))
    more: dict[str, Any] = {"slope": slope, "intercept": intercept, "rank": rank}
    if rank:
        values = int(np.prod(shape[:-2])) * rank * sum(shape[-2:])
        more["factors"] = mantissas(seed + " factors", values, "BF16", lowest, lowest + 11)
    if packing == "none":
        return Direction(row, packing, **more)
    if packing == "float32":
        return Direction(row, packing, mantissas(seed, n, "F32", -4, 0), **more)
    scale, shift = single(seed + " scale"), single(seed + " shift")
    return Direction(row, packing, codes(seed, n, 127), scale, shift, **more)


def operations() -> Recipe:
    """Random mantissas everywhere, up to six factor pairs, up to three directions, float dtypes."""
    kinds = {
        "factors": [("none", 3)],
        "codes": [("byte", 0)],
        "sum": [("float32", 6)],
        "both": [("byte", 4)],
        "three": [("byte", 3), ("float32", 0), ("none", 5)],
    }
    tensors = []
    for dtype in ("F32", "BF16", "F16"):
        for name, directions in kinds.items():
            shape = [2, 7, 9] if name == "both" else [8, 12]
            seed = f"{name}.{dtype}"
            origin = mantissas(seed, int(np.prod(shape)), dtype, -4, 1)
            own = [full(f"{seed} {i}", shape, packing, rank) for i, (packing, rank) in enumerate(directions)]
            tensors.append(Tensor(seed, dtype, shape, origin, directions=own))
    tiny = full("tiny", [6, 5], "none", 4, -76)  # products that f32 rounds, as they are subnormal
    tiny.row, tiny.slope = [value * 2.0**118 for value in tiny.row], tiny.slope * 2.0**110
    tensors.append(Tensor("tiny", "F32", [6, 5], np.zeros(30, "<u4"), directions=[tiny]))
    reads: Reads = [(3, "auto"), (24.5, "auto"), (37, "auto"), (1001, "auto"), (-7.25, "line")]
    return Recipe(STEPS, tensors, reads)


def coefficients() -> Recipe:
    """Sums that nearly cancel, so that the last bits of what is added are the first ones of a coefficient."""
    one = np.array([0x3F800000, 0xBFAAAAAB, 0x34123456], "<u4")
    tensors = []
    for t, i in BETWEEN:
        for seed in range(4):
            row = doubles(f"track {t} {seed}", len(STEPS))
            fraction = (t - STEPS[i]) / (STEPS[i + 1] - STEPS[i])
            row[i + 1] = row[i] - row[i] / fraction  # the coefficient at t is what rounding leaves over
            direction = Direction(row, "float32", one)
            tensors.append(Tensor(f"track.{t}.{seed}", "F32", [3], np.zeros(3, "<u4"), directions=[direction]))
    for seed in range(8):
        (slope,) = doubles(f"line {seed}", 1)
        direction = Direction([0.0] * len(STEPS), "float32", one, slope=slope)
        direction.intercept = -(slope * FAR) * (1 + seed * 2.0**-45)
        tensors.append(Tensor(f"line.{seed}", "F32", [3], np.zeros(3, "<u4"), directions=[direction]))
    large = [3.4028235677973362e38, -3.4028235677973362e38, 1.0000000596046448, 1e-46]  # rounded once, to f32
    tensors.append(Tensor("rounded", "F32", [3], np.zeros(3, "<u4"), directions=[Direction(large, "float32", one)]))
    reads: Reads = [(t, "track") for t, _ in BETWEEN] + [(t, "track") for t in STEPS]
    return Recipe(STEPS, tensors, [*reads, (FAR, "line"), (FAR, "auto")])


VALID = {"arithmetic-operations": operations(), "arithmetic-coefficients": coefficients()}
