"""Encoding frames: words of a step to symbols, given those of the steps around it (EXACT.md section 14)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import compiled, woven

from .contexts import (
    ABOVE,
    BELOW,
    COUNT,
    DENSE,
    GAP,
    MOVE,
    Int,
    number_symbol,
    raw_bits,
    record_of,
    wrapped,
    zigzag,
)
from .interval_lists import Longs, Ranks, listed_before
from .list_blocks import BLOCK, ListBlock, find_contexts

Codes = npt.NDArray[np.uint16]
"""Symbols with their contexts, see `contexts.record_of`."""
Records = npt.NDArray[np.uint32]
"""Raw bits of numbers, and codes two by two."""


@woven
def _record(
    records: Codes,
    raws: Records,
    counts: Longs,
    at: int,
    raw_at: int,
    context: Int,
    value: Int,
    is_number: bool,
) -> tuple[int, int]:
    """Append one symbol, with the raw bits that it has if it is a number; returns the new ends."""
    symbol = number_symbol(value) if is_number else value
    records[at] = record_of(context, symbol)
    counts[context, symbol] += 1
    bits = raw_bits(symbol) if is_number else 0
    if bits > 0:
        raws[raw_at] = np.uint32(value & ((1 << bits) - 1))
        raw_at += 1
    return at + 1, raw_at


@compiled
def encode_list(
    rank: Ranks,
    left: Bits,
    right: Bits,
    outer: npt.NDArray[np.uint8],
    words: Bits,
    near_is_right: bool,
    from_near: int,
    length: int,
    shape: Longs,
    block: ListBlock,
    counts: Longs,
    records: Codes,
    raws: Records,
) -> tuple[int, int]:
    """Turn the words of an interval's list into symbols.

    Args:
        rank, left, right, outer: the list, see `interval_lists.IntervalList`.
        words: words of the part at the middle step, by rank.
        near_is_right: whether the near end is the right one.
        from_near: steps from the near end to the middle.
        length: steps from end to end; a word is expected to have gone ``from_near / length`` of its way.
        shape: int64 [3]: bits of mantissa, half of the range of words, lowest exponent.
        block: used up.
        counts: int64 [contexts, 64], added to.
        records, raws: filled; at least 2 per word.

    Returns:
        Numbers of records and raws.
    """
    half = shape[1]
    contexts, distances, _, _ = block
    near_of, far_of = (right, left) if near_is_right else (left, right)
    at = 0
    raw_at = 0
    for first in range(0, len(rank), BLOCK):
        count = min(BLOCK, len(rank) - first)
        find_contexts(near_of, far_of, outer, first, count, near_is_right, shape, block)
        for k in range(np.uint64(count)):
            i = np.uint64(first) + k
            near, context, distance = np.int64(near_of[i]), np.int64(contexts[k]), np.int64(distances[k])
            falls = -np.int64(far_of[i] < near_of[i])
            u = ((np.int64(words[np.uint64(rank[i])]) - near) ^ falls) - falls
            if distance >= 8:
                rest = zigzag(wrapped(u - distance * from_near // length, half))
                at, raw_at = _record(records, raws, counts, at, raw_at, context, rest, True)
            elif u < 0:
                at, raw_at = _record(records, raws, counts, at, raw_at, context, distance + 1, False)
                at, raw_at = _record(records, raws, counts, at, raw_at, BELOW, -1 - u, True)
            elif u > distance:
                at, raw_at = _record(records, raws, counts, at, raw_at, context, distance + 2, False)
                at, raw_at = _record(records, raws, counts, at, raw_at, ABOVE, u - distance - 1, True)
            else:
                at, raw_at = _record(records, raws, counts, at, raw_at, context, u, False)
    return at, raw_at


@compiled
def encode_all(
    before: Bits, after: Bits, first: int, half: Int, bounds: Longs, counts: Longs, records: Codes, raws: Records
) -> tuple[int, int]:
    """Turn the words of the first classes of a first frame, up to rank `first`, into symbols; see `encode_list`."""
    at = 0
    raw_at = 0
    scale = 0
    for i in range(first):
        while i >= bounds[scale + 1]:
            scale += 1
        move = zigzag(wrapped(np.int64(after[i]) - np.int64(before[i]), half))
        at, raw_at = _record(records, raws, counts, at, raw_at, DENSE + scale, move, True)
    return at, raw_at


@compiled
def encode_moved(
    moved: Ranks,
    before: Bits,
    after: Bits,
    rank: Ranks,
    first: int,
    half: Int,
    bounds: Longs,
    counts: Longs,
    records: Codes,
    raws: Records,
    at: int,
    raw_at: int,
) -> tuple[int, int]:
    """Turn the quiet words that moved into symbols.

    Args:
        moved: their ranks, in order, none below `first`.
        before, after: words at the left end and at the middle, by rank.
        rank: ranks of the interval's list.
        at, raw_at: ends of records and raws, which are appended to.
    """
    at, raw_at = _record(records, raws, counts, at, raw_at, COUNT, len(moved), True)
    passed: Int = 0
    start: Int = first
    scale = 0
    for i in range(len(moved)):
        r = np.int64(moved[i])
        known = passed
        passed = listed_before(rank, r, passed, False)
        gap = r - start - (passed - known)
        while start >= bounds[scale + 1]:
            scale += 1
        at, raw_at = _record(records, raws, counts, at, raw_at, GAP + scale, gap, True)
        while r >= bounds[scale + 1]:
            scale += 1
        move = zigzag(wrapped(np.int64(after[r]) - np.int64(before[r]), half)) - 1
        at, raw_at = _record(records, raws, counts, at, raw_at, MOVE + scale, move, True)
        start = r + 1
    return at, raw_at
