"""Files that are read over the network: retried, checked, cached, and never mixed with what replaced them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from relex_codec.core.threads import parallel_map
from relex_codec.errors import Corrupt, InvalidArgument, RelexError, Truncated

from .coalesce import FIRST_READ, Range, merge_ranges
from .config import StorageConfig
from .disk_cache import disk_cache_for, disk_cache_key
from .explain import changed_error, explain_read_from_hub, read_error
from .failures import TransientError
from .header_cache import HEADER_CACHE, HeaderCache
from .retry import RetriesExhausted, call_with_retries
from .source import Source
from .stores.base import EmptyObject, ObjectReplaced, ObjectVersion
from .stores.registry import store_for

T = TypeVar("T")
CONCURRENT_REQUESTS: Final = 16
"""Requests that are under way at a time."""


class RemoteSource(Source):
    """A file on an fsspec filesystem, read with explicit ranges and never through a read-ahead buffer.

    Args:
        filesystem: of fsspec.
        path: the file in it.
        shown: what messages call it.
        error: raised where it cannot be read, or was replaced since it was opened.
        config: timeouts, retries and the cache on disk.

    Attributes:
        identifier: of the version that was opened; None if the storage has none, but only a size.
    """

    def __init__(
        self,
        filesystem: Any,
        path: str,
        *,
        shown: str,
        error: type[RelexError] = InvalidArgument,
        config: StorageConfig | None = None,
    ) -> None:
        self.path = shown
        self._error = error
        self._closed = False
        self._process = os.getpid()
        self._config = config or StorageConfig()
        self._store = store_for(filesystem, path, self._config)
        self._key = (shown, path, self._store.identity)
        first = b""
        opened = self._known_version() if self._key in HEADER_CACHE or not self._store.has_versions else None
        if opened is None:
            opened, first = self._first_request()
        self._opened = self.version = opened
        self.size = self._opened.size
        self.identifier = self._opened.identifier
        # an object without a version cannot be told from its successor: nothing of it is for other readers
        self._headers = HEADER_CACHE if self.identifier else HeaderCache()
        if first:
            self._headers.add(self._key, self.identifier, 0, first)
        self._disk_cache = disk_cache_for(self._config) if self.identifier else None
        self._disk_key = disk_cache_key(f"{shown} {path}", self.identifier)
        self._on_disk: set[Range] = set()
        """Ranges that this source has from there, or put there: entries are found by both of their ends."""

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        self._check(ranges)
        self._check_open()
        found = [self._find_cached(*span) for span in ranges]
        rest = [i for i, data in enumerate(found) if data is None]
        plan = merge_ranges([ranges[i] for i in rest])
        fetched = parallel_map(lambda m: self.fetch(m.start, m.end), plan, CONCURRENT_REQUESTS)
        for (start, end, members), data in zip(plan, fetched, strict=True):
            for member in members:
                a, b = ranges[rest[member]]
                found[rest[member]] = data if (a, b) == (start, end) else data[a - start : b - start]
        return [data or b"" for data in found]

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise self._error(f"{self.path} is closed")
        if os.getpid() != self._process:  # connections, and the thread that answers them, are those of the parent
            raise self._error(
                f"{self.path} was opened before this process was forked; open it again here, or start processes with "
                "spawn"
            )

    def read_cached(self, start: int, end: int) -> bytes:
        data = self._find_cached(start, end)
        if data is None:
            data = self.read(start, end)
            self._headers.add(self._key, self.identifier, start, data)
        return data

    def is_cached(self, start: int, end: int) -> bool:
        """Tell whether bytes `start` to `end` are cached, so that reading them needs no request."""
        return self._find_cached(start, end) is not None

    def fetch(self, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` with one request, or from the cache on disk."""
        self._check_open()
        if self._disk_cache is not None:
            self._on_disk.add((start, end))
            cached = self._disk_cache.load(self._disk_key, start, end)
            if cached is not None:
                return cached
        data = self._request(lambda: self._get(start, end))
        if self._disk_cache is not None:
            self._disk_cache.store(self._disk_key, start, end, data)
        return data

    def forget(self, start: int, end: int) -> bool:
        self._headers.forget(self._key, start, end)
        if self._disk_cache is not None:
            for low, high in ((start, end), *self._on_disk.copy()):
                if low < end and start < high:
                    self._disk_cache.forget(self._disk_key, low, high)
        return True

    def _find_cached(self, start: int, end: int) -> bytes | None:
        return self._headers.find(self._key, self.identifier, start, end)

    def _get(self, start: int, end: int) -> bytes:
        try:
            data = self._store.get(start, end, self._opened).data
        except EmptyObject:  # it had these bytes
            raise ObjectReplaced from None
        if len(data) > end - start:
            asked = f"{end - start} from {start}"
            raise Corrupt(f"the server ignored the range: {len(data)} bytes instead of {asked}")
        if len(data) < end - start:
            raise _ShortAnswer(f"the answer has {len(data)} bytes instead of {end - start} from {start}")
        if not self._store.has_versions and not self._store.is_immutable:
            version = self._store.head()
            if version is None or not version.matches(self._opened):
                raise ObjectReplaced
        return bytes(data)

    def _first_request(self) -> tuple[ObjectVersion, bytes]:
        def attempt() -> tuple[ObjectVersion, bytes]:
            data, version = self._store.get(0, FIRST_READ, None)
            assert version is not None
            if len(data) != min(FIRST_READ, version.size):
                raise _ShortAnswer(
                    f"the answer has {len(data)} bytes instead of {min(FIRST_READ, version.size)} from 0"
                )
            return version, data

        try:
            return self._request(attempt)
        except EmptyObject:
            return self._head(), b""

    def _known_version(self) -> ObjectVersion | None:
        """Ask for the version alone; None where the server does not answer that, as for URLs signed for reading."""
        return self._request(self._store.head) if self._store.has_versions else self._head()

    def _head(self) -> ObjectVersion:
        version = self._request(self._store.head)
        if version is None:
            raise self._error(f"{self.path} is not a file of known size")
        return version

    def _request(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt`, one request for this file, returns; see `request_with_retries`."""
        return request_with_retries(
            attempt, self.path, self._error, self._config, retries_internally=self._store.retries_internally
        )


class _ShortAnswer(TransientError):
    """An answer that ends early."""


def request_with_retries(
    attempt: Callable[[], T],
    path: str,
    error: type[RelexError],
    config: StorageConfig,
    *,
    retries_internally: bool = False,
) -> T:
    """Return what `attempt`, one request for `path`, returns; made again after failures as `config` says.

    Args:
        retries_internally: as of `ObjectStore`: then it is made again here only after short answers.

    Raises:
        Truncated: all answers end early.
        Corrupt: what came is not what was asked for.
        EmptyObject: as `ObjectStore.get`.
        error: everything else, in one line.
    """
    try:
        return call_with_retries((lambda: _without_retries(attempt)) if retries_internally else attempt, config.retry)
    except Exception as e:  # libraries raise what they like
        last = e.__cause__ if isinstance(e, RetriesExhausted) else e
        if isinstance(last, _ShortAnswer):
            tried = f" ({e})" if isinstance(e, RetriesExhausted) else ""
            raise Truncated(f"{path}: {last}{tried}") from None
        if isinstance(last, Corrupt):
            raise Corrupt(f"{path}: {last}") from None
        if isinstance(last, ObjectReplaced):
            raise changed_error(path, error) from None
        if isinstance(last, EmptyObject):
            raise
        if (reason := explain_read_from_hub(path, last)) is not None:
            raise error(reason) from None
        raise read_error(path, last.error if isinstance(last, _RetriedFailure) else e, error) from None


class _RetriedFailure(Exception):
    """A failure that the library has retried by itself."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _without_retries(attempt: Callable[[], T]) -> T:
    try:
        return attempt()
    except (TransientError, ObjectReplaced, EmptyObject, RelexError):
        raise
    except Exception as e:
        raise _RetriedFailure(e) from None


def s3fs_options(options: dict[str, Any], config: StorageConfig) -> dict[str, Any]:
    """Return the options with which s3fs leaves retries to this package, and has its timeouts.

    By itself it tries a request 5 times, its read of the body 5 times around that, and botocore each of those 5 times:
    up to 125 requests before a failure shows. (Its own first number is its attribute ``retries``.) Connections are
    enough for the requests under way; botocore's default is 10. What the caller set stays.
    """
    own = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "read_timeout": config.timeout,
        "connect_timeout": config.timeout,
        "max_pool_connections": 2 * CONCURRENT_REQUESTS,
    }
    return {**options, "config_kwargs": {**own, **(options.get("config_kwargs") or {})}}
