"""Contexts and symbols: what is coded, given what a decoder knows already (EXACT.md section 14).

Everything here is compiled into encoder and decoder alike, so both see the same contexts.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from relex_codec.core.jit import inlined, leading_zeros

Int: TypeAlias = int | np.int64
"""Integers of compiled code, all of which have 64 bits there."""

CLASSES: Final = 16
"""Scale classes of a word, by the exponent of its value."""
NEAR_ONE: Final = 0
"""Ends one apart, by class, outer movement at the near end and at the far end."""
NEAR: Final = NEAR_ONE + CLASSES * 25
"""Ends 2 to 7 apart, by distance, class and outer movement at the near end."""
FAR: Final = NEAR + 6 * CLASSES * 5
"""Ends further apart, by the length of the distance in bits and class."""
GAP: Final = FAR + 9 * CLASSES
"""Quiet words before the next one that moved, by class."""
MOVE: Final = GAP + CLASSES
"""By how much a quiet word moved, by class."""
DENSE: Final = MOVE + CLASSES
"""By how much any word of a first frame moved, by class."""
COUNT: Final = DENSE + CLASSES
"""How many quiet words moved."""
BELOW: Final = COUNT + 1
"""How far a word lies outside of its ends, beyond the near one."""
ABOVE: Final = BELOW + 1
"""The same beyond the far one."""
CONTEXTS: Final = ABOVE + 1
SYMBOLS: Final = 64
FAMILIES: Final = (
    (NEAR_ONE, NEAR),
    *((NEAR + i * CLASSES * 5, NEAR + (i + 1) * CLASSES * 5) for i in range(6)),
    (FAR, GAP), (GAP, MOVE), (MOVE, DENSE), (DENSE, COUNT), (COUNT, BELOW), (BELOW, ABOVE), (ABOVE, CONTEXTS),
)  # fmt: skip
"""Ranges of contexts whose symbols mean the same, so that they may share a table."""
STILL: Final = 2 | 2 << 4
"""The outer movement of a word of which nothing is known: none at either end."""


@inlined
def bit_length(value: Int) -> Int:
    """Number of bits of a non-negative int64."""
    zeros: Int = leading_zeros(value)
    return 64 - zeros


@inlined
def bounded(value: Int, most: Int) -> Int:
    """A number as one of 0 .. `most`, without a branch, which would be mispredicted for many words."""
    rest = most - (value & ~(value >> 63))
    return most - (rest & ~(rest >> 63))


@inlined
def record_of(context: Int, symbol: Int) -> Int:
    """A symbol with its context in 16 bits: in contexts below `FAR`, which have most of all, symbols are below 16."""
    return context << 4 | symbol if context < FAR else (context << 6 | symbol) - 48 * FAR


@inlined
def number_symbol(value: Int) -> Int:
    """Symbol of a number 0 .. 2^32 - 1: itself below 2, else its length in bits and its second highest bit."""
    if value < 2:
        return value
    bits = bit_length(value)
    return 2 * (bits - 1) + ((value >> (bits - 2)) & 1)


@inlined
def raw_bits(symbol: Int) -> Int:
    """How many lower bits of a number follow its symbol."""
    return (symbol >> 1) - 1 if symbol >= 2 else 0


@inlined
def number(symbol: Int, raw: Int) -> Int:
    """The number of a symbol and its raw bits."""
    if symbol < 2:
        return symbol
    return ((2 + (symbol & 1)) << ((symbol >> 1) - 1)) | raw


RAW_BITS: Final = np.array([max(symbol // 2 - 1, 0) for symbol in range(SYMBOLS)], np.uint64)
"""How many lower bits of a number follow each symbol: decoding words one by one, branches on that are mispredicted."""
NUMBER_FROM: Final = np.array([s if s < 2 else (2 + s % 2) << (s // 2 - 1) for s in range(SYMBOLS)], np.int64)
"""The number of each symbol whose raw bits, if it has some, are zero."""


@inlined
def zigzag(value: Int) -> Int:
    """0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return (2 * value) ^ (value >> 63)


@inlined
def unzigzag(value: Int) -> Int:
    """The inverse of `zigzag`."""
    return (value >> 1) ^ -(value & 1)


@inlined
def wrapped(value: Int, half: Int) -> Int:
    """A difference of words as the number in -half .. half - 1 that equals it modulo 2 half."""
    return ((value + half) & (2 * half - 1)) - half


@inlined
def scale_class(word: Int, mantissa: Int, half: Int, low: Int) -> Int:
    """Class of an ordered word: its exponent above `low`, 0 to 15."""
    above = word - half
    return bounded(((above ^ (above >> 63)) >> mantissa) - low, CLASSES - 1)


@inlined
def clipped(movement: Int) -> Int:
    """A movement as 0 .. 4, which stand for -2 or less, -1, 0, 1, 2 or more."""
    return bounded(movement + 2, 4)


@inlined
def far_context(distance: Int, scale: Int) -> Int:
    """Context of a list word whose ends are 8 or more apart."""
    return FAR + bounded(bit_length(distance) - 4, 8) * CLASSES + scale


@inlined
def near_key(distance: Int, scale: Int, outer: Int, rises: bool) -> Int:
    """Where `NEAR_CONTEXTS` has the context of a list word whose ends are 1 to 7 apart.

    Args:
        scale: its class.
        outer: clipped movement from outside to the left end, and << 4 that from the right end outwards; bit 3 is free.
        rises: whether the right end is the larger.
    """
    return distance << 12 | scale << 8 | outer | np.int64(rises) << 3


def near_contexts() -> npt.NDArray[np.uint16]:
    """Return the contexts of list words whose ends are less than 8 apart; computing them takes as long as a symbol.

    Returns:
        uint16 [2, 2^15]: whether the near end is the right one; `near_key`.
    """
    key = np.arange(1 << 15)
    distance, scale, rises = key >> 12, key >> 8 & 15, key >> 3 & 1
    ends = np.minimum(key & 7, 4), np.minimum(key >> 4 & 7, 4)
    found = []
    for near, far in (ends, ends[::-1]):
        at_near, at_far = (np.where(rises, movement, 4 - movement) for movement in (near, far))
        one = NEAR_ONE + (scale * 5 + at_near) * 5 + at_far
        found.append(np.where(distance == 1, one, NEAR + ((distance - 2) * CLASSES + scale) * 5 + at_near))
    return np.where(distance < 1, 0, found).astype(np.uint16)


NEAR_CONTEXTS: Final = near_contexts()


RECORDS: Final = 16 * FAR + SYMBOLS * (CONTEXTS - FAR)
"""Records there are, see `record_of`."""


def parts_of_records() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return contexts and symbols of all records: the inverse of `record_of`."""
    near, others = np.arange(16 * FAR), np.arange(16 * FAR, RECORDS) + 48 * FAR
    return np.concatenate([near >> 4, others >> 6]), np.concatenate([near & 15, others & 63])


CONTEXT_OF, SYMBOL_OF = parts_of_records()
