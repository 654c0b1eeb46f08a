"""The segments and frames of a file in parts that can be changed, from which its entries are built."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import reference_decoder as ref


def leb128(number: int) -> bytes:
    """7 bits a byte, lowest first."""
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def frame_blob(found: Sequence[Any], numbers: Sequence[bytes] = (), tail: bytes = b"") -> bytes:
    """The blob of a frame; `numbers` are other ones than those of the streams."""
    own = [leb128(2 * len(one.stream) + one.coding) for one in found]
    return b"".join([*(one.digest for one in found), *(numbers or own), *(one.stream for one in found), tail])


@dataclass
class Frame:
    """A frame, or the tables of a segment: a blob for each group. Index and record follow from them unless given."""

    blobs: list[bytes]
    table_set: int = 0
    reserved: bytes = bytes(7)
    ahead: bytes = b""  # bytes of the entry that belong to no frame
    behind: bytes = b""  # bytes after the last blob
    shift: int = 0  # of its position
    longer: int = 0
    edit: Callable[[bytearray], Any] = lambda index: None
    raw: bytes | None = None  # instead of index and blobs

    def build(self) -> bytes:
        """Index and blobs."""
        if self.raw is not None:
            return self.raw
        index, end = bytearray(), 12 * len(self.blobs)
        for blob in self.blobs:
            end += len(blob)
            index += struct.pack("<QI", end, zlib.crc32(blob))
        self.edit(index)
        return bytes(index) + b"".join(self.blobs) + self.behind


@dataclass
class Segment:
    """A segment: its record, and its frames by step; 0 stands for the tables."""

    before: int
    count: int
    left: int
    table_sets: int
    groups: int
    limit: int
    frames: dict[int, Frame]
    reserved: bytes = bytes(8)
    order: list[int] = field(default_factory=list)  # of the frames, if it is another than it must be
    record: dict[str, int] = field(default_factory=dict)  # other values in the record


@dataclass
class Tier:
    """The exact tier of a file."""

    segments: list[Segment]
    tail: bytes = b""  # after the last frame
    records: bytes = b""  # after that of the last step

    def entries(self, start: int) -> dict[str, bytes]:
        """Its entries; the last one begins at byte `start` of the file."""
        segments, data = b"", bytearray()
        records: dict[int, bytes] = {}
        for segment in self.segments:
            for step in segment.order or [0, *(step for step, _ in ref.frame_order(segment.count))]:
                own = segment.frames[step]
                raw = own.build()
                data += own.ahead
                place = (start + len(data) + own.shift) % (1 << 64), len(raw) + own.longer
                data += raw
                if step > 0:
                    records[segment.before + step] = struct.pack("<QQB7s", *place, own.table_set, own.reserved)
                    continue
                names = ("before", "count", "left", "table_sets", "groups", "limit")
                head = [segment.record.get(name, getattr(segment, name)) for name in names]
                segments += struct.pack("<6IQQ8s", *head, *place, segment.reserved)
        return {
            ref.SEGMENTS: segments,
            ref.FRAMES: b"".join(records[number] for number in sorted(records)) + self.records,
            ref.DATA_FRAMES: bytes(data) + self.tail,
        }


def parse(file: Any) -> Tier:
    """The tier of a valid file."""
    result = []
    for k, s in enumerate(file.segments):
        count = len(file.groups[k])
        frames = {}
        for step in range(s.count + 1):
            record = file.frames[s.before + step - 1] if step > 0 else s
            blobs = [ref.read_blob(file, record, count, group) for group in range(count)]
            frames[step] = Frame(blobs, record.table_set if step > 0 else 0)
        result.append(Segment(s.before, s.count, s.left, s.table_sets, s.groups, s.limit, frames))
    return Tier(result)
