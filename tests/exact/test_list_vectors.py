"""Contexts, records and words of a list 32 at a time, against the formulas for one word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from relex_codec.exact import contexts as c
from relex_codec.exact.interval_lists import word_shape
from relex_codec.exact.list_blocks import BLOCK, empty_block, find_contexts
from relex_codec.exact.list_decoder import _make_words
from relex_codec.exact.list_encoder import encode_list
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


def number_of(context: int, value: int) -> tuple[int, list[int]]:
    """Record and raw bits of a number (EXACT.md section 14)."""
    if value < 4:
        return (context << 6 | value) - 48 * c.FAR, []
    bits = value.bit_length() - 2
    return (context << 6 | 2 * (bits + 1) + (value >> bits & 1)) - 48 * c.FAR, [value % (1 << bits)]


def middles(dtype: str, left: Any, right: Any, seed: int) -> Any:
    """Words between the ends, a few beyond, and any at all."""
    layout = layout_of(dtype)
    rng = np.random.default_rng(seed)
    low, high = np.minimum(left, right).astype(np.int64), np.maximum(left, right).astype(np.int64)
    found = rng.integers(low, high + 1)
    kind = rng.integers(0, 20, len(left))
    found = np.where(kind == 0, low - rng.integers(1, 9, len(left)), found)
    found = np.where(kind == 1, high + rng.integers(1, 9, len(left)), found)
    found = np.clip(found, 0, 2 * layout.half - 1)
    return np.where(kind == 2, rng.integers(0, 2 * layout.half, len(left)), found).astype(left.dtype)


@pytest.mark.parametrize("share", [(1, 2), (2, 3), (1, 3), (5, 9), (1 << 20, (1 << 21) - 1)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("near_is_right", [False, True])
def test_records_are_those_of_one_word(dtype: str, near_is_right: bool, share: tuple[int, int]) -> None:
    layout = layout_of(dtype)
    shape = word_shape(layout, 3 if layout.mantissa < 8 * layout.width else 0)
    left, right, _, outer = words(dtype, share[1])
    rng = np.random.default_rng(4)
    near_by = (left.astype(np.int64) + rng.integers(1, 9, BLOCK) * rng.choice([-1, 1], BLOCK)) % (2 * layout.half)
    right = np.where(rng.random(BLOCK) < 0.7, near_by, right).astype(left.dtype)
    left, right, outer = (np.concatenate([one, one[: MANY + 5]]) for one in (left, right, outer))
    rank = np.sort(rng.choice(3 * len(left), len(left), replace=False)).astype(np.uint32)
    part = rng.integers(0, 2 * layout.half, 3 * len(left)).astype(left.dtype)
    wanted = middles(dtype, left, right, 5)
    part[rank] = wanted

    middle = np.empty_like(left)
    records, raws = np.empty(2 * len(left) + 64, np.uint16), np.empty(2 * len(left) + 64, np.uint32)
    at, raw_at = encode_list(rank, left, right, outer, part, near_is_right, *share, shape, middle, records, raws)
    np.testing.assert_array_equal(middle, wanted)

    expected: list[int] = []
    raw: list[int] = []

    def put(found: tuple[int, list[int]]) -> None:
        expected.append(found[0])
        raw.extend(found[1])

    ends = (right, left) if near_is_right else (left, right)
    for n, f, o, here in zip(*(one.tolist() for one in (*ends, outer, wanted)), strict=True):
        scale, distance = int(c.scale_class(n, *shape.tolist())), abs(f - n)
        way = here - n if f > n else n - here
        if distance >= 8:
            rest = way - distance * share[0] // share[1]
            rest = (rest + layout.half) % (2 * layout.half) - layout.half
            put(number_of(int(c.far_context(distance, scale)), 2 * rest if rest >= 0 else -2 * rest - 1))
            continue
        context = int(c.NEAR_CONTEXTS[int(near_is_right), c.near_key(distance, scale, o, (f > n) != near_is_right)])
        expected.append(context << 4 | (distance + 1 if way < 0 else distance + 2 if way > distance else way))
        if way > distance:
            put(number_of(c.ABOVE, way - distance - 1))
        elif way < 0:
            put(number_of(c.BELOW, -1 - way))
    assert records[:at].tolist() == expected
    assert raws[:raw_at].tolist() == raw
