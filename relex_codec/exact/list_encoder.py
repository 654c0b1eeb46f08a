"""Encoding the list of an interval: its words in the middle to symbols (EXACT.md section 14).

Most words lie between two ends that are less than 8 apart, and are one record, which is made for 32 words at a time
(list_vectors.py). What is left are numbers: of words whose ends are further apart, and of those beyond an end.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import compiled, lowest_bit

from .contexts import (
    ABOVE,
    BELOW,
    FAR,
    NEAR_CONTEXTS,
    Int,
    far_context,
    near_key,
    number_symbol,
    raw_bits,
    record_of,
    scale_class,
    wrapped,
    zigzag,
)
from .frame_encoder import Codes, Records
from .interval_lists import Longs, Ranks
from .list_blocks import BLOCK
from .list_decoder import SHARE_BITS, SHARE_FROM
from .list_vectors import LANES, MANY, many_records

_ONE: Final = np.uint64(1)


@compiled
def encode_list(
    rank: Ranks,
    left: Bits,
    right: Bits,
    outer: npt.NDArray[np.uint8],
    words: Bits,
    near_is_right: bool,
    from_near: int,
    length: int,
    shape: Longs,
    middle: Bits,
    records: Codes,
    raws: Records,
) -> tuple[int, int]:
    """Turn the words of an interval's list into symbols.

    Args:
        rank, left, right, outer: the list, see `interval_lists.IntervalList`.
        words: words of the part at the middle step, by rank.
        near_is_right: whether the near end is the right one.
        from_near: steps from the near end to the middle.
        length: steps from end to end; a word is expected to have gone ``from_near / length`` of its way.
        shape: int64 [3]: bits of mantissa, half of the range of words, lowest exponent.
        middle: filled with the words of the list in the frame.
        records, raws: filled; at least 2 per word and 64 more.

    Returns:
        Numbers of records and raws.
    """
    mantissa, half, low = shape[0], shape[1], shape[2]
    near_of, far_of = (right, left) if near_is_right else (left, right)
    flip = np.int64(near_is_right)
    short = length < 1 << 20
    share = (from_near << SHARE_BITS) // length + 1
    made = np.empty(LANES, np.uint16)
    at = raw_at = 0
    for first in range(0, len(rank), LANES):
        if first % BLOCK == 0:  # long before they are read in vectors, which would wait for them
            for j in range(np.uint64(first), np.uint64(min(first + BLOCK, len(rank)))):
                middle[j] = words[np.uint64(rank[j])]
        count = min(LANES, len(rank) - first)
        if count == MANY:
            marked = many_records(near_of, far_of, outer, middle, first, made, 0, flip, mantissa, half, low)
        else:
            marked = np.uint64(0)
            for k in range(count):
                i = first + k
                near, far, here = np.int64(near_of[i]), np.int64(far_of[i]), np.int64(middle[i])
                distance = abs(far - near)
                scale = scale_class(near, mantissa, half, low)
                if distance >= 8:
                    made[k] = far_context(distance, scale)
                    marked |= _ONE << np.uint64(k)
                else:
                    key = near_key(distance, scale, np.int64(outer[i]), (far > near) != near_is_right)
                    way = here - near if far > near else near - here
                    put: Int = distance + 1 if way < 0 else distance + 2 if way > distance else way
                    made[k] = record_of(np.int64(NEAR_CONTEXTS[flip, key]), put)
                    marked |= np.uint64(put > distance) << np.uint64(k)
        for j in range(np.uint64(count)):
            records[np.uint64(at) + j] = made[j]
        while marked != 0:
            k = int(lowest_bit(marked))
            marked &= marked - _ONE
            i = first + k
            near, far, here = np.int64(near_of[i]), np.int64(far_of[i]), np.int64(middle[i])
            distance = abs(far - near)
            way = here - near if far > near else near - here
            value: Int
            symbol: Int
            if distance >= 8:
                near_by = short and distance < SHARE_FROM
                expected = (distance * share) >> SHARE_BITS if near_by else distance * from_near // length
                value = zigzag(wrapped(way - expected, half))
                symbol = number_symbol(value)
                records[at + k] = ((np.int64(made[k]) << 6) | symbol) - 48 * FAR
            else:
                value = -1 - way if way < 0 else way - distance - 1
                symbol = number_symbol(value)
                at += 1
                records[at + k] = record_of(BELOW if way < 0 else ABOVE, symbol)
                for j in range(k + 1, count):
                    records[at + j] = made[j]
            bits = raw_bits(symbol)
            raws[raw_at] = np.uint32(value & ((1 << bits) - 1))
            raw_at += int(bits > 0)
        at += count
    return at, raw_at
