"""Decoding the list of an interval: its words in the middle, and the lists on both sides (EXACT.md section 14).

This is the innermost loop of restoring (benchmarks/exact_words.py has its cycles). Branches that nobody can predict
take most of them: whether the ends are far apart, whether raw bits follow, whether a word of the stream is taken.
Several streams decoded in turn were slower for that reason, and so was a loop without these branches. What does not
depend on the lane is cheaper on the way than in a pass of its own, so one of the lists is made here.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import compiled

from .contexts import ABOVE, BELOW, NEAR_CONTEXTS, Int, clipped, far_context, near_key, unzigzag
from .interval_lists import Longs, Ranks, classes_of
from .rans import (
    COARSE_SHIFT,
    LOOKUP_SHIFT,
    LOW,
    ONE,
    SYMBOL_SHIFT,
    CoderTables,
    Words,
    after_symbol,
    is_beyond,
    raw_of,
    refilled,
    slot_of,
    without_raw,
)

SHARE_BITS: Final = 40
"""Bits of the fraction that stands for a division by the steps of an interval."""
SHARE_FROM: Final = 1 << 16
"""Distances from which on a division is done: below, ``distance * (2^40 share // length + 1) >> 40`` is the same."""


@compiled
def decode_list(
    rank: Ranks,
    near_of: Bits,
    far_of: Bits,
    outer: npt.NDArray[np.uint8],
    near_is_right: bool,
    from_near: int,
    length: int,
    shape: Longs,
    tables: CoderTables,
    x: np.uint64,
    words: Words,
    middle: Bits,
    is_high: bool,
    end_of: Bits,
    other_of: Bits,
    out_rank: Ranks,
    out_here: Bits,
    out_end: Bits,
    out_outer: npt.NDArray[np.uint8],
) -> tuple[int, np.uint64, int]:
    """Decode the words of an interval's list and make the list on one side of the frame, without the quiet words.

    Args:
        rank, near_of, far_of, outer: the list, see `interval_lists.IntervalList`, with its words at the near and at the
            far end.
        near_is_right, from_near, length, shape: as of `frame_encoder.encode_list`.
        tables: of the frame.
        x, words: lane and words of the stream, see `rans.open_stream`.
        middle: filled with the words of the list in the frame.
        is_high: which side is made.
        end_of, other_of: the list's words at the end of that side, and at the other end.
        out_rank, out_here, out_end, out_outer: the list that is made, with its words in the frame and at its other
            end; room for one word more than the list.

    Returns:
        Length of the list that is made, the lane, and how many words of the stream are used.
    """
    mantissa, half = shape[0], shape[1]
    table_of, lookup, entries = tables
    mask = 2 * half - 1
    many = len(words)
    classes = classes_of(shape)
    flip = np.int64(near_is_right)
    contexts = NEAR_CONTEXTS[flip]
    short = length < 1 << 20
    share = (from_near << SHARE_BITS) // length + 1
    keep, shift, way_out = (0xF0, 0, 1) if is_high else (15, 4, -1)
    at = made = 0
    for i in range(len(rank)):
        near, far = np.int64(near_of[i]), np.int64(far_of[i])
        d = far - near
        rises = np.int64(d > 0)
        sign = 2 * rises - 1
        d *= sign
        scale, around = np.int64(classes[near >> mantissa]), np.int64(outer[i])
        if d < 8:
            context: Int = np.int64(contexts[near_key(d, scale, around, rises != flip)])
        else:
            context = far_context(d, scale)
        t = table_of[context]
        slot = slot_of(x)
        v = np.uint64(lookup[(t << LOOKUP_SHIFT) | (slot >> COARSE_SHIFT)])
        entry = entries[(t << SYMBOL_SHIFT) | v]
        while is_beyond(slot, entry):
            v += ONE
            entry = entries[(t << SYMBOL_SHIFT) | v]
        x = after_symbol(x, entry)
        if x < LOW and at < many:
            x = refilled(x, words[at])
            at += 1
        u: Int = np.int64(v)
        if d >= 8:
            bits = (u >> 1) - 1
            if bits > 0:
                raw = raw_of(x, bits)
                x = without_raw(x, bits)
                if x < LOW and at < many:
                    x = refilled(x, words[at])
                    at += 1
                u = ((2 + (u & 1)) << bits) | raw
            way = (d * share) >> SHARE_BITS if short and d < SHARE_FROM else d * from_near // length
            u = way + unzigzag(u)
        elif u > d:
            # a number, written out: a call for it costs as much as ten words
            t = table_of[BELOW if u == d + 1 else ABOVE]
            slot = slot_of(x)
            v = np.uint64(lookup[(t << LOOKUP_SHIFT) | (slot >> COARSE_SHIFT)])
            entry = entries[(t << SYMBOL_SHIFT) | v]
            while is_beyond(slot, entry):
                v += ONE
                entry = entries[(t << SYMBOL_SHIFT) | v]
            x = after_symbol(x, entry)
            if x < LOW and at < many:
                x = refilled(x, words[at])
                at += 1
            beyond: Int = np.int64(v)
            bits = (beyond >> 1) - 1
            if bits > 0:
                raw = raw_of(x, bits)
                x = without_raw(x, bits)
                if x < LOW and at < many:
                    x = refilled(x, words[at])
                    at += 1
                beyond = ((2 + (beyond & 1)) << bits) | raw
            u = -1 - beyond if u == d + 1 else d + 1 + beyond
        here = (near + sign * u) & mask
        middle[i] = here
        # each is written first and counted if it is one: half of the words would mispredict a branch
        end = np.int64(end_of[i])
        out_rank[made], out_here[made], out_end[made] = rank[i], here, end
        out_outer[made] = (around & keep) | (clipped((here - np.int64(other_of[i])) * way_out) << shift)
        made += here != end
    return made, x, at
