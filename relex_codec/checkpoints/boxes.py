"""Boxes of tensors: which parts of a tensor lie where, and what of each a range of elements takes. Pure functions.

A box is where it begins along each dimension, and how long it is. A tensor of trainers with many ranks lies in several
boxes, rows or columns of it, each in row-major order of its own; readers ask for elements in row-major order of the
whole tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

Sizes = tuple[int, ...]
MOST_BOXES: Final = 1 << 16
"""Boxes of one tensor: as many ranks as have ever trained a model together."""


class Box(NamedTuple):
    """A part of a tensor."""

    offsets: Sizes
    sizes: Sizes

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)


class Overlap(NamedTuple):
    """What two boxes have in common.

    Attributes:
        here: slices of the first box.
        there: where it begins in the second box.
        sizes: its shape.
    """

    here: tuple[slice, ...]
    there: Sizes
    sizes: Sizes


def row_major(shape: Sequence[int]) -> Sizes:
    """Return the strides, in elements, of a contiguous tensor.

    Examples:
        >>> row_major((4, 3, 2))
        (6, 2, 1)
    """
    return tuple(accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[::-1] if shape else ()


def boxes_of_range(shape: Sizes, lo: int, hi: int) -> Iterator[tuple[int, Box]]:
    """Yield the boxes that elements `lo` to `hi` of a tensor are, in order: first part of a row, rows, part of a row.

    Yields:
        How many elements come before the box, and the box.

    Examples:
        >>> [(at, box.offsets, box.sizes) for at, box in boxes_of_range((4, 3), 2, 10)]
        [(0, (0, 2), (1, 1)), (1, (1, 0), (2, 3)), (7, (3, 0), (1, 1))]
    """
    if not shape:
        yield from [(0, Box((), ()))][lo:hi]
        return
    strides = row_major(shape)
    at = lo
    while at < hi:
        # the outermost dimension along which a whole step fits from here on
        depth = 0
        while at % strides[depth] or at + strides[depth] > hi:
            depth += 1
        index = [at // strides[d] % shape[d] for d in range(depth + 1)]
        count = min((hi - at) // strides[depth], shape[depth] - index[depth])
        offsets = (*index, *[0] * (len(shape) - depth - 1))
        sizes = (*[1] * depth, count, *shape[depth + 1 :])
        yield at - lo, Box(offsets, sizes)
        at += count * strides[depth]


def overlap(a: Box, b: Box) -> Overlap | None:
    """Return what two boxes of one tensor have in common, if anything.

    Examples:
        >>> overlap(Box((0, 0), (2, 4)), Box((1, 2), (3, 2))).there
        (0, 0)
    """
    begins = tuple(map(max, a.offsets, b.offsets))
    ends = tuple(min(x + n, y + m) for x, n, y, m in zip(*a, *b, strict=True))
    sizes = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
    if any(size <= 0 for size in sizes):
        return None
    here = tuple(slice(x - o, x - o + n) for x, o, n in zip(begins, a.offsets, sizes, strict=True))
    return Overlap(here, tuple(x - o for x, o in zip(begins, b.offsets, strict=True)), sizes)


def fault_of(shape: Sizes, boxes: Sequence[Box]) -> str | None:
    """Return what is wrong with boxes that should make up a tensor: one sticks out, two overlap, something is missing.

    Examples:
        >>> fault_of((4, 3), [Box((0, 0), (2, 3)), Box((2, 0), (2, 3))])
        >>> fault_of((4, 3), [Box((0, 0), (2, 3))])
        'parts of it have 6 of its 12 elements'
    """
    if len(boxes) > MOST_BOXES:
        return f"it has {len(boxes)} parts, at most {MOST_BOXES} are read"
    filled = [box for box in boxes if box.size]
    for box in boxes:
        fits = len(box.offsets) == len(box.sizes) == len(shape)
        if not fits or any(o < 0 or n < 0 or o + n > s for o, n, s in zip(*box, shape, strict=True)):
            return f"a part of it from {list(box.offsets)} on of {list(box.sizes)} does not fit into {list(shape)}"
    if shape:
        filled.sort()
        open_boxes: list[Box] = []
        for box in filled:
            open_boxes = [other for other in open_boxes if other.offsets[0] + other.sizes[0] > box.offsets[0]]
            if any(overlap(box, other) is not None for other in open_boxes):
                return f"two parts of it overlap from {list(box.offsets)} on"
            open_boxes.append(box)
    found, wanted = sum(box.size for box in filled), math.prod(shape)
    return None if found == wanted else f"parts of it have {found} of its {wanted} elements"
