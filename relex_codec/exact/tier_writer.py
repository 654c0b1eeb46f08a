"""Laying out the frames of a file: earlier segments and a new one (EXACT.md section 13)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from relex_codec.format import constants as f
from relex_codec.format.writer import FrameEntries

from .segment_writer import CodedGroup, blocks_of
from .segments import SegmentShape, table_set_numbers
from .tier_reader import ExactTier

COPY: Final = 1 << 22
"""Bytes of earlier segments that are copied at a time."""


def assemble(shape: SegmentShape, groups: Sequence[CodedGroup], old: ExactTier | None = None) -> FrameEntries:
    """Lay out the segments of a file: those of `old`, and a new one.

    Args:
        groups: all of the new segment, in order.
    """
    count = shape.first + shape.count
    segments = np.zeros(shape.number + 1, f.SEGMENT_RECORD)
    frames = np.zeros(count, f.FRAME_RECORD)
    begin = copied = 0
    if old is not None:
        entry = old.container.index.entries[f.DATA_FRAMES]
        begin, copied = entry.begin, entry.end - entry.begin
        segments[:-1], frames[: shape.first] = old.segment_records, old.frame_records
        for records in (segments[:-1], frames[: shape.first]):
            records["position"] -= np.uint64(begin)
    at = copied
    for step, length, _ in blocks_of(groups, shape.count):
        if step:
            frames[shape.first + step - 1]["position"] = at
            frames[shape.first + step - 1]["length"] = length
        else:
            segments[-1]["position"], segments[-1]["length"] = at, length
        at += length
    table_sets = table_set_numbers(shape.count)
    segments[-1]["first"], segments[-1]["count"], segments[-1]["left"] = shape.first, shape.count, shape.left
    segments[-1]["table_sets"], segments[-1]["groups"] = max(table_sets) + 1, len(groups)
    segments[-1]["limit"] = shape.limit
    frames["table_set"][shape.first :] = table_sets

    def data() -> Iterator[bytes]:
        if old is not None:
            for low in range(0, copied, COPY):
                yield old.container.source.read(begin + low, begin + min(low + COPY, copied))
        for _, _, block in blocks_of(groups, shape.count):
            yield from block

    return FrameEntries(segments, frames, at, data)
