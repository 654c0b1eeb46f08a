"""Segments, parts and groups: what the frames of a file hold, and where (EXACT.md section 13). Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from relex_codec.errors import Corrupt
from relex_codec.format import constants as f
from relex_codec.format.index import Records
from relex_codec.format.packing import piece_lengths

from .bisection import choose_left, frame_bound, frame_counts, frame_order, whole_segment
from .ordered_words import layout_of

GROUP_WORDS: Final = 1 << 20
"""Words in a group: tables cost about 10 KB a group, and its symbols are in memory until the tables are known."""
GROUP_SYMBOLS: Final = 256 << 20
"""Groups are smaller where their symbols would be more bytes than this, at a tenth of the words a step."""


class PartInfo(NamedTuple):
    """A piece of a tensor in the frames of a segment.

    Attributes:
        tensor, piece: numbers.
        dtype: of the tensor.
        elements: in the piece.
    """

    tensor: int
    piece: int
    dtype: str
    elements: int

    @property
    def words(self) -> int:
        """Words of the piece."""
        return self.elements * layout_of(self.dtype).per_element


def parts_of(tensors: Iterable[tuple[int, str, int]]) -> list[PartInfo]:
    """Return the parts of a segment that holds `tensors`, as (number, dtype, size)."""
    return [
        PartInfo(number, piece, dtype, elements)
        for number, dtype, size in tensors
        for piece, elements in enumerate(piece_lengths(size))
    ]


class Grouping:
    """Cuts parts into groups, one part after the other."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._words = 0
        self._dtype = ""

    def begins_group(self, part: PartInfo) -> bool:
        """Whether a part is the first of a group."""
        begins = part.dtype != self._dtype or self._words + part.words > self.limit
        self._words = part.words + (0 if begins else self._words)
        self._dtype = part.dtype
        return begins


def groups_of(parts: Sequence[PartInfo], limit: int) -> list[int]:
    """Return the number of the first part of each group, and the number of parts."""
    grouping = Grouping(limit)
    return [i for i, part in enumerate(parts) if grouping.begins_group(part)] + [len(parts)]


def table_set_numbers(count: int) -> list[int]:
    """Return the table set of each step of a segment, 1 .. n, as this encoder chooses it: by the level of its interval.

    In a short interval of odd length the middle lies nearer to one end; such frames have a table set of their own.
    """
    keys = {count: (0, 0)}
    level = [whole_segment(count)]
    while level:
        level = [interval for interval in level if interval.has_middle]
        for interval in level:
            before, after = interval.middle - interval.left, interval.right - interval.middle
            skew = (before > after) - (before < after) if interval.right - interval.left < 8 else 0
            keys[interval.middle] = (interval.level, -skew if interval.near_is_right else skew)
        level = [half for interval in level for half in (interval.low, interval.high)]
    numbers = {key: i for i, key in enumerate(sorted(set(keys.values())))}
    return [numbers[keys[step]] for step in range(1, count + 1)]


@dataclass(frozen=True, slots=True)
class Segment:
    """Where a segment lies in the run: steps ``first + 1 .. first + count``, from the left end ``left``."""

    first: int
    count: int
    left: int


def group_limit(steps: int) -> int:
    """Return how many words the groups of a segment of so many steps have."""
    return max(f.PIECE, min(GROUP_WORDS, GROUP_SYMBOLS * 10 // (4 * steps) // f.PIECE * f.PIECE))


def step_costs(segments: Sequence[Segment]) -> list[int]:
    """Return how many frames restoring each step decodes."""
    costs: list[int] = []
    for segment in segments:
        before = costs[segment.left - 1] if segment.left else 0
        costs += [before + count for count in frame_counts(segment.count)]
    return costs


@dataclass(frozen=True, slots=True)
class SegmentShape:
    """Where a new segment stands in the run of a file.

    Attributes:
        number: of segments before it.
        first: steps before it.
        left: number of the step at its left end; 0 is the origin.
        count: its steps.
        limit: words of its groups, at most.
    """

    number: int
    first: int
    left: int
    count: int
    limit: int

    @classmethod
    def after(cls, segments: Sequence[Segment], count: int) -> SegmentShape:
        """Return that of a segment of `count` steps after those that a file has."""
        first = segments[-1].first + segments[-1].count if segments else 0
        ends = [segment.first + segment.count for segment in segments]
        return cls(len(segments), first, choose_left(ends, step_costs(segments), count), count, group_limit(count))


def check_segments(segments: Records, frames: Records, steps: int, begin: int, end: int) -> list[Segment]:
    """Check the records of the exact tier against each other and return the segments.

    Args:
        segments: records of `SEGMENT_RECORD`.
        frames: records of `FRAME_RECORD`, of all segments.
        steps: T.
        begin, end: where ``relex.data.frames`` lies in the file.

    Raises:
        Corrupt: a number is out of bounds, segments or blocks do not follow each other, or a step needs more frames
            than `frame_bound` allows.
    """
    found: list[Segment] = []
    at = begin
    if not len(segments) or len(frames) != steps:
        raise Corrupt(f"{f.FRAMES} has {len(frames)} records, expected {steps}")
    if segments["reserved"].any() or frames["reserved"].any():
        raise Corrupt(f"{f.SEGMENTS}: a reserved field is not zero")
    for record in segments:
        segment = Segment(int(record["first"]), int(record["count"]), int(record["left"]))
        expected = found[-1].first + found[-1].count if found else 0
        if segment.first != expected or not 1 <= segment.count <= steps - expected or segment.left > segment.first:
            raise Corrupt(f"{f.SEGMENTS}: the segments do not follow each other")
        if not 1 <= record["table_sets"] <= 255 or not record["limit"]:
            raise Corrupt(f"{f.SEGMENTS}: a number is out of bounds")
        index = int(record["groups"]) * f.BLOB_RECORD.itemsize
        blocks = [(int(record["position"]), int(record["length"]))]
        for step in frame_order(segment.count):
            frame = frames[segment.first + step - 1]
            if frame["table_set"] >= record["table_sets"]:
                raise Corrupt(f"{f.FRAMES}: a frame has a table set that its segment lacks")
            blocks.append((int(frame["position"]), int(frame["length"])))
        for position, length in blocks:
            if position != at or length < index or (length and not index):
                raise Corrupt(f"{f.FRAMES}: the blocks do not tile {f.DATA_FRAMES}")
            at += length
        found.append(segment)
    if found[-1].first + found[-1].count != steps or at != end:
        raise Corrupt(f"{f.SEGMENTS}: the segments do not cover the steps and {f.DATA_FRAMES}")
    if max(step_costs(found)) > frame_bound(steps):
        raise Corrupt(f"{f.SEGMENTS}: a step needs more than {frame_bound(steps)} frames")
    return found
