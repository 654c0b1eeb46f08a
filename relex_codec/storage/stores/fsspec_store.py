"""Files on every other filesystem of fsspec."""

from __future__ import annotations

import re
from contextlib import nullcontext
from threading import Lock
from typing import Any, Final
from weakref import WeakKeyDictionary

from relex_codec.core.cancellation import run_abandonable
from relex_codec.core.forks import new_lock
from relex_codec.storage.config import StorageConfig

from .base import Answer, ObjectStore, ObjectVersion, protocols, text_or_none

_FILE_CACHES: Final[WeakKeyDictionary[Any, Lock]] = WeakKeyDictionary()
"""fsspec's file caches (``simplecache::``) give other threads what has arrived so far of a file: one at a time each."""
_FILE_CACHES_LOCK: Final = new_lock()
_RETRYING: Final = frozenset({"hf", "gs", "gcs", "az", "abfs", "abfss", "adl"})
"""Filesystems whose libraries make failed requests again by themselves."""
_VERSION_KEYS: Final = (
    "ETag", "etag", "generation", "blob_id", "md5Hash", "content_md5", "LastModified", "last_modified", "updated",
    "mtime", "modified", "Last-Modified", "created",
)  # fmt: skip
"""What filesystems call the version of an object; the first that is there counts."""


class FsspecStore(ObjectStore):
    """A file on any other filesystem."""

    def __init__(self, filesystem: Any, name: str, config: StorageConfig) -> None:
        super().__init__(filesystem, name, config)
        names = protocols(filesystem)
        self._hub = "hf" in names
        self._cached = "cache" in " ".join(names)
        with _FILE_CACHES_LOCK:
            self._lock = _FILE_CACHES.setdefault(filesystem, new_lock()) if self._cached else nullcontext()
        self.retries_internally = retries_by_itself(filesystem)

    def get(self, start: int, end: int, version: ObjectVersion | None) -> Answer:
        # hf:// reads through open(), whose default cache fetches 5 MB ahead of what was asked
        plain = {"cache_type": "none"} if self._hub else {}

        def ask() -> list[Any]:
            with self._lock:
                return list(self.filesystem.cat_ranges([self.name], [start], [end], on_error="raise", **plain))

        answers = run_abandonable(ask)
        if len(answers) != 1:
            raise ValueError(f"{len(answers)} answers to 1 range")
        if isinstance(answers[0], Exception):  # some releases of fsspec return them all the same
            raise answers[0]
        return Answer(answers[0], None)

    def head(self) -> ObjectVersion | None:
        details = run_abandonable(self._details)
        size = details.get("size")
        if details.get("type") == "directory" or type(size) is not int:
            return None
        modified = next((details[name] for name in _VERSION_KEYS if details.get(name)), None)
        return ObjectVersion(size, None, text_or_none(modified))

    def _details(self) -> dict[str, Any]:
        if self.is_immutable:
            found = self.filesystem.info(self.name)
        elif self._hub:
            found = self.filesystem.info(self.name, refresh=True)
        else:
            # caches list the directory, which not every web server does: what is below them is asked instead
            asked = getattr(self.filesystem, "fs", None) if self._cached else None
            asked = asked or self.filesystem
            # a listing that is remembered would show an object that was replaced as it was
            asked.invalidate_cache(asked._parent(self.name))
            found = asked.info(self.name)
        return dict(found)

    @property
    def is_immutable(self) -> bool:
        # a commit of the Hub
        return self._hub and re.search(r"@[0-9a-f]{40}(/|$)", self.name) is not None


def retries_by_itself(filesystem: Any) -> bool:
    """Tell whether a filesystem, or one below a file cache, makes failed requests again by itself."""
    names = protocols(filesystem)
    return "cache" in " ".join(names) or not _RETRYING.isdisjoint(names)
