"""Writing the files of a journal: its directory and marker, and the two files of a rank, step by step.

Differences are on disk before the commit record that says so is written; a step that could not be written is cut off
again. So whenever the process ends, what is committed is whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from relex_codec.errors import InvalidArgument
from relex_codec.storage.condition import ABSENT
from relex_codec.storage.explain import write_error
from relex_codec.storage.local_writer import AtomicFile, sync_directory
from relex_codec.storage.urls import PathLike, is_url, local_path, without_secrets

from .format import (
    COMMIT,
    CRC,
    ENTRY,
    FORMAT,
    GENERATION_LIMIT,
    HEAD,
    MARKER,
    SECTION,
    VERSION,
    Commit,
    Head,
    file_name,
    parse_name,
)

BUFFER: Final = 1 << 22
"""Bytes of differences that are written at a time."""


def make_journal(path: PathLike, base: str | None) -> str:
    """Make the directory of a journal, if there is none, and return its path.

    Args:
        path: of the directory; it must not exist, be empty, or be a journal already.
        base: how the journal shall refer to its base, from where it is.

    Raises:
        InvalidArgument: there is something else, or it cannot be written.
    """
    if is_url(path):
        raise InvalidArgument(f"cannot record to {without_secrets(path)}: a journal is a local directory")
    folder = os.path.abspath(local_path(path))
    marker = os.path.join(folder, MARKER)
    with reported(folder):
        os.makedirs(folder, exist_ok=True)
        if os.path.exists(marker):
            return folder
        if found := [name for name in os.listdir(folder) if not name.startswith(".")]:  # hidden: left by a kill
            raise InvalidArgument(
                f"cannot record to {folder}: it is no journal and holds {found[0]}; choose another place"
            )
    text = json.dumps({"format": FORMAT, "version": VERSION, "base": base}, indent=2) + "\n"
    with AtomicFile(marker, condition=ABSENT) as file:
        file.write(text.encode())
    return folder


class JournalLock:
    """Keeps other recorders away from a journal, until it is closed or the process ends.

    Raises:
        InvalidArgument: another recorder writes to it.
    """

    def __init__(self, folder: str) -> None:
        self._fd = -1
        with reported(folder):
            self._fd = os.open(os.path.join(folder, MARKER), os.O_RDWR | os.O_CLOEXEC)
            try:
                _lock(self._fd, fcntl.LOCK_EX, folder)
                self._refuse_other_ranks(folder)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let others record; closing it again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @staticmethod
    def _refuse_other_ranks(folder: str) -> None:
        """Look whether a rank of an earlier recorder is still there, though its first one is not."""
        for name in os.listdir(folder):
            if (found := parse_name(name)) and found[2] == "steps":
                fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _lock(fd, fcntl.LOCK_SH, folder)
                finally:
                    os.close(fd)


def _lock(fd: int, kind: int, folder: str) -> None:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InvalidArgument(
            f"cannot record to {folder}: another recorder does; close it, or record to another place"
        ) from None
    except OSError:  # not every file system has locks: then a later generation still says what it follows
        pass


def next_generation(folder: str) -> int:
    """Return the number of the generation that somebody who begins to record now writes."""
    with reported(folder):
        found = [parsed[0] for parsed in map(parse_name, os.listdir(folder)) if parsed]
    number = max(found, default=-1) + 1
    if number >= GENERATION_LIMIT:
        raise InvalidArgument(f"cannot record to {folder}: it was gone on with {number} times; record to another place")
    return number


class RankWriter:
    """The two files of a rank, made anew and held until they are closed.

    Args:
        folder: of the journal.
        head: what they begin with.
        digests: of the base, as `Part.pieces` says.

    Raises:
        InvalidArgument: they cannot be written.
    """

    def __init__(self, folder: str, head: Head, digests: bytes = b"") -> None:
        self._folder = folder
        names = [os.path.join(folder, file_name(head.generation, head.rank, kind)) for kind in ("data", "steps")]
        self._data = self._steps = -1
        temporary = os.path.join(folder, f".{os.path.basename(names[1])}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        opening = head.build(digests)
        self._crc = int(HEAD.unpack_from(opening)[-1])
        self._end, self._records, self._begin = len(digests), 0, len(opening)
        try:
            with reported(folder):
                self._data = os.open(names[0], os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                self._steps = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                with suppress(OSError):
                    fcntl.flock(self._steps, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _write_at(self._data, digests, 0)
                _write_at(self._steps, opening, 0)
                os.fsync(self._data)
                os.fsync(self._steps)
                os.rename(temporary, names[1])
                sync_directory(folder)
        except BaseException:
            self.close()
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def write(self, step: int, parts: Iterable[Iterable[bytes]]) -> int:
        """Add a step and commit it.

        Args:
            step: later than all before.
            parts: for each part of the head, the blobs of its chunks.

        Returns:
            Bytes that it took.

        Raises:
            InvalidArgument: it cannot be written; then the files are as they were.
        """
        committed = False
        try:
            with reported(self._folder):
                commit = self._write_data(step, parts)
                os.fsync(self._data)
                at = self._begin + self._records * COMMIT.size
                _write_at(self._steps, commit.pack(self._records, self._crc), at)
                os.fsync(self._steps)
                committed = True
        finally:
            if not committed:
                self._cut()
        taken = commit.end - self._end
        self._end, self._records = commit.end, self._records + 1
        return taken

    def _write_data(self, step: int, parts: Iterable[Iterable[bytes]]) -> Commit:
        begin = at = self._end
        index, size = bytearray(), 0
        waiting: list[bytes] = []
        for blobs in parts:
            section = bytearray(SECTION.pack(at + size))
            for blob in blobs:
                section += ENTRY.pack(len(blob), zlib.crc32(blob))
                waiting.append(blob)
                size += len(blob)
                if size >= BUFFER:
                    _write_at(self._data, b"".join(waiting), at)
                    at, size = at + size, 0
                    waiting.clear()
            index += section + CRC.pack(zlib.crc32(section))
        _write_at(self._data, b"".join(waiting), at)
        at += size
        _write_at(self._data, bytes(index), at)
        return Commit(step, begin, at, at + len(index))

    def _cut(self) -> None:
        """Take back what was written of a step that is not committed."""
        with suppress(OSError):
            os.ftruncate(self._steps, self._begin + self._records * COMMIT.size)
        with suppress(OSError):
            os.ftruncate(self._data, self._end)

    def close(self) -> None:
        """Close the files; closing them again does nothing."""
        for name in ("_data", "_steps"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)


@contextmanager
def reported(folder: str) -> Iterator[None]:
    """Turn an error of the operating system into InvalidArgument that names the journal."""
    try:
        yield
    except OSError as e:
        raise write_error(folder, e) from None


def _write_at(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:  # a full disk writes a part first
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count
