"""Laying out the frames of a file: earlier segments and a new one (EXACT.md section 13)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from relex_codec.core.digests import part_digest
from relex_codec.core.dtypes import Bits
from relex_codec.format import constants as f
from relex_codec.format.writer import FrameEntries

from .segment_writer import CodedGroup, SegmentWriter, blocks_of
from .segments import PartInfo, SegmentShape, table_set_numbers
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


class SegmentJob:
    """One new segment of a run: takes the steps of a tensor piece by piece and finds out which tensors it holds.

    Args:
        writer: of the new segment.
        old: the exact tier that the segment is appended to, or None.
    """

    def __init__(self, writer: SegmentWriter, old: ExactTier | None = None) -> None:
        self.writer, self.old = writer, old
        self.shape = SegmentShape.after(old.segments if old else [], writer.count)

    def tensor(self, number: int, name: str, dtype: str) -> TensorJob:
        """Begin a tensor; those that the segment may hold come in the order of the file.

        Args:
            number: of the tensor in the file.
        """
        found = self.old.container.index.find(name, dtype) if self.old else None
        return TensorJob(self, number, dtype, found.segment if found else 0)

    def assemble(self) -> FrameEntries:
        """Close the segment and lay out all of them."""
        self.writer.finish()
        return assemble(self.shape, self.writer.coded, self.old)


class TensorJob:
    """The pieces of one tensor in a new segment; those before the first that moves wait, as it may never move."""

    def __init__(self, job: SegmentJob, number: int, dtype: str, held: int) -> None:
        self._job, self._number, self._dtype, self._before = job, number, dtype, held
        self._moved = held > 0
        self._waiting: list[tuple[PartInfo, bytes]] = []

    def add(self, piece: int, origin: Bits, bits: Bits) -> None:
        """Take the next piece.

        Args:
            origin: its elements at the origin, in the tensor's dtype.
            bits: at all steps of the run, those before the segment included: [T, elements].
        """
        job = self._job
        left = (
            bits[job.shape.left - 1] if job.shape.left and self._before else origin
        )  # earlier segments do not have it
        self.add_later(piece, left, bits[job.shape.first :])

    @property
    def left(self) -> int:
        """Number of the step at the left end of the segment; 0 is the origin."""
        return self._job.shape.left

    def add_later(self, piece: int, left: Bits, new: Bits) -> None:
        """Take the next piece of a run whose first steps are in earlier segments.

        Args:
            left: its elements at the left end, in the tensor's dtype.
            new: at the steps of the segment: [n, elements].
        """
        job = self._job
        part = PartInfo(self._number, piece, self._dtype, len(left))
        if not any((row != left).any() for row in new):
            digest = part_digest(left)
            if self._moved:
                job.writer.add_still(part, digest)
            else:
                self._waiting.append((part, digest))
            return
        self._moved = True
        for waiting, digest in self._waiting:
            job.writer.add_still(waiting, digest)
        self._waiting.clear()
        job.writer.add(part, [left, *new])

    @property
    def segment(self) -> int:
        """The ``segment`` field of the tensor's record; after the last piece."""
        return self._before or (self._job.shape.number + 1 if self._moved else 0)
