"""Prefetching: what will be asked for is fetched in large blocks, in that order, while what came before is in use.

A plan of ranges over several files becomes blocks (`coalesce.plan_blocks`), which threads fetch, so many at a time and
so many bytes before they are used. Reads of those files are served from the blocks, and a block is let go of when all
ranges that were planned of it have been read. A read that nobody planned goes to the storage itself, so a plan may be
wrong at the price of requests; the bytes are the same.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import IO, Any, Final, NamedTuple

from relex_codec.core.cancellation import Cancelled, CancelScope, check_cancelled, wait_for
from relex_codec.core.forks import new_lock

from .coalesce import LONGEST_READ, Range, plan_blocks
from .remote import CONCURRENT_REQUESTS, RemoteSource
from .source import LocalSource, Source

BLOCK_BYTES: Final = 8 << 20
"""The longest read of a plan that needs several: 16 of them are under way at a time."""
PREFETCH_BYTES: Final = 24 * BLOCK_BYTES
"""Bytes that are under way or wait to be used."""


class PlannedRange(NamedTuple):
    """A range that will be read."""

    source: PrefetchingSource
    start: int
    end: int


def ranges_to_fetch(ranges: Iterable[tuple[Source, int, int]]) -> list[PlannedRange]:
    """Return those of some ranges that need a request: of remote files, neither cached nor planned already."""
    return [
        PlannedRange(source, start, end)
        for source, start, end in ranges
        if isinstance(source, PrefetchingSource) and not source.is_available(start, end)
    ]


def prefetching(planned: Sequence[PlannedRange]) -> AbstractContextManager[Any]:
    """Return a context in which these ranges, which will be asked for in about this order, are prefetched."""
    return Prefetcher(planned) if planned else nullcontext()


class PrefetchingSource(Source):
    """A remote file, parts of which may have been prefetched."""

    def __init__(self, inner: RemoteSource) -> None:
        self.inner, self.path, self.size, self.version = inner, inner.path, inner.size, inner.version
        self._running: tuple[Prefetcher, ...] = ()
        self._lock = new_lock()
        self._copy: LocalSource | None = None
        self._spoiled: tuple[Range, ...] = ()
        """Ranges that are wrong in the copy."""

    def copy_to(self, file: IO[bytes]) -> None:
        """Copy everything to an open local file, and read that from now on: for who reads all of it several times.

        Raises:
            OSError: the local file cannot be written.
            RelexError: as `read`.
        """
        with prefetching([PlannedRange(self, 0, self.size)]):
            for start in range(0, self.size, BLOCK_BYTES):
                file.write(self.read(start, min(start + BLOCK_BYTES, self.size)))
        file.flush()
        self._copy = LocalSource(self.path, descriptor=file.fileno())

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        if self._copy is not None:
            return [(self._copied(*span) or self.inner).read(*span) for span in ranges]
        if not self._running:
            return self.inner.read_many(ranges)
        self._check(ranges)
        found: list[bytes | None] = []
        for start, end in ranges:
            views = self._take(start, end)
            found.append(None if views is None else b"".join(views))
        rest = [i for i, data in enumerate(found) if data is None]
        for i, data in zip(rest, self.inner.read_many([ranges[i] for i in rest]), strict=True):
            found[i] = data
        return [data for data in found if data is not None]

    def read_into(self, start: int, out: memoryview) -> None:
        if self._copy is not None:
            (self._copied(start, start + len(out)) or self.inner).read_into(start, out)
            return
        self._check([(start, start + len(out))])
        views = self._take(start, start + len(out))
        if views is None:
            self.inner.read_into(start, out)
            return
        at = 0
        for view in views:
            out[at : at + len(view)] = view
            at += len(view)

    def read_cached(self, start: int, end: int) -> bytes:
        return self.inner.read_cached(start, end)

    def forget(self, start: int, end: int) -> bool:
        with self._lock:
            if self._copy is not None:
                self._spoiled = (*self._spoiled, (start, end))
            running = self._running
        for prefetcher in running:
            prefetcher.forget(self, start, end)
        return self.inner.forget(start, end)

    def close(self) -> None:
        self.inner.close()
        if self._copy is not None:
            self._copy.close()

    def is_available(self, start: int, end: int) -> bool:
        """Tell whether a read needs no request of its own: it is cached, or planned already."""
        if self._copy is not None or self.inner.is_cached(start, end):
            return True
        return any(prefetcher.covers(self, start, end) for prefetcher in self._running)

    def attach(self, prefetcher: Prefetcher) -> None:
        """Serve reads from `prefetcher` from now on."""
        with self._lock:
            self._running = (*self._running, prefetcher)

    def detach(self, prefetcher: Prefetcher) -> None:
        """No longer do so."""
        with self._lock:
            self._running = tuple(other for other in self._running if other is not prefetcher)

    def _copied(self, start: int, end: int) -> LocalSource | None:
        """Return the copy, unless it is wrong there."""
        return None if any(low < end and start < high for low, high in self._spoiled) else self._copy

    def _take(self, start: int, end: int) -> list[memoryview] | None:
        for prefetcher in self._running:
            views = prefetcher.take(self, start, end)
            if views is not None:
                return views
        return None


class _Block:
    """One read, and how much of it is still to be used."""

    def __init__(self, source: PrefetchingSource, start: int, end: int, used: int) -> None:
        self.source, self.start, self.end, self.left = source, start, end, used
        self.data: Future[bytes] | None = None


class Prefetcher:
    """Fetches planned ranges ahead of their use; a context manager.

    Args:
        planned: in the order in which they will be asked for; a range that will be asked for twice is there twice.
        limit: of bytes that are under way or wait. A block that is asked for before the others is fetched at once
            and counts too, so a reader never waits for its own progress.
        requests: under way at a time.
    """

    def __init__(
        self, planned: Sequence[PlannedRange], *, limit: int = PREFETCH_BYTES, requests: int = CONCURRENT_REQUESTS
    ) -> None:
        self._limit = limit
        self._held = self._next = 0
        self._process = os.getpid()
        self._lock = new_lock()
        self._scope, self._ended = CancelScope(), False
        by_source: dict[PrefetchingSource, list[int]] = {}
        for i, range_ in enumerate(planned):
            by_source.setdefault(range_.source, []).append(i)
        ordered: list[tuple[int, _Block]] = []
        self._blocks: dict[PrefetchingSource, list[_Block]] = {}
        for source, numbers in by_source.items():
            ranges = [(planned[i].start, planned[i].end) for i in numbers]
            alone = (
                sum(end - start for start, end in ranges) <= LONGEST_READ
            )  # one request, as for one tensor of usual size
            plan = plan_blocks(ranges, LONGEST_READ if alone else BLOCK_BYTES)
            made = [(numbers[block.first], _Block(source, block.start, block.end, block.used)) for block in plan]
            ordered += made
            self._blocks[source] = sorted((block for _, block in made), key=lambda block: block.start)
        self._starts = {source: [block.start for block in found] for source, found in self._blocks.items()}
        self._order = [block for _, block in sorted(ordered, key=lambda pair: pair[0])]
        self._pool = ThreadPoolExecutor(requests, "relex-prefetch")

    def __enter__(self) -> Prefetcher:
        for source in self._blocks:
            source.attach(self)
        with self._lock:
            self._pump()
        return self

    def __exit__(self, *exc: object) -> None:
        for source in self._blocks:
            source.detach(self)
        with self._lock:
            self._ended = True
        self._scope.cancel()
        self._pool.shutdown(cancel_futures=True)

    def covers(self, source: PrefetchingSource, start: int, end: int) -> bool:
        """Tell whether a range is planned and not used up."""
        with self._lock:
            return self._find(source, start, end) is not None

    def take(self, source: PrefetchingSource, start: int, end: int) -> list[memoryview] | None:
        """Return bytes `start` to `end` in parts, waiting for them; None if they are not planned, or used up.

        None also where another thread has ended prefetching meanwhile: then the reader fetches for itself.
        """
        if os.getpid() != self._process:  # which has the threads
            return None
        with self._lock:
            found = None if self._ended else self._find(source, start, end)
            if found is None:
                return None
            waiting = [self._submit(block) for block in found]
        views = []
        for block, data in zip(found, waiting, strict=True):
            try:
                view = memoryview(wait_for(data))
            except (Exception, Cancelled):
                check_cancelled()
                if self._ended or self._scope.is_cancelled():
                    return None
                raise
            views.append(view[max(start, block.start) - block.start : min(end, block.end) - block.start])
        with self._lock:
            for block, view in zip(found, views, strict=True):
                block.left -= len(view)
                if block.left <= 0 and block.data is not None:
                    block.data = None
                    self._held -= block.end - block.start
            self._pump()
        return views

    def forget(self, source: PrefetchingSource, start: int, end: int) -> None:
        """Let go of the blocks that have any of bytes `start` to `end`: readers fetch those for themselves."""
        with self._lock:
            for block in self._blocks.get(source, ()):
                if block.start < end and start < block.end:
                    if block.data is not None:
                        self._held -= block.end - block.start
                    block.data, block.left = None, 0
            self._pump()

    def _find(self, source: PrefetchingSource, start: int, end: int) -> list[_Block] | None:
        """Blocks that together have a range, or None; the lock is held."""
        found: list[_Block] = []
        at = bisect_right(self._starts.get(source, ()), start) - 1
        if at < 0 or start == end:
            return None
        for block in self._blocks[source][at:]:
            if not block.start <= start < block.end or block.left <= 0:
                return None
            found.append(block)
            start = block.end
            if start >= end:
                return found
        return None

    def _submit(self, block: _Block) -> Future[bytes]:
        if block.data is None:
            self._held += block.end - block.start
            fetch = self._scope.bind(block.source.inner.fetch)
            try:
                block.data = self._pool.submit(fetch, block.start, block.end)
            except RuntimeError as error:  # Python is about to end, or may have no more threads
                self._ended = True
                block.data = Future()
                block.data.set_exception(error)
        return block.data

    def _pump(self) -> None:
        """Begin with as many of the next blocks as may be held; the lock is held."""
        while self._next < len(self._order) and not self._ended:
            block = self._order[self._next]
            if block.data is None and block.left > 0:
                if self._held and self._held + block.end - block.start > self._limit:
                    return
                self._submit(block)
            self._next += 1
