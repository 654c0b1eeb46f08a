"""A part, which is a piece of one tensor in a segment: from streams back to its words (EXACT.md section 14)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import ITEMSIZE, Bits
from relex_codec.errors import Corrupt
from relex_codec.format.chunks import decompress
from relex_codec.format.constants import CODEC_ZSTD
from relex_codec.format.packing import from_planes

from .bisection import Interval, intervals_to
from .contexts import STILL
from .frame_decoder import BOTH_SIDES, HIGH_SIDE, LOW_SIDE, decode_all, decode_frame, decode_moved
from .interval_lists import (
    IntervalList,
    MovedWords,
    empty_list,
    find_moved,
    first_of,
    order_of,
    word_shape,
    write_words,
)
from .list_blocks import ListBlock, empty_block
from .list_sides import split_list
from .ordered_words import from_words, layout_of, to_words
from .part_coder import PLAIN
from .rans import CoderTables, open_stream

_local = threading.local()


class Frame(NamedTuple):
    """The stream of a part in one frame, with its coding and the tables that it is coded with."""

    coding: int
    stream: bytes
    tables: CoderTables


class _Stream(NamedTuple):
    tables: CoderTables
    states: npt.NDArray[np.uint64]
    words: npt.NDArray[np.uint32]
    last: np.uint64


class _Room(NamedTuple):
    """What a thread decodes frames into: fresh arrays of that size would cost as much as decoding small parts."""

    low: IntervalList
    high: IntervalList
    block: ListBlock
    middle: Bits
    moved: MovedWords


def _room(size: int, dtype: np.dtype[Any]) -> _Room:
    """Return room for the lists of a part of so many words; it is the thread's own until the next call."""
    name = f"room{dtype.itemsize}"
    found: _Room | None = getattr(_local, name, None)
    if found is None or len(found.moved.rank) <= size:
        moved = MovedWords(np.empty(size + 1, np.uint32), np.empty(size + 1, dtype), np.empty(size + 1, dtype))
        low, high = empty_list(size + 1, dtype), empty_list(size + 1, dtype)
        found = _Room(low, high, empty_block(dtype), np.empty(size + 1, dtype), moved)
        setattr(_local, name, found)
    return found


