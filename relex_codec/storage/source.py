"""What reads files in ranges: the interface, and local files."""

from __future__ import annotations

import os
import stat
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

from relex_codec.core.forks import new_lock
from relex_codec.errors import Corrupt, InvalidArgument, RelexError, Truncated

from .coalesce import Range
from .explain import changed_error, read_error
from .stores.base import ObjectVersion
from .urls import PathLike

T = TypeVar("T")


class Source(ABC):
    """A file that is read in ranges; all methods may be called from several threads."""

    path: str
    """For messages."""
    size: int
    version: ObjectVersion | None = None
    """Of the file that was opened, to tell whether what has its name later is still the same; None: not known."""
    at_hand = False
    """Whether reading ranges one by one, each where it is used, costs no more than reading them together."""

    def read(self, start: int, end: int) -> bytes:
        """Return bytes `start` to `end`.

        Raises:
            Truncated: the file or the answer ends early.
            Corrupt: the answer is longer than asked.
        """
        return self.read_many([(start, end)])[0]

    @abstractmethod
    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of each range, reading close ones together and distant ones concurrently."""

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start` on."""
        out[:] = self.read(start, start + len(out))

    def read_cached(self, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` as `read`; for headers and indexes, which are read again and again.

        A source that reads over the network caches them for as long as the process runs, also for readers that open the
        same object again, until the object is another one.
        """
        return self.read(start, end)

    def forget(self, start: int, end: int) -> bool:
        """Drop every copy of bytes `start` to `end`, in memory and on disk: a checksum or digest says they are wrong.

        Returns:
            Whether the next read may give other bytes; a local file is read as it is.
        """
        return False

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


def read_checked(
    attempt: Callable[[], T],
    ranges: Iterable[tuple[Source, int, int]],
    errors: type[RelexError] | tuple[type[RelexError], ...] = (Corrupt, Truncated),
) -> T:
    """Return what `attempt` returns, which reads and checks; if the check fails, of bytes that are fetched anew.

    What comes over a network, or from a cache, may be wrong once. Then nothing of it is kept, and nothing is reported
    that is not so the second time.

    Args:
        attempt: called a second time if the check failed and something that was read is remote.
        ranges: what it reads.
        errors: what it raises where a check fails.
    """
    try:
        return attempt()
    except errors:
        if not forget_all(ranges):
            raise
    return attempt()


def forget_all(ranges: Iterable[tuple[Source, int, int]]) -> bool:
    """Drop every copy of some ranges, as `Source.forget`; tell whether reading any of them again may help."""
    return sum(source.forget(start, end) for source, start, end in ranges) > 0


@contextmanager
def closed_on_error(opened: AbstractContextManager[object]) -> Iterator[None]:
    """Close what was just opened where it turns out not to be what was wanted; otherwise it stays open."""
    with ExitStack() as stack:
        stack.enter_context(opened)
        yield
        stack.pop_all()


class LocalSource(Source):
    """A local file, read with ``pread``: no position is shared, and nothing is mapped.

    With ``keep_open=False`` each read opens the file anew, so that a run of thousands of shards stays below the limit
    of open files. A file that was written to or replaced in between is noticed and refused; one that stays open and was
    replaced under its name is still read as it was.
    """

    at_hand = True

    def __init__(
        self,
        path: PathLike,
        *,
        keep_open: bool = True,
        error: type[RelexError] = InvalidArgument,
        descriptor: int | None = None,
    ) -> None:
        """Open `path`, or take an open `descriptor` of what messages call `path`; that one stays the caller's."""
        self.path = os.fspath(path)
        self._error = error
        self._held: int | None = None
        fd = self._open() if descriptor is None else os.dup(descriptor)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise error(f"{self.path} is not a regular file")
            self.size = status.st_size
            self._identity = _identity(status)
            self.version = local_version(status)
            self._keep_open = keep_open
            self._lock, self._reading, self._closed = new_lock(), 0, False
            # Closed when nobody refers to the source any more, as file objects are.
            self._finalizer = weakref.finalize(self, os.close, fd) if keep_open else lambda: None
            if keep_open:
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
        with self._lock:
            self._held, self._closed = None, True
            idle = not self._reading
        if idle:  # else the last that reads does it: another file may get the number as soon as it is free
            self._finalizer()

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would block for ever
        except OSError as e:
            raise read_error(self.path, e, self._error) from None

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        """Give a descriptor to read from; the file must be unchanged when it was read, and so it was before."""
        if self._keep_open:
            with self._lock:
                if self._held is None:
                    raise self._error(f"{self.path} is closed")
                held = self._held
                self._reading += 1
            try:
                yield held
                self._check_identity(held)
            finally:
                with self._lock:
                    self._reading -= 1
                    last = self._closed and not self._reading
                if last:
                    self._finalizer()
            return
        fd = self._open()
        try:
            yield fd
        except RelexError:  # another file may be there that is shorter, or none to read
            self._check_identity(fd)
            raise
        else:
            self._check_identity(fd)
        finally:
            os.close(fd)

    def _check_identity(self, fd: int) -> None:
        if _identity(os.fstat(fd)) != self._identity:
            raise changed_error(self.path, self._error)

    def _read(self, fd: int, start: int, end: int) -> bytes:
        try:
            data = os.pread(fd, end - start, start)
        except OSError as e:
            raise read_error(self.path, e, self._error) from None
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
                raise read_error(self.path, e, self._error) from None
            if count == 0:
                raise Truncated(f"{self.path} ends at byte {start + at}, expected at least {start + len(out)}")
            at += count


def local_version(status: os.stat_result) -> ObjectVersion:
    """Return what a local file is known by: size and time of the last change."""
    return ObjectVersion(status.st_size, None, str(status.st_mtime_ns))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns  # not the inode: mounted object stores make a new one at each open
