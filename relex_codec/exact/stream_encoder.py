"""Coding symbols to a stream: the inverse of what rans.py takes from a lane (EXACT.md section 14).

A symbol of frequency f takes ``x // f`` of its lane, and dividing 64 bits takes as long as all else. But f is one of
4096 numbers, so the quotient is the upper half of a product with one that is known before, ``(x + more) m >> 64 >>
shift``. This is exact for all x below 2^64 - 1. Where f is no power of two, let p = floor(log2 f) and 2^(64 + p) =
f k + r, so that k has 64 bits; shift is p, and

- where f - r <= 2^p, m = k + 1 and more = 0: x m / 2^(64 + p) is x / f and less than 1 / f above it, as (f - r) x is
  less than 2^(64 + p); so no integer lies between them but x / f itself;
- else r < 2^p, m = k and more = 1: (x + 1) m / 2^(64 + p) is less than 1 / f below (x + 1) / f, so it is at least
  x // f, and below the next integer, as (x + 1) / f is at most that one.

Powers of two are shifts. Source: A. D. Robison, "N-bit unsigned division via N-bit multiply-add", ARITH 2005.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from relex_codec.core.jit import compiled, operation

from .contexts import CONTEXT_OF, FAR, SYMBOL_OF, SYMBOLS
from .rans import LANES, LANES_FROM, LOW, ONE, SCALE, SCALE_BITS, CoderTables

Longs = npt.NDArray[np.uint64]

_PER_STEP: Final = 4
_WORD: Final = np.uint64(32)
_SIXTYFOUR: Final = np.uint64(64)
_ENTRY_SHIFT: Final = np.uint64(2)
_TWO, _THREE = np.uint64(2), np.uint64(3)
_SHIFT: Final = np.uint64(63)
_RAW_AT: Final = np.uint64(8)
_MORE_AT: Final = np.uint64(16)
_LOWER: Final = np.uint64((1 << 32) - 1)


class Divisors(NamedTuple):
    """How 0 .. 4096 divide without a division; 0 is never divided by.

    Attributes:
        factor: uint64, m of the formula above.
        more: uint64, 0 or 1.
        shift: uint64.
    """

    factor: Longs
    more: Longs
    shift: Longs


@cache
def divisors() -> Divisors:
    """Return how to divide by 0 .. 4096; made when something is coded, as who only decodes imports this too."""
    found = Divisors(*(np.zeros(SCALE + 1, np.uint64) for _ in range(3)))
    for f in range(1, SCALE + 1):
        shift = f.bit_length() - 1
        k, r = divmod(1 << (64 + shift), f)
        if f == 1:  # (x + 1) (2^64 - 1) is x 2^64 and less than 2^64 more
            m, more = k - 1, 1
        elif r == 0:
            m, more, shift = k >> 1, 0, shift - 1
        elif f - r <= 1 << shift:
            m, more = k + 1, 0
        else:
            m, more = k, 1
        found.factor[f], found.more[f], found.shift[f] = m, more, shift
    return found


def _upper_half(b: Any, x: Any, y: Any) -> Any:
    wide = ir.IntType(128)
    product = b.mul(b.zext(x, wide), b.zext(y, wide))
    return b.trunc(b.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))


upper_half = operation(
    types.uint64, (types.uint64, types.uint64), _upper_half, lambda x, y: np.uint64(int(x) * int(y) >> 64)
)
"""The upper 64 bits of the product of two words."""


class CodingTables(NamedTuple):
    """One table set as coding uses it.

    Attributes:
        step_of: uint16 [records], which step each record is.
        steps: uint64 [4 steps], what a step does with a lane: the factor of its division; the largest lane that has
            room for it; the sum of frequencies below, and << 32 what the frequency lacks of 4096; the shift of its
            division, and << 8 how many raw bits come before, and << 16 what is added before the division.
    """

    step_of: npt.NDArray[np.uint16]
    steps: Longs


def coding_tables(tables: CoderTables) -> CodingTables:
    """Lay out a table set for coding."""
    table_of = tables.table_of.astype(np.int64)
    frequency, below = (tables.entries & 0xFFFF).astype(np.int64), (tables.entries >> 16).astype(np.uint64)
    raw = np.zeros((len(frequency) // SYMBOLS, SYMBOLS), np.uint64)
    raw[table_of[FAR:]] = np.maximum(np.arange(SYMBOLS) // 2 - 1, 0).astype(np.uint64)
    steps = np.empty((len(frequency), _PER_STEP), np.uint64)
    factor, more, shift = (column[frequency] for column in divisors())
    steps[:, 0] = factor
    steps[:, 1] = (frequency.astype(np.uint64) << np.uint64(64 - SCALE_BITS)) - ONE  # of 4096 all 64 bits
    steps[:, 2] = below | (SCALE - frequency).astype(np.uint64) << _WORD
    steps[:, 3] = shift | raw.reshape(-1) << _RAW_AT | more << _MORE_AT
    return CodingTables((table_of[CONTEXT_OF] * SYMBOLS + SYMBOL_OF).astype(np.uint16), steps.reshape(-1))


def encode_stream(
    records: npt.NDArray[np.uint16], raws: npt.NDArray[np.uint32], dense: int, tables: CodingTables
) -> bytes:
    """Code the records of one stream.

    Args:
        records: uint16, see `contexts.record_of`.
        raws: uint32, the raw bits of the records that have some, in order.
        dense: so many records at the beginning are dense words, which take turns at the lanes; others are in the first.
        tables: of the frame; every record has a frequency.
    """
    lanes = LANES if dense >= LANES_FROM else 1
    states = np.full(LANES, LOW if lanes > 1 else ONE, np.uint64)
    # 12 bits a symbol and 32 raw ones at most, and less than a word is left over
    out = np.empty(16 + (len(records) + 1) // 2 + len(raws), np.uint32)
    at = _encode(records, raws, dense if lanes > 1 else 0, tables.step_of, tables.steps, states, out)
    first = int(states[0])
    head = states.astype("<u8").tobytes() if lanes > 1 else first.to_bytes(-(-first.bit_length() // 8), "little")
    return head + out[at:].astype("<u4", copy=False).tobytes()


@compiled
def _encode(
    records: npt.NDArray[np.uint16],
    raws: npt.NDArray[np.uint32],
    dense: int,
    step_of: npt.NDArray[np.uint16],
    steps: Longs,
    states: Longs,
    out: npt.NDArray[np.uint32],
) -> int:
    """Code records, the last one first; fills `out` from its end, and returns where that begins.

    Args:
        dense: so many records at the beginning take turns at the lanes.
        states: lanes; changed.
    """
    at, raw_at, i = np.uint64(len(out)), np.uint64(len(raws)), np.uint64(len(records))
    for turns in range(2):
        end = np.uint64(0 if turns else dense)
        x = states[0]
        while i > end:
            i -= ONE
            if turns:
                x = states[i & _THREE]
            step = np.uint64(step_of[np.uint64(records[i])]) << _ENTRY_SHIFT
            factor, limit, sums, rest = steps[step], steps[step | ONE], steps[step | _TWO], steps[step | _THREE]
            bits = (rest >> _RAW_AT) & _SHIFT
            if bits > 0:
                raw_at -= ONE
                if x >> (_SIXTYFOUR - bits) != 0:
                    at -= ONE
                    out[at] = np.uint32(x & _LOWER)
                    x >>= _WORD
                x = (x << bits) | np.uint64(raws[raw_at])
            if x > limit:
                at -= ONE
                out[at] = np.uint32(x & _LOWER)
                x >>= _WORD
            quotient = upper_half(x + (rest >> _MORE_AT), factor) >> (rest & _SHIFT)
            x = x + quotient * (sums >> _WORD) + (sums & _LOWER)
            if turns:
                states[i & _THREE] = x
        if not turns:
            states[0] = x
    begin: Any = np.int64(at)
    return int(begin)
