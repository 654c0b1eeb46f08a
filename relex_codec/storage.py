"""Ranged reads and atomic writes: local paths, and everything that fsspec reaches.

Reads are absolute ranges and the length of every answer is checked, because servers and caches that ignore a Range
header return whole files. Nothing here knows about tensors. How files are written is in atomic.py.
"""

from __future__ import annotations

import os
import stat
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any, Final, NamedTuple

from .atomic import AtomicDirectory as AtomicDirectory
from .atomic import AtomicFile as AtomicFile
from .errors import Corrupt, InvalidArgument, RelexError, Truncated
from .parallel import IO_THREADS, in_parallel
from .paths import Options, PathLike, is_url, local_path, one_line, public

Range = tuple[int, int]

GAP: Final = 64 << 10
"""Ranges this close are read as one: a request costs more than these bytes."""
MERGED: Final = 16 << 20
"""The longest read that merging makes."""
_FILE_CACHES: Final = Lock()
"""fsspec's file caches (``simplecache::``) give other threads what has arrived so far of a file: one at a time."""


class Merged(NamedTuple):
    """One read that serves several ranges."""

    start: int
    end: int
    members: tuple[int, ...]
    """Indices of the ranges served."""


def merge(ranges: Sequence[Range], gap: int = GAP, limit: int = MERGED) -> list[Merged]:
    """Plan reads for `ranges`: neighbours at most `gap` bytes apart share a read of at most `limit` bytes.

    A range that is longer than `limit` is read alone; empty ranges are not read. The plan is in order of position.
    """
    plan: list[Merged] = []
    for index in sorted(range(len(ranges)), key=lambda i: ranges[i]):
        start, end = ranges[index]
        if start == end:
            continue
        if plan:
            last = plan[-1]
            joined = max(last.end, end)
            if start - last.end <= gap and (joined == last.end or joined - last.start <= limit):
                plan[-1] = Merged(last.start, joined, (*last.members, index))
                continue
        plan.append(Merged(start, end, (index,)))
    return plan


