"""Decoding frames: symbols to the words of a step, given those of the steps around it (EXACT.md section 14).

There are no bounds checks in compiled code, and a stream may say anything: every index made of what was decoded is
compared before it is used.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import compiled

from .contexts import (
    CLASSES,
    COUNT,
    DENSE,
    GAP,
    MOVE,
    Int,
    number,
    raw_bits,
    unzigzag,
)
from .interval_lists import (
    IntervalList,
    Longs,
    MovedWords,
    Ranks,
    listed_before,
    merge_moved,
    places_of,
    write_words,
)
from .list_blocks import ListBlock
from .list_decoder import decode_list
from .list_sides import split_list
from .rans import (
    LANES,
    LANES_FROM,
    LOW,
    ONE,
    SYMBOL_OF_BUCKET,
    CoderTables,
    Words,
    after_symbol,
    bucket_of,
    entry_of,
    past_entry,
    past_start,
    raw_of,
    refilled,
    slot_of,
    slots_in,
    slots_of,
    take_number,
    without_raw,
)

BAD_STREAM: Final = -1
"""What decoding returns for a stream that breaks the rules."""
LOW_SIDE: Final = 0
HIGH_SIDE: Final = 1
BOTH_SIDES: Final = 2
"""Which lists `decode_frame` makes."""
Lanes = npt.NDArray[np.uint64]


@compiled
def decode_frame(
    listed: IntervalList,
    near_is_right: bool,
    from_near: int,
    length: int,
    shape: Longs,
    bounds: Longs,
    tables: CoderTables,
    states: Lanes,
    words: Words,
    last: np.uint64,
    side: int,
    write: bool,
    low: IntervalList,
    high: IntervalList,
    block: ListBlock,
    middle: Bits,
    moved: MovedWords,
    current: Bits,
    order: Ranks,
) -> tuple[int, int]:
    """Decode the frame of an interval, and make the lists on both sides of it.

    Args:
        listed: the interval's list.
        near_is_right, from_near, length, shape: as of `frame_encoder.encode_list`.
        bounds: see `interval_lists.Order`.
        tables: of the frame.
        states, words: see `rans.open_stream`; states are changed.
        last: see `decode_moved`.
        side: which lists are wanted: `LOW_SIDE`, `HIGH_SIDE` or `BOTH_SIDES`.
        write: whether the words of the frame shall be written to `current`.
        low, high: filled, if they are wanted; with room for one word more than the part.
        block: used up.
        middle: filled with the words of the list in the frame.
        moved: filled with the quiet words that moved.
        current, order: as of `decode_moved`.

    Returns:
        Lengths of both lists, 0 of one that is not wanted, or BAD_STREAM twice.
    """
    rank, left, right, outer = listed
    near_of, far_of = (right, left) if near_is_right else (left, right)
    one_high = side == HIGH_SIDE
    end_of, other_of = (right, left) if one_high else (left, right)
    low_rank, low_left, low_right, low_outer = low
    high_rank, high_left, high_right, high_outer = high
    if one_high:
        out_rank, out_here, out_end, out_outer = high_rank, high_left, high_right, high_outer
    else:
        out_rank, out_here, out_end, out_outer = low_rank, low_right, low_left, low_outer
    made, states[0], at = decode_list(
        rank, near_of, far_of, outer, near_is_right, from_near, length, shape, tables, states[0], words,
        block, middle, one_high, end_of, other_of, out_rank, out_here, out_end, out_outer,
    )  # fmt: skip
    a, b = (0, made) if one_high else (made, 0)
    moved_rank, before, after = moved
    count = decode_moved(
        current, order, rank, 0, shape[1], bounds, tables, states, words, at, last, moved_rank, before, after
    )
    if count < 0:
        return BAD_STREAM, BAD_STREAM
    if write:
        write_words(rank, middle, order, current)
        write_words(moved_rank[:count], after, order, current)
    if side == BOTH_SIDES:  # in one pass, which merges for both: the list that was made is written over
        ranks = moved_rank[:count]
        return split_list(
            rank, left, right, outer, middle, ranks, places_of(ranks, rank), before, after, True, True, block.moved,
            low, high,
        )  # fmt: skip
    if count > 0 and one_high:
        b = merge_moved(high, b, moved, count, True)
    elif count > 0:
        a = merge_moved(low, a, moved, count, False)
    return a, b


@compiled
def decode_all(
    current: Bits,
    order: Ranks,
    first: int,
    half: Int,
    bounds: Longs,
    tables: CoderTables,
    states: Lanes,
    words: Words,
    rank: Ranks,
    before: Bits,
    after: Bits,
) -> tuple[int, int]:
    """Decode the first classes of a first frame: the inverse of `encode_all`.

    Args:
        current, order: as of `decode_moved`.
        rank, before, after: filled with the ranks that moved and their words; room for one more than `first`.

    Returns:
        Their number and the number of words used.
    """
    table_of, buckets, entries = tables
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    mask = 2 * half - 1
    many = len(words)
    wide = first >= LANES_FROM
    at = found = i = scale = 0
    while i < first:
        while i >= bounds[scale + 1]:
            scale += 1
        stop = min(bounds[scale + 1], first)
        table = np.uint64(table_of[DENSE + scale])
        while i < stop:
            # with four lanes, the lane in turn is always kept in x0
            slot = slot_of(x0)
            bucket = np.uint64(buckets[bucket_of(table, slot)])
            symbol, slots, past = bucket >> SYMBOL_OF_BUCKET, slots_in(bucket), past_start(slot, bucket)
            while past >= slots:
                symbol += ONE
                entry = np.uint64(entries[entry_of(table, symbol)])
                slots, past = slots_of(entry), past_entry(slot, entry)
            x0 = after_symbol(x0, slots, past)
            if x0 < LOW and at < many:
                x0 = refilled(x0, words[at])
                at += 1
            move: Int = np.int64(symbol)
            if move >= 4:
                bits = raw_bits(move)
                raw = raw_of(x0, bits)
                x0 = without_raw(x0, bits)
                if x0 < LOW and at < many:
                    x0 = refilled(x0, words[at])
                    at += 1
                move = number(move, raw)
            was = np.int64(current[order[i]])
            here = (was + unzigzag(move)) & mask
            rank[found], before[found], after[found] = i, was, here
            found += here != was
            if wide:
                x0, x1, x2, x3 = x1, x2, x3, x0
            i += 1
    for _ in range(-first % LANES if wide else 0):
        x0, x1, x2, x3 = x1, x2, x3, x0
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    return found, at


@compiled
def decode_moved(
    current: Bits,
    order: Ranks,
    rank: Ranks,
    first: int,
    half: Int,
    bounds: Longs,
    tables: CoderTables,
    states: Lanes,
    words: Words,
    at: int,
    last: np.uint64,
    moved: Ranks,
    before: Bits,
    after: Bits,
) -> int:
    """Decode the quiet words that moved: the inverse of `encode_moved`.

    Args:
        current: words at the left end in the tensor's own order; `order`: the place there of each rank.
        at: words of the stream that are used.
        last: what the first lane ends with; the others end with 2^32.
        moved, before, after: filled with their ranks and words at the left end and in the frame.

    Returns:
        Their number, or BAD_STREAM; also where the stream has not come to its end.
    """
    size = len(order)
    x = states[0]
    count, x, at = take_number(x, COUNT, tables, words, at)
    if count > size - first - len(rank):
        return BAD_STREAM
    mask = 2 * half - 1
    passed: Int = 0
    found = scale = 0
    begin = np.int64(first)
    for _ in range(count):
        while scale < CLASSES and begin >= bounds[scale + 1]:
            scale += 1
        if scale == CLASSES:
            return BAD_STREAM
        gap, x, at = take_number(x, GAP + scale, tables, words, at)
        quiet = begin - passed + gap
        passed = listed_before(rank, quiet + 1, passed, True)
        r = quiet + passed
        if r >= size:
            return BAD_STREAM
        while r >= bounds[scale + 1]:
            scale += 1
        move, x, at = take_number(x, MOVE + scale, tables, words, at)
        was = np.int64(current[order[r]])
        here = (was + unzigzag(move + 1)) & mask
        moved[found], before[found], after[found] = r, was, here
        found += here != was
        begin = r + 1
    if x != last or at != len(words) or states[1] != LOW or states[2] != LOW or states[3] != LOW:
        return BAD_STREAM
    return found
