"""Planning of ranged reads; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

Range = tuple[int, int]
"""Bytes from the first up to and without the second."""

FIRST_READ: Final = 64 << 10
"""Bytes of the first request of a file: the headers and indexes of usual files fit, so that one request opens them."""
MERGE_GAP: Final = 64 << 10
"""Ranges this close are read as one: a request costs more than these bytes."""
LONGEST_READ: Final = 16 << 20
"""The longest read that merging makes."""
WASTE: Final = 256
"""`plan_blocks` fetches one byte too many in so many, at most."""


class MergedRead(NamedTuple):
    """One read that serves several ranges."""

    start: int
    end: int
    members: tuple[int, ...]
    """Indices of the ranges served."""


def merge_ranges(ranges: Sequence[Range], gap: int = MERGE_GAP, limit: int = LONGEST_READ) -> list[MergedRead]:
    """Plan reads for `ranges`: neighbours at most `gap` bytes apart share a read of at most `limit` bytes.

    A range that is longer than `limit` is read alone; empty ranges are not read. The plan is in order of position.
    """
    plan: list[MergedRead] = []
    for index in sorted(range(len(ranges)), key=lambda i: ranges[i]):
        start, end = ranges[index]
        if start == end:
            continue
        if plan:
            last = plan[-1]
            joined = max(last.end, end)
            if start - last.end <= gap and (joined == last.end or joined - last.start <= limit):
                plan[-1] = MergedRead(last.start, joined, (*last.members, index))
                continue
        plan.append(MergedRead(start, end, (index,)))
    return plan


class Block(NamedTuple):
    """One of the reads that together serve a long list of ranges."""

    start: int
    end: int
    first: int
    """Index of the first range that it serves, or a part of."""
    used: int
    """Bytes of it that the ranges take, those that several take counted as often."""


@dataclass
class _Stretch:
    """Ranges that are read together.

    Attributes:
        wanted: bytes of it that some range has; the others are gaps.
    """

    begin: int
    end: int
    wanted: int


def plan_blocks(ranges: Sequence[Range], limit: int = LONGEST_READ, waste: int = WASTE) -> list[Block]:
    """Plan reads for `ranges`, which will be asked for in this order, in blocks of `limit` bytes at most.

    Blocks do not overlap, and neighbouring ranges share one; a long stretch is cut into blocks of equal size, more
    than half of `limit` each. Gaps are read along where all of a stretch together are at most 1 / `waste` of the ranges
    before them, so no more than that is fetched in vain.

    Returns:
        In the order of `first`.
    """
    order = sorted((start, end, i) for i, (start, end) in enumerate(ranges) if start < end)
    stretches: list[_Stretch] = []
    for start, end, _ in order:
        last = stretches[-1] if stretches else None
        if last and (start <= last.end or start - last.begin - last.wanted <= last.wanted // waste):
            last.wanted += max(end - max(start, last.end), 0)
            last.end = max(last.end, end)
        else:
            stretches.append(_Stretch(start, end, end - start))
    cuts: list[Range] = []
    for begin, end in ((stretch.begin, stretch.end) for stretch in stretches):
        parts = -(-(end - begin) // limit)
        edges = [begin + (end - begin) * i // parts for i in range(parts + 1)]
        cuts += pairwise(edges)
    first = [len(ranges)] * len(cuts)
    used = [0] * len(cuts)
    at = 0
    for start, end, i in order:
        while cuts[at][1] <= start:
            at += 1
        here = at
        while here < len(cuts) and cuts[here][0] < end:
            first[here] = min(first[here], i)
            used[here] += min(end, cuts[here][1]) - max(start, cuts[here][0])
            here += 1
    found = [Block(*cut, first[i], used[i]) for i, cut in enumerate(cuts) if used[i]]
    return sorted(found, key=lambda block: (block.first, block.start))
