"""Local files that appear under their names only when they are complete.

A file is written under a temporary name beside the target (leftovers.py), flushed to disk and renamed; whatever goes
wrong before, an interruption by the user included, removes the temporary name and leaves the target as it was.
Directories are in local_directory.py. Below one that is being written, `create_file`, `write_at` and `flush_directory`
make files of known size whose bytes come in any order.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from relex_codec.core.dtypes import Bits
from relex_codec.errors import InvalidArgument

from .access import keep_access
from .condition import Condition, Overtaken
from .explain import write_error
from .leftovers import is_scratch, make_file, remove_leftovers
from .source import local_version
from .stores.base import ObjectVersion
from .urls import PathLike, is_url, local_path, without_secrets

TURN: Final = 10.0
"""Seconds to wait for another process that puts a file into the same directory, which takes it microseconds."""


class AtomicFile:
    """A context manager that writes a local file.

    Args:
        path: the target; a link is followed, a file is replaced.
        shown: what messages call the file instead of `path`.

    Attributes:
        condition: what may be replaced; None: anything, in a directory where nobody else writes. Compared on entering,
            and again when the file is complete.

    Raises:
        InvalidArgument: the target is a URL, a directory or a device, its directory does not exist, the disk is full,
            or the condition does not hold. Raised on entering, while writing, or on leaving; the target is then as it
            was.
    """

    def __init__(self, path: PathLike, *, shown: str | None = None, condition: Condition | None = None) -> None:
        self.condition = condition
        self.path = target_of(path)
        self._shown = shown or os.fspath(path)
        self.scratch = os.path.dirname(self.path)
        """Where there is room for temporary files."""
        self._fd = -1
        self._end = 0
        self._temporary = ""

    def __enter__(self) -> AtomicFile:
        with self.reported():
            mode = 0o666
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(self.path).st_mode):  # renaming over /dev/null would replace it
                    raise InvalidArgument(f"cannot write {self._shown}: it exists and is not a regular file")
                if self.condition is not None and self.condition.absent:
                    raise exists_error(self._shown)
                mode = 0o600  # until it has that of the file that it replaces
            remove_leftovers(self.scratch)
            self._temporary, self._fd = make_file(self.path, mode)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None:
                with self.reported():
                    os.fsync(self._fd)
                    keep_access(self._fd, self.path)
                    self._put_into_place()  # still locked: it has no other owner until then
                    sync_directory(os.path.dirname(self.path))
        finally:
            try:
                with suppress(OSError):  # gone, if it was renamed
                    os.unlink(self._temporary)
            finally:
                with suppress(OSError):
                    self._close()

    def _put_into_place(self) -> None:
        """Give the file its name, if that is still free or still has what may be replaced."""
        condition = self.condition
        if condition is None:
            os.replace(self._temporary, self.path)
            return
        with _turn_in(os.path.dirname(self.path)):
            if not condition.absent:
                if not condition.holds_always:
                    condition.check(_version_at(self.path), self._shown)
                os.replace(self._temporary, self.path)
            elif not give_name(self._temporary, self.path):
                # hours of work may be in it
                root, end = os.path.splitext(self.path)
                names = (f"{root}-{number}{end}" for number in itertools.count(2))
                kept = next(name for name in names if give_name(self._temporary, name))
                raise Overtaken(f"{condition.overtaken(self._shown)}; what was made here is complete, as {kept}")

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`, all of it, and return its length."""
        view = memoryview(data).cast("B")
        with self.reported():
            at = 0
            while at < len(view):  # a full disk writes a part first
                at += os.write(self._fd, view[at:])
        self._end += len(view)
        return len(view)

    def tell(self) -> int:
        """Return the number of bytes written, which is where the next `write` goes."""
        return self._end

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Turn an error of the operating system into InvalidArgument that names the target."""
        try:
            yield
        except OSError as e:
            raise write_error(self._shown, e) from None


@contextmanager
def held_for_appending(path: PathLike) -> Iterator[None]:
    """Keep other appends away from a local file while it is read and replaced; URLs and absent files are left alone.

    The lock is the operating system's, on the file itself: nothing stays behind, however the process ends. Where there
    are no locks, what is compared when the new file is complete still holds.

    Raises:
        InvalidArgument: another process is appending to it.
    """
    fd = -1
    try:
        if not is_url(path):
            with suppress(OSError):
                fd = os.open(local_path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if fd >= 0:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidArgument(
                    f"cannot append to {os.fspath(path)}: another process is doing that; try again when it is done"
                ) from None
            except OSError:
                pass  # not every file system has them
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def target_of(path: PathLike) -> str:
    """Return the absolute path that is written to: links are followed.

    Raises:
        InvalidArgument: it is a URL, empty, or relative to a directory that does not exist any more.
    """
    if is_url(path):
        raise InvalidArgument(
            f"cannot write {without_secrets(path)}: output must be a local path; upload it afterwards"
        )
    text = local_path(path)
    if not text:
        raise InvalidArgument("cannot write to an empty path")
    try:
        return os.path.realpath(text)
    except FileNotFoundError:
        raise InvalidArgument(
            f"cannot write {os.fspath(path)}: the current directory was removed; change to another one, or give a "
            "whole path"
        ) from None


def exists_error(shown: str) -> InvalidArgument:
    """Return the error for an output that is there, and was not to be replaced."""
    return InvalidArgument(
        f"cannot write {shown}: it exists; give another name, or replace it with -f (in Python overwrite=True)"
    )


def _version_at(path: str) -> ObjectVersion | None:
    try:
        return local_version(os.stat(path))
    except FileNotFoundError:
        return None


def give_name(temporary: str, name: str) -> bool:
    """Give a file a name that nobody has; returns whether that went well."""
    try:
        os.link(temporary, name)  # fails where the name is taken, which a rename does not
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if os.path.lexists(name):
            return False
        os.rename(temporary, name)
    return True


@contextmanager
def _turn_in(folder: str) -> Iterator[None]:
    """Let one process at a time compare and replace in a directory; who waits too long goes on all the same."""
    if is_scratch(folder):  # its own process holds the lock, and nobody else writes there
        yield
        return
    fd = -1
    try:
        with suppress(OSError):  # not every file system has locks
            fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            until = time.monotonic() + TURN
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        break
                    time.sleep(0.01)
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def sync_directory(path: str) -> None:
    """Bring the names in a directory to the disk, where its file system can."""
    with suppress(OSError):  # not every file system can; the file's own bytes are on disk in any case
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def create_file(path: str, head: bytes, size: int) -> None:
    """Make a file of `size` bytes that begins with `head`.

    Raises:
        OSError: it exists, or cannot be written.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write_all_at(fd, memoryview(head), 0)
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def write_at(path: str, pieces: list[tuple[int, Bits]]) -> None:
    """Write pieces into a file, each at the position in bytes that goes with it.

    Raises:
        OSError: it cannot be written.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for at, bits in pieces:
            _write_all_at(fd, bits.data.cast("B"), at)
    finally:
        os.close(fd)


def flush_directory(folder: str) -> None:
    """Bring a directory and its files to the disk.

    Raises:
        OSError: what was written cannot be kept.
    """
    for path in (*(entry.path for entry in os.scandir(folder)), folder):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_all_at(fd: int, data: memoryview, at: int) -> None:
    while data:  # a full disk writes a part first
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count
