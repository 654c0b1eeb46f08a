"""Contexts and words of a list 32 at a time, against the formulas for one word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from relex_codec.exact import contexts as c
from relex_codec.exact.interval_lists import word_shape
from relex_codec.exact.list_blocks import BLOCK, empty_block, find_contexts
from relex_codec.exact.list_decoder import _make_words
from relex_codec.exact.list_vectors import MANY
from relex_codec.exact.ordered_words import layout_of

DTYPES = ["BF16", "F16", "F32", "F8_E4M3", "F8_E5M2", "I8", "U16", "I32"]


def words(dtype: str, seed: int) -> tuple[Any, Any, Any, Any]:
    """Words at both ends of an interval, near to each other and not, those of a third step, and outer movements."""
    layout = layout_of(dtype)
    rng = np.random.default_rng(seed)
    top = 2 * layout.half
    near = rng.integers(0, top, BLOCK)
    near[:8] = [0, top - 1, layout.half, layout.half - 1, 1, top - 2, layout.half + 1, layout.half - 2]
    far = (near + rng.integers(1, 1 << rng.integers(1, 8 * layout.width, BLOCK)) * rng.choice([-1, 1], BLOCK)) % top
    far = np.where(far == near, (near + 1) % top, far)
    other = (near + rng.integers(-4, 5, BLOCK)) % top
    outer = rng.integers(0, 5, BLOCK) | rng.integers(0, 5, BLOCK) << 4
    kind = np.dtype(f"<u{layout.width}")
    return near.astype(kind), far.astype(kind), other.astype(kind), outer.astype(np.uint8)


@pytest.mark.parametrize("low", [0, 3, 113])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("near_is_right", [False, True])
def test_contexts_are_those_of_one_word(dtype: str, near_is_right: bool, low: int) -> None:
    layout = layout_of(dtype)
    shape = word_shape(layout, low if layout.mantissa < 8 * layout.width else 0)
    near, far, _, outer = words(dtype, low)
    block = empty_block(near.dtype)
    count = BLOCK - MANY + 5  # some in vectors, some one by one
    find_contexts(near, far, outer, 0, count, near_is_right, shape, block)
    for i, (n, f, o) in enumerate(zip(near[:count].tolist(), far.tolist(), outer.tolist(), strict=False)):
        scale = c.scale_class(n, *shape.tolist())
        distance = abs(f - n)
        if distance < 8:
            expected = c.NEAR_CONTEXTS[int(near_is_right), c.near_key(distance, scale, o, (f > n) != near_is_right)]
        else:
            expected = c.far_context(distance, scale)
        assert (block.context[i], block.distance[i]) == (expected, distance), (n, f, o)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_high", [False, True])
def test_words_are_those_of_one_way(dtype: str, is_high: bool) -> None:
    layout = layout_of(dtype)
    near, far, other, outer = words(dtype, 1)
    ways = np.random.default_rng(2).integers(-8, 9, BLOCK)
    block = empty_block(near.dtype)
    block.way[:] = ways.astype(near.dtype)
    middle = np.empty_like(near)
    count = BLOCK - MANY + 5
    _make_words(near, far, outer, other, 0, count, is_high, layout.half, block, middle)
    for i in range(count):
        n, f, t, o = int(near[i]), int(far[i]), int(other[i]), int(outer[i])
        here = (n + (int(ways[i]) if f > n else -int(ways[i]))) % (2 * layout.half)
        movement = max(-2, min(2, here - t)) + 2
        expected = movement | (o & 0xF0) if is_high else (o & 15) | (4 - movement) << 4
        assert (middle[i], block.moved[i]) == (here, expected)
