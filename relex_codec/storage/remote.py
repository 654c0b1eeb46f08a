"""Files that are read over the network: tried again, checked, kept, and never mixed with what replaced them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from relex_codec.core.threads import parallel_map
from relex_codec.errors import Corrupt, InvalidArgument, RelexError, Truncated

from .coalesce import FIRST_READ, Range, merge
from .config import Settings
from .disk_cache import cache_of, key_of
from .explain import changed_error, explain_read_from_hub, read_error
from .failures import TransientError
from .header_cache import HEADER_CACHE, HeaderCache
from .retry import RetriesExhausted, call_with_retries
from .source import Source
from .stores.base import EmptyObject, ObjectVersion, Replaced
from .stores.choose import store_of
from .stores.fsspec_store import FsspecStore

T = TypeVar("T")
REQUESTS: Final = 16
"""Requests that are under way at a time."""


class RemoteSource(Source):
    """A file on an fsspec filesystem, read with explicit ranges and never through a read-ahead buffer.

    Parameters
    ----------
    filesystem : fsspec filesystem
    path : str
        In that filesystem.
    shown : str
        What messages call it.
    error : type
        Raised where it cannot be read, or was replaced since it was opened.
    settings : Settings

    Attributes
    ----------
    version : str or None
        What the object that was opened is known by; None if the storage tells nothing but a size.
    """

    def __init__(
        self,
        filesystem: Any,
        path: str,
        *,
        shown: str,
        error: type[RelexError] = InvalidArgument,
        settings: Settings | None = None,
    ) -> None:
        self.path = shown
        self._error = error
        self._closed = False
        self._settings = settings or Settings()
        self._backend = store_of(filesystem, path, self._settings)
        self._fixed = isinstance(self._backend, FsspecStore) and self._backend.fixed
        self._key = (shown, path, self._backend.identity)
        first = b""
        known = self._known_mark() if self._key in HEADER_CACHE or not self._backend.tells else None
        if known is None:
            known, first = self._first_request()
        self._mark = known
        self.size = self._mark.size
        self.version = self._mark.version
        # an object without a version cannot be told from its successor: nothing of it is for others
        self._headers = HEADER_CACHE if self.version else HeaderCache()
        if first:
            self._headers.add(self._key, self.version, 0, first)
        self._cache = cache_of(self._settings) if self.version else None
        self._cache_key = key_of(f"{shown} {path}", self.version)

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        self._check(ranges)
        self._check_open()
        found = [self._find_kept(*span) for span in ranges]
        rest = [i for i, data in enumerate(found) if data is None]
        plan = merge([ranges[i] for i in rest])
        fetched = parallel_map(lambda m: self.fetch(m.start, m.end), plan, REQUESTS)
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

    def read_kept(self, start: int, end: int) -> bytes:
        data = self._find_kept(start, end)
        if data is None:
            data = self.read(start, end)
            self._headers.add(self._key, self.version, start, data)
        return data

    def has(self, start: int, end: int) -> bool:
        """Tell whether bytes `start` to `end` are kept, so that reading them needs no request."""
        return self._find_kept(start, end) is not None

    def fetch(self, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` with one request, or from the cache on disk."""
        self._check_open()
        if self._cache is not None:
            kept = self._cache.load(self._cache_key, start, end)
            if kept is not None:
                return kept
        data = self._attempts(lambda: self._get(start, end))
        if self._cache is not None:
            self._cache.store(self._cache_key, start, end, data)
        return data

    def _find_kept(self, start: int, end: int) -> bytes | None:
        return self._headers.find(self._key, self.version, start, end)

    def _get(self, start: int, end: int) -> bytes:
        try:
            data = self._backend.get(start, end, self._mark).data
        except EmptyObject:  # it had these bytes
            raise Replaced from None
        if len(data) > end - start:
            asked = f"{end - start} from {start}"
            raise Corrupt(f"the server ignored the range: {len(data)} bytes instead of {asked}")
        if len(data) < end - start:
            raise _ShortAnswer(f"the answer has {len(data)} bytes instead of {end - start} from {start}")
        if not self._backend.tells and not self._fixed:
            mark = self._backend.head()
            if mark is None or not mark.same(self._mark):
                raise Replaced
        return bytes(data)

    def _first_request(self) -> tuple[ObjectVersion, bytes]:
        def attempt() -> tuple[ObjectVersion, bytes]:
            data, mark = self._backend.get(0, FIRST_READ, None)
            assert mark is not None
            if len(data) != min(FIRST_READ, mark.size):
                raise _ShortAnswer(f"the answer has {len(data)} bytes instead of {min(FIRST_READ, mark.size)} from 0")
            return mark, data

        try:
            return self._attempts(attempt)
        except EmptyObject:
            return self._head(), b""

    def _known_mark(self) -> ObjectVersion | None:
        """Ask for the version alone; None where the server does not answer that, as for URLs signed for reading."""
        return self._attempts(self._backend.head) if self._backend.tells else self._head()

    def _head(self) -> ObjectVersion:
        mark = self._attempts(self._backend.head)
        if mark is None:
            raise self._error(f"{self.path} is not a file of known size")
        return mark

    def _attempts(self, attempt: Callable[[], T]) -> T:
        """Call `attempt`, again if that may help, and report what it raises as what it is."""
        return attempts(attempt, self.path, self._error, self._settings, patient=self._backend.patient)


class _ShortAnswer(TransientError):
    """An answer that ends early."""


def attempts(
    attempt: Callable[[], T],
    path: str,
    error: type[RelexError],
    settings: Settings,
    *,
    patient: bool = False,
) -> T:
    """Return what `attempt`, one request for `path`, returns; tried again within the limit of `settings`.

    Args:
        patient: the filesystem tries failed requests again by itself: then only once here, short answers apart.

    Raises:
        Truncated: all answers end early.
        Corrupt: what came is not what was asked for.
        EmptyObject: as `backends.Backend.get`, where nothing was known of the object.
        error: everything else, in one line.
    """
    try:
        return call_with_retries((lambda: _once(attempt)) if patient else attempt, settings.retry)
    except Exception as e:  # backends raise what they like
        last = e.__cause__ if isinstance(e, RetriesExhausted) else e
        if isinstance(last, _ShortAnswer):
            tried = f" ({e})" if isinstance(e, RetriesExhausted) else ""
            raise Truncated(f"{path}: {last}{tried}") from None
        if isinstance(last, Corrupt):
            raise Corrupt(f"{path}: {last}") from None
        if isinstance(last, Replaced):
            raise changed_error(path, error) from None
        if isinstance(last, EmptyObject):
            raise
        if (reason := explain_read_from_hub(path, last)) is not None:
            raise error(reason) from None
        raise read_error(path, last.error if isinstance(last, _Final) else e, error) from None


class _Final(Exception):
    """A failure that the filesystem itself tried to get over."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _once(attempt: Callable[[], T]) -> T:
    try:
        return attempt()
    except (TransientError, Replaced, EmptyObject, RelexError):
        raise
    except Exception as e:
        raise _Final(e) from None


def s3_options(options: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the options with which s3fs leaves trying again to this package, and waits as long as it is told.

    By itself it tries a request 5 times, its read of the body 5 times around that, and botocore each of those 5 times:
    up to 125 requests before a failure shows. (Its own first number is its attribute ``retries``.) Connections are
    enough for the requests under way; botocore's default is 10. What the caller set stays.
    """
    own = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "read_timeout": settings.timeout,
        "connect_timeout": settings.timeout,
        "max_pool_connections": 2 * REQUESTS,
    }
    return {**options, "config_kwargs": {**own, **(options.get("config_kwargs") or {})}}
