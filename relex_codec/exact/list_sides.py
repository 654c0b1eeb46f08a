"""The lists on both sides of a frame, of the list around it and the quiet words that moved (EXACT.md section 14)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import compiled, woven

from .contexts import STILL, Int, clipped
from .interval_lists import IntervalList, Ranks
from .list_blocks import BLOCK
from .list_vectors import MANY, many_outer


@woven
def append_differing(
    rank: Ranks,
    middle: Bits,
    end_of: Bits,
    moved: npt.NDArray[np.uint8],
    first: int,
    begin: int,
    stop: int,
    out_rank: Ranks,
    out_here: Bits,
    out_end: Bits,
    out_outer: npt.NDArray[np.uint8],
    made: int,
) -> int:
    """Append the words of a block that differ from those of the end to the list that is made; returns its length.

    Args:
        rank, middle, end_of: ranks of a list, and its words in the frame and at the end of the side that is made.
        moved: outer movements of the words from `first` on.
        first: where the block begins in the list.
        begin, stop: which words of the block.
    """
    end = np.uint64(made)
    for k in range(np.uint64(begin), np.uint64(stop)):
        i = np.uint64(first) + k
        # each is written first and counted if it is one: half of the words would mispredict a branch
        out_rank[end], out_here[end], out_end[end], out_outer[end] = rank[i], middle[i], end_of[i], moved[k]
        end += np.uint64(middle[i] != end_of[i])
    return int(np.int64(end))


@compiled
def split_list(
    rank: Ranks,
    left: Bits,
    right: Bits,
    outer: npt.NDArray[np.uint8],
    middle: Bits,
    moved: Ranks,
    places: Ranks,
    moved_from: Bits,
    moved_to: Bits,
    keep_low: bool,
    keep_high: bool,
    block: npt.NDArray[np.uint8],
    low: IntervalList,
    high: IntervalList,
) -> tuple[int, int]:
    """Make the lists on both sides of a frame.

    Args:
        rank, left, right, outer: the interval's list.
        middle: its words in the frame.
        moved, places, moved_from, moved_to: ranks of the quiet words that moved, how many words of the list come before
            each of them, and their words at the left end and in the frame.
        keep_low, keep_high: which sides are wanted.
        block: uint8 [`BLOCK`], used up.
        low, high: both sides, filled; with room for one word more than list and moved words together.

    Returns:
        Lengths of both lists, 0 of one that is not wanted.
    """
    low_rank, low_left, low_right, low_outer = low
    high_rank, high_left, high_right, high_outer = high
    size, count = len(rank), len(moved)
    a = b = j = first = 0
    while True:
        stop = min(size, first + BLOCK)
        until = j
        while until < count and (places[until] < stop or stop == size):
            until += 1
        if keep_low:
            a = _append_block(
                rank, left, right, outer, middle, first, stop, moved, places, moved_from, moved_to, j, until, False,
                block, low_rank, low_right, low_left, low_outer, a,
            )  # fmt: skip
        if keep_high:
            b = _append_block(
                rank, right, left, outer, middle, first, stop, moved, places, moved_from, moved_to, j, until, True,
                block, high_rank, high_left, high_right, high_outer, b,
            )  # fmt: skip
        first, j = stop, until
        if first == size:
            return a, b


@compiled
def _append_block(
    rank: Ranks,
    end_of: Bits,
    other_of: Bits,
    outer: npt.NDArray[np.uint8],
    middle: Bits,
    first: int,
    stop: int,
    moved: Ranks,
    places: Ranks,
    moved_from: Bits,
    moved_to: Bits,
    j: int,
    until: int,
    is_high: bool,
    block: npt.NDArray[np.uint8],
    out_rank: Ranks,
    out_here: Bits,
    out_end: Bits,
    out_outer: npt.NDArray[np.uint8],
    made: int,
) -> int:
    """Append a block of a list, and the words `j` to `until` that moved, to the list on one side; returns its length.

    Args:
        end_of, other_of: the list's words at the end of that side, and at the other end.
        first, stop: where the block begins and ends in the list.
    """
    _outer_movements(outer, other_of, middle, first, stop, np.int64(is_high), block)
    begin = first
    for which in range(j, until):
        place: Any = np.int64(places[which])
        made = append_differing(
            rank, middle, end_of, block, first, begin - first, place - first,
            out_rank, out_here, out_end, out_outer, made,
        )  # fmt: skip
        before, here = np.int64(moved_from[which]), np.int64(moved_to[which])
        movement = clipped(here - before if is_high else before - here)
        out_rank[made], out_here[made], out_end[made] = moved[which], here, before
        out_outer[made] = movement | (STILL & 0xF0) if is_high else (STILL & 15) | (movement << 4)
        made += here != before
        begin = place
    return append_differing(
        rank, middle, end_of, block, first, begin - first, stop - first, out_rank, out_here, out_end, out_outer, made
    )


@woven
def _outer_movements(
    outer: npt.NDArray[np.uint8],
    other_of: Bits,
    middle: Bits,
    first: int,
    stop: int,
    high: Int,
    block: npt.NDArray[np.uint8],
) -> None:
    """Fill the outer movements of the words of a block in the list that is made."""
    i = first
    while i + MANY <= stop:
        many_outer(middle, other_of, outer, i, block, i - first, high)
        i += MANY
    while i < stop:
        movement, around = np.int64(middle[i]) - np.int64(other_of[i]), np.int64(outer[i])
        block[i - first] = clipped(movement) | (around & 0xF0) if high else (around & 15) | (clipped(-movement) << 4)
        i += 1
