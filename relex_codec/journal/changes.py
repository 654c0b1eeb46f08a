"""Compiled: the elements of a chunk that changed, and bytes made of them (JOURNAL.md section 5)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import compiled, lowest_bit

SKIP: Final = 255
"""The byte that skips so many elements, of which none changed."""
LINE: Final = 8
"""64-bit words that are compared at a time."""
BLOCK: Final = 2048
"""64-bit words whose changes are taken before it goes on: 32 kB of both steps."""


@compiled
def find_changes(
    old: Bits, new: Bits, old_words: Any, new_words: Any, is_float: bool, words: Any, positions: Any, changes: Any
) -> int:
    """Write position and change of each element that differs; return how many there are."""
    # One function: arrays handed to another one would be counted as references, at five times the cost. Of each block,
    # first the words that differ, without a branch for each, then the elements in them, which are still in the cache.
    bits, per_word, last = 8 * old.itemsize, 8 // old.itemsize, len(old_words)
    shift, count = np.uint64(0), 0  # a shift, as dividing would take longer than all else
    while 1 << int(shift) < bits:
        shift += np.uint64(1)
    for block in range(0, last, BLOCK):
        end, found = min(block + BLOCK, last), 0
        lines = (end - block) // LINE
        for line in range(lines):
            first, differ = block + line * LINE, np.uint64(0)
            for k in range(LINE):
                differ |= old_words[first + k] ^ new_words[first + k]
            if differ:
                for k in range(first, first + LINE):
                    words[found] = k
                    found += old_words[k] != new_words[k]
        for k in range(block + lines * LINE, end):
            words[found] = k
            found += old_words[k] != new_words[k]
        for k in range(found):
            first = int(words[k]) * per_word
            differ = old_words[words[k]] ^ new_words[words[k]]
            while differ:
                number = int(lowest_bit(differ) >> shift)
                i = first + number
                moved = _ordered(np.uint64(new[i]), bits, is_float) - _ordered(np.uint64(old[i]), bits, is_float)
                positions[count] = i
                changes[count] = _zigzag(moved, bits)
                count += 1
                differ &= ~(_mask(bits) << np.uint64(number * bits))
    for i in range(last * per_word, len(old)):
        if old[i] != new[i]:
            moved = _ordered(np.uint64(new[i]), bits, is_float) - _ordered(np.uint64(old[i]), bits, is_float)
            positions[count] = i
            changes[count] = _zigzag(moved, bits)
            count += 1
    return count


@compiled
def describe_changes(
    old: Bits, new: Bits, old_words: Any, new_words: Any, is_float: bool, words: Any, positions: Any, changes: Any,
    skips: Any, planes: Any, most: Any,
) -> Any:  # fmt: skip
    """Find changes and split them into skips and planes; return how many, of skips, and of planes that have any.

    All of it in one call, which gives up the GIL once: beside a thread that is busy in Python, getting it back takes up
    to 5 ms each time. `most` gets how often the most frequent byte occurs in skips and in each plane.
    """
    count = find_changes(old, new, old_words, new_words, is_float, words, positions, changes)
    if count == 0:
        return 0, 0, 0
    length = skips_of(positions[:count], skips)
    top = split_changes(changes[:count], planes, old.itemsize)
    most[0] = most_frequent(skips[:length])
    for plane in range(top):
        most[1 + plane] = most_frequent(planes[plane, :count])
    return count, length, top


@compiled
def most_frequent(raw: Any) -> int:
    """Return how often the most frequent byte occurs."""
    counts = np.zeros(256, np.int64)
    for i in range(len(raw)):
        counts[raw[i]] += 1
    return int(counts.max())


@compiled
def _mask(bits: int) -> Any:
    return np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - bits)


@compiled
def _ordered(word: Any, bits: int, is_float: bool) -> Any:
    """Bits to a number that is in the order of the values; the same number for dtypes without a sign bit."""
    if not is_float:
        return word
    top = np.uint64(1) << np.uint64(bits - 1)  # no branch: signs are as good as random
    return word ^ (top | (_mask(bits - 1) * (word >> np.uint64(bits - 1))))


@compiled
def _unordered(word: Any, bits: int, is_float: bool) -> Any:
    word &= _mask(bits)
    if not is_float:
        return word
    top = np.uint64(1) << np.uint64(bits - 1)
    return word ^ (top | (_mask(bits - 1) * (np.uint64(1) - (word >> np.uint64(bits - 1)))))


@compiled
def _zigzag(moved: Any, bits: int) -> Any:
    """0, -1, 1, -2, ... modulo 2^bits as 0, 1, 2, 3, ..."""
    sign = (moved >> np.uint64(bits - 1)) & np.uint64(1)
    return ((moved << np.uint64(1)) ^ (np.uint64(0) - sign)) & _mask(bits)


@compiled
def _moved(change: Any) -> Any:
    """The inverse of `_zigzag`, modulo 2^64."""
    half = change >> np.uint64(1)
    return ~half if change & np.uint64(1) else half


@compiled
def skips_of(positions: Any, skips: Any) -> int:
    """Write how many elements lie between those that changed: 255 for so many and no change, less before a change."""
    at, length = 0, 0
    for i in range(len(positions)):
        gap = positions[i] - at
        while gap >= SKIP:
            skips[length] = SKIP
            length += 1
            gap -= SKIP
        skips[length] = gap
        length += 1
        at = positions[i] + 1
    return length


@compiled
def split_changes(changes: Any, planes: Any, width: int) -> int:
    """Split changes into bytes; return how many planes have any."""
    every = np.uint64(0)
    for i in range(len(changes)):
        every |= changes[i]
    top = 0
    while top < width and every >> np.uint64(8 * top):
        top += 1
    for plane in range(top):
        for i in range(len(changes)):
            planes[plane, i] = changes[i] >> np.uint64(8 * plane) & np.uint64(0xFF)
    return top


@compiled
def split_dense(positions: Any, changes: Any, planes: Any, elements: int, width: int) -> int:
    """Split changes into bytes, 0 for each element that did not change; return how many planes have any."""
    every = np.uint64(0)
    for i in range(len(changes)):
        every |= changes[i]
    top = 0
    while top < width and every >> np.uint64(8 * top):
        top += 1
    for plane in range(top):
        planes[plane, :elements] = 0
        for i in range(len(positions)):
            planes[plane, positions[i]] = changes[i] >> np.uint64(8 * plane) & np.uint64(0xFF)
    return top


@compiled
def apply_sparse(row: Any, first: int, elements: int, skips: Any, planes: Any, is_float: bool) -> int:
    """Change elements of a chunk from `first` on; return 0, or what is wrong."""
    bits = 8 * row.itemsize
    at, used = 0, 0
    for i in range(len(skips)):
        at += skips[i]
        if skips[i] == SKIP:
            continue
        if used == planes.shape[1]:
            return 1
        if at >= elements:
            return 2
        change = np.uint64(0)
        for plane in range(planes.shape[0]):
            change |= np.uint64(planes[plane, used]) << np.uint64(8 * plane)
        if not change:
            return 3
        used += 1
        if first <= at < first + len(row):
            word = _ordered(np.uint64(row[at - first]), bits, is_float) + _moved(change)
            row[at - first] = _unordered(word, bits, is_float)
        at += 1
    return 0 if used == planes.shape[1] and skips[-1] != SKIP else 1


@compiled
def apply_dense(row: Any, planes: Any, is_float: bool) -> None:
    """Change elements, each by what its planes say."""
    bits = 8 * row.itemsize
    for i in range(len(row)):
        change = np.uint64(0)
        for plane in range(planes.shape[0]):
            change |= np.uint64(planes[plane, i]) << np.uint64(8 * plane)
        if change:
            row[i] = _unordered(_ordered(np.uint64(row[i]), bits, is_float) + _moved(change), bits, is_float)
