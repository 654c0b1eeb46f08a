"""A part, which is a piece of one tensor in a segment: its words at all steps to streams (EXACT.md section 14).

There is one stream a frame. `PartEncoder` goes from interval to interval, counts symbols by table set (`SymbolCounter`)
and keeps them as `Symbols` until the tables of the group are known. The way back is in part_decoder.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import zstandard

from relex_codec.core.dtypes import Bits, Bytes
from relex_codec.core.jit import compiled

from .bisection import Interval, whole_segment
from .contexts import CLASSES, CONTEXT_OF, CONTEXTS, RECORDS, STILL, SYMBOL_OF, SYMBOLS
from .frame_encoder import Codes, Records, count_records, encode_all, encode_moved
from .frequency_tables import Counts
from .half_lists import half_list
from .interval_lists import (
    IntervalList,
    Longs,
    MovedWords,
    Ranks,
    empty_list,
    find_moved,
    order_of,
    trimmed,
    word_shape,
)
from .list_blocks import empty_block
from .list_encoder import encode_list
from .ordered_words import WordLayout, to_words, words_at
from .stream_encoder import CodingTables, encode_stream

DENSE_FROM: Final = 1 / 12
"""Share of a class that must have moved in a first frame for the class to be coded word by word."""
CODED: Final = 0
PLAIN: Final = 1
"""Codings of a stream: symbols, or the XOR with the left end, compressed by zstd."""
MANY_RECORDS: Final = 4096
"""Symbols from which on what a stream will take is estimated closely, and an excerpt is tried in coding 1."""
EXCERPT: Final = 1 << 14
"""Elements of an excerpt, in stretches over the part."""
STRETCH: Final = 1 << 12
_local = threading.local()


def lowest_exponent(words: Bits, layout: WordLayout) -> int:
    """Return the exponent that the classes of a group shall begin at: all but 1 of 1000 words are told apart."""
    if layout.mantissa >= 8 * layout.width:
        return 0
    half = layout.half
    top = words.dtype.type(half)
    magnitude = np.where(words >= top, words - top, top - words.dtype.type(1) - words)
    counts = np.cumsum(np.bincount((magnitude >> magnitude.dtype.type(layout.mantissa)).astype(np.int64)))
    return max(0, int(np.searchsorted(counts, counts[-1] * 0.999)) - CLASSES + 1)


def _compressor(level: int) -> zstandard.ZstdCompressor:
    if not hasattr(_local, f"level{level}"):
        setattr(_local, f"level{level}", zstandard.ZstdCompressor(level))
    found: zstandard.ZstdCompressor = getattr(_local, f"level{level}")
    return found


@dataclass(slots=True)
class Symbols:
    """The symbols of one frame of one part, before they are coded.

    Attributes:
        records: uint16, see `contexts.record_of`; empty where no word moved.
        raws: uint32, see `stream_encoder.encode_stream`.
        dense: dense words of a first frame, at the beginning.
        plain: the stream of coding 1, where that may be the smaller one.
    """

    records: Codes
    raws: Records
    dense: int
    plain: bytes | None = None

    def encode(self, tables: CodingTables) -> tuple[int, bytes]:
        """Return coding and stream, in the smaller of both codings."""
        coded = encode_stream(self.records, self.raws, self.dense, tables) if len(self.records) else b""
        return (PLAIN, self.plain) if self.plain is not None and len(self.plain) < len(coded) else (CODED, coded)


@dataclass(slots=True)
class SymbolCounter:
    """Counts the symbols of a group, by table set."""

    counts: dict[int, Longs] = field(default_factory=dict)

    def add(self, table_set: int, records: Codes) -> None:
        """Count the records of a frame."""
        count_records(records, self.counts.setdefault(table_set, np.zeros(RECORDS, np.int64)))

    def of(self, table_set: int) -> Counts:
        """Return how often each symbol occurs in each context of a table set: int64 [CONTEXTS, 64]."""
        found: Counts = np.zeros((CONTEXTS, SYMBOLS), np.int64)
        if table_set in self.counts:
            found[CONTEXT_OF, SYMBOL_OF] = self.counts[table_set]
        return found


class PartEncoder:
    """Turns the words of one part into symbols.

    In memory are, beside `bits`, the words of a step or two at each level of the intervals, and the lists of those that
    are still to come.

    Args:
        bits: elements at the left end and at each step of the segment: n + 1 rows.
        layout: of the elements' dtype.
        low: lowest exponent of the group.
    """

    def __init__(self, bits: Sequence[Bits], layout: WordLayout, low: int) -> None:
        self.bits, self.layout = bits, layout
        self.shape = word_shape(layout, low)
        left = to_words(bits[0], layout)
        self.order = order_of(left, self.shape)
        size = len(left)
        self._block, self._middle = empty_block(left.dtype), np.empty(size, left.dtype)
        self._none = np.empty(0, np.uint32)
        self._records = np.empty(2 * size + 64, np.uint16)
        self._raws = np.empty(2 * size + 64, np.uint32)
        self._ends = self._ranked(0), self._ranked(len(bits) - 1)

    def dense(self) -> int:
        """How many classes of the first frame are better coded word by word."""
        first, last = self._ends
        moved = np.concatenate([[0], np.cumsum(first != last)])[self.order.bounds]
        share = np.diff(moved) >= DENSE_FROM * np.maximum(np.diff(self.order.bounds), 1)
        return int(np.flatnonzero(share)[-1]) + 1 if share.any() else 0

    def encode(
        self, table_set_of: Callable[[Interval | None], int], dense: int, counter: SymbolCounter
    ) -> Iterator[tuple[int, Symbols]]:
        """Yield step of the segment and symbols of every frame.

        Args:
            table_set_of: gives the table set of an interval's frame; None stands for the first frame.
            dense: classes of the first frame that are coded word by word.
            counter: of the group; the symbols are added to it.
        """
        count = len(self.bits) - 1
        found = self._first(dense)
        counter.add(table_set_of(None), found.records)
        yield count, found
        first, last = self._ends
        changed = np.flatnonzero(first != last).astype(np.uint32)
        listed = IntervalList(changed, first[changed], last[changed], np.full(len(changed), STILL, np.uint8))
        waiting = [(whole_segment(count), listed, first)] if count > 1 else []
        del listed, changed, last
        while waiting:
            interval, listed, before = waiting.pop()
            after = self._ranked(interval.middle)
            middle = self._middle[: len(listed.rank)]
            at, raw_at = encode_list(
                *listed, after, interval.near_is_right, *interval.share, self.shape, middle, self._records, self._raws
            )
            ends = interval.left, interval.middle
            found, moved = self._rest(listed.rank, before, after, 0, at, raw_at, ends)
            counter.add(table_set_of(interval), found.records)
            yield interval.middle, found
            for side, half in ((True, interval.high), (False, interval.low)):
                if not half.has_middle:
                    continue
                made = empty_list(len(listed.rank) + len(moved.rank) + 1, before.dtype)
                size = half_list(listed, middle, moved, len(moved.rank), side, self._block, made)
                waiting.append((half, trimmed(made, size), after if side else before))
                del made
            del listed, found, before, after

    def _ranked(self, step: int) -> Bits:
        """The words at a step, by rank."""
        return words_at(self.bits[step], self.order.places, self.layout)

    def _first(self, dense: int) -> Symbols:
        before, after = self._ends
        first = int(self.order.bounds[dense])
        at, raw_at = encode_all(before, after, first, self.shape[1], self.order.bounds, self._records, self._raws)
        ends = 0, len(self.bits) - 1
        found, _ = self._rest(self._none, before, after, first, at, raw_at, ends)
        return found

    def _rest(
        self, rank: Ranks, before: Bits, after: Bits, first: int, at: int, raw_at: int, ends: tuple[int, int]
    ) -> tuple[Symbols, MovedWords]:
        """Add the quiet words that moved, from rank `first` on; returns everything as `Symbols`, and those words.

        Args:
            at, raw_at: how many records and raws there are.
            ends: step at the left end of the interval, and that of the frame.
        """
        moved = find_moved(before, after, rank, first)
        if not len(moved.rank) and not at:
            return Symbols(self._records[:0], self._raws[:0], 0), moved
        at, raw_at = encode_moved(
            moved.rank, moved.passed, before, after, first, self.shape[1], self.order.bounds,
            self._records, self._raws, at, raw_at,
        )  # fmt: skip
        plain = self._plain(*ends, at, raw_at)
        return Symbols(self._records[:at].copy(), self._raws[:raw_at].copy(), first, plain), moved

    def _plain(self, left: int, middle: int, records: int, raws: int) -> bytes | None:
        """Code the XOR too where that may pay: where neither its zeros nor an excerpt of it say otherwise."""
        before, after = self.bits[left], self.bits[middle]
        # a bit a symbol; of many symbols the raw bits are known better
        estimate = records // 8 + (3 * raws // 2 if records >= MANY_RECORDS else 4 * raws)
        if estimate < 24:
            return None
        size = -(-len(before) // 8)
        if estimate <= _most_compressed(size):  # first, as it is the faster one where little moves
            changed = np.packbits(after != before)
            if len(_compressor(1).compress(changed.data)) >= estimate:
                return None
        if len(before) >= 2 * EXCERPT and records >= MANY_RECORDS:
            size = len(_compressor(1).compress(_xored(before, after, EXCERPT // STRETCH, STRETCH).data))
            if size * len(before) // EXCERPT * 4 // 5 >= estimate:
                return None
        found: bytes = _compressor(3).compress(_xored(before, after, 1, len(before)).data)
        return found


def _xored(before: Bits, after: Bits, stretches: int, length: int) -> Bytes:
    """Return the XOR of both in planes; of so many stretches of that length, at even distances."""
    planes = np.empty(stretches * length * before.itemsize, np.uint8)
    _fill_xored(np.ascontiguousarray(before), np.ascontiguousarray(after), length, planes)
    return planes


@compiled
def _fill_xored(before: Bits, after: Bits, length: int, planes: Bytes) -> None:
    size = len(planes) // before.itemsize
    distance = len(before) // (size // length)
    for plane in range(before.itemsize):
        shift = np.uint64(8 * plane)
        for begin in range(0, size, length):
            source, target = np.uint64(begin // length * distance), np.uint64(plane * size + begin)
            for i in range(np.uint64(length)):
                planes[target + i] = (np.uint64(before[source + i] ^ after[source + i]) >> shift) & np.uint64(255)


def _most_compressed(size: int) -> int:
    """Return how many bytes zstd makes of so many, at most: its ZSTD_COMPRESSBOUND."""
    return size + (size >> 8) + (max(0, (128 << 10) - size) >> 11)
