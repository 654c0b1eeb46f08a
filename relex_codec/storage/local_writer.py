"""Local files and directories that appear under their names only when they are complete.

Both are written under a temporary name beside the target, flushed to disk and renamed; whatever goes wrong before, an
interruption by the user included, removes the temporary name and leaves the target as it was. Below a directory that is
being written, `create_file`, `write_at` and `flush_directory` make files of known size whose bytes come in any order.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from relex_codec.core.dtypes import Bits
from relex_codec.errors import InvalidArgument

from .explain import write_error
from .urls import PathLike, is_url, local_path, without_secrets

_NAME_LIMIT: Final = 150
"""Bytes of the target's name that the temporary name repeats: file systems allow 255 in all."""


class AtomicFile:
    """A context manager that writes a local file.

    Args:
        path: the target; a link is followed, a file is replaced.
        shown: what messages call the file instead of `path`.

    Raises:
        InvalidArgument: the target is a URL, a directory or a device, its directory does not exist, or the disk is
            full. Raised on entering, while writing, or on leaving; the target is then as it was.
    """

    def __init__(self, path: PathLike, *, shown: str | None = None) -> None:
        self.path = _target(path)
        self._shown = shown or os.fspath(path)
        self.scratch = os.path.dirname(self.path)
        """Where there is room for temporary files."""
        self._fd = -1
        self._end = 0
        self._temporary = _temporary(self.path)

    def __enter__(self) -> AtomicFile:
        with self.reported():
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(self.path).st_mode):  # renaming over /dev/null would replace it
                    raise InvalidArgument(f"cannot write {self._shown}: it exists and is not a regular file")
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None:
                with self.reported():
                    os.fsync(self._fd)
                    self._close()
                    os.replace(self._temporary, self.path)
                    _sync_directory(os.path.dirname(self.path))
        finally:
            with suppress(OSError):
                self._close()
            with suppress(OSError):  # gone, if it was renamed
                os.unlink(self._temporary)

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


class AtomicDirectory:
    """A context manager that writes a local directory; files go to `path`, or through `file`.

    Args:
        path: the target: absent (directories above it are made) or an empty directory.

    Raises:
        InvalidArgument: the target exists and is not empty, is a URL, or cannot be written.
    """

    def __init__(self, path: PathLike) -> None:
        self.target = _target(path)
        self.shown = os.fspath(path)
        self.path = _temporary(self.target)
        """The temporary directory; files written here appear in the target."""

    def __enter__(self) -> AtomicDirectory:
        with self.reported():
            self._refuse_existing()
            os.makedirs(os.path.dirname(self.target), exist_ok=True)
            os.mkdir(self.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            with self.reported():
                if kind is None:
                    _sync_directory(self.path)
                    self._refuse_existing()  # someone may have filled it in the meantime
                    os.rename(self.path, self.target)
                    _sync_directory(os.path.dirname(self.target))
        finally:
            shutil.rmtree(self.path, ignore_errors=True)  # gone, if it was renamed

    def file(self, name: str) -> AtomicFile:
        """Return a file of the directory, to be used as a context manager."""
        return AtomicFile(os.path.join(self.path, name), shown=os.path.join(self.shown, name))

    def _refuse_existing(self) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.listdir(self.target):
                raise InvalidArgument(f"cannot write {self.shown}: it exists and is not empty; choose another place")
        if os.path.exists(self.target) and not os.path.isdir(self.target):
            raise InvalidArgument(f"cannot write {self.shown}: it exists and is not a directory")
        if os.path.ismount(self.target):  # which cannot be renamed over
            raise InvalidArgument(f"cannot write {self.shown}: it is a mount point; give a directory below it")

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Turn an error of the operating system into InvalidArgument that names the target."""
        try:
            yield
        except OSError as e:
            raise write_error(self.shown, e) from None


def _target(path: PathLike) -> str:
    if is_url(path):
        raise InvalidArgument(
            f"cannot write {without_secrets(path)}: output must be a local path; upload it afterwards"
        )
    text = local_path(path)
    if not text:
        raise InvalidArgument("cannot write to an empty path")
    return os.path.realpath(text)


def _temporary(target: str) -> str:
    """Return a name beside `target` that no loader and no search for runs takes for the real thing."""
    folder, name = os.path.split(target)
    start = os.fsdecode(os.fsencode(name)[:_NAME_LIMIT])
    return os.path.join(folder, f".{start}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def _sync_directory(path: str) -> None:
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
