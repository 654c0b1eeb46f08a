"""The order of bisection, the links between segments, table sets and groups of a segment (EXACT.md section 13)."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_codec import Corrupt
from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.exact.bisection import (
    Interval,
    choose_left,
    frame_bound,
    frame_order,
    frames_of,
    intervals_to,
    whole_segment,
)
from relex_codec.exact.segments import (
    PartInfo,
    Segment,
    check_segments,
    groups_of,
    parts_of,
    step_costs,
    table_set_numbers,
)
from relex_codec.format import constants as f
from relex_codec.format.constants import PIECE

COUNTS = [*range(1, 70), 127, 128, 129, 1000, 1023, 1024, 1025]


def by_level(count: int) -> dict[int, tuple[int, int, int, int]]:
    """Middle: (level, left, right, near end), halving as EXACT.md section 13 does."""
    found: dict[int, tuple[int, int, int, int]] = {}

    def halve(left: int, right: int, level: int, near: int) -> None:
        if right - left > 1:
            middle = (left + right) // 2
            assert middle not in found
            found[middle] = level, left, right, near
            halve(left, middle, level + 1, middle)
            halve(middle, right, level + 1, middle)

    halve(0, count, 1, 0)
    return found


@pytest.mark.parametrize("count", COUNTS)
def test_every_step_has_one_frame_in_the_order_of_the_format(count: int) -> None:
    frames = by_level(count)
    assert sorted(frames) == list(range(1, count))
    assert frame_order(count) == [count, *sorted(frames, key=lambda step: (frames[step][0], step))]


@pytest.mark.parametrize("count", COUNTS)
def test_every_step_is_reached_from_known_ends(count: int) -> None:
    frames = by_level(count)
    assert frames_of(0, count) == []
    for step in range(1, count + 1):
        needed = frames_of(step, count)
        assert needed[0] == count and len(needed) == len(set(needed))
        assert len(needed) <= 1 + math.ceil(math.log2(count)) < frame_bound(count)
        known = {0, count}
        for interval, middle in zip(intervals_to(step, count), needed[1:], strict=True):
            assert interval.has_middle and interval.middle == middle
            assert {interval.left, interval.right} <= known and interval.left < step <= interval.right
            assert frames[middle][:3] == (interval.level, interval.left, interval.right)
            near = interval.right if interval.near_is_right else interval.left
            assert near == frames[middle][3]
            assert interval.share == (abs(middle - near), interval.right - interval.left)
            known.add(middle)
        assert step in known
        last = list(intervals_to(step, count))
        if last:  # no frame more than it takes
            assert step in (last[-1].middle, last[-1].right)


def test_the_whole_segment_counts_from_its_left_end() -> None:
    assert whole_segment(9) == Interval(0, 9, 1, False)
    assert not whole_segment(1).has_middle and whole_segment(2).middle == 1
    assert whole_segment(9).low == Interval(0, 4, 2, True) and whole_segment(9).high == Interval(4, 9, 2, False)


@pytest.mark.parametrize(("steps", "bound"), [(1, 2), (2, 3), (3, 4), (4, 4), (5, 5), (8, 5), (9, 6), (1024, 12)])
def test_the_bound(steps: int, bound: int) -> None:
    assert frame_bound(steps) == bound == math.ceil(math.log2(steps)) + 2


# ---- Links between segments ----


def linked(counts: list[int]) -> tuple[list[Segment], list[int]]:
    """Append segments of so many steps, one after another; the bound holds after each."""
    segments: list[Segment] = []
    costs: list[int] = []
    ends: list[int] = []
    for count in counts:
        first = ends[-1] if ends else 0
        left = choose_left(ends, costs, count)
        assert 0 <= left <= first
        segments.append(Segment(first, count, left))
        before = costs[left - 1] if left else 0
        costs += [before + len(frames_of(step, count)) for step in range(1, count + 1)]
        ends.append(first + count)
        assert max(costs) <= math.ceil(math.log2(len(costs))) + 2
    return segments, costs


@settings(max_examples=60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_any_appends_keep_the_bound(counts: list[int]) -> None:
    segments, costs = linked(counts)
    assert segments[0].left == 0
    assert costs == step_costs(segments)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([(1, 1), (1, 2), (1, 50), (20, 50), (2, 5)]))
def test_many_appends_keep_the_bound(seed: int, sizes: tuple[int, int]) -> None:
    chances = random.Random(seed)
    linked([chances.randint(*sizes) for _ in range(150)])


@pytest.mark.parametrize("counts", [[1000, *[1] * 50], [1] * 50 + [1000] + [1] * 50, [1, 64, 1, 64, 1, 64], [50] * 40])
def test_uneven_appends_keep_the_bound(counts: list[int]) -> None:
    linked(counts)


@pytest.mark.parametrize("size", [1, 7])
def test_chains_stay_logarithmic_and_links_short(size: int) -> None:
    segments, costs = linked([size] * 400)
    by_end = {segment.first + segment.count: segment for segment in segments}
    for segment in segments:
        links, at = 0, segment
        while at.left:
            at, links = by_end[at.left], links + 1
        assert links <= math.ceil(math.log2(segment.first + segment.count)) + 1
    distances = [segment.first - segment.left for segment in segments]
    assert sum(distances) / len(distances) <= 5 * size  # near ends are like what follows them
    assert max(costs) <= frame_bound(400 * size)


def records_of(segments: list[Segment]) -> tuple[Any, Any, int]:
    """Records of segments whose blocks have three bytes a group; the data begin at byte 100."""
    steps = segments[-1].first + segments[-1].count
    found, frames = np.zeros(len(segments), f.SEGMENT_RECORD), np.zeros(steps, f.FRAME_RECORD)
    at = 100
    for record, segment in zip(found, segments, strict=True):
        record["first"], record["count"], record["left"] = segment.first, segment.count, segment.left
        record["table_sets"], record["groups"], record["limit"] = 2, 2, 1000
        record["position"], record["length"] = at, 30
        at += 30
        for step in frame_order(segment.count):
            frame = frames[segment.first + step - 1]
            frame["position"], frame["length"], frame["table_set"] = at, 30, step % 2
            at += 30
    return found, frames, at


def test_links_of_segments_are_checked() -> None:
    """Records of any links that keep the bound are read; a chain through every segment is refused."""
    segments, _ = linked([3, 1, 1, 8, 2, 1, 1, 1, 5, 1, 1, 1])
    found, frames, end = records_of(segments)
    assert check_segments(found, frames, len(frames), 100, end) == segments
    for number in range(1, len(segments)):
        for left in (0, segments[number].first, segments[number].first - 1):
            changed = list(segments)
            changed[number] = Segment(segments[number].first, segments[number].count, left)
            found["left"][number] = left
            if max(step_costs(changed)) <= frame_bound(len(frames)):
                assert check_segments(found, frames, len(frames), 100, end) == changed
            else:
                with pytest.raises(Corrupt, match="frames"):
                    check_segments(found, frames, len(frames), 100, end)
        found["left"][number] = segments[number].left
    for count in (1, 3, 40):
        chain = [Segment(i, 1, i) for i in range(count)]
        found, frames, end = records_of(chain)
        if count <= frame_bound(count):
            assert check_segments(found, frames, count, 100, end) == chain
        else:
            with pytest.raises(Corrupt, match="frames"):
                check_segments(found, frames, count, 100, end)


def test_records_that_do_not_fit_are_refused() -> None:
    segments, _ = linked([3, 2, 4])
    good, good_frames, end = records_of(segments)
    steps = len(good_frames)
    lies: list[tuple[str, int, str, int]] = [
        ("segment", 0, "first", 1), ("segment", 1, "first", 2), ("segment", 2, "first", 6), ("segment", 0, "count", 0),
        ("segment", 1, "count", 3), ("segment", 2, "count", 5), ("segment", 2, "count", 3), ("segment", 1, "left", 4),
        ("segment", 0, "left", 1), ("segment", 2, "left", 0xFFFFFFFF), ("segment", 0, "table_sets", 0),
        ("segment", 0, "table_sets", 256), ("segment", 1, "table_sets", 1), ("segment", 0, "groups", 3),
        ("segment", 2, "limit", 0), ("segment", 1, "position", 100), ("segment", 0, "position", 99),
        ("segment", 0, "length", 29), ("segment", 0, "length", 23), ("segment", 2, "length", (1 << 64) - 30),
        ("frame", 0, "position", 99), ("frame", 4, "position", (1 << 64) - 1), ("frame", 4, "length", 31),
        ("frame", 8, "length", 0), ("frame", 8, "length", 29), ("frame", 3, "table_set", 2),
        ("frame", 3, "table_set", 255),
    ]  # fmt: skip
    for which, number, field, value in lies:
        found, frames = good.copy(), good_frames.copy()
        (found if which == "segment" else frames)[field][number] = value
        with pytest.raises(Corrupt):
            check_segments(found, frames, steps, 100, end)
    for found, frames, count, begin, last in (
        (good[:0], good_frames, steps, 100, end), (good, good_frames[:-1], steps, 100, end),
        (good, good_frames, steps + 1, 100, end), (good, good_frames, steps, 99, end),
        (good, good_frames, steps, 100, end + 1), (good[:-1], good_frames, steps, 100, end),
        (good[1:], good_frames, steps, 100, end),
    ):  # fmt: skip
        with pytest.raises(Corrupt):
            check_segments(found, frames, count, begin, last)


# ---- Table sets and groups ----


@pytest.mark.parametrize("count", COUNTS)
def test_table_sets_go_by_level(count: int) -> None:
    numbers = table_set_numbers(count)
    frames = by_level(count)
    assert len(numbers) == count and sorted(set(numbers)) == list(range(max(numbers) + 1))
    assert max(numbers) < 255 and numbers[count - 1] == 0 and numbers.count(0) == 1
    level_of: dict[int, int] = {}
    for step, (level, *_) in frames.items():
        assert level_of.setdefault(numbers[step - 1], level) == level
    assert [level_of[number] for number in sorted(level_of)] == sorted(level_of.values())


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(["BF16", "F32", "I64", "U8"]), st.integers(0, 3 * PIECE)), max_size=12),
    st.sampled_from([1, 1000, PIECE, PIECE + 1, 3 * PIECE, 1 << 40]),
)
def test_groups_are_filled_in_order(tensors: list[tuple[str, int]], limit: int) -> None:
    parts = parts_of((i, dtype, size) for i, (dtype, size) in enumerate(tensors))
    for i, (dtype, size) in enumerate(tensors):
        mine = [part for part in parts if part.tensor == i]
        assert [part.piece for part in mine] == list(range(-(-size // PIECE))) and {p.dtype for p in mine} <= {dtype}
        assert sum(part.elements for part in mine) == size
    assert parts == sorted(parts, key=lambda part: (part.tensor, part.piece))
    cuts = groups_of(parts, limit)
    assert cuts[-1] == len(parts) and cuts == sorted(set(cuts)) and (cuts[0] == 0 or not parts)
    groups = [parts[a:b] for a, b in pairwise(cuts)]
    words = [sum(words_of(part) for part in group) for group in groups]
    for group, size in zip(groups, words, strict=True):
        assert len({part.dtype for part in group}) == 1 and (size <= limit or len(group) == 1)
    for before, after, size in zip(groups, groups[1:], words, strict=False):
        assert before[0].dtype != after[0].dtype or size + words_of(after[0]) > limit  # no group ends early


def words_of(part: PartInfo) -> int:
    return part.elements * (2 if ITEMSIZE[part.dtype] == 8 else 1)
