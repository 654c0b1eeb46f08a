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
    NUMBER_FROM,
    RAW_BITS,
    Int,
    unzigzag,
)
from .half_lists import half_list
from .interval_lists import IntervalList, Longs, MovedWords, Ranks, listed_before, write_words
from .list_blocks import ListBlock
from .list_decoder import decode_list
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
    write: bool,
    keep_low: bool,
    keep_high: bool,
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
        write: whether the words of the frame shall be written to `current`.
        keep_low, keep_high: which lists are wanted.
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
    states[0], at = decode_list(
        rank, near_of, far_of, outer, near_is_right, from_near, length, shape, tables, states[0], words, block, middle
    )
    count = decode_moved(current, order, rank, 0, shape[1], bounds, tables, states, words, at, last, moved)
    if count < 0:
        return BAD_STREAM, BAD_STREAM
    if write:
        write_words(rank, middle, order, current)
        write_words(moved.rank[:count], moved.after, order, current)
    a = half_list(listed, middle, moved, count, False, block, low) if keep_low else 0
    b = half_list(listed, middle, moved, count, True, block, high) if keep_high else 0
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
    mask = 2 * half - 1
    many = np.uint64(len(words))
    turns = np.uint64(LANES - 1 if first >= LANES_FROM else 0)
    at = found = i = np.uint64(0)
    scale = 0
    while i < np.uint64(first):
        while np.int64(i) >= bounds[scale + 1]:
            scale += 1
        stop = np.uint64(min(bounds[scale + 1], first))
        table = np.uint64(table_of[DENSE + scale])
        while i < stop:
            lane = i & turns
            x = states[lane]
            slot = slot_of(x)
            bucket = np.uint64(buckets[bucket_of(table, slot)])
            symbol, slots, past = bucket >> SYMBOL_OF_BUCKET, slots_in(bucket), past_start(slot, bucket)
            while past >= slots:
                symbol += ONE
                entry = np.uint64(entries[entry_of(table, symbol)])
                slots, past = slots_of(entry), past_entry(slot, entry)
            x = after_symbol(x, slots, past)
            if x < LOW and at < many:
                x = refilled(x, words[at])
                at += ONE
            bits = RAW_BITS[symbol]
            raw = raw_of(x, bits)
            x = without_raw(x, bits)
            if x < LOW and at < many:
                x = refilled(x, words[at])
                at += ONE
            states[lane] = x
            was = np.int64(current[np.uint64(order[i])])
            here = (was + unzigzag(NUMBER_FROM[symbol] + raw)) & mask
            rank[found], before[found], after[found] = i, was, here
            found += np.uint64(here != was)
            i += ONE
    return int(np.int64(found)), int(np.int64(at))


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
    moved: MovedWords,
) -> int:
    """Decode the quiet words that moved: the inverse of `encode_moved`.

    Args:
        current: words at the left end in the tensor's own order; `order`: the place there of each rank.
        at: words of the stream that are used.
        last: what the first lane ends with; the others end with 2^32.
        moved: filled with them.

    Returns:
        Their number, or BAD_STREAM; also where the stream has not come to its end.
    """
    size = len(order)
    moved_rank, before, after, passed_of = moved
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
        moved_rank[found], before[found], after[found], passed_of[found] = r, was, here, passed
        found += here != was
        begin = r + 1
    if x != last or at != len(words) or states[1] != LOW or states[2] != LOW or states[3] != LOW:
        return BAD_STREAM
    return found
