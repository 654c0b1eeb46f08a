"""Headers and indexes of remote objects, cached in memory for as long as the process runs.

They are cached as bytes, so that whoever opens an object again checks everything again.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, NamedTuple

from relex_codec.core.byte_lru import ByteLRU

LIMIT: Final = 64 << 20
"""Bytes of all objects together; those that were not used for longest go first."""


class _CachedObject(NamedTuple):
    """Some bytes of one version of one object."""

    version: Hashable
    pieces: tuple[tuple[int, bytes], ...]
    """Where each begins, and its bytes."""


class HeaderCache:
    """Bytes by object; those of another version than the one last seen are forgotten.

    Args:
        limit: in bytes; the object that was added last stays even if it is larger.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._objects: ByteLRU[Hashable, _CachedObject] = ByteLRU(limit)

    def __contains__(self, key: Hashable) -> bool:
        """Tell whether there is anything of an object, in whichever version."""
        return key in self._objects

    def find(self, key: Hashable, version: Hashable, start: int, end: int) -> bytes | None:
        """Return bytes `start` to `end` of a version of an object, if they lie in a piece that was added."""
        found = self._objects.get(key)
        if found is None or found.version != version:
            return None
        for begin, data in found.pieces:
            if begin <= start and end <= begin + len(data):
                return data[start - begin : end - begin]
        return None

    def add(self, key: Hashable, version: Hashable, start: int, data: bytes) -> None:
        """Add a piece of a version of an object: `data`, which begins at byte `start`."""

        def extended(found: _CachedObject | None) -> tuple[_CachedObject, int]:
            before = found.pieces if found is not None and found.version == version else ()
            pieces = (*before, (start, data))
            return _CachedObject(version, pieces), sum(len(piece) for _, piece in pieces)

        self._objects.update(key, extended)

    def forget(self, key: Hashable, start: int, end: int) -> None:
        """Forget the pieces of an object that have any of bytes `start` to `end`."""

        def reduced(found: _CachedObject | None) -> tuple[_CachedObject, int]:
            pieces = () if found is None else found.pieces
            left = tuple((at, data) for at, data in pieces if at >= end or at + len(data) <= start)
            return _CachedObject(None if found is None else found.version, left), sum(len(data) for _, data in left)

        if key in self._objects:
            self._objects.update(key, reduced)

    def clear(self) -> None:
        """Forget everything."""
        self._objects.clear()


HEADER_CACHE: Final = HeaderCache()
"""The one of this process."""
