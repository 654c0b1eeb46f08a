"""Lists of intervals: the words of a part that differ at two known steps (EXACT.md section 14).

Words are ordered integers (ordered_words.py), sorted by class; a *rank* is a place in that order. The list of an
interval holds the words that differ at its two known ends, in the order of their ranks. All other words are *quiet*. A
frame gives the words of a step between the ends (frame_encoder.py, frame_decoder.py), and so the lists on both sides of
it (list_sides.py).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import bits_set, compiled, differing, lowest_bit

from .contexts import CLASSES, STILL, Int, clipped, scale_class
from .ordered_words import WordLayout

Ranks = npt.NDArray[np.uint32]
Longs = npt.NDArray[np.int64]

_FLAGS: Final = 4096
"""Words that are compared together."""
_ONE, _THREE, _Q = np.uint64(1), np.uint64(3), np.uint64(CLASSES)


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
    """

    rank: Ranks
    before: Bits
    after: Bits


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


@compiled
def find_moved(before: Bits, after: Bits, rank: Ranks, first: int) -> tuple[Ranks, Ranks]:
    """Find the quiet words that differ, from rank `first` on.

    Args:
        before, after: words by rank at the left end and at the middle.
        rank: ranks of the interval's list, none below `first`.

    Returns:
        Their ranks, and how many words of the list come before each of them.
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
def places_of(moved: Ranks, rank: Ranks) -> Ranks:
    """Return how many words of a list come before each of some quiet words, of which these are the ranks."""
    places = np.empty(len(moved), np.uint32)
    passed: Int = 0
    for j in range(len(moved)):
        passed = listed_before(rank, np.int64(moved[j]), passed, False)
        places[j] = passed
    return places


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
def merge_moved(listed: IntervalList, size: int, moved: MovedWords, count: int, is_high: bool) -> int:
    """Put the quiet words that moved into the list on one side of a frame; returns its new length.

    Args:
        listed: one side of the frame, with room for `count` words more.
        size: words in it.
        moved, count: what moved, and how many.
        is_high: whether the list is that of the right side.
    """
    rank, left, right, outer = listed
    moved_rank, moved_before, moved_after = moved
    i, at = size - 1, size + count - 1
    for j in range(count - 1, -1, -1):
        before, here = np.int64(moved_before[j]), np.int64(moved_after[j])
        while i >= 0 and rank[i] > moved_rank[j]:
            rank[at], left[at], right[at], outer[at] = rank[i], left[i], right[i], outer[i]
            i -= 1
            at -= 1
        rank[at] = moved_rank[j]
        if is_high:
            left[at], right[at] = here, before
            outer[at] = clipped(here - before) | (STILL & 0xF0)
        else:
            left[at], right[at] = before, here
            outer[at] = (STILL & 15) | (clipped(before - here) << 4)
        at -= 1
    return size + count


@compiled
def write_words(rank: Ranks, words: Bits, order: Ranks, current: Bits) -> None:
    """Write words of a list, or of those that moved, into the tensor, which is in its own order."""
    for i in range(len(rank)):
        current[order[rank[i]]] = words[i]


@compiled
def _sort_by_class(words: Bits, mantissa: Int, half: Int, low: Int, order: Ranks, bounds: Longs) -> None:
    """Sort words by class, stably: fills `order` (uint32, the place of each rank) and `bounds` (int64 [17])."""
    size = len(words)
    # classes by the bits above the mantissa, of which there are few: a word needs a shift and a look-up
    tops = max((2 * half) >> mantissa, 1)
    classes = np.empty(tops, np.uint8)
    for top in range(tops):
        classes[top] = scale_class(top << mantissa, mantissa, half, low)
    # four quarters at a time, each with its own counts, so that neighbours of one class do not wait for each other
    quarter = size // 4
    shift = np.uint64(mantissa)
    counts = np.zeros(4 * CLASSES, np.uint64)
    for i in range(np.uint64(quarter)):
        for q in range(np.uint64(4)):
            counts[_Q * q + np.uint64(classes[np.uint64(words[np.uint64(quarter) * q + i]) >> shift])] += _ONE
    for i in range(np.uint64(4 * quarter), np.uint64(size)):
        counts[_Q * _THREE + np.uint64(classes[np.uint64(words[i]) >> shift])] += _ONE
    at: Int = 0
    for scale in range(CLASSES):
        bounds[scale] = at
        for q in range(4):
            count = np.int64(counts[CLASSES * q + scale])
            counts[CLASSES * q + scale] = at
            at += count
    bounds[CLASSES] = at
    for i in range(np.uint64(quarter)):
        for q in range(np.uint64(4)):
            place = np.uint64(quarter) * q + i
            which = _Q * q + np.uint64(classes[np.uint64(words[place]) >> shift])
            order[counts[which]] = place
            counts[which] += _ONE
    for i in range(np.uint64(4 * quarter), np.uint64(size)):
        which = _Q * _THREE + np.uint64(classes[np.uint64(words[i]) >> shift])
        order[counts[which]] = i
        counts[which] += _ONE
