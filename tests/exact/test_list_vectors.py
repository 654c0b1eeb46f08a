"""Contexts, records and words of a list 32 at a time, against the formulas for one word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from relex_codec.exact import contexts as c
from relex_codec.exact.half_lists import half_list
from relex_codec.exact.interval_lists import IntervalList, MovedWords, empty_list, order_of, word_shape
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


@pytest.mark.parametrize("size", [0, 1, 31, 32, 999])
@pytest.mark.parametrize("low", [0, 3, 113])
@pytest.mark.parametrize("dtype", DTYPES)
def test_words_are_sorted_by_the_class_of_one_word(dtype: str, low: int, size: int) -> None:
    layout = layout_of(dtype)
    shape = word_shape(layout, low if layout.mantissa < 8 * layout.width else 0)
    found, _, _, _ = words(dtype, low)
    classes = [c.scale_class(word, *shape.tolist()) for word in found[:size].tolist()]
    order = order_of(found[:size], shape)
    assert order.places.tolist() == sorted(range(size), key=classes.__getitem__)
    assert order.bounds.tolist() == [sum(one < scale for one in classes) for scale in range(17)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_words_are_those_of_one_way(dtype: str) -> None:
    layout = layout_of(dtype)
    near, far, _, _ = words(dtype, 1)
    ways = np.random.default_rng(2).integers(-8, 9, BLOCK)
    block = empty_block(near.dtype)
    block.way[:] = ways.astype(near.dtype)
    middle = np.empty_like(near)
    count = BLOCK - MANY + 5
    _make_words(near, far, 0, count, layout.half, block, middle)
    for i in range(count):
        n, f, way = int(near[i]), int(far[i]), int(ways[i])
        assert middle[i] == (n + (way if f > n else -way)) % (2 * layout.half)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_high", [False, True])
@pytest.mark.parametrize("count", [0, 1, MANY + 5, BLOCK - 1, BLOCK])
def test_half_lists_are_those_of_one_word_at_a_time(dtype: str, is_high: bool, count: int) -> None:
    """A word goes on where it differs from that side's end; quiet words that moved come before, between and after."""
    rng = np.random.default_rng(3)
    listed, middle = [], []
    for seed in range(2):  # two blocks, so that words that moved lie at the border between them
        left, right, here, outer = words(dtype, seed)
        rank = (np.arange(BLOCK) + seed * BLOCK) * 3 + 10
        here = np.where(rng.random(BLOCK) < 0.3, left, np.where(rng.random(BLOCK) < 0.3, right, here))
        listed.append((rank.astype(np.uint32), left, right, outer))
        middle.append(here)
    rows = [np.concatenate(column)[: BLOCK + count] for column in zip(*listed, strict=True)]
    here = np.concatenate(middle)[: BLOCK + count]
    quiet = np.setdiff1d(np.arange(int(rows[0][-1]) + 9), rows[0])
    border = 3 * BLOCK + 10  # the rank that the second block begins with
    moved_rank = np.union1d(rng.choice(quiet, 200, replace=False), [0, 1, border - 2, border - 1, quiet[-2], quiet[-1]])
    before, after, _, _ = (column[: len(moved_rank)] for column in words(dtype, 4))
    passed = np.searchsorted(rows[0], moved_rank).astype(np.uint32)
    moved = MovedWords(moved_rank.astype(np.uint32), before, after, passed)
    out = empty_list(len(here) + len(moved_rank) + 1, here.dtype)
    size = half_list(IntervalList(*rows), here, moved, len(moved_rank), is_high, empty_block(here.dtype), out)

    still = np.full(len(moved_rank), c.STILL)
    every = np.concatenate([np.stack([*rows, here]), np.stack([moved_rank, before, before, still, after])], axis=1)
    expected = []
    for r, left_word, right_word, around, h in every[:, np.argsort(every[0])].T.tolist():
        if is_high and h != right_word:
            expected.append((r, h, right_word, max(-2, min(2, h - left_word)) + 2 | around & 0xF0))
        if not is_high and h != left_word:
            expected.append((r, left_word, h, around & 15 | max(-2, min(2, right_word - h)) + 2 << 4))
    found = list(zip(*(column[:size].tolist() for column in out), strict=True))
    assert found == expected and len(expected) > 100


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
