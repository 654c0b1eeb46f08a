"""The compiled loops of chunks of codec 2 (FORMAT.md section 6): their bytes apart, and back to their places.

They are called through `chunks`. Arrays come as pointers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from relex_codec.core.jit import bits_set, lowest_bit

_ONE = np.uint64(1)


def count_flags(flags: Any, words: Any) -> int:
    """Return how many flags are set, of flags as `expand` takes them."""
    count = 0
    for i in range(words):
        count += int(bits_set(flags[i]))
    return count


def expand(flags: Any, words: Any, rest: Any, out: Any, fill: Any) -> int:
    """Put the bytes of `rest`, one after another, to where a flag is set; other bytes of `out` stay what they are.

    One turn for each flag that is set, found by its position in a word: three times as fast as making a list of places
    and indexing with it.

    Args:
        flags: uint64 [words], 64 of them in each, the lowest bit first; none beyond the end of `out`.
        rest: uint8 [number of flags that are set].
        out: uint8.
        fill: a byte.

    Returns:
        How many bytes of `rest` are `fill`.
    """
    k = found = 0
    for i in range(words):
        word = flags[i]
        begin = 64 * i
        while word:
            byte = rest[k]
            out[begin + int(lowest_bit(word))] = byte
            found += byte == fill
            word &= word - _ONE
            k += 1
    return found


def count_bytes(raw: Any, length: Any, counts: Any) -> int:
    """Add to `counts`, uint64 [1024], how often each byte occurs in `raw`: at places i, i + 256, ... of it, in all.

    Four places, so that a byte that comes twice in a row does not wait for itself.
    """
    for i in range(0, length // 4 * 4, 4):
        for j in range(4):
            counts[256 * j + int(raw[i + j])] += _ONE
    for i in range(length // 4 * 4, length):
        counts[int(raw[i])] += _ONE
    return int(length)


def split(raw: Any, length: Any, fill: Any, flags: Any, rest: Any) -> int:
    """Take the bytes apart that are not `fill`: the inverse of `expand`.

    Args:
        raw: uint8 [length].
        flags: uint8 [ceil(length / 8)], to be set, a bit for each byte of `raw`, the lowest first.
        rest: uint8 [length + 1], to be set, with anything after the last.

    Returns:
        How many there are.
    """
    k = 0
    for i in range(0, length, 8):
        bits = 0
        for j in range(min(8, length - i)):
            byte = raw[i + j]
            rest[k] = byte
            if byte != fill:
                bits |= 1 << j
                k += 1
        flags[i // 8] = np.uint8(bits)
    return k
