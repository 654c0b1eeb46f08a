"""The lists on both sides of a frame, made from the list of its interval (EXACT.md section 14).

A word of the list goes on where it differs from the end of the side, and so do the quiet words that moved. Both are in
the order of their ranks, so one pass merges them: block by block, as outer movements are computed for 32 words at a
time (list_vectors.py), and between two quiet words that moved, words go on without a branch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import compiled

from .contexts import STILL, Int, clipped
from .interval_lists import IntervalList, MovedWords
from .list_blocks import BLOCK, ListBlock
from .list_vectors import MANY, many_movements


@compiled
def half_list(
    listed: IntervalList,
    middle: Bits,
    moved: MovedWords,
    count: int,
    is_high: bool,
    block: ListBlock,
    out: IntervalList,
) -> int:
    """Make the list on one side of a frame.

    Args:
        listed: the interval's list.
        middle: its words in the frame.
        moved, count: the quiet words that moved, and how many.
        is_high: whether it is the right side.
        block: used up.
        out: filled; with room for one word more than list and moved words together.

    Returns:
        Length of the list that is made.
    """
    rank, left, right, outer = listed
    moved_rank, moved_from, moved_to, passed = moved
    out_rank, out_left, out_right, out_outer = out
    end_of, other_of = (right, left) if is_high else (left, right)
    out_here, out_end = (out_left, out_right) if is_high else (out_right, out_left)
    size = len(rank)
    end = np.uint64(0)
    i: Int = 0
    j = 0
    for first in range(0, max(size, 1), BLOCK):
        until = min(first + BLOCK, size)
        _find_movements(middle, other_of, outer, first, until - first, is_high, block)
        while True:
            stop: Int = until
            if j < count and passed[j] < until:
                stop = np.int64(passed[j])
            for k in range(np.uint64(i), np.uint64(stop)):
                # each is written first and counted if it is one: half of the words would mispredict a branch
                here, there = middle[k], end_of[k]
                out_rank[end], out_here[end], out_end[end] = rank[k], here, there
                out_outer[end] = block.moved[k - np.uint64(first)]
                end += np.uint64(here != there)
            i = stop
            if j == count or passed[j] > stop:
                break
            before, here = np.int64(moved_from[j]), np.int64(moved_to[j])
            out_rank[end], out_here[end], out_end[end] = moved_rank[j], here, before
            if is_high:
                out_outer[end] = clipped(here - before) | (STILL & 0xF0)
            else:
                out_outer[end] = (STILL & 15) | (clipped(before - here) << 4)
            end += np.uint64(1)
            j += 1
    return int(np.int64(end))


@compiled
def _find_movements(
    middle: Bits, other_of: Bits, outer: npt.NDArray[np.uint8], first: int, count: int, is_high: bool, block: ListBlock
) -> None:
    """Fill the outer movements of a block."""
    moved = block.moved
    high = np.int64(is_high)
    k = 0
    while k + MANY <= count:
        many_movements(middle, other_of, outer, first + k, moved, k, high)
        k += MANY
    while k < count:
        i = first + k
        movement, around = np.int64(middle[i]) - np.int64(other_of[i]), np.int64(outer[i])
        moved[k] = clipped(movement) | (around & 0xF0) if is_high else (around & 15) | (clipped(-movement) << 4)
        k += 1
