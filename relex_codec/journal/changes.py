"""Compiled: the elements of a chunk that changed, and bytes made of them (JOURNAL.md section 5)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import bits_set, compiled, differing, inlined, lowest_bit

SKIP: Final = 255
"""The byte that skips so many elements, of which none changed."""
GROUP: Final = 64
"""Elements that are compared at a time; each has a bit of a mask."""
BLOCK: Final = 2048
"""Elements whose changes are taken before it goes on: of BF16, 4 kB of both steps."""
USUAL: Final = 3
"""Changes of a group that are taken without a branch for each."""


@compiled
def take_changes(
    old: Bits, new: Bits, is_float: bool, keep: bool, chunk: int, masks: Any, groups: Any, positions: Any, changes: Any,
    skips: Any, planes: Any, rows: Any,
) -> None:  # fmt: skip
    """Find what changed in chunks that follow each other, and give the old step what it has become.

    One pass over both steps: the elements of a block that differ are found without a branch, as bits of masks, and then
    taken while the block is in the cache. All chunks in one call, which gives up the GIL once: beside a thread that is
    busy in Python, getting it back takes up to 5 ms each time.

    Args:
        old, new: the elements of the chunks.
        is_float: whether the bits are a sign and a magnitude.
        keep: `old` stays as it is; else it becomes `new`, by writing what changed alone.
        chunk: elements of a chunk.
        masks, groups: uint64 and int64 [BLOCK // GROUP]. Overwritten, as are the next two.
        positions: uint32 [chunk + GROUP].
        changes: of the bits' dtype [chunk].
        skips: uint8; the skips of all chunks, one after another.
        planes: uint8 [width, elements]; the same for the planes. Those of a chunk that are zero are left as they are.
        rows: int64 [chunks, 3]: how many changes each has, how many skips, and how many planes that are not zero.
    """
    # One function: arrays handed to another one are counted as references, which is too dear for each block.
    bits = 8 * old.itemsize
    top, every, last = np.uint64(1) << np.uint64(bits - 1), _mask(bits), np.uint64(bits - 1)
    low, one = every >> np.uint64(1), np.uint64(1)
    taken, skipped = 0, 0
    for number in range(len(rows)):
        before, after = old[number * chunk : (number + 1) * chunk], new[number * chunk : (number + 1) * chunk]
        count, whole = 0, len(before) // GROUP * GROUP
        for block in range(0, whole, BLOCK):
            found, begin = 0, count
            for first in range(block, min(block + BLOCK, whole), GROUP):
                mask = differing(before, after, first)
                masks[found], groups[found] = mask, first
                found += mask != 0
            for k in range(found):
                mask, first, many = masks[k], groups[k], int(bits_set(masks[k]))
                for j in range(USUAL):  # no branch; what is too many is overwritten
                    positions[count + j] = first + lowest_bit(mask)
                    mask &= mask - one
                for j in range(USUAL, many):
                    positions[count + j] = first + lowest_bit(mask)
                    mask &= mask - one
                count += many
            for i in range(begin, count):
                at = positions[i]
                changes[i] = _change(np.uint64(before[at]), np.uint64(after[at]), is_float, top, low, every, last)
                if not keep:
                    before[at] = after[at]
        for at in range(whole, len(before)):
            if before[at] != after[at]:
                positions[count] = at
                changes[count] = _change(np.uint64(before[at]), np.uint64(after[at]), is_float, top, low, every, last)
                count += 1
                if not keep:
                    before[at] = after[at]
        length = skips_of(positions[:count], skips[skipped:])
        rows[number, 0], rows[number, 1] = count, length
        rows[number, 2] = split_changes(changes[:count], planes[:, taken:], old.itemsize)
        taken, skipped = taken + count, skipped + length


@inlined
def _change(before: Any, after: Any, is_float: bool, top: Any, low: Any, every: Any, last: Any) -> Any:
    """The zigzag of how far a word moves: 0, -1, 1, -2, ... modulo 2^bits as 0, 1, 2, 3, ..."""
    if is_float:  # bits to a number in the order of the values, without a branch: signs are as good as random
        before ^= top | (low * (before >> last))
        after ^= top | (low * (after >> last))
    moved = (after - before) & every
    return ((moved << np.uint64(1)) ^ (np.uint64(0) - (moved >> last))) & every


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
def _moved(change: Any) -> Any:
    """How far a change moves a word, modulo 2^64."""
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
def spread(skips: Any, planes: Any, out: Any) -> None:
    """Write a byte for each element to each plane of `out`: that of its change, 0 where there is none."""
    out[:] = 0
    at, used = 0, 0
    for i in range(len(skips)):
        at += skips[i]
        if skips[i] == SKIP:
            continue
        for plane in range(len(planes)):
            out[plane, at] = planes[plane, used]
        at, used = at + 1, used + 1


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
