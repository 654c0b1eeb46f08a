"""What memory a tensor is worked on with: planned from its size, so that no budget is exceeded. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.engines.arena import bytes_of
from relex_codec.format.constants import PIECE

from .delta_sums import WIDE_STRIP

SMALLEST_SLICE: Final = WIDE_STRIP
"""A slice is so many elements, or a multiple of it."""


@dataclass(frozen=True, slots=True)
class Room:
    """What memory a tensor is worked on with; results do not depend on it.

    Attributes:
        size: bytes of its region of the arena.
        held: whether all steps are in it, and the origin.
        vectors: whether the directions are in it; else they are in a scratch file.
        slice: elements that each thread reads at a time where the steps are not held.
        threads: that work on the tensor.
    """

    size: int
    held: bool
    vectors: bool
    slice: int
    threads: int = 1


def room_for(info: TensorInfo, origin: str, steps: int, rank: int, budget: int, threads: int, units: int) -> Room:
    """Plan the memory of a tensor.

    Args:
        origin: dtype of the origin.
        steps: of the run.
        rank: most directions.
        budget: of all work, in bytes.
        threads: for each tensor.
        units: tensors that are worked on at the same time.
    """
    width = ITEMSIZE[info.dtype]
    held = bytes_of((steps, info.size), f"u{width}") + bytes_of((info.size,), f"u{ITEMSIZE[origin]}")
    fits = held <= budget // 2
    size = held if fits else 0
    vectors = bytes_of((min(rank, steps), info.size), np.float32)
    in_memory = size + vectors <= budget // 8 * 5
    size += vectors if in_memory else 0
    most = budget // 8 // (units * (threads + 1) * steps * width)
    return Room(size, fits, in_memory, slice_within(most), threads)


def slice_within(most: int) -> int:
    """Return how many elements of a piece are read at a time: the piece is cut into slices of about the same size.

    Each slice is a read of every step, whose cost is for the most part that of opening a file. So an eighth more than
    `most` is allowed where that saves one: it is an eighth of a small part of the budget.

    Examples:
        >>> slice_within(250_000), slice_within(200_000), slice_within(1000)
        (262144, 131072, 4096)
    """
    count = max(1, -(-8 * PIECE // max(1, 9 * most)))
    even = -(-PIECE // (count * SMALLEST_SLICE)) * SMALLEST_SLICE
    return even if 8 * even <= 9 * most else max(SMALLEST_SLICE, most // SMALLEST_SLICE * SMALLEST_SLICE)
