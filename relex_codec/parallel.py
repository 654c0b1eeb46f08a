"""Threads for work that releases the GIL: zstd, numpy, BLAS, hashing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(function: Callable[[T], R], values: Iterable[T]) -> list[R]:
    """Return ``[function(v) for v in values]``, computed on all processors: zstd and numpy release the GIL."""
    values = list(values)
    workers = min(os.cpu_count() or 1, len(values))
    if workers < 2:
        return [function(value) for value in values]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, values))
