"""Threads for work that releases the GIL: zstd, numpy, BLAS, hashing, reading."""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from .cancellation import Cancelled, CancelScope, wait_for

T = TypeVar("T")
R = TypeVar("R")


IO_THREADS: Final = 8
"""Threads for reads, which wait more than they compute."""
HELPERS: Final = 64
"""Threads that are kept for `parallel_map`, at most: making new ones for each call takes longer than many calls."""
_THREAD: Final = threading.local()
_pool: ThreadPoolExecutor


def cpu_count() -> int:
    """Return how many processors this process may use; under ``taskset`` or in a container that may not be all."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system has it
        return os.cpu_count() or 1


def _new_pool() -> None:
    global _pool
    _pool = ThreadPoolExecutor(HELPERS, "relex")


_new_pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_pool)  # which has none of the threads


@contextmanager
def at_most_threads(count: int) -> Iterator[None]:
    """Let `parallel_map` compute on so many threads by default, where this thread calls it.

    For work that is one of several at the same time: with as many threads each as there are processors they are in each
    other's way, and take weights from each other's caches.
    """
    before = getattr(_THREAD, "most", None)
    _THREAD.most = count
    try:
        yield
    finally:
        _THREAD.most = before


def parallel_map(function: Callable[[T], R], values: Iterable[T], threads: int | None = None) -> list[R]:
    """Return ``[function(v) for v in values]``, computed on `threads` threads.

    By default that is one a processor, or what `at_most_threads` says.

    The caller's thread is one of them, and takes what the others have not begun: so calls inside calls never wait for
    each other. When one fails, or the caller is interrupted, those that wait for the network end at once.
    """
    values = list(values)
    workers = min(threads or getattr(_THREAD, "most", None) or cpu_count(), len(values))
    if workers < 2:
        return [function(value) for value in values]
    found: dict[int, R] = {}
    failures: dict[int, BaseException] = {}
    scope = CancelScope()
    places = itertools.count()

    def lane() -> None:
        while (i := next(places)) < len(values) and not scope.is_cancelled():
            try:
                found[i] = function(values[i])
            except BaseException as e:
                failures[i] = e
                scope.cancel()

    run = scope.bind(lane)
    helpers: list[Future[None]] = []
    try:
        with suppress(RuntimeError):  # Python is about to end, or may have no more threads: the caller's is enough
            for _ in range(workers - 1):
                helpers.append(_pool.submit(run))
        run()
        wait([helper for helper in helpers if not helper.cancel()])
    except BaseException:  # while it works, or while it waits for the others
        scope.cancel()
        wait([helper for helper in helpers if not helper.cancel()])
        raise
    if failures:
        # values are begun in order: the first that fails is among these, if a later one did not cancel it; an
        # interruption of the caller comes before them, for it is no failure to recover from
        raise min(failures.items(), key=lambda failure: (_rank(failure[1]), failure[0]))[1]
    if len(found) < len(values):  # a scope around this one was cancelled
        raise Cancelled
    return [found[i] for i in range(len(values))]


def _rank(error: BaseException) -> int:
    """Which of several errors is raised: interruptions before failures before what they have cancelled."""
    return 2 if isinstance(error, Cancelled) else 1 if isinstance(error, Exception) else 0


def ordered_map(
    function: Callable[[T], R], values: Iterable[T], threads: int, window: int | None = None
) -> Iterator[R]:
    """Yield ``function(v)`` of each value in order, while later ones are computed on `threads` threads.

    The first that fails, in the order of the values, is raised; then, and when the caller stops early, the rest is
    cancelled and what is under way is waited for.

    Args:
        values: taken from the caller's thread, each when there is room for it.
        window: how many values are begun and not yet yielded, at most; by default one more than threads.
    """
    if threads < 2 or window == 1:
        yield from map(function, values)
        return
    scope, pending = CancelScope(), deque[Future[R]]()
    run = scope.bind(function)
    with ThreadPoolExecutor(threads, "relex-ordered") as pool:
        try:
            for value in values:
                if len(pending) >= (window or threads + 1):
                    yield wait_for(pending.popleft())
                pending.append(pool.submit(run, value))
            while pending:
                yield wait_for(pending.popleft())
        finally:
            scope.cancel()
            for future in pending:
                future.cancel()


def prefetched(values: Iterable[T], count: int) -> Generator[T, None, None]:
    """Yield `values`, of which up to `count` are made on a thread before they are asked for.

    What making them raises is raised here; when the caller stops early, no more of them are made.
    """
    done = object()
    ready: queue.Queue[Any] = queue.Queue()
    room = threading.Semaphore(count)
    scope = CancelScope()

    def make() -> None:
        try:
            made = iter(values)
            while room.acquire() and not scope.is_cancelled():
                value = next(made, done)
                if value is done:
                    break
                ready.put((value, None))
            ready.put((done, None))
        except BaseException as error:  # for the thread that waits
            ready.put((done, error))

    worker = threading.Thread(target=scope.bind(make), daemon=True)
    worker.start()
    try:
        while True:
            value, error = ready.get()
            if error is not None:
                raise error
            if value is done:
                return
            room.release()
            yield value
    finally:
        scope.cancel()
        room.release()
        worker.join()
