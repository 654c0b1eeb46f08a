"""Planning of reads: ranges that are merged, and blocks."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from relex_codec.storage.coalesce import Block, merge_ranges, plan_blocks

RANGES = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 400)).map(lambda t: (t[0], t[0] + t[1])), max_size=30)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60)).map(lambda t: (t[0], t[0] + t[1])), max_size=12),
    st.integers(0, 40),
    st.integers(1, 100),
)
def test_a_plan_serves_every_range_once_and_keeps_its_bounds(
    ranges: list[tuple[int, int]], gap: int, limit: int
) -> None:
    plan = merge_ranges(ranges, gap, limit)
    served = sorted(i for read in plan for i in read.members)
    assert served == [i for i, (a, b) in enumerate(ranges) if a < b]
    for read in plan:
        members = sorted(ranges[i] for i in read.members)
        assert (read.start, read.end) == (members[0][0], max(end for _, end in members))
        longest = max(end - start for start, end in members)
        assert read.end - read.start <= max(limit, longest)
        reach = members[0][1]
        for start, end in members[1:]:
            assert start - reach <= gap
            reach = max(reach, end)
    starts = [read.start for read in plan]
    assert starts == sorted(starts)


def test_merged_ranges() -> None:
    assert merge_ranges([]) == []
    assert [(r.start, r.end, r.members) for r in merge_ranges([(50, 60), (0, 10), (12, 20)], gap=2)] == [
        (0, 20, (1, 2)),
        (50, 60, (0,)),
    ]
    assert [(r.start, r.end) for r in merge_ranges([(0, 10), (10, 20), (20, 30)], gap=5, limit=20)] == [
        (0, 20),
        (20, 30),
    ]
    assert [(r.start, r.end) for r in merge_ranges([(0, 100), (10, 20)], gap=0, limit=5)] == [(0, 100)]


@settings(deadline=None)
@example([(363, 564), (604, 738), (790, 803)], 22, 5)  # gaps of 40 and 52 are a fifth of what is before each
@example([(0, 60), *((at, at + 1) for at in range(61, 101, 2))], 200, 60)  # many gaps, each of them small
@given(RANGES, st.integers(1, 200), st.integers(1, 64))
def test_blocks_hold_every_range_once_within_their_bounds(
    ranges: list[tuple[int, int]], limit: int, waste: int
) -> None:
    plan = plan_blocks(ranges, limit, waste)
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
    assert plan_blocks([]) == [] and plan_blocks([(5, 5)]) == []
    assert plan_blocks([(0, 10), (10, 30), (100, 110)], limit=15) == [
        Block(0, 15, 0, 15), Block(15, 30, 1, 15), Block(100, 110, 2, 10),
    ]  # fmt: skip
    assert plan_blocks([(50, 60), (0, 10)], limit=100) == [Block(50, 60, 0, 10), Block(0, 10, 1, 10)]
    assert plan_blocks([(0, 10), (0, 10), (4, 6)], limit=100) == [Block(0, 10, 0, 22)]
    assert plan_blocks([(0, 512), (514, 520)], limit=1000) == [Block(0, 520, 0, 518)]  # a gap of one byte in 256
    assert plan_blocks([(0, 512), (515, 520)], limit=1000) == [Block(0, 512, 0, 512), Block(515, 520, 1, 5)]
    lengths = [block.end - block.start for block in plan_blocks([(0, 1001)], limit=100)]
    assert sum(lengths) == 1001 and set(lengths) == {91}