class PartDecoder:
    """Rebuilds the words of one part.

    Args:
        bits: elements at the left end of the segment.
        dtype: of the elements.
        low: lowest exponent of the group.
        count: steps of the segment.
        dense: classes of the first frame that are coded word by word.
        frame: gives the stream of a step's frame.
    """

    def __init__(self, bits: Bits, dtype: str, low: int, count: int, dense: int, frame: Callable[[int], Frame]) -> None:
        self.dtype, self.count, self.dense, self.frame = dtype, count, dense, frame
        self.layout = layout_of(dtype)
        self.words = to_words(bits, self.layout)
        """Ordered words of the step that was restored last, in the tensor's own order."""
        self.shape = word_shape(self.layout, low)
        self.order = order_of(self.words, self.shape)

    def bits(self) -> Bits:
        """Return the elements of the step that was restored last: a new array."""
        return from_words(self.words, self.layout, self.dtype)

    def restore(self, step: int) -> Bits:
        """Return the elements of a step of the segment, 1 .. n; decodes the frames of `bisection.frames_of`."""
        room = _room(len(self.words), self.words.dtype)
        at_hand, other = room.low, room.high
        listed = first_of(at_hand, self._first(at_hand))
        for interval in intervals_to(step, self.count):
            if step == interval.middle:
                self._decode(interval, listed, other, other, LOW_SIDE, write=True)
                return self.bits()
            high = step > interval.middle
            sizes = self._decode(interval, listed, other, other, HIGH_SIDE if high else LOW_SIDE, write=high)
            listed = first_of(other, sizes[int(high)])
            at_hand, other = other, at_hand
        self.apply(listed)
        return self.bits()

    def apply(self, listed: IntervalList) -> None:
        """Go on to the right end of an interval, whose list it is."""
        write_words(listed.rank, listed.right, self.order.places, self.words)

    def first_list(self) -> IntervalList:
        """Decode the first frame; returns the list of the whole segment."""
        room = _room(len(self.words), self.words.dtype)
        return _kept(room.low, self._first(room.low))

    def half(self, interval: Interval, listed: IntervalList, *, high: bool) -> IntervalList:
        """One half of an interval; `words` become those of its left end."""
        room = _room(len(self.words), self.words.dtype)
        sizes = self._decode(interval, listed, room.low, room.high, HIGH_SIDE if high else LOW_SIDE, write=high)
        return _kept(room.high, sizes[1]) if high else _kept(room.low, sizes[0])

    def halves(self, interval: Interval, listed: IntervalList) -> tuple[IntervalList, IntervalList]:
        """Both halves of an interval; `words` stay those of its left end."""
        room = _room(len(self.words), self.words.dtype)
        sizes = self._decode(interval, listed, room.low, room.high, BOTH_SIDES, write=False)
        return _kept(room.low, sizes[0]), _kept(room.high, sizes[1])

    def _open(self, frame: Frame, dense: int, listed: int) -> _Stream | None:
        """Begin to decode a stream of symbols, with so many dense words or a list; None if nothing moves in it."""
        if not frame.stream:
            if listed:
                raise Corrupt("a stream is missing")
            return None
        opened = open_stream(frame.stream, dense)
        if opened is None:
            raise Corrupt("a stream has the wrong length")
        return _Stream(frame.tables, *opened)

    def _first(self, out: IntervalList) -> int:
        """Decode the first frame into the list of the whole segment; returns its length."""
        first = int(self.order.bounds[self.dense])
        frame = self.frame(self.count)
        if frame.coding == PLAIN:
            ranked, before = self._plain(frame.stream), self.words[self.order.places]
            ranks, _ = find_moved(before, ranked, out.rank[:0], 0)
            size = len(ranks)
            out.rank[:size] = ranks
            out.left[:size], out.right[:size], out.outer[:size] = before[ranks], ranked[ranks], STILL
            return size
        stream = self._open(frame, first, 0)
        if stream is None:
            return 0
        size, at = decode_all(
            self.words, self.order.places, first, self.shape[1], self.order.bounds,
            stream.tables, stream.states, stream.words, out.rank, out.left, out.right,
        )  # fmt: skip
        count = decode_moved(
            self.words, self.order.places, out.rank[:0], first, self.shape[1], self.order.bounds,
            stream.tables, stream.states, stream.words, at, stream.last,
            out.rank[size:], out.left[size:], out.right[size:],
        )  # fmt: skip
        if count < 0:
            raise Corrupt("a stream does not decode")
        out.outer[: size + count] = STILL
        return size + count

    def _decode(
        self, interval: Interval, listed: IntervalList, low: IntervalList, high: IntervalList, side: int, *, write: bool
    ) -> tuple[int, int]:
        """Decode an interval's frame; `words` are at its left end, and in the middle afterwards if `write`.

        Args:
            low, high: filled with the lists on both sides, if they are wanted.
            side: which of them are, see `decode_frame`.

        Returns:
            Lengths of both lists.
        """
        frame = self.frame(interval.middle)
        room = _room(len(self.words), self.words.dtype)
        if frame.coding == PLAIN:
            return self._decode_plain(frame, listed, low, high, side, write=write)
        stream = self._open(frame, 0, len(listed.rank))
        if stream is None:
            return 0, 0
        sizes = decode_frame(
            listed, interval.near_is_right, *interval.share, self.shape, self.order.bounds,
            stream.tables, stream.states, stream.words, stream.last,
            side, write, low, high, room.block, room.middle, room.moved, self.words, self.order.places,
        )  # fmt: skip
        if sizes[0] < 0:
            raise Corrupt("a stream does not decode")
        return sizes

    def _decode_plain(
        self, frame: Frame, listed: IntervalList, low: IntervalList, high: IntervalList, side: int, *, write: bool
    ) -> tuple[int, int]:
        ranked, before = self._plain(frame.stream), self.words[self.order.places]
        ranks, places = find_moved(before, ranked, listed.rank, 0)
        middle, after = ranked[listed.rank], ranked[ranks]
        sizes = split_list(
            *listed, middle, ranks, places, before[ranks], after, side != HIGH_SIDE, side != LOW_SIDE,
            _room(len(self.words), self.words.dtype).block.moved, low, high,
        )  # fmt: skip
        if write:
            write_words(listed.rank, middle, self.order.places, self.words)
            write_words(ranks, after, self.order.places, self.words)
        return sizes

    def _plain(self, stream: bytes) -> Bits:
        """Words of a stream of coding 1, by rank; `words` are those of the left end."""
        elements = len(self.words) // self.layout.per_element
        width = ITEMSIZE[self.dtype]
        xored = from_planes(decompress(stream, elements * width, CODEC_ZSTD), np.dtype(f"<u{width}"))
        return to_words(self.bits() ^ xored, self.layout)[self.order.places]


def _kept(listed: IntervalList, size: int) -> IntervalList:
    """Return a copy of the first words of a list."""
    first = first_of(listed, size)
    return IntervalList(first.rank.copy(), first.left.copy(), first.right.copy(), first.outer.copy())
