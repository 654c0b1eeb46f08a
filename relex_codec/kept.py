"""Headers and indexes of remote objects, kept for as long as the process runs.

They are kept as bytes, so that everything is checked again by whoever opens the object again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

LIMIT: Final = 64 << 20
"""Bytes that are kept of all objects together; the oldest go first."""


class Kept:
    """Some bytes of one version of one object."""

    def __init__(self, version: Hashable) -> None:
        self.version = version
        self.spans: tuple[tuple[int, bytes], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(len(data) for _, data in self.spans)

    def add(self, start: int, data: bytes) -> None:
        """Keep `data`, which begins at byte `start` of the object."""
        self.spans = (*self.spans, (start, data))  # a new tuple: readers hold the old one

    def find(self, start: int, end: int) -> bytes | None:
        """Return bytes `start` to `end`, if one of the spans has them all."""
        for begin, data in self.spans:
            if begin <= start and end <= begin + len(data):
                return data[start - begin : end - begin]
        return None


class KeptObjects:
    """What is kept, by object; a version that is not the one last seen is forgotten."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._objects: OrderedDict[Hashable, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, key: Hashable) -> bool:
        """Tell whether some version of an object is kept."""
        with self._lock:
            return key in self._objects

    def of(self, key: Hashable, version: Hashable) -> Kept:
        """Return what is kept of `version` of an object, nothing yet if it is new.

        An object without a version cannot be told from its successor: what is returned for it is not shared.
        """
        if version is None:
            return Kept(None)
        with self._lock:
            found = self._objects.get(key)
            if found is None or found.version != version:
                found = self._objects[key] = Kept(version)
            self._objects.move_to_end(key)
            return found

    def trim(self) -> None:
        """Forget the oldest objects until the rest is within the limit."""
        with self._lock:
            total = sum(kept.nbytes for kept in self._objects.values())
            while total > self._limit and len(self._objects) > 1:
                total -= self._objects.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._objects.clear()


OBJECTS: Final = KeptObjects()
"""Of this process."""
