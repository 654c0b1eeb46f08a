"""Boxes: which elements of a tensor a rank holds, in the order of the tensor. Pure functions.

A box has an offset and a size in each dimension. Its elements are counted in row-major order, as those of the tensor
are, so both counts increase together, and any range of the tensor's elements has one range of the box's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]


class Box(NamedTuple):
    """A part of a tensor.

    Examples:
        >>> half = Box((4, 6), (0, 3), (4, 3))
        >>> half.elements, half.first_at_or_after(2), half.first_at_or_after(4)
        (12, 0, 1)
        >>> [int(i) for i in half.places(2, 5)]
        [5, 9, 10]
    """

    shape: Shape
    offset: Shape
    size: Shape

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """The box that is all of a tensor."""
        return cls(tuple(shape), (0,) * len(shape), tuple(shape))

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.size)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the tensor."""
        return self.size == self.shape

    @property
    def fits(self) -> bool:
        """Whether it lies within the tensor."""
        same = len(self.shape) == len(self.offset) == len(self.size)
        return same and all(
            o >= 0 and s >= 0 and o + s <= n for n, o, s in zip(self.shape, self.offset, self.size, strict=True)
        )

    def overlaps(self, other: Box) -> bool:
        """Tell whether both have an element."""
        sides = zip(self.offset, self.size, other.offset, other.size, strict=True)
        return all(max(a, b) < min(a + n, b + m) for a, n, b, m in sides)

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements follow each other in the tensor."""
        return self._run() == self.elements

    def _run(self) -> int:
        """How many elements follow each other in the tensor."""
        run, partial = 1, False
        for n, size in zip(reversed(self.shape), reversed(self.size), strict=True):
            if partial and size != 1:
                break
            run *= size
            partial = partial or size != n
        return run

    def places(self, lo: int, hi: int) -> npt.NDArray[np.int64]:
        """Return where elements `lo` to `hi` of the box are in the tensor."""
        rest = np.arange(lo, hi, dtype=np.int64)
        places, stride = np.zeros(hi - lo, np.int64), 1
        for n, offset, size in zip(reversed(self.shape), reversed(self.offset), reversed(self.size), strict=True):
            rest, inside = np.divmod(rest, size) if size else (rest, rest)
            places += (inside + offset) * stride
            stride *= n
        return places

    def place(self, index: int) -> int:
        """Return where one element of the box is in the tensor."""
        return int(self.places(index, index + 1)[0])

    def first_at_or_after(self, place: int) -> int:
        """Return the first element of the box that is at a place of the tensor or after it; `elements` if none is."""
        if place >= math.prod(self.shape):
            return self.elements
        index: list[int] = []
        for n in reversed(self.shape):
            place, inside = divmod(place, n)
            index.insert(0, inside)
        found = 0
        for i, (offset, size) in enumerate(zip(self.offset, self.size, strict=True)):
            rest = math.prod(self.size[i:])
            inside = index[i] - offset
            if inside < 0:
                return found * rest
            if inside >= size:
                return (found + 1) * rest
            found = found * size + inside
        return found

    def range_of(self, lo: int, hi: int) -> tuple[int, int]:
        """Return which elements of the box are among elements `lo` to `hi` of the tensor."""
        return self.first_at_or_after(lo), self.first_at_or_after(hi)


def tile(boxes: Sequence[Box], shape: Shape) -> bool:
    """Tell whether boxes, which fit, have each element of a tensor once."""
    boxes = [box for box in boxes if box.elements]
    if sum(box.elements for box in boxes) != math.prod(shape):
        return False
    if len(boxes) < 2:
        return True
    # sorted by where they begin in the first dimension, a box can only overlap those that begin before it ends
    boxes.sort(key=lambda box: box.offset)
    for i, box in enumerate(boxes):
        end = box.offset[0] + box.size[0]
        for other in boxes[i + 1 :]:
            if other.offset[0] >= end:
                break
            if box.overlaps(other):
                return False
    return True
