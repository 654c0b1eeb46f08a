"""Lists on both sides of a frame, and what moved outside of a list, against plain loops."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_codec.exact.interval_lists import IntervalList, empty_list, find_moved, places_of
from relex_codec.exact.list_blocks import BLOCK
from relex_codec.exact.list_sides import split_list
from support.plain import Array

SIZES = [0, 1, 31, 32, 63, 64, 65, BLOCK, BLOCK + 1, 4095, 4096, 4097, 9000]


def part(dtype: str, size: int, listed: float, moved: float, seed: int) -> tuple[IntervalList, Array, Array, Array]:
    """A list, words by rank at its left end and in the middle, and which ranks it has."""
    rng = np.random.default_rng(seed)
    top = int(np.iinfo(dtype).max) + 1
    left = rng.integers(0, top, size).astype(dtype)
    changes = np.concatenate([rng.integers(1, 5, size // 2), rng.integers(1, top, size - size // 2)]).astype(dtype)
    has = rng.random(size) < listed
    rank = np.flatnonzero(has).astype(np.uint32)
    right = (left + changes)[rank]
    outer = (rng.integers(0, 5, len(rank)) | rng.integers(0, 5, len(rank)) << 4).astype(np.uint8)
    middle = np.where(rng.random(size) < np.where(has, 0.5, moved), left + rng.permutation(changes), left)
    middle[rank] = np.where(rng.random(len(rank)) < 0.4, right, middle[rank])
    return IntervalList(rank, left[rank], right, outer), left, middle.astype(dtype), has


def plainly_split(listed: IntervalList, left: Array, middle: Array, has: Array) -> tuple[list[Any], list[Any]]:
    """The rows of both lists (EXACT.md section 14)."""
    rows = dict(zip(listed.rank.tolist(), zip(*(one.tolist() for one in listed[1:]), strict=True), strict=True))
    low, high = [], []

    def clipped(movement: int) -> int:
        return max(-2, min(2, movement)) + 2

    for r, (before, here) in enumerate(zip(left.tolist(), middle.tolist(), strict=True)):
        if not has[r] and before == here:
            continue
        _, after, outer = rows.get(r, (before, before, 2 | 2 << 4))
        if here != before:
            low.append((r, before, here, outer & 15 | clipped(after - here) << 4))
        if here != after:
            high.append((r, here, after, clipped(here - before) | outer & 0xF0))
    return low, high


def rows_of(listed: IntervalList, size: int) -> list[Any]:
    return list(zip(*(one[:size].tolist() for one in listed), strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_both_sides_are_as_the_format_says(dtype: str, size: int) -> None:
    for listed_share, moved_share in product((0, 0.5, 1), (0, 0.02, 0.6)):
        listed, left, middle, has = part(dtype, size, listed_share, moved_share, size)
        moved, places = find_moved(left, middle, listed.rank, 0)
        expected = plainly_split(listed, left, middle, has)
        for keep in ((True, True), (True, False), (False, True)):
            low, high = (empty_list(size + 1 if one else 0, left.dtype) for one in keep)
            sizes = split_list(
                *listed, middle[listed.rank], moved, places, left[moved], middle[moved], *keep,
                np.empty(BLOCK, np.uint8), low, high,
            )  # fmt: skip
            assert rows_of(low, sizes[0]) == (expected[0] if keep[0] else [])
            assert rows_of(high, sizes[1]) == (expected[1] if keep[1] else [])


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.sampled_from(SIZES), st.integers(0, 10_000)), st.sampled_from([0, 0.01, 0.5, 0.99, 1]),
    st.sampled_from([0, 0.001, 0.3, 1]), st.sampled_from(["uint8", "uint16", "uint32"]), st.integers(0, 2**32),
)  # fmt: skip
def test_what_moved_is_found(size: int, listed_share: float, moved_share: float, dtype: str, seed: int) -> None:
    listed, left, middle, has = part(dtype, size, listed_share, moved_share, seed)
    expected = np.flatnonzero((left != middle) & ~has)
    moved, places = find_moved(left, middle, listed.rank, 0)
    assert moved.tolist() == expected.tolist()
    assert places.tolist() == np.searchsorted(listed.rank, expected).tolist() == places_of(moved, listed.rank).tolist()
    first = seed % (size + 1)
    moved, places = find_moved(left, middle, listed.rank[:0], first)
    assert moved.tolist() == [r for r in np.flatnonzero(left != middle).tolist() if r >= first]
    assert not places.any()
