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
    ABOVE,
    BELOW,
    CLASSES,
    COUNT,
    DENSE,
    GAP,
    MOVE,
    NEAR_CONTEXTS,
    Int,
    far_context,
    near_key,
    number,
    raw_bits,
    scale_class,
    unzigzag,
)
from .interval_lists import Longs, Ranks
from .rans import (
    COARSE_SHIFT,
    LANES,
    LANES_FROM,
    LOOKUP_SHIFT,
    LOW,
    ONE,
    SYMBOL_SHIFT,
    CoderTables,
    Words,
    after_symbol,
    is_beyond,
    raw_of,
    refilled,
    slot_of,
    take_number,
    without_raw,
)

BAD_STREAM: Final = -1
"""What decoding returns for a stream that breaks the rules."""
Lanes = npt.NDArray[np.uint64]


@compiled
def decode_list(
    rank: Ranks,
    left: Bits,
    right: Bits,
    outer: npt.NDArray[np.uint8],
    near_is_right: bool,
    from_near: int,
    length: int,
    shape: Longs,
    tables: CoderTables,
    states: Lanes,
    words: Words,
    middle: Bits,
) -> int:
    """Decode the words of an interval's list into `middle`: the inverse of `encode_list`.

    Args:
        rank, left, right, outer: the list, see `interval_lists.IntervalList`.
        near_is_right, from_near, length, shape: as of `encode_list`.
        tables: of the frame.
        states, words: see `rans.open_stream`; states are changed.
        middle: filled.

    Returns:
        Number of words used.
    """
    mantissa, half, low = shape[0], shape[1], shape[2]
    table_of, lookup, entries = tables
    size = len(rank)
    mask = 2 * half - 1
    many = len(words)
    at = 0
    # classes by the bits above the mantissa, and contexts of near ends, are looked up: half of the time of a symbol
    # would go into them
    classes = np.empty((2 * half) >> mantissa or 1, np.uint8)
    for i in range(len(classes)):
        classes[i] = scale_class(i << mantissa, mantissa, half, low)
    contexts = NEAR_CONTEXTS[1] if near_is_right else NEAR_CONTEXTS[0]
    x0 = states[0]
    for i in range(size):
        if near_is_right:
            near, far = np.int64(right[i]), np.int64(left[i])
        else:
            near, far = np.int64(left[i]), np.int64(right[i])
        d = far - near
        sign = 1 if d > 0 else -1
        d *= sign
        scale, around = np.int64(classes[near >> mantissa]), np.int64(outer[i])
        if d < 8:
            key = near_key(d, scale, around, (sign > 0) != near_is_right)
            context: Int = np.int64(contexts[key])
        else:
            context = far_context(d, scale)
        t = table_of[context]
        slot = slot_of(x0)
        v = np.uint64(lookup[(t << LOOKUP_SHIFT) | (slot >> COARSE_SHIFT)])
        entry = entries[(t << SYMBOL_SHIFT) | v]
        while is_beyond(slot, entry):
            v += ONE
            entry = entries[(t << SYMBOL_SHIFT) | v]
        x0 = after_symbol(x0, entry)
        if x0 < LOW and at < many:
            x0 = refilled(x0, words[at])
            at += 1
        u: Int = np.int64(v)
        if d >= 8:
            bits = raw_bits(u)
            raw = np.int64(0)
            if bits > 0:
                raw = raw_of(x0, bits)
                x0 = without_raw(x0, bits)
                if x0 < LOW and at < many:
                    x0 = refilled(x0, words[at])
                    at += 1
            u = d * from_near // length + unzigzag(number(u, raw))
        elif u > d:
            beyond, x0, at = take_number(x0, BELOW if u == d + 1 else ABOVE, tables, words, at)
            u = -1 - beyond if u == d + 1 else d + 1 + beyond
        middle[i] = (near + sign * u) & mask
    states[0] = x0
    return at


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
    table_of, lookup, entries = tables
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    mask = 2 * half - 1
    many = len(words)
    wide = first >= LANES_FROM
    at = found = i = scale = 0
    while i < first:
        while i >= bounds[scale + 1]:
            scale += 1
        stop = min(bounds[scale + 1], first)
        t = table_of[DENSE + scale]
        base, row = t << LOOKUP_SHIFT, t << SYMBOL_SHIFT
        while i < stop:
            # with four lanes, the lane in turn is always kept in x0
            slot = slot_of(x0)
            v = np.uint64(lookup[base | (slot >> COARSE_SHIFT)])
            entry = entries[row | v]
            while is_beyond(slot, entry):
                v += ONE
                entry = entries[row | v]
            x0 = after_symbol(x0, entry)
            if x0 < LOW and at < many:
                x0 = refilled(x0, words[at])
                at += 1
            move: Int = np.int64(v)
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
    passed = found = scale = 0
    begin = np.int64(first)
    for _ in range(count):
        while scale < CLASSES and begin >= bounds[scale + 1]:
            scale += 1
        if scale == CLASSES:
            return BAD_STREAM
        gap, x, at = take_number(x, GAP + scale, tables, words, at)
        r = begin + gap
        while passed < len(rank) and rank[passed] <= r:
            r += 1
            passed += 1
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
