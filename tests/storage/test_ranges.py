"""Planning of blocks (merging is tested in test_storage.py)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from relex_codec.storage.coalesce import Block, blocks

RANGES = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 400)).map(lambda t: (t[0], t[0] + t[1])), max_size=30)


@given(RANGES, st.integers(1, 200), st.integers(1, 64))
def test_blocks_hold_every_range_once_within_their_bounds(
    ranges: list[tuple[int, int]], limit: int, waste: int
) -> None:
    plan = blocks(ranges, limit, waste)
    places = sorted((block.start, block.end) for block in plan)
    assert all(a[1] <= b[0] for a, b in pairwise(places))  # no overlaps
    assert all(0 < end - start <= limit for start, end in places)
    wanted = {byte for start, end in ranges for byte in range(start, end)}
    held = {byte for start, end in places for byte in range(start, end)}
    assert wanted <= held
    assert len(held) - len(wanted) <= len(wanted) / waste
    assert sum(block.used for block in plan) == sum(end - start for start, end in ranges)
    for block in plan:
        serves = [i for i, (a, b) in enumerate(ranges) if max(a, block.start) < min(b, block.end)]
        assert block.first == serves[0]
        assert block.used == sum(min(ranges[i][1], block.end) - max(ranges[i][0], block.start) for i in serves)
    assert [block.first for block in plan] == sorted(block.first for block in plan)


def test_blocks() -> None:
    assert blocks([]) == [] and blocks([(5, 5)]) == []
    assert blocks([(0, 10), (10, 30), (100, 110)], limit=15) == [
        Block(0, 15, 0, 15), Block(15, 30, 1, 15), Block(100, 110, 2, 10),
    ]  # fmt: skip
    assert blocks([(50, 60), (0, 10)], limit=100) == [Block(50, 60, 0, 10), Block(0, 10, 1, 10)]
    assert blocks([(0, 10), (0, 10), (4, 6)], limit=100) == [Block(0, 10, 0, 22)]
    assert blocks([(0, 512), (514, 520)], limit=1000) == [Block(0, 520, 0, 518)]  # a gap of one byte in 256
    assert blocks([(0, 512), (515, 520)], limit=1000) == [Block(0, 512, 0, 512), Block(515, 520, 1, 5)]
    lengths = [block.end - block.start for block in blocks([(0, 1001)], limit=100)]
    assert sum(lengths) == 1001 and set(lengths) == {91}
