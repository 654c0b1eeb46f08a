"""Encoding what a frame has beside its list: dense words, and quiet words that moved (EXACT.md section 14).

The list is in list_encoder.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import compiled, woven

from .contexts import (
    COUNT,
    DENSE,
    GAP,
    MOVE,
    Int,
    number_symbol,
    raw_bits,
    record_of,
    wrapped,
    zigzag,
)
from .interval_lists import Longs, Ranks

Codes = npt.NDArray[np.uint16]
"""Symbols with their contexts, see `contexts.record_of`."""
Records = npt.NDArray[np.uint32]
"""Raw bits of numbers."""


@woven
def _put_number(records: Codes, raws: Records, at: int, raw_at: int, context: Int, value: Int) -> tuple[int, int]:
    """Append a number; returns the new ends."""
    symbol = number_symbol(value)
    records[at] = record_of(context, symbol)
    bits = raw_bits(symbol)
    if bits > 0:
        raws[raw_at] = np.uint32(value & ((1 << bits) - 1))
        raw_at += 1
    return at + 1, raw_at


@compiled
def encode_all(
    before: Bits, after: Bits, first: int, half: Int, bounds: Longs, records: Codes, raws: Records
) -> tuple[int, int]:
    """Turn the words of the first classes of a first frame, up to rank `first`, into symbols; see `encode_list`.

    Returns:
        Numbers of records and raws.
    """
    at = 0
    raw_at = 0
    scale = 0
    for i in range(first):
        while i >= bounds[scale + 1]:
            scale += 1
        move = zigzag(wrapped(np.int64(after[i]) - np.int64(before[i]), half))
        at, raw_at = _put_number(records, raws, at, raw_at, DENSE + scale, move)
    return at, raw_at


@compiled
def encode_moved(
    moved: Ranks,
    places: Ranks,
    before: Bits,
    after: Bits,
    first: int,
    half: Int,
    bounds: Longs,
    records: Codes,
    raws: Records,
    at: int,
    raw_at: int,
) -> tuple[int, int]:
    """Turn the quiet words that moved into symbols.

    Args:
        moved, places: their ranks, in order, none below `first`, and how many words of the interval's list come before
            each of them.
        before, after: words at the left end and at the middle, by rank.
        at, raw_at: ends of records and raws, which are appended to.
    """
    at, raw_at = _put_number(records, raws, at, raw_at, COUNT, len(moved))
    start: Int = first
    known: Int = 0
    scale = 0
    for i in range(len(moved)):
        r, place = np.int64(moved[i]), np.int64(places[i])
        while start >= bounds[scale + 1]:
            scale += 1
        at, raw_at = _put_number(records, raws, at, raw_at, GAP + scale, r - start - (place - known))
        while r >= bounds[scale + 1]:
            scale += 1
        move = zigzag(wrapped(np.int64(after[r]) - np.int64(before[r]), half)) - 1
        at, raw_at = _put_number(records, raws, at, raw_at, MOVE + scale, move)
        start, known = r + 1, place
    return at, raw_at


@compiled
def count_records(records: Codes, counts: Longs) -> None:
    """Count records: `counts` is int64 [contexts.RECORDS], added to."""
    for i in range(np.uint64(len(records))):
        counts[np.uint64(records[i])] += 1
