"""Boxes of tensors as windows of elements: pure planning, no I/O.

A box takes a range of each dimension. What kernels decode is a `Window`, a rectangle of the tensor seen as a matrix.
Most boxes are one: whole rows, columns of a matrix, some experts of a stack, a shard along any one dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from relex_codec.core.dtypes import Bits
from relex_codec.core.indexing import Box
from relex_codec.format.constants import PIECE

from .interface import Window, flat


def windows(shape: Sequence[int], box: Box) -> list[Window]:
    """Return the windows of a box, in row-major order: each is as large as the others, and they tile the box."""
    size = math.prod(hi - lo for lo, hi in box)
    if size == 0:
        return []
    cut = [i for i, ((lo, hi), n) in enumerate(zip(box, shape, strict=True)) if (lo, hi) != (0, n)]
    if not cut:
        return [flat(0, math.prod(shape))]
    last = cut[-1]
    inner = math.prod(shape[last + 1 :])
    width, (lo, hi) = shape[last] * inner, box[last]
    # Dimensions before the last cut one are rows, as far as the rows that are taken follow each other.
    split = next((i + 1 for i in reversed(range(last)) if box[i] != (0, shape[i])), 0)
    rows = math.prod(shape[split:last])
    heads = np.ndindex(*(end - begin for begin, end in box[: max(split - 1, 0)]))
    found = []
    for head in heads:
        first, count = 0, rows
        if split:
            outer = [begin + h for (begin, _), h in zip(box, head, strict=False)]
            begin, end = box[split - 1]
            first = (_flattened(shape[: split - 1], outer) * shape[split - 1] + begin) * rows
            count = (end - begin) * rows
        found.append(_window(width, first, count, lo * inner, (hi - lo) * inner))
    return found


def _flattened(shape: Sequence[int], index: Sequence[int]) -> int:
    position = 0
    for size, at in zip(shape, index, strict=True):
        position = position * size + at
    return position


def _window(width: int, row: int, rows: int, column: int, columns: int) -> Window:
    if rows == 1 or columns == width:
        begin = row * width + column
        return flat(begin, begin + (rows - 1) * width + columns)
    return Window(width, row, rows, column, columns, row * width + column, (row + rows - 1) * width + column + columns)


def piece_ranges(window: Window) -> Iterator[tuple[int, int]]:
    """Yield ranges of pieces that hold the window's elements, in order, none of them twice."""
    if window.rows == 1:  # as of any whole tensor: reading a small one is mostly planning, which this was much of
        begin = window.row * window.width + window.column
        lo, hi = max(begin, window.lo), min(begin + window.columns, window.hi)
        if lo < hi:
            yield lo // PIECE, (hi - 1) // PIECE + 1
        return
    begins = (window.row + np.arange(window.rows, dtype=np.int64)) * window.width + window.column
    first, last = np.maximum(begins, window.lo), np.minimum(begins + window.columns, window.hi) - 1
    kept = first <= last
    if not kept.any():
        return
    first, last = first[kept] // PIECE, last[kept] // PIECE
    breaks = np.flatnonzero(first[1:] > last[:-1] + 1)
    for a, b in zip([0, *(breaks + 1)], [*breaks, len(first) - 1], strict=True):
        yield int(first[a]), int(last[b]) + 1


def cut(window: Window, lo: int, hi: int) -> Window:
    """Return what of a window lies among the elements lo .. hi of the tensor."""
    return window._replace(lo=max(window.lo, lo), hi=min(window.hi, hi))


def copy_window(window: Window, start: int, found: Bits, out: Bits) -> None:
    """Copy what `found`, which begins at element `start`, holds of a window to `out` [rows, columns]."""
    end = start + len(found)
    row = max(0, (start - window.column) // window.width - window.row)
    while row < window.rows:
        begin = (window.row + row) * window.width + window.column
        if begin >= end:
            break
        lo, hi = max(begin, start), min(begin + window.columns, end)
        whole = (end - begin + window.width - window.columns) // window.width
        if begin >= start and whole > 1:  # rows that are there entirely, at once
            count = min(whole, window.rows - row)
            pitch = window.width * found.itemsize
            rows = np.lib.stride_tricks.as_strided(
                found[begin - start :], (count, window.columns), (pitch, found.itemsize), writeable=False
            )
            out[row : row + count] = rows
            row += count
            continue
        if lo < hi:
            out[row, lo - begin : hi - begin] = found[lo - start : hi - start]
        row += 1
