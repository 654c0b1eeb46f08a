"""Blocks of list words, and the contexts of their symbols: the same for encoding and decoding (EXACT.md section 14)."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bits
from relex_codec.core.jit import compiled

from .contexts import NEAR_CONTEXTS, far_context, near_key, scale_class
from .interval_lists import Longs
from .list_vectors import MANY, many_contexts

BLOCK: Final = 1024
"""Words of a list that are worked on together."""


class ListBlock(NamedTuple):
    """What is known of the words of a block.

    Attributes:
        context: uint16, of each word's symbol.
        distance: of its values at both ends, of the words' dtype.
        way: from the near end to the middle, modulo the range of words, of the words' dtype.
        moved: uint8, its outer movements in the list that is made.
    """

    context: npt.NDArray[np.uint16]
    distance: Bits
    way: Bits
    moved: npt.NDArray[np.uint8]


def empty_block(dtype: np.dtype[Any]) -> ListBlock:
    """Return a block, to be filled; `dtype` is that of words."""
    return ListBlock(
        np.empty(BLOCK, np.uint16), np.empty(BLOCK, dtype), np.empty(BLOCK, dtype), np.empty(BLOCK, np.uint8)
    )


@compiled
def find_contexts(
    near_of: Bits,
    far_of: Bits,
    outer: npt.NDArray[np.uint8],
    first: int,
    count: int,
    near_is_right: bool,
    shape: Longs,
    block: ListBlock,
) -> None:
    """Fill contexts and distances of a block."""
    contexts, distances, _, _ = block
    mantissa, half, low = shape[0], shape[1], shape[2]
    flip = np.int64(near_is_right)
    k = 0
    while k + MANY <= count:
        many_contexts(near_of, far_of, outer, first + k, contexts, distances, k, flip, mantissa, half, low)
        k += MANY
    while k < count:
        i = first + k
        near, far = np.int64(near_of[i]), np.int64(far_of[i])
        d = abs(far - near)
        scale = scale_class(near, mantissa, half, low)
        if d < 8:
            contexts[k] = NEAR_CONTEXTS[flip, near_key(d, scale, np.int64(outer[i]), (far > near) != near_is_right)]
        else:
            contexts[k] = far_context(d, scale)
        distances[k] = d
        k += 1
