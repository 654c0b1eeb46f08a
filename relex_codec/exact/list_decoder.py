"""Decoding the list of an interval: its words in the middle, and the lists on both sides (EXACT.md section 14).

This is the innermost loop of restoring (benchmarks/exact_words.py has its cycles). It goes block by block: what does
not depend on the lane is computed for 32 words at a time (list_vectors.py), so that only symbols are left to be taken
one by one, and the words that go on are moved up without a branch. Blocks stay in the nearest cache.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import compiled

from .contexts import ABOVE, BELOW, Int, clipped, number, raw_bits, unzigzag
from .interval_lists import Longs, Ranks
from .list_blocks import BLOCK, ListBlock, find_contexts
from .list_sides import append_differing
from .list_vectors import MANY, many_words
from .rans import (
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

SHARE_BITS: Final = 40
"""Bits of the fraction that stands for a division by the steps of an interval."""
SHARE_FROM: Final = 1 << 16
"""Distances from which on a division is done: below, ``distance * (2^40 share // length + 1) >> 40`` is the same."""


@compiled
def decode_list(
    rank: Ranks,
    near_of: Bits,
    far_of: Bits,
    outer: npt.NDArray[np.uint8],
    near_is_right: bool,
    from_near: int,
    length: int,
    shape: Longs,
    tables: CoderTables,
    x: np.uint64,
    words: Words,
    block: ListBlock,
    middle: Bits,
    is_high: bool,
    end_of: Bits,
    other_of: Bits,
    out_rank: Ranks,
    out_here: Bits,
    out_end: Bits,
    out_outer: npt.NDArray[np.uint8],
) -> tuple[int, np.uint64, int]:
    """Decode the words of an interval's list and make the list on one side of the frame, without the quiet words.

    Args:
        rank, near_of, far_of, outer: the list, see `interval_lists.IntervalList`, with its words at the near and at the
            far end.
        near_is_right, from_near, length, shape: as of `frame_encoder.encode_list`.
        tables: of the frame.
        x, words: lane and words of the stream, see `rans.open_stream`.
        block: used up.
        middle: filled with the words of the list in the frame.
        is_high: which side is made.
        end_of, other_of: the list's words at the end of that side, and at the other end.
        out_rank, out_here, out_end, out_outer: the list that is made, with its words in the frame and at its other
            end; room for one word more than the list.

    Returns:
        Length of the list that is made, the lane, and how many words of the stream are used.
    """
    made = 0
    at = np.uint64(0)
    for first in range(0, len(rank), BLOCK):
        count = min(BLOCK, len(rank) - first)
        find_contexts(near_of, far_of, outer, first, count, near_is_right, shape, block)
        x, at = _take_ways(count, from_near, length, tables, x, words, at, block)
        _make_words(near_of, far_of, outer, other_of, first, count, is_high, shape[1], block, middle)
        made = append_differing(
            rank, middle, end_of, block.moved, first, 0, count, out_rank, out_here, out_end, out_outer, made
        )  # fmt: skip
    used: Any = np.int64(at)
    return made, x, used


@compiled
def _take_ways(
    count: int,
    from_near: int,
    length: int,
    tables: CoderTables,
    x: np.uint64,
    words: Words,
    at: np.uint64,
    block: ListBlock,
) -> tuple[np.uint64, np.uint64]:
    """Take the ways of a block from the lane; returns it, and how many words of the stream are used."""
    contexts, distances, ways, _ = block
    table_of, buckets, entries = tables
    many = np.uint64(len(words))
    short = length < 1 << 20
    share = (from_near << SHARE_BITS) // length + 1
    for k in range(np.uint64(count)):
        d = np.int64(distances[k])
        table = np.uint64(table_of[np.uint64(contexts[k])])
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
        u: Int = np.int64(symbol)
        if d >= 8:
            if u >= 4:
                bits = raw_bits(u)
                raw = raw_of(x, bits)
                x = without_raw(x, bits)
                if x < LOW and at < many:
                    x = refilled(x, words[at])
                    at += ONE
                u = number(u, raw)
            way = (d * share) >> SHARE_BITS if short and d < SHARE_FROM else d * from_near // length
            u = way + unzigzag(u)
        elif u > d:
            used: Any = np.int64(at)
            beyond, x, used = take_number(x, BELOW if u == d + 1 else ABOVE, tables, words, used)
            at = np.uint64(used)
            u = -1 - beyond if u == d + 1 else d + 1 + beyond
        ways[k] = u
    return x, at


@compiled
def _make_words(
    near_of: Bits,
    far_of: Bits,
    outer: npt.NDArray[np.uint8],
    other_of: Bits,
    first: int,
    count: int,
    is_high: bool,
    half: Int,
    block: ListBlock,
    middle: Bits,
) -> None:
    """Fill the words of a block in the frame, and their outer movements in the list that is made."""
    _, _, ways, moved = block
    high = np.int64(is_high)
    mask = 2 * half - 1
    k = 0
    while k + MANY <= count:
        many_words(near_of, far_of, outer, other_of, first + k, ways, k, middle, moved, high)
        k += MANY
    while k < count:
        i = first + k
        near, way, around = np.int64(near_of[i]), np.int64(ways[k]), np.int64(outer[i])
        here = (near + (way if far_of[i] > near_of[i] else -way)) & mask
        movement = here - np.int64(other_of[i])
        middle[i] = here
        moved[k] = clipped(movement) | (around & 0xF0) if is_high else (around & 15) | (clipped(-movement) << 4)
        k += 1
