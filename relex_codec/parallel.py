"""Threads for work that releases the GIL: zstd, numpy, BLAS, hashing, reading."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

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
    """Return ``[function(v) for v in values]``, computed on `threads` threads; by default one a processor."""
    values = list(values)
    workers = min(threads or processors(), len(values))
    if workers < 2:
        return [function(value) for value in values]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, values))
