"""Reading the exact tier: segments and blocks, and parts from them (EXACT.md section 13).

Nothing is read before it is asked for.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from relex_codec.core.byte_lru import ByteLRU
from relex_codec.core.cancellation import KeyedLock
from relex_codec.core.digests import EXACT_DIGEST, part_digest
from relex_codec.core.dtypes import Bits
from relex_codec.core.text import quote
from relex_codec.errors import Corrupt
from relex_codec.format import constants as f
from relex_codec.format.reader import FileReader
from relex_codec.storage.source import forget_all, read_checked

from .bisection import frames_of
from .blobs import Blob, Blobs, GroupTables, parse_frame, parse_group_tables
from .blobs import Key as Key  # for who reads with it
from .blobs import Streams as Streams
from .part_decoder import Frame, PartDecoder
from .segments import PartInfo, check_segments, groups_of, parts_of

T = TypeVar("T")
CACHE: Final = 128 << 20
"""Bytes of blobs that are kept for the next tensor: tensors of one group share theirs."""
TABLES_WEIGHT: Final = 32
"""How much larger tables are in memory than in the file, about."""
Origin = Callable[[PartInfo], Bits]
"""Gives the elements of a part that the origin has, in the tensor's dtype."""


class ExactTier:
    """The exact tier of an open file.

    Attributes:
        segments: the checked segments.

    Raises:
        Corrupt: the records break the rules.
    """

    def __init__(self, container: FileReader) -> None:
        self.container = container
        entries = container.index.entries
        first, second, data = (entries[name] for name in f.FRAME_ENTRIES)
        records = read_checked(self._records, [(container.source, first.begin, second.end)])
        self.segment_records, self.frame_records = records
        steps = len(container.index.steps)
        self.segments = check_segments(records[0], records[1], steps, data.begin, data.end)
        self._number = np.repeat(np.arange(len(self.segments)), [segment.count for segment in self.segments])
        self._parts: dict[int, tuple[list[PartInfo], list[int], dict[int, int]]] = {}
        self._indexes: dict[tuple[int, int], npt.NDArray[np.void]] = {}
        self._blobs: ByteLRU[Key, Blob] = ByteLRU(CACHE)
        self._fetching = KeyedLock()

    def _records(self) -> list[npt.NDArray[np.void]]:
        container = self.container
        first, second, _ = (container.index.entries[name] for name in f.FRAME_ENTRIES)
        raw = container.source.read_cached(first.begin, second.end)
        records = []
        for entry, dtype in ((first, f.SEGMENT_RECORD), (second, f.FRAME_RECORD)):
            part = raw[entry.begin - first.begin : entry.end - first.begin]
            container.check_bytes(entry, part)
            records.append(np.frombuffer(part, dtype))
        return records

    # -- what lies where -------------------------------------------------------------------------------------------

    def segment_of(self, step: int) -> int:
        """Return the number of the segment that holds step number `step` (1 .. T)."""
        return int(self._number[step - 1])

    def holds(self, segment: int, tensor: int) -> bool:
        """Whether a segment holds a tensor; otherwise it is its origin there."""
        first = self.container.index.tensors[tensor].segment
        return 0 < first <= segment + 1

    def parts(self, segment: int) -> tuple[list[PartInfo], list[int], dict[int, int]]:
        """Return the parts of a segment, the first part of each group, and the number of each tensor's first part.

        Raises:
            Corrupt: the segment has another number of groups than it says.
        """
        if segment not in self._parts:
            tensors = self.container.index.tensors
            held = ((t.number, t.dtype, t.size) for t in tensors if self.holds(segment, t.number))
            parts = parts_of(held)
            groups = groups_of(parts, int(self.segment_records[segment]["limit"]))
            if len(groups) - 1 != int(self.segment_records[segment]["groups"]):
                raise Corrupt(f"{f.SEGMENTS}: segment {segment} has {len(groups) - 1} groups, it says otherwise")
            firsts = {part.tensor: i for i, part in reversed(list(enumerate(parts)))}
            self._parts[segment] = parts, groups, firsts
        return self._parts[segment]

    def place(self, segment: int, part: PartInfo) -> tuple[int, int]:
        """Return the group of a part, and its number in it."""
        _, groups, firsts = self.parts(segment)
        number = firsts[part.tensor] + part.piece
        group = bisect_right(groups, number) - 1
        return group, number - groups[group]

    def blobs_of(self, parts: Iterable[PartInfo], step: int) -> list[Key]:
        """Return the blobs that restoring `parts` at step number `step` needs, those of left ends included."""
        found: dict[Key, None] = {}
        for part in parts:
            at = step
            while at:
                number = self.segment_of(at)
                if not self.holds(number, part.tensor):
                    break
                segment = self.segments[number]
                group, _ = self.place(number, part)
                for frame in (0, *frames_of(at - segment.first, segment.count)):
                    found[Key(number, frame, group)] = None
                at = segment.left
        return list(found)

    # -- reading ---------------------------------------------------------------------------------------------------

    def fetch(self, keys: Sequence[Key]) -> dict[Key, Blob]:
        """Return checked and parsed blobs: those not held are read together, after the indexes of their blocks."""
        with self._fetching.hold(keys):  # small tensors share blobs: threads would each fetch them anew
            return self._fetch(keys)

    def _fetch(self, keys: Sequence[Key]) -> dict[Key, Blob]:
        found = {key: blob for key in keys if (blob := self._blobs.get(key)) is not None}
        missing = [key for key in keys if key not in found]
        if not missing:
            return found
        fetched = self._checked(missing, lambda: self._read(missing))
        self._blobs.put_all(fetched)
        return found | {key: blob for key, (blob, _) in fetched.items()}

    def _read(self, missing: Sequence[Key]) -> dict[Key, tuple[Blob, int]]:
        """Read, check and parse blobs; with the bytes that each counts for."""
        self._read_indexes(missing)
        ranges = [self._range(key) for key in missing]
        fetched: dict[Key, tuple[Blob, int]] = {}
        for key, (begin, _), raw in zip(missing, ranges, self.container.source.read_many(ranges), strict=True):
            if zlib.crc32(raw) != int(self._indexes[key.segment, key.step]["crc"][key.group]):
                raise Corrupt(
                    f"{self.container.source.path}: a blob of {f.DATA_FRAMES}, at byte {begin}, does not match its "
                    "checksum: copy the file again"
                )
            try:
                blob = self._parse(key, raw)
            except Corrupt as error:
                raise Corrupt(f"{self.container.source.path}: {f.DATA_FRAMES}, byte {begin}: {error}") from None
            fetched[key] = blob, len(raw) * (1 if key.step else TABLES_WEIGHT)
        return fetched

    def _checked(self, keys: Sequence[Key], read: Callable[[], T]) -> T:
        """Return what `read` returns; if a check fails, of blocks that are fetched anew: indexes have no checksum."""
        try:
            return read()
        except Corrupt:
            places = [self._block(*block) for block in dict.fromkeys((key.segment, key.step) for key in keys)]
            if not forget_all((self.container.source, at, at + length) for at, length in places):
                raise
        self._read_indexes(keys, anew=True)
        return read()

    def ranges_of(self, keys: Sequence[Key]) -> list[tuple[int, int]]:
        """Return where the blobs lie that `fetch` would read, after reading the indexes of their blocks."""
        missing = [key for key in keys if key not in self._blobs]
        self._checked(missing, lambda: self._read_indexes(missing))
        return [self._range(key) for key in missing]

    def _parse(self, key: Key, raw: bytes) -> Blob:
        if not key.step:
            return GroupTables(*parse_group_tables(raw, int(self.segment_records[key.segment]["table_sets"])))
        _, groups, _ = self.parts(key.segment)
        return parse_frame(raw, groups[key.group + 1] - groups[key.group])

    def _block(self, segment: int, step: int) -> tuple[int, int]:
        record = self.segment_records[segment]
        if step:
            record = self.frame_records[self.segments[segment].first + step - 1]
        return int(record["position"]), int(record["length"])

    def _read_indexes(self, keys: Iterable[Key], *, anew: bool = False) -> None:
        blocks = dict.fromkeys((key.segment, key.step) for key in keys)
        wanted = [block for block in blocks if anew or block not in self._indexes]
        size = f.BLOB_RECORD.itemsize
        places = [self._block(*block) for block in wanted]
        ranges = [
            (position, position + size * int(self.segment_records[segment]["groups"]))
            for (segment, _), (position, _) in zip(wanted, places, strict=True)
        ]
        for block, (_, length), raw in zip(wanted, places, self.container.source.read_many(ranges), strict=True):
            index = np.frombuffer(raw, f.BLOB_RECORD)
            ends = np.concatenate([np.array([len(raw)], np.uint64), index["end"]])
            if (ends[1:] < ends[:-1]).any() or ends[-1] != length:
                raise Corrupt(f"{self.container.source.path}: the blobs of {f.DATA_FRAMES} do not tile their block")
            self._indexes[block] = index

    def _range(self, key: Key) -> tuple[int, int]:
        position, _ = self._block(key.segment, key.step)
        index = self._indexes[key.segment, key.step]
        begin = int(index["end"][key.group - 1]) if key.group else index.nbytes
        return position + begin, position + int(index["end"][key.group])

    # -- restoring -------------------------------------------------------------------------------------------------

    def decoder(self, segment: int, part: PartInfo, left: Bits, blobs: Blobs) -> PartDecoder:
        """Return the decoder of a part in a segment.

        Args:
            left: elements at the left end.
            blobs: those of `blobs_of`.
        """
        group, place = self.place(segment, part)
        found = blobs[Key(segment, 0, group)]
        assert isinstance(found, GroupTables)
        first, count = self.segments[segment].first, self.segments[segment].count

        def frame(step: int) -> Frame:
            streams = blobs[Key(segment, step, group)]
            assert isinstance(streams, Streams)
            return Frame(*streams.streams[place], found.coder(int(self.frame_records[first + step - 1]["table_set"])))

        dense = found.dense(int(self.frame_records[first + count - 1]["table_set"]))
        return PartDecoder(left, part.dtype, found.low, count, dense, frame)

    def restore(self, part: PartInfo, step: int, origin: Origin, blobs: Blobs) -> Bits:
        """Return the elements of a part at step number `step`, 0 being the origin; digests are not checked.

        Raises:
            Corrupt: a stream does not decode; also where the origin is not the right one.
        """
        if not step:
            return origin(part)
        number = self.segment_of(step)
        if not self.holds(number, part.tensor):
            return origin(part)
        segment = self.segments[number]
        left = self.restore(part, segment.left, origin, blobs)
        return self.decoder(number, part, left, blobs).restore(step - segment.first)

    def restored(self, part: PartInfo, step: int, origin: Origin, blobs: Blobs) -> Bits:
        """Return the elements of a part at step number `step` as `restore` does, with their digest checked.

        Raises:
            Corrupt: a stream does not decode, or the digest differs; the message names the tensor.
        """
        try:
            bits = self.restore(part, step, origin, blobs)
        except Corrupt as error:
            raise Corrupt(f"{self.where(part)}: {error}") from None
        self.check_digest(part, step, bits, blobs)
        return bits

    def check_digest(self, part: PartInfo, step: int, bits: Bits, blobs: Blobs) -> None:
        """Check the elements of a part at step number `step`.

        A segment that does not hold the tensor has no digest of it: then the origin's own digests count.

        Raises:
            Corrupt: the digest differs.
        """
        number = self.segment_of(step)
        if not self.holds(number, part.tensor):
            return
        group, place = self.place(number, part)
        streams = blobs[Key(number, step - self.segments[number].first, group)]
        assert isinstance(streams, Streams)
        found = streams.digests[place * EXACT_DIGEST : (place + 1) * EXACT_DIGEST]
        if part_digest(bits) != found:
            at = int(self.container.index.steps[step - 1])
            raise Corrupt(f"{self.where(part)} of step {at} differs from its digest")

    def pieces(self, tensor: int, first: int, last: int) -> list[PartInfo]:
        """Return pieces first .. last - 1 of a tensor as parts."""
        entry = self.container.index.tensors[tensor]
        return [
            PartInfo(tensor, piece, entry.dtype, min(f.PIECE, entry.size - piece * f.PIECE))
            for piece in range(first, last)
        ]

    def where(self, part: PartInfo) -> str:
        """Name a part in a message."""
        name = quote(self.container.index.tensors[part.tensor].name)
        return f"{self.container.source.path}: tensor {name}"

    def all_blobs(self) -> Iterator[list[Key]]:
        """Yield the blobs of each block."""
        for number, segment in enumerate(self.segments):
            _, groups, _ = self.parts(number)
            for step in range(segment.count + 1):
                yield [Key(number, step, group) for group in range(len(groups) - 1)]
