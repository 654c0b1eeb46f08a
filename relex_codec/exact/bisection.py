"""The order of bisection: which frames a segment has, and which of them a step needs (EXACT.md section 13).

Steps of a segment are numbered 1 .. n; 0 is its left end. Pure functions on numbers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """An interval of the bisection: its frame gives the step in the middle, given those at both ends.

    Attributes:
        left: step at its left end.
        right: step at its right end.
        level: 1 for the whole segment, one more for each halving.
        near_is_right: the end that was a middle itself, and whose other side is known, is the right one.
    """

    left: int
    right: int
    level: int
    near_is_right: bool

    @property
    def middle(self) -> int:
        """The step that the frame of this interval gives."""
        return (self.left + self.right) // 2

    @property
    def share(self) -> tuple[int, int]:
        """Steps from the near end to the middle, and steps from end to end."""
        near = self.right - self.middle if self.near_is_right else self.middle - self.left
        return near, self.right - self.left

    @property
    def low(self) -> Interval:
        """The interval to the left of the middle."""
        return Interval(self.left, self.middle, self.level + 1, True)

    @property
    def high(self) -> Interval:
        """The interval to the right of the middle."""
        return Interval(self.middle, self.right, self.level + 1, False)

    @property
    def has_middle(self) -> bool:
        """Whether there is a step between the ends."""
        return self.right - self.left > 1


def whole_segment(count: int) -> Interval:
    """Return the interval that is a whole segment of `count` steps: 0 .. count."""
    return Interval(0, count, 1, False)


def frame_order(count: int) -> list[int]:
    """Return the steps of a segment in the order of their frames: level by level, each from left to right."""
    order, level = [count], [whole_segment(count)]
    while level:
        level = [interval for interval in level if interval.has_middle]
        order += [interval.middle for interval in level]
        level = [half for interval in level for half in (interval.low, interval.high)]
    return order


def intervals_to(step: int, count: int) -> Iterator[Interval]:
    """Yield the intervals whose frames lead to a step, from the whole segment on; none for the last step."""
    interval = whole_segment(count)
    while step not in (interval.left, interval.right):
        yield interval
        interval = interval.low if step <= interval.middle else interval.high


def frames_of(step: int, count: int) -> list[int]:
    """Return the steps whose frames restoring a step decodes, in order; none for 0."""
    return [count, *(interval.middle for interval in intervals_to(step, count))] if step else []


def frame_counts(count: int) -> list[int]:
    """Return how many frames restoring each step of a segment decodes: ``len(frames_of(step, count))``, all at once."""
    counts = [1] * count
    waiting = [whole_segment(count)]
    while waiting:
        interval = waiting.pop()
        if interval.has_middle:
            counts[interval.middle - 1] = 1 + interval.level
            waiting += [interval.low, interval.high]
    return counts


def replay_order(wanted: Sequence[int], count: int) -> Iterator[int]:
    """Yield the steps whose frames restoring all of `wanted` decodes, in the order in which replaying decodes them.

    Args:
        wanted: sorted, none twice, from 1 to `count`.
    """
    if wanted:
        yield count
        yield from _middles(whole_segment(count), wanted)


def _middles(interval: Interval, wanted: Sequence[int]) -> Iterator[int]:
    if wanted and wanted[0] != interval.right:
        cut = bisect_right(wanted, interval.middle)
        yield interval.middle
        yield from _middles(interval.low, wanted[:cut])
        yield from _middles(interval.high, wanted[cut:])


def frame_bound(steps: int) -> int:
    """Return how many frames restoring any step of so many may decode: ceil(log2 T) + 2."""
    return (steps - 1).bit_length() + 2


def choose_left(ends: list[int], costs: list[int], count: int) -> int:
    """Return what a new segment begins from: 0, the origin, or the number of an earlier step.

    The nearest step would be the cheapest, but a chain of such steps would need a frame for each. Segment m (from 0 on)
    begins from the end of segment m - B^k instead, k being the number of zeros that m ends with in base B (B = 2 is a
    Fenwick tree). B is the largest that leaves a link of room for each of the B - 1 further segments of the k levels
    below, and one more; B = 2 needs no more than its own. Where none does, the latest step that leaves any room is
    taken. Appending one step at a time, the mean distance stays between 3 and 5 steps for up to 1000 of them (measured
    over such runs).

    Args:
        ends: numbers of the last steps of the segments there are.
        costs: frames that each of the steps there are needs.
        count: number of new steps.
    """
    if not ends:
        return 0
    room = frame_bound(len(costs) + count) - 1 - (count - 1).bit_length()
    number = len(ends)
    for base in range(number + 1, 1, -1):
        power, below = 1, 0
        while number // power % base == 0:
            power, below = power * base, below + base - 1
        wanted = ends[number - power]
        if costs[wanted - 1] + (below + 1 if base > 2 else 0) <= room:
            return wanted
    return next((step for step in range(ends[-1], 0, -1) if costs[step - 1] <= room), 0)
