"""Entropy coding: rANS with static tables, one or four interleaved lanes (EXACT.md section 14).

A lane is a number x < 2^64. Coding a symbol of frequency f (of 4096) multiplies it by about 4096 / f; when it would
leave 64 bits, its low 32 bits are written as a word of the stream. A single lane begins at 1, so a short stream is only
as long as what it says; four lanes share their words, so each begins at 2^32, from where on its size tells when it has
written one.

With F the frequency of a symbol and C the sum of those below it, decoding takes ``slot = x mod 4096``, finds the symbol
with ``C <= slot < C + F``, and goes on with ``x = F (x // 4096) + slot - C``. Encoding is the inverse of that, the last
symbol first (stream_encoder.py).

Source: J. Duda, "Asymmetric numeral systems", arXiv 1311.2540; lanes as in F. Giesen, "Interleaved entropy coders",
arXiv 1402.3392.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from relex_codec.core.jit import inlined, woven

from .contexts import Int, number, raw_bits

Words: TypeAlias = npt.NDArray[np.uint32]
"""Words of a stream."""

SCALE_BITS: Final = 12
SCALE: Final = 1 << SCALE_BITS
LANES: Final = 4
LANES_FROM: Final = 1 << 14
"""Dense words of a first frame from which on its stream has four lanes."""

_MASK: Final = np.uint64(SCALE - 1)
SCALE_SHIFT: Final = np.uint64(SCALE_BITS)
LOW: Final = np.uint64(1 << 32)
_WORD: Final = np.uint64(32)
SYMBOL_SHIFT: Final = np.uint64(6)
COARSE_BITS: Final = 4
"""Slots are looked up in groups of 16, so that the tables of a frame stay in the nearest caches."""
COARSE_SHIFT: Final = np.uint64(COARSE_BITS)
LOOKUP_SHIFT: Final = np.uint64(SCALE_BITS - COARSE_BITS)
_SIXTEEN: Final = np.uint64(16)
_HALF: Final = np.uint64(0xFFFF)
START_SHIFT: Final = np.uint64(13)
SYMBOL_OF_BUCKET: Final = np.uint64(25)
_FREQUENCY: Final = np.uint64((1 << 13) - 1)
_U32, _U64 = np.dtype("<u4"), np.dtype("<u8")
ONE: Final = np.uint64(1)


class CoderTables(NamedTuple):
    """One set of frequency tables as coding and decoding use it; `frequency_tables.lay_out` makes it.

    Attributes:
        table_of: uint8 [contexts], the table of each context; unused ones have a further table, which only knows
            symbol 0.
        buckets: uint32 [256 tables], the symbol of each 16th slot of each table << 25, with the first of its slots
            << 13, and how many it has; slots between have it or one after it.
        entries: uint32 [64 tables], how many slots a symbol has, and the first of them << 16.
    """

    table_of: npt.NDArray[np.uint8]
    buckets: npt.NDArray[np.uint32]
    entries: npt.NDArray[np.uint32]


@inlined
def slot_of(x: np.uint64) -> np.uint64:
    """The slot that the next symbol of a lane is found by."""
    return x & _MASK


@inlined
def bucket_of(table: np.uint64, slot: np.uint64) -> np.uint64:
    """Where a table has the symbol of a slot, or one before it: its place in `CoderTables.buckets`."""
    return (table << LOOKUP_SHIFT) | (slot >> COARSE_SHIFT)


@inlined
def entry_of(table: np.uint64, symbol: np.uint64) -> np.uint64:
    """The place of a symbol in `CoderTables.entries`."""
    return (table << SYMBOL_SHIFT) | symbol


@inlined
def slots_in(bucket: np.uint64) -> np.uint64:
    """How many slots the symbol of a bucket has."""
    return bucket & _FREQUENCY


@inlined
def past_start(slot: np.uint64, bucket: np.uint64) -> np.uint64:
    """How many slots of the symbol of a bucket are before `slot`."""
    return slot - ((bucket >> START_SHIFT) & _MASK)


@inlined
def slots_of(entry: np.uint64) -> np.uint64:
    """How many slots the symbol of an entry has."""
    return entry & _HALF


@inlined
def past_entry(slot: np.uint64, entry: np.uint64) -> np.uint64:
    """How many slots of the symbol of an entry are before `slot`."""
    return slot - (entry >> _SIXTEEN)


@inlined
def after_symbol(x: np.uint64, slots: np.uint64, past: np.uint64) -> np.uint64:
    """The lane after a symbol with so many slots, of which `past` were before its own; before it is refilled."""
    return slots * (x >> SCALE_SHIFT) + past


@inlined
def refilled(x: np.uint64, word: np.uint32) -> np.uint64:
    """A lane that was below 2^32, with the next word."""
    return (x << _WORD) | np.uint64(word)


@inlined
def raw_of(x: np.uint64, bits: Int) -> np.int64:
    """The lowest `bits` bits of a lane as int64."""
    return np.int64(x & ((ONE << np.uint64(bits)) - ONE))


@inlined
def without_raw(x: np.uint64, bits: Int) -> np.uint64:
    """The lane after them, before it is refilled."""
    return x >> np.uint64(bits)


@woven
def take_number(x: np.uint64, context: Int, tables: CoderTables, words: Words, at: int) -> tuple[Int, np.uint64, int]:
    """Take a number from a lane.

    Args:
        x: the lane.
        context: of the number's symbol.
        tables: of the frame.
        words: uint32, the words of the stream; `at` of them are used.

    Returns:
        (number, lane, words used).
    """
    table_of, buckets, entries = tables
    table = np.uint64(table_of[context])
    slot = slot_of(x)
    bucket = np.uint64(buckets[bucket_of(table, slot)])
    symbol, slots, past = bucket >> SYMBOL_OF_BUCKET, slots_in(bucket), past_start(slot, bucket)
    while past >= slots:
        symbol += ONE
        entry = np.uint64(entries[entry_of(table, symbol)])
        slots, past = slots_of(entry), past_entry(slot, entry)
    x = after_symbol(x, slots, past)
    if x < LOW and at < len(words):
        x = refilled(x, words[at])
        at += 1
    value: Int = np.int64(symbol)
    if value < 4:
        return value, x, at
    bits = raw_bits(value)
    raw = raw_of(x, bits)
    x = without_raw(x, bits)
    if x < LOW and at < len(words):
        x = refilled(x, words[at])
        at += 1
    return number(value, raw), x, at


def open_stream(stream: bytes, dense: int) -> tuple[npt.NDArray[np.uint64], Words, np.uint64] | None:
    """Cut a stream into its lanes and words.

    Args:
        dense: dense words of a first frame, 0 for others.

    Returns:
        (lanes, words, what the first lane ends with), or None if the stream is malformed.
    """
    if dense >= LANES_FROM:
        size = 8 * LANES
        if len(stream) < size or len(stream) % 4:
            return None
        states = np.frombuffer(bytearray(stream[:size]), _U64)
        return states, np.frombuffer(bytearray(memoryview(stream)[size:]), _U32), LOW
    size = len(stream) if len(stream) <= 8 else 5 + (len(stream) - 5) % 4
    states = np.array([int.from_bytes(stream[:size], "little"), LOW, LOW, LOW], np.uint64)
    return states, np.frombuffer(bytearray(memoryview(stream)[size:]), _U32), ONE
