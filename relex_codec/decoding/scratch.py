"""Memory that is used again and again: touching fresh memory costs as much as decoding into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from relex_codec.core.dtypes import Bytes
from relex_codec.core.forks import new_lock

Allocate = Callable[[int], Bytes]
"""Gives memory for so many bytes, uint8."""


def fresh(size: int) -> Bytes:
    """Return memory of its own for `size` bytes."""
    return np.empty(size, np.uint8)


class Scratch:
    """Memory that one job after another uses; threads may ask at the same time."""

    def __init__(self) -> None:
        self._parts: list[Bytes] = []
        self._used = 0
        self._lock = new_lock()

    def __call__(self, size: int) -> Bytes:
        """Return memory for `size` bytes."""
        with self._lock:
            if self._used == len(self._parts):
                self._parts.append(fresh(size))
            elif len(self._parts[self._used]) < size:
                self._parts[self._used] = fresh(size)
            self._used += 1
            return self._parts[self._used - 1][:size]

    def clear(self) -> None:
        """Use all memory anew."""
        self._used = 0


class ScratchPool:
    """Lends scratch memory; as much is kept as threads decode at a time."""

    def __init__(self) -> None:
        self._spare: list[Scratch] = []

    @contextmanager
    def lent(self) -> Iterator[Scratch]:
        """Give memory that nobody else uses meanwhile."""
        try:
            scratch = self._spare.pop()
        except IndexError:
            scratch = Scratch()
        try:
            yield scratch
        finally:
            scratch.clear()
            self._spare.append(scratch)
