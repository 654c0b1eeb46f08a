"""Reading a box of a tensor: a range of each dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .dtypes import Bits
from .run import Run

Box = Sequence[tuple[int, int]]
"""First and one past the last index in each dimension."""


def read_box(run: Run, name: str, step: float, tier: str, box: Box) -> Bits:
    """Return the bits of a box of a tensor at a step, contiguous, in the shape of the box.

    Rows of the first dimension are decoded whole, and no others.
    """
    shape = run.entry(name).shape
    if not shape:
        return run.bits(name, step, tier).reshape(())
    width = math.prod(shape[1:])
    low, high = box[0]
    rows = run.bits(name, step, tier, low * width, high * width).reshape(high - low, *shape[1:])
    inner = rows[(slice(None), *(slice(start, end) for start, end in box[1:]))]
    return inner if inner.flags.c_contiguous else inner.copy()
