"""The differences of a journal on disk: the blobs of a part at a step, found by its index and checked."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError, Corrupt, Truncated
from relex_codec.storage.explain import read_error

from .format import CRC, SECTION
from .reader import Generation, Place

if TYPE_CHECKING:
    from typing_extensions import Self

ENTRIES: Final = np.dtype([("length", "<u4"), ("crc", "<u4")])


class Differences:
    """Reads the differences of one generation; a context manager that has the files open.

    Each file is opened when it is first needed, and all are closed together.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def blobs(self, place: Place, number: int, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """Yield chunk and blob of the chunks `first` to `last` (excluded) of a part that changed at a step.

        Args:
            place: of the part.
            number: of the step in the generation.

        Raises:
            Corrupt, Truncated: what is read is not what was written.
            CheckpointError: it cannot be read.
        """
        rank = self.generation.ranks[place.rank]
        commit = rank.commits[number]
        begin, end = (commit.index_at + rank.sections[place.number + i] for i in (0, 1))
        section = self._read(place.rank, begin, end)
        if CRC.unpack(section[-CRC.size :])[0] != zlib.crc32(section[: -CRC.size]):
            raise Corrupt(f"{rank.data}: the checksum of the index of step {commit.step} is wrong at byte {begin}")
        at = SECTION.unpack_from(section)[0]
        entries = np.frombuffer(section, ENTRIES, offset=SECTION.size, count=place.part.chunks)
        ends = np.cumsum(entries["length"], dtype=np.uint64)
        if at < commit.begin or at + int(ends[-1] if len(ends) else 0) > commit.index_at:
            raise Corrupt(f"{rank.data}: the index of step {commit.step} leads out of it at byte {begin}")
        if first >= last:
            return
        skipped = int(ends[first - 1]) if first else 0
        raw = memoryview(self._read(place.rank, at + skipped, at + int(ends[last - 1])))
        for chunk in range(first, last):
            length, crc = (int(value) for value in entries[chunk])
            blob, raw = raw[:length], raw[length:]
            if zlib.crc32(blob) != crc:
                raise Corrupt(f"{rank.data}: the checksum of chunk {chunk} of {quote(place.part.name)} is wrong")
            if length:
                yield chunk, bytes(blob)

    def _read(self, rank: int, begin: int, end: int) -> bytes:
        path = self.generation.ranks[rank].data
        try:
            with self._lock:
                if rank not in self._files:
                    self._files[rank] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return _read_all(self._files[rank], begin, end, path)
        except OSError as e:
            raise read_error(path, e, CheckpointError) from None


def _read_all(fd: int, begin: int, end: int, path: str) -> bytes:
    parts = []
    while begin < end:
        part = os.pread(fd, end - begin, begin)
        if not part:
            raise Truncated(f"{path} ends at byte {begin}, expected {end}")
        parts.append(part)
        begin += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
