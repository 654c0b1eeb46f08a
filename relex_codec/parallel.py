"""Threads for work that releases the GIL: zstd, numpy, BLAS, hashing, reading."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from .stopping import Stop

T = TypeVar("T")
R = TypeVar("R")


IO_THREADS: Final = 8
"""Threads for reads, which wait more than they compute."""


def processors() -> int:
    """Return how many processors this process may use; under ``taskset`` or in a container that may not be all."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system has it
        return os.cpu_count() or 1


def in_parallel(function: Callable[[T], R], values: Iterable[T], threads: int | None = None) -> list[R]:
    """Return ``[function(v) for v in values]``, computed on `threads` threads; by default one a processor.

    When one of them fails, or the caller is interrupted, those that wait for the network end at once.
    """
    values = list(values)
    workers = min(threads or processors(), len(values))
    if workers < 2:
        return [function(value) for value in values]
    stop = Stop()
    with ThreadPoolExecutor(workers) as pool:
        try:
            return list(pool.map(stop.bound(function), values))
        except BaseException:
            stop.set()
            raise


def ahead(values: Iterable[T], count: int) -> Iterator[T]:
    """Yield `values`, of which up to `count` are made on a thread before they are asked for.

    What making them raises is raised here; when the caller stops early, no more of them are made.
    """
    done = object()
    ready: queue.Queue[Any] = queue.Queue()
    room = threading.Semaphore(count)
    stop = Stop()

    def make() -> None:
        try:
            made = iter(values)
            while room.acquire() and not stop.is_set():
                value = next(made, done)
                if value is done:
                    break
                ready.put((value, None))
            ready.put((done, None))
        except BaseException as error:  # for the thread that waits
            ready.put((done, error))

    worker = threading.Thread(target=stop.bound(make), daemon=True)
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
        stop.set()
        room.release()
        worker.join()
