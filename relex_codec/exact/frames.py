"""Frames: the words of one step from those of the steps around it (FORMAT.md section 14).

Words are ordered integers (words.py), sorted by class; a *rank* is a place in that order. A *node* is an interval between
two known steps: the list of the words that differ at its ends, in the order of their ranks, as four arrays: rank (uint32),
word at the left end and at the right end, outer movement (uint8). All other words are *quiet*. A frame gives the words
of a step between the ends; `split` makes the nodes on both sides of it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from .contexts import (
    ABOVE,
    BELOW,
    CLASSES,
    COUNT,
    DENSE,
    FAR,
    GAP,
    MOVE,
    STILL,
    clipped,
    list_context,
    number,
    number_symbol,
    outer_near,
    raw_bits,
    scale_class,
    unzigzag,
    wrapped,
    zigzag,
)
from .jit import compiled
from .rans import (
    EXTRA,
    LANES,
    LANES_FROM,
    LOW,
    LOOKUP_SHIFT,
    COARSE_SHIFT,
    ONE,
    is_beyond,
    SYMBOL_SHIFT,
    after_symbol,
    raw_of,
    refilled,
    slot_of,
    take_number,
    take_rest,
    without_raw,
)

BAD_STREAM: Final = -1
"""What decoding returns for a stream that breaks the rules."""


@compiled
def _record(records, raws, counts, at, raw_at, context, value, is_number, mark):  # type: ignore[no-untyped-def]
    """Append one symbol, with the raw bits that it has if it is a number; returns the new ends."""
    symbol = number_symbol(value) if is_number else value
    records[at] = np.uint32(symbol | (context << 6) | mark)
    counts[context, symbol] += 1
    bits = raw_bits(symbol) if is_number else 0
    if bits > 0:
        raws[raw_at] = np.uint32(value & ((1 << bits) - 1))
        raw_at += 1
    return at + 1, raw_at


@compiled
def encode_list(rank, left, right, outer, middle, near_is_right, part, whole, shape, counts, records, raws):  # type: ignore[no-untyped-def]
    """Symbols of the words of a node's list.

    Args:
        middle: words of the list at the middle step.
        part, whole: the expected share of the way from the near end, as a fraction of steps.
        shape: int64 [3]: bits of mantissa, half of the range of words, lowest exponent.
        counts: int64 [contexts, 64], added to.
        records, raws: filled; at least 2 per word.

    Returns:
        Numbers of records and raws.
    """
    mantissa, half, low = shape[0], shape[1], shape[2]
    at = 0
    raw_at = 0
    for i in range(len(rank)):
        if near_is_right:
            near, far = np.int64(right[i]), np.int64(left[i])
        else:
            near, far = np.int64(left[i]), np.int64(right[i])
        distance = far - near
        sign = 1
        if distance < 0:
            distance, sign = -distance, -1
        scale = scale_class(near, mantissa, half, low)
        around, rises = np.int64(outer[i]), (sign > 0) != near_is_right
        context = list_context(
            distance, scale, outer_near(around, rises, near_is_right), outer_near(around, rises, not near_is_right)
        )
        u = (np.int64(middle[i]) - near) * sign
        if distance >= 8:
            rest = zigzag(wrapped(u - distance * part // whole, half))
            at, raw_at = _record(records, raws, counts, at, raw_at, context, rest, True, 0)
        elif u < 0:
            at, raw_at = _record(records, raws, counts, at, raw_at, context, distance + 1, False, 0)
            at, raw_at = _record(records, raws, counts, at, raw_at, BELOW, -1 - u, True, EXTRA)
        elif u > distance:
            at, raw_at = _record(records, raws, counts, at, raw_at, context, distance + 2, False, 0)
            at, raw_at = _record(records, raws, counts, at, raw_at, ABOVE, u - distance - 1, True, EXTRA)
        else:
            at, raw_at = _record(records, raws, counts, at, raw_at, context, u, False, 0)
    return at, raw_at


@compiled
def encode_all(before, after, first, half, bounds, counts, records, raws):  # type: ignore[no-untyped-def]
    """Symbols of the words of the first classes, up to rank `first`, of a first frame; as `encode_list`."""
    at = 0
    raw_at = 0
    scale = 0
    for i in range(first):
        while i >= bounds[scale + 1]:
            scale += 1
        move = zigzag(wrapped(np.int64(after[i]) - np.int64(before[i]), half))
        at, raw_at = _record(records, raws, counts, at, raw_at, DENSE + scale, move, True, 0)
    return at, raw_at


@compiled
def encode_moved(moved, before, after, rank, first, half, bounds, counts, records, raws, at, raw_at):  # type: ignore[no-untyped-def]
    """Symbols of the quiet words that moved.

    Args:
        moved: their ranks, in order, none below `first`.
        before, after: words at the left end and at the middle, by rank.
        rank: ranks of the node's list.
        at, raw_at: ends of records and raws, which are appended to.
    """
    at, raw_at = _record(records, raws, counts, at, raw_at, COUNT, len(moved), True, 0)
    passed = 0
    start = first
    scale = 0
    for i in range(len(moved)):
        r = np.int64(moved[i])
        gap = r - start
        while passed < len(rank) and rank[passed] < r:
            gap -= 1
            passed += 1
        while start >= bounds[scale + 1]:
            scale += 1
        at, raw_at = _record(records, raws, counts, at, raw_at, GAP + scale, gap, True, 0)
        while r >= bounds[scale + 1]:
            scale += 1
        move = zigzag(wrapped(np.int64(after[r]) - np.int64(before[r]), half)) - 1
        at, raw_at = _record(records, raws, counts, at, raw_at, MOVE + scale, move, True, 0)
        start = r + 1
    return at, raw_at


@compiled
def decode_list(rank, left, right, outer, near_is_right, part, whole, shape, model, states, words, middle):  # type: ignore[no-untyped-def]
    """Decode the words of a node's list into `middle`; the inverse of `encode_list`.

    Args:
        model: of the frame, see `models.Model`.
        states, words: see `rans.open_stream`; states are changed.

    Returns:
        Number of words used.
    """
    mantissa, half, low = shape[0], shape[1], shape[2]
    tables, lookup, entries = model
    size = len(rank)
    mask = 2 * half - 1
    many = len(words)
    at = 0
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    wide = size >= LANES_FROM
    for i in range(size):
        if near_is_right:
            near, far = np.int64(right[i]), np.int64(left[i])
        else:
            near, far = np.int64(left[i]), np.int64(right[i])
        d = far - near
        sign = 1 if d > 0 else -1
        d *= sign
        scale = scale_class(near, mantissa, half, low)
        around, rises = np.int64(outer[i]), (sign > 0) != near_is_right
        t = tables[
            list_context(d, scale, outer_near(around, rises, near_is_right), outer_near(around, rises, not near_is_right))
        ]
        # with four lanes, the lane in turn is always kept in x0
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
        u = np.int64(v)
        if d >= 8:
            bits = raw_bits(u)
            raw = np.int64(0)
            if bits > 0:
                raw = raw_of(x0, bits)
                x0 = without_raw(x0, bits)
                if x0 < LOW and at < many:
                    x0 = refilled(x0, words[at])
                    at += 1
            u = d * part // whole + unzigzag(number(u, raw))
        elif u > d:
            beyond, x0, at = take_number(x0, BELOW if u == d + 1 else ABOVE, model, words, at)
            u = -1 - beyond if u == d + 1 else d + 1 + beyond
        middle[i] = (near + sign * u) & mask
        if wide:
            x0, x1, x2, x3 = x1, x2, x3, x0
    for _ in range(-size % LANES if wide else 0):
        x0, x1, x2, x3 = x1, x2, x3, x0
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    return at


@compiled
def decode_all(current, order, first, half, bounds, model, states, words, rank, before, after):  # type: ignore[no-untyped-def]
    """Decode the first classes of a first frame: the inverse of `encode_all`.

    Args:
        current, order: as of `decode_moved`.
        rank, before, after: filled with the ranks that moved and their words; room for one more than `first`.

    Returns:
        Their number and the number of words used.
    """
    tables, lookup, entries = model
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    mask = 2 * half - 1
    many = len(words)
    wide = first >= LANES_FROM
    at = found = i = scale = 0
    while i < first:
        while i >= bounds[scale + 1]:
            scale += 1
        stop = min(bounds[scale + 1], first)
        t = tables[DENSE + scale]
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
            move = np.int64(v)
            if move >= 4:
                move, x0, at = take_rest(move, x0, words, at)
            rank[found] = i
            before[found] = current[order[i]]
            after[found] = (np.int64(before[found]) + unzigzag(move)) & mask
            found += move != 0
            if wide:
                x0, x1, x2, x3 = x1, x2, x3, x0
            i += 1
    for _ in range(-first % LANES if wide else 0):
        x0, x1, x2, x3 = x1, x2, x3, x0
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    return found, at


@compiled
def decode_moved(current, order, rank, first, half, bounds, model, states, words, at, last, moved, before, after):  # type: ignore[no-untyped-def]
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
    count, x, at = take_number(x, COUNT, model, words, at)
    if count > size - first - len(rank):
        return BAD_STREAM
    mask = 2 * half - 1
    passed = 0
    begin = np.int64(first)
    scale = 0
    for i in range(count):
        while scale < CLASSES and begin >= bounds[scale + 1]:
            scale += 1
        if scale == CLASSES:
            return BAD_STREAM
        gap, x, at = take_number(x, GAP + scale, model, words, at)
        r = begin + gap
        while passed < len(rank) and rank[passed] <= r:
            r += 1
            passed += 1
        if r >= size:
            return BAD_STREAM
        while r >= bounds[scale + 1]:
            scale += 1
        move, x, at = take_number(x, MOVE + scale, model, words, at)
        moved[i] = r
        before[i] = current[order[r]]
        after[i] = (np.int64(before[i]) + unzigzag(move + 1)) & mask
        begin = r + 1
    if x != last or at != len(words) or states[1] != LOW or states[2] != LOW or states[3] != LOW:
        return BAD_STREAM
    return count


@compiled
def split(rank, left, right, outer, middle, moved, moved_from, moved_to, keep_low, keep_high, low, high):  # type: ignore[no-untyped-def]
    """Make the nodes on both sides of a frame.

    Args:
        rank, left, right, outer, middle: the node's list and its words in the frame.
        moved, moved_from, moved_to: ranks of the quiet words that moved, and their words at the left end and in the frame.
        keep_low, keep_high: which sides are wanted.
        low, high: (rank, left, right, outer) of both sides, filled; room for one more than list and moved words.

    Returns:
        Lengths of both lists.
    """
    low_rank, low_left, low_right, low_outer = low
    high_rank, high_left, high_right, high_outer = high
    a = b = i = j = 0
    while i < len(rank) or j < len(moved):
        if j == len(moved) or (i < len(rank) and rank[i] < moved[j]):
            r, before, after = rank[i], np.int64(left[i]), np.int64(right[i])
            here, around = np.int64(middle[i]), np.int64(outer[i])
            i += 1
        else:
            r = moved[j]
            before = np.int64(moved_from[j])
            after, here, around = before, np.int64(moved_to[j]), STILL
            j += 1
        # written first, counted if it is one: half of the words would mispredict a branch
        if keep_low:
            low_rank[a], low_left[a], low_right[a] = r, before, here
            low_outer[a] = (around & 15) | (clipped(after - here) << 4)
            a += here != before
        if keep_high:
            high_rank[b], high_left[b], high_right[b] = r, here, after
            high_outer[b] = clipped(here - before) | (around & 0xF0)
            b += here != after
    return a, b


@compiled
def find_moved(before, after, rank, first, moved):  # type: ignore[no-untyped-def]
    """Find the quiet words that differ, from rank `first` on; returns their number.

    Args:
        before, after: words by rank at the left end and at the middle.
        rank: ranks of the node's list.
        moved: filled.
    """
    found = 0
    for r in range(first, len(before)):
        moved[found] = r
        found += before[r] != after[r]
    count = i = 0
    for j in range(found):
        r = moved[j]
        while i < len(rank) and rank[i] < r:
            i += 1
        if i == len(rank) or rank[i] != r:
            moved[count] = r
            count += 1
    return count


@compiled
def apply(rank, words, order, current):  # type: ignore[no-untyped-def]
    """Write words of a list, or of those that moved, into the tensor, which is in its own order."""
    for i in range(len(rank)):
        current[order[rank[i]]] = words[i]


@compiled
def sort_by_class(words, mantissa, half, low, classes, order, bounds):  # type: ignore[no-untyped-def]
    """Sort words by class, stably: fills `order` (uint32, the place of each rank) and `bounds` (int64 [17])."""
    # four quarters at a time, each with its own counts, so that neighbours of one class do not wait for each other
    quarter = (len(words) + 3) // 4
    counts = np.zeros((4, CLASSES), np.int64)
    for i in range(len(words)):
        classes[i] = scale_class(np.int64(words[i]), mantissa, half, low)
    for i in range(quarter):
        for q in range(4):
            if q * quarter + i < len(words):
                counts[q, classes[q * quarter + i]] += 1
    begin = np.zeros((4, CLASSES), np.int64)
    at = 0
    for scale in range(CLASSES):
        bounds[scale] = at
        for q in range(4):
            begin[q, scale] = at
            at += counts[q, scale]
    bounds[CLASSES] = at
    for i in range(quarter):
        for q in range(4):
            place = q * quarter + i
            if place < len(words):
                scale = classes[place]
                order[begin[q, scale]] = place
                begin[q, scale] += 1


__all__ = [
    "BAD_STREAM",
    "apply",
    "decode_all",
    "decode_list",
    "decode_moved",
    "encode_all",
    "encode_list",
    "encode_moved",
    "find_moved",
    "sort_by_class",
    "split",
]
