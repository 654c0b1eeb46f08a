"""Lists of intervals: the words of a part that differ at two known steps (EXACT.md section 14).

Words are ordered integers (ordered_words.py), sorted by class; a *rank* is a place in that order. The list of an
interval holds the words that differ at its two known ends, in the order of their ranks. All other words are *quiet*. A
frame gives the words of a step between the ends (frame_encoder.py, frame_decoder.py); half_lists.py makes the lists on
both sides of it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import bits_set, compiled, differing, lowest_bit

from .contexts import CLASSES, Int, scale_class
from .list_vectors import MANY, many_classes
from .ordered_words import WordLayout

Ranks = npt.NDArray[np.uint32]
Longs = npt.NDArray[np.int64]

_FLAGS: Final = 4096
"""Words that are compared together."""
STRETCHES: Final = 8
"""Parts of equal length that are sorted side by side."""
_ONE, _CLASSES, _STRETCHES = np.uint64(1), np.uint64(CLASSES), np.uint64(STRETCHES)
_LAST: Final = np.uint64(CLASSES * (STRETCHES - 1))
"""Where the counts of the last one begin, which also has what is left."""


class IntervalList(NamedTuple):
    """Words that differ at the ends of an interval, in the order of their ranks.

    Attributes:
        rank: uint32, their ranks.
        left: words at the left end.
        right: words at the right end.
        outer: uint8, their outer movements, `clipped`: outside of the left end, and << 4 outside of the right one.
    """

    rank: Ranks
    left: Bits
    right: Bits
    outer: npt.NDArray[np.uint8]


def empty_list(size: int, dtype: Any) -> IntervalList:
    """Return a list of so many words, to be filled; `dtype` is that of words."""
    return IntervalList(
        np.empty(size, np.uint32), np.empty(size, dtype), np.empty(size, dtype), np.empty(size, np.uint8)
    )


def first_of(listed: IntervalList, size: int) -> IntervalList:
    """Return the first `size` words of a list: not a copy."""
    return IntervalList(listed.rank[:size], listed.left[:size], listed.right[:size], listed.outer[:size])


def trimmed(listed: IntervalList, size: int) -> IntervalList:
    """Return the first `size` words of a list, copied where much memory would be kept for little."""
    first = first_of(listed, size)
    if 2 * size < len(listed.rank):
        return IntervalList(first.rank.copy(), first.left.copy(), first.right.copy(), first.outer.copy())
    return first


def word_shape(layout: WordLayout, low: int) -> Longs:
    """Return what compiled code needs to know of words: int64 [mantissa bits, half of their range, lowest exponent]."""
    return np.array([layout.mantissa, layout.half, low], np.int64)


class MovedWords(NamedTuple):
    """Quiet words that moved, in the order of their ranks; each differs from what it was.

    Attributes:
        rank: uint32, their ranks.
        before: words at the left end.
        after: words in the frame.
        passed: uint32, how many words of the interval's list come before each.
    """

    rank: Ranks
    before: Bits
    after: Bits
    passed: npt.NDArray[np.uint32]


class Order(NamedTuple):
    """The words of a part sorted by class.

    Attributes:
        places: uint32, the place in the tensor of each rank.
        bounds: int64 [17], the rank at which each class begins.
    """

    places: Ranks
    bounds: Longs


def order_of(words: Bits, shape: Longs) -> Order:
    """Sort the words at the left end of a segment."""
    places, bounds = np.empty(len(words), np.uint32), np.empty(CLASSES + 1, np.int64)
    _sort_by_class(words, shape[0], shape[1], shape[2], places, bounds)
    return Order(places, bounds)


def find_moved(before: Bits, after: Bits, rank: Ranks, first: int) -> MovedWords:
    """Return the quiet words that differ, from rank `first` on.

    Args:
        before, after: words by rank at the left end and at the middle.
        rank: ranks of the interval's list, none below `first`.
    """
    moved, passed = _find_moved(before, after, rank, first)
    return MovedWords(moved, before[moved], after[moved], passed)


@compiled
def _find_moved(before: Bits, after: Bits, rank: Ranks, first: int) -> tuple[Ranks, Ranks]:
    """Return their ranks, and how many words of the list come before each of them.
    Both are as of `MovedWords`; arguments are those of `find_moved`.
    """
    flags, none = np.zeros(_FLAGS, np.uint8), np.zeros(_FLAGS, np.uint8)
    listed = np.full(_FLAGS, 2, np.uint8)
    found, places = np.empty(_FLAGS, np.uint32), np.empty(_FLAGS, np.uint32)
    count = 0
    passed: Int = 0
    for begin in range(first, len(before), _FLAGS):
        base, size = np.uint64(begin), np.uint64(min(_FLAGS, len(before) - begin))
        for i in range(size):
            flags[i] = before[base + i] != after[base + i]
        flags[size:] = 0
        stop = listed_before(rank, begin + _FLAGS, passed, False)
        for i in range(np.uint64(passed), np.uint64(stop)):
            flags[np.uint64(rank[i]) - base] = 2
        if count + _FLAGS > len(found):
            found = np.concatenate((found, np.empty(len(found), np.uint32)))
            places = np.concatenate((places, np.empty(len(places), np.uint32)))
        for begun in range(0, _FLAGS, 64):
            others = differing(flags, listed, begun)
            differs = differing(flags, none, begun) & others
            while differs != 0:
                bit = lowest_bit(differs)
                found[count] = begin + begun + np.int64(bit)
                places[count] = passed + np.int64(bits_set(~others & ((_ONE << bit) - _ONE)))
                count += 1
                differs &= differs - _ONE
            passed += np.int64(bits_set(~others))
    return found[:count], places[:count]


@compiled
def listed_before(rank: Ranks, end: Int, passed: Int, among_quiet: bool) -> Int:
    """Return how many words of a list come before a place, given that `passed` do.

    Args:
        rank: ranks of the list; before the one at ``p`` there are ``rank[p] - p`` quiet words.
        end: the place, as a rank; or, `among_quiet`, as the number of quiet words up to the one there, itself included.
        passed: where the search begins; it is short if nearly all that come before are known.
    """
    size = len(rank)
    slope = np.int64(among_quiet)
    stride: Int = 1
    while passed + stride <= size and np.int64(rank[passed + stride - 1]) - slope * (passed + stride - 1) < end:
        passed += stride
        stride *= 2
    while stride > 0:
        if passed + stride <= size and np.int64(rank[passed + stride - 1]) - slope * (passed + stride - 1) < end:
            passed += stride
        stride //= 2
    return passed


@compiled
def write_words(rank: Ranks, words: Bits, order: Ranks, current: Bits) -> None:
    """Write words of a list, or of those that moved, into the tensor, which is in its own order."""
    for i in range(len(rank)):
        current[order[rank[i]]] = words[i]


@compiled
def _sort_by_class(words: Bits, mantissa: Int, half: Int, low: Int, order: Ranks, bounds: Longs) -> None:
    """Sort words by class, stably: fills `order` (uint32, the place of each rank) and `bounds` (int64 [17])."""
    size = len(words)
    classes = np.empty(size, np.uint8)
    k = 0
    while k + MANY <= size:
        many_classes(words, classes, k, mantissa, half, low)
        k += MANY
    while k < size:
        classes[k] = scale_class(np.int64(words[k]), mantissa, half, low)
        k += 1
    # eight stretches at a time, each with its own counts, so that neighbours of one class do not wait for each other
    stretch = np.uint64(size // STRETCHES)
    counts = np.zeros(STRETCHES * CLASSES, np.uint64)
    for i in range(stretch):
        for s in range(_STRETCHES):
            counts[_CLASSES * s + np.uint64(classes[stretch * s + i])] += _ONE
    for i in range(_STRETCHES * stretch, np.uint64(size)):
        counts[_LAST + np.uint64(classes[i])] += _ONE
    at: Int = 0
    for scale in range(CLASSES):
        bounds[scale] = at
        for one in range(scale, STRETCHES * CLASSES, CLASSES):
            count = np.int64(counts[one])
            counts[one] = at
            at += count
    bounds[CLASSES] = at
    for i in range(stretch):
        for s in range(_STRETCHES):
            place = stretch * s + i
            which = _CLASSES * s + np.uint64(classes[place])
            order[counts[which]] = place
            counts[which] += _ONE
    for i in range(_STRETCHES * stretch, np.uint64(size)):
        which = _LAST + np.uint64(classes[i])
        order[counts[which]] = i
        counts[which] += _ONE
