"""Headers and indexes of remote objects, kept for as long as the process runs.

They are kept as bytes, so that everything is checked again by whoever opens the object again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

LIMIT: Final = 64 << 20
"""Bytes that are kept of all objects together; those that were not used for longest go first."""


class _Kept:
    """Some bytes of one version of one object."""

    def __init__(self, version: Hashable) -> None:
        self.version = version
        self.spans: list[tuple[int, bytes]] = []

    @property
    def nbytes(self) -> int:
        return sum(len(data) for _, data in self.spans)


class KeptObjects:
    """What is kept, by object; a version that is not the one last seen is forgotten."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._total = 0
        self._objects: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, key: Hashable) -> bool:
        """Tell whether some version of an object is kept."""
        with self._lock:
            return key in self._objects

    def find(self, key: Hashable, version: Hashable, start: int, end: int) -> bytes | None:
        """Return bytes `start` to `end` of a version of an object, if they were kept in one."""
        with self._lock:
            found = self._objects.get(key)
            if found is None or found.version != version:
                return None
            self._objects.move_to_end(key)
            for begin, data in found.spans:
                if begin <= start and end <= begin + len(data):
                    return data[start - begin : end - begin]
            return None

    def add(self, key: Hashable, version: Hashable, start: int, data: bytes) -> None:
        """Keep `data`, which begins at byte `start`; the last object stays even if it is above the limit."""
        with self._lock:
            found = self._objects.get(key)
            if found is None or found.version != version:
                self._total -= found.nbytes if found else 0
                found = self._objects[key] = _Kept(version)
            found.spans.append((start, data))
            self._total += len(data)
            self._objects.move_to_end(key)
            while self._total > self._limit and len(self._objects) > 1:
                self._total -= self._objects.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._objects.clear()
            self._total = 0


OBJECTS: Final = KeptObjects()
"""Of this process."""