class Source(ABC):
    """A file that is read in ranges; all methods may be called from several threads."""

    path: str
    """For messages."""
    size: int

    def read(self, start: int, end: int) -> bytes:
        """Return bytes `start` to `end`.

        Raises
        ------
        Truncated
            The file or the answer ends early.
        Corrupt
            The answer is longer than asked.
        """
        return self.read_many([(start, end)])[0]

    @abstractmethod
    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range, reading close ones together and distant ones concurrently."""

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start` on."""
        out[:] = self.read(start, start + len(out))

    def close(self) -> None:  # noqa: B027 (most sources hold nothing)
        """Release what the source holds; reading it afterwards is an error."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check(self, ranges: Sequence[Range]) -> None:
        for start, end in ranges:
            if not 0 <= start <= end:
                raise ValueError(f"not a range: {start} to {end}")
            if end > self.size:
                raise Truncated(f"{self.path} has {self.size} bytes, expected at least {end}")


class LocalSource(Source):
    """A local file, read with ``pread``: no position is shared, and nothing is mapped.

    With ``hold=False`` each read opens the file anew, so that a run of thousands of shards stays below the limit of
    open files; a file that was replaced in between is noticed and refused.
    """

    def __init__(self, path: PathLike, *, hold: bool = True, error: type[RelexError] = InvalidArgument) -> None:
        self.path = os.fspath(path)
        self._error = error
        self._held: int | None = None
        fd = self._open()
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{self.path} is not a regular file")
            self.size = status.st_size
            self._identity = _identity(status)
            self._hold = hold
            # Closed when nobody refers to the source any more, as file objects are.
            self._finalizer = weakref.finalize(self, os.close, fd) if hold else lambda: None
            if hold:
                self._held, fd = fd, -1
        finally:
            if fd >= 0:
                os.close(fd)

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        self._check(ranges)
        with self._descriptor() as fd:
            return [self._read(fd, start, end) for start, end in ranges]  # no request to save: nothing to merge

    def read_into(self, start: int, out: memoryview) -> None:
        self._check([(start, start + len(out))])
        with self._descriptor() as fd:
            self._fill(fd, start, out)

    def close(self) -> None:
        self._held = None
        self._finalizer()

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would block for ever
        except OSError as e:
            raise unreadable(self.path, e, self._error) from None

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        if self._hold:
            if self._held is None:
                raise self._error(f"{self.path} is closed")
            yield self._held
            return
        fd = self._open()
        try:
            if _identity(os.fstat(fd)) != self._identity:
                raise self._error(f"{self.path} changed while it was being read; read it again when nothing writes it")
            yield fd
        finally:
            os.close(fd)

    def _read(self, fd: int, start: int, end: int) -> bytes:
        try:
            data = os.pread(fd, end - start, start)
        except OSError as e:
            raise unreadable(self.path, e, self._error) from None
        if len(data) == end - start:
            return data
        out = bytearray(end - start)  # more than Linux reads at once (2 GiB), or the file ends
        self._fill(fd, start, memoryview(out))
        return bytes(out)

    def _fill(self, fd: int, start: int, out: memoryview) -> None:
        out = out.cast("B")
        at = 0
        while at < len(out):
            try:
                count = os.preadv(fd, [out[at:]], start + at)
            except OSError as e:
                raise unreadable(self.path, e, self._error) from None
            if count == 0:
                raise Truncated(f"{self.path} ends at byte {start + at}, expected at least {start + len(out)}")
            at += count


class RemoteSource(Source):
    """A file on an fsspec filesystem, read with explicit ranges and never through a read-ahead buffer."""

    def __init__(self, filesystem: Any, path: str, *, shown: str, error: type[RelexError] = InvalidArgument) -> None:
        self.path = shown
        self._filesystem, self._name, self._error = filesystem, path, error
        try:
            details = filesystem.info(path)
        except Exception as e:  # backends raise what they like
            raise unreadable(shown, e, error) from None
        size = details.get("size")
        if details.get("type") == "directory" or type(size) is not int:
            raise error(f"{shown} is not a file of known size")
        self.size = size

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        self._check(ranges)
        plan = merge(ranges)
        found: list[bytes] = [b""] * len(ranges)
        for (start, end, members), data in zip(plan, self._fetch([(m.start, m.end) for m in plan]), strict=True):
            if len(data) > end - start:
                asked = f"{end - start} from {start}"
                raise Corrupt(f"{self.path}: the server ignored the range: {len(data)} bytes instead of {asked}")
            if len(data) < end - start:
                raise Truncated(f"{self.path}: the answer has {len(data)} bytes instead of {end - start} from {start}")
            for index in members:
                a, b = ranges[index]
                found[index] = bytes(data) if (a, b) == (start, end) else bytes(data[a - start : b - start])
        return found

    def _fetch(self, spans: list[Range]) -> list[Any]:
        if not spans:
            return []
        try:
            if len(spans) == 1 or getattr(self._filesystem, "async_impl", False):
                return self._ranges(spans)
            # filesystems that are not asynchronous by themselves
            return in_parallel(lambda span: self._ranges([span])[0], spans, IO_THREADS)
        except Exception as e:  # backends raise what they like
            raise unreadable(self.path, e, self._error) from None

    def _ranges(self, spans: list[Range]) -> list[Any]:
        # hf:// reads through open(), whose default cache fetches 5 MB ahead of what was asked
        plain = {"cache_type": "none"} if "hf" in _protocols(self._filesystem) else {}
        starts, ends = [start for start, _ in spans], [end for _, end in spans]
        with _FILE_CACHES if "cache" in " ".join(_protocols(self._filesystem)) else nullcontext():
            out = list(self._filesystem.cat_ranges([self._name] * len(spans), starts, ends, on_error="raise", **plain))
        for answer in out:
            if isinstance(answer, Exception):  # some releases of fsspec return them all the same
                raise answer
        if len(out) != len(spans):
            raise ValueError(f"{len(out)} answers to {len(spans)} ranges")
        return out


class Item(NamedTuple):
    """What a directory holds under one name."""

    name: str
    is_dir: bool
    size: int


def open_source(
    path: PathLike, storage_options: Options = None, *, hold: bool = True, error: type[RelexError] = InvalidArgument
) -> Source:
    """Open a local path or an fsspec URL for ranged reads.

    Parameters
    ----------
    path : str or path
    storage_options : dict, optional
        For fsspec (credentials, endpoints); not used for local paths.
    hold : bool
        Whether a local file stays open between reads.
    error : type
        Raised where the file does not exist or cannot be read.
    """
    if not is_url(path):
        return LocalSource(local_path(path), hold=hold, error=error)
    filesystem, name = filesystem_of(path, storage_options, error=error)
    return RemoteSource(filesystem, name, shown=public(path), error=error)


def filesystem_of(url: PathLike, storage_options: Options, *, error: type[RelexError]) -> tuple[Any, str]:
    """Return the fsspec filesystem of `url` and the path in it."""
    import fsspec  # type: ignore[import-untyped, unused-ignore]  # here: local files need none of its 0.2 seconds

    try:
        filesystem, name = fsspec.core.url_to_fs(os.fspath(url), **(storage_options or {}))
    except ImportError as e:  # the message names the package to install
        raise error(f"cannot open {public(url)}: {one_line(e)}") from None
    except Exception as e:
        raise unreadable(public(url), e, error) from None
    return filesystem, name


def list_directory(
    path: PathLike, storage_options: Options = None, *, error: type[RelexError] = InvalidArgument
) -> list[Item]:
    """Return what directory `path` holds, sorted by name; links count as what they point to.

    Raises
    ------
    error
        `path` does not exist, is not a directory, or cannot be read.
    """
    items = []
    if not is_url(path):
        folder = local_path(path)
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    try:
                        items.append(Item(entry.name, entry.is_dir(), entry.stat().st_size))
                    except OSError:  # a link to nowhere, or gone in between
                        continue
        except OSError as e:
            raise unreadable(folder, e, error) from None
        return sorted(items)
    filesystem, name = filesystem_of(path, storage_options, error=error)
    try:
        listing = filesystem.ls(name, detail=True)
    except Exception as e:
        raise unreadable(public(path), e, error) from None
    root = name.rstrip("/")
    for found in listing:
        full = found["name"].rstrip("/")
        if full == root or full.lstrip("/") == root.lstrip("/"):
            if found["type"] != "directory":  # ls of a file is the file itself
                raise error(f"{public(path)} is not a directory")
            continue  # object stores may keep an object of the directory's own name
        items.append(Item(full.rpartition("/")[2], found["type"] == "directory", int(found.get("size") or 0)))
    if not items:  # an object store has no empty directories
        raise error(f"{public(path)} does not exist or is empty; check the URL and the credentials")
    return sorted(set(items))


def unreadable(path: str, e: BaseException, error: type[RelexError]) -> RelexError:
    """Return the one-line `error` for a failed read of `path`; errors of this package stay what they are."""
    if isinstance(e, RelexError):
        return e
    if isinstance(e, FileNotFoundError):
        return error(f"{path} does not exist; check the path")
    if isinstance(e, NotADirectoryError):
        return error(f"{path} is not a directory")
    if isinstance(e, PermissionError):
        return error(f"{path} cannot be read: {one_line(e)}; check permissions or credentials")
    return error(f"{path} cannot be read: {one_line(e)}")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns  # not the inode: mounted object stores make a new one at each open


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = getattr(filesystem, "protocol", ())
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
