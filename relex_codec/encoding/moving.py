"""Which tensors move: known before they are encoded, as the groups of the exact tier follow from it."""

from __future__ import annotations

from typing import Final

from relex_codec.core.dtypes import ITEMSIZE, as_dtype
from relex_codec.format import constants as f

from .room import SMALLEST_SLICE
from .unit import TensorTask

SMALL: Final = 1 << 20
"""Bytes of a tensor at all steps up to which these are read together."""


def moves(task: TensorTask, budget: int, first: int = 0) -> bool:
    """Tell whether a tensor ever differs from its origin, rounded to its dtype.

    A tensor that does is known by its first piece at the last step, as a rule; of one that stands still everything is
    read.

    Args:
        budget: bytes.
        first: how many steps are not looked at, from the first one on.
    """
    info, origin, steps = task.info, task.origin, len(task.run.steps)
    width = (steps - first) * ITEMSIZE[info.dtype]
    if info.size * width > SMALL:
        last = task.run.checkpoint(steps - 1)
        for lo in range(0, info.size, f.PIECE):
            hi = min(lo + f.PIECE, info.size)
            if (last.read(info.name, lo, hi) != as_dtype(origin.read(lo, hi), origin.dtype, info.dtype)).any():
                return True
    count = min(f.PIECE, max(SMALLEST_SLICE, budget // (8 * width)))
    for lo in range(0, info.size, count):
        hi = min(lo + count, info.size)
        start = as_dtype(origin.read(lo, hi), origin.dtype, info.dtype)
        if first:  # earlier ones are in a file, which would restore them
            if any((task.run.checkpoint(i).read(info.name, lo, hi) != start).any() for i in range(first, steps)):
                return True
        elif (task.run.read(info.name, lo, hi) != start).any():
            return True
    return False
