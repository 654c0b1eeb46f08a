"""Single requests to storage: one attempt each, with what the answer tells of the object (see remote.py for the rest).

S3 and HTTP are asked through the connections of s3fs and of fsspec's HTTP filesystem, but without their ``cat_ranges``:
that gives bytes only, while an answer also tells size and ETag of the object and can be made to depend on them. So
opening needs no request for metadata, and an object that was replaced is noticed. All other filesystems are read
through their ``cat_ranges`` and looked at before and after.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from threading import Lock
from typing import Any, Final, NamedTuple

from .errors import Corrupt
from .retry import status_of
from .settings import Settings

_FILE_CACHES: Final = Lock()
"""fsspec's file caches (``simplecache::``) give other threads what has arrived so far of a file: one at a time."""
_PATIENT: Final = frozenset({"hf", "gs", "gcs", "az", "abfs", "abfss", "adl"})
"""Filesystems that try failed requests again by themselves, as those below a file cache do: not tried again on top."""
_NO_HEAD: Final = frozenset({403, 405, 501})
"""Answers of web servers that may be to the method alone: URLs are signed for one."""
_MARKS: Final = (
    "ETag", "etag", "generation", "blob_id", "md5Hash", "content_md5", "LastModified", "last_modified", "updated",
    "mtime", "modified", "Last-Modified", "created",
)  # fmt: skip
"""What filesystems call that by which a version of an object is known; the first that is there counts."""


class Mark(NamedTuple):
    """What a version of an object is known by."""

    size: int
    etag: str | None = None
    modified: str | None = None

    @property
    def version(self) -> str | None:
        """As text, or None where there is nothing but a size."""
        told = self.etag or self.modified
        return f"{told} {self.size}" if told else None

    def same(self, other: Mark) -> bool:
        """Tell whether both can be of one version; an ETag is not outvoted by clocks of servers that differ."""
        if self.etag and other.etag:
            return (self.etag, self.size) == (other.etag, other.size)
        return self.size == other.size and (not self.modified or not other.modified or self.modified == other.modified)


class Replaced(Exception):
    """The object is no longer the one that was opened."""


class EmptyObject(Exception):
    """A range of an object without bytes was asked for."""


class Answer(NamedTuple):
    """Bytes, and the object that they are of (None: the backend does not tell)."""

    data: bytes
    mark: Mark | None


class Backend(ABC):
    """One object on a filesystem of fsspec. Methods make one attempt, and raise what the filesystem raises.

    Attributes:
        tells: whether answers have marks.
        patient: whether failed requests are tried again further down already.
    """

    tells = False
    patient = False

    def __init__(self, filesystem: Any, name: str, settings: Settings) -> None:
        self.filesystem, self.name, self.settings = filesystem, name, settings

    @abstractmethod
    def get(self, start: int, end: int, mark: Mark | None) -> Answer:
        """Return bytes `start` to `end`, of the version `mark` if that is given.

        Raises:
            Replaced: the object is another one now.
            Corrupt: the server ignores ranges; without reading the object where that can be seen before.
            EmptyObject: the object has no bytes.
        """

    @abstractmethod
    def head(self) -> Mark | None:
        """Return size and version of the object; None for what is no file of known size, or does not say so."""

    def _run(self, coroutine: Any, *arguments: Any) -> Any:
        import fsspec.asyn

        return fsspec.asyn.sync(self.filesystem.loop, coroutine, *arguments)


def whole_size(content_range: str | None, status: int, length: int | None, start: int, end: int) -> int:
    """Return the size of an object from an answer to bytes `start` to `end`, before its body is read.

    Raises:
        Corrupt: it is not an answer to that.
    """
    asked = f"{end - start} from {start}"
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range or "")
    if status == 206 and found is not None:
        first, last, size = map(int, found.groups())
        if first != start or last >= end:
            raise Corrupt(f"the server answered bytes {first} to {last + 1} instead of {asked}")
        return size
    if status == 200 and start == 0 and length is not None and length <= end:
        return length  # all there is, which a server may send without saying that it is a range
    raise Corrupt(f"the server ignored the range: {'?' if length is None else length} bytes instead of {asked}")


class S3Backend(Backend):
    """An object in S3 or what speaks like it, through the client of s3fs."""

    tells = True

    def __init__(self, filesystem: Any, name: str, settings: Settings) -> None:
        super().__init__(filesystem, name, settings)
        self._bucket, self._key, self._version_id = filesystem.split_path(name)

    @property
    def _object(self) -> dict[str, str]:
        plain = {"Bucket": self._bucket, "Key": self._key}
        return {**plain, "VersionId": self._version_id} if self._version_id else plain

    def get(self, start: int, end: int, mark: Mark | None) -> Answer:
        if not self._key:
            raise IsADirectoryError("a bucket is not a file")
        return self._run(self._get, start, end, mark)  # type: ignore[no-any-return]

    async def _get(self, start: int, end: int, mark: Mark | None) -> Answer:
        condition = {"IfMatch": mark.etag} if mark and mark.etag else {}
        try:
            answer = await self.filesystem._call_s3(
                "get_object", **self._object, Range=f"bytes={start}-{end - 1}", **condition
            )
        except Exception as e:
            _raise_for_condition(status_of(e), e)
            raise
        body = answer["Body"]
        try:
            status = answer["ResponseMetadata"]["HTTPStatusCode"]
            size = whole_size(answer.get("ContentRange"), status, answer.get("ContentLength"), start, end)
            found = Mark(size, answer.get("ETag") or None, _text(answer.get("LastModified")))
            if mark is not None and not mark.same(found):
                raise Replaced
            return Answer(await body.read(), found)
        finally:
            body.close()

    def head(self) -> Mark | None:
        return self._run(self._head) if self._key else None

    async def _head(self) -> Mark:
        answer = await self.filesystem._call_s3("head_object", **self._object)
        return Mark(int(answer["ContentLength"]), answer.get("ETag") or None, _text(answer.get("LastModified")))


class HTTPBackend(Backend):
    """A file on a web server, through the session of fsspec's HTTP filesystem."""

    tells = True

    def get(self, start: int, end: int, mark: Mark | None) -> Answer:
        return self._run(self._get, start, end, mark)  # type: ignore[no-any-return]

    def _arguments(self, headers: Mapping[str, str]) -> dict[str, Any]:
        plain = dict(self.filesystem.kwargs)
        # a compressed answer would be a range of something else
        own = {**(plain.pop("headers", None) or {}), "Accept-Encoding": "identity", **headers}
        if "timeout" not in plain and "timeout" not in (self.filesystem.client_kwargs or {}):
            import aiohttp  # fsspec has it loaded

            seconds = self.settings.timeout
            plain["timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
        return {**plain, "headers": own}

    async def _get(self, start: int, end: int, mark: Mark | None) -> Answer:
        headers = {"Range": f"bytes={start}-{end - 1}", **_conditions(mark)}
        session = await self.filesystem.set_session()
        url = self.filesystem.encode_url(self.name)
        async with session.get(url, **self._arguments(headers)) as answer:
            _raise_for_condition(answer.status, None)
            answer.raise_for_status()
            size = whole_size(answer.headers.get("Content-Range"), answer.status, answer.content_length, start, end)
            found = _mark_of(size, answer.headers)
            if mark is not None and not mark.same(found):
                raise Replaced
            return Answer(await answer.read(), found)

    def head(self) -> Mark | None:
        return self._run(self._head)  # type: ignore[no-any-return]

    async def _head(self) -> Mark | None:
        session = await self.filesystem.set_session()
        arguments = {"allow_redirects": True, **self._arguments({})}
        async with session.head(self.filesystem.encode_url(self.name), **arguments) as answer:
            if answer.status in _NO_HEAD:
                return None
            answer.raise_for_status()
            length = answer.headers.get("Content-Length", "")
            return _mark_of(int(length), answer.headers) if length.isdigit() else None


class PlainBackend(Backend):
    """A file on any other filesystem."""

    def __init__(self, filesystem: Any, name: str, settings: Settings) -> None:
        super().__init__(filesystem, name, settings)
        names = protocols(filesystem)
        self._hub = "hf" in names
        self._cached = "cache" in " ".join(names)
        self.patient = tries_again(filesystem)

    def get(self, start: int, end: int, mark: Mark | None) -> Answer:
        # hf:// reads through open(), whose default cache fetches 5 MB ahead of what was asked
        plain = {"cache_type": "none"} if self._hub else {}
        with _FILE_CACHES if self._cached else nullcontext():
            answers = list(self.filesystem.cat_ranges([self.name], [start], [end], on_error="raise", **plain))
        if len(answers) != 1:
            raise ValueError(f"{len(answers)} answers to 1 range")
        if isinstance(answers[0], Exception):  # some releases of fsspec return them all the same
            raise answers[0]
        return Answer(answers[0], None)

    def head(self) -> Mark | None:
        details = self._details()
        size = details.get("size")
        if details.get("type") == "directory" or type(size) is not int:
            return None
        told = next((details[name] for name in _MARKS if details.get(name)), None)
        return Mark(size, None, _text(told))

    def _details(self) -> dict[str, Any]:
        if self.fixed:
            found = self.filesystem.info(self.name)
        elif self._hub:
            found = self.filesystem.info(self.name, refresh=True)
        else:
            # a listing that is remembered would show an object that was replaced as it was
            self.filesystem.invalidate_cache(self.filesystem._parent(self.name))
            found = self.filesystem.info(self.name)
        return dict(found)

    @property
    def fixed(self) -> bool:
        """Whether the name stands for one version for ever: a commit of the Hub."""
        return self._hub and re.search(r"@[0-9a-f]{40}(/|$)", self.name) is not None


def backend_of(filesystem: Any, name: str, settings: Settings) -> Backend:
    """Return what reads `name` on `filesystem`."""
    names = protocols(filesystem)
    if "s3" in names and hasattr(filesystem, "_call_s3"):
        return S3Backend(filesystem, name, settings)
    if "https" in names and hasattr(filesystem, "encode_url"):
        return HTTPBackend(filesystem, name, settings)
    return PlainBackend(filesystem, name, settings)


def tries_again(filesystem: Any) -> bool:
    """Tell whether a filesystem tries failed requests again by itself."""
    names = protocols(filesystem)
    return "cache" in " ".join(names) or not _PATIENT.isdisjoint(names)


def protocols(filesystem: Any) -> tuple[str, ...]:
    """Return the names of a filesystem."""
    protocol = getattr(filesystem, "protocol", ())
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _conditions(mark: Mark | None) -> dict[str, str]:
    """Headers that let a request fail if the object is another one; a weak ETag never matches in them."""
    if mark is None:
        return {}
    if mark.etag and not mark.etag.startswith("W/"):
        return {"If-Match": mark.etag}
    return {"If-Unmodified-Since": mark.modified} if mark.modified else {}


def _raise_for_condition(status: int | None, e: BaseException | None) -> None:
    if status == 412:
        raise Replaced from e
    if status == 416:
        raise EmptyObject from e


def _mark_of(size: int, headers: Mapping[str, str]) -> Mark:
    return Mark(size, headers.get("ETag") or None, headers.get("Last-Modified") or None)


def _text(value: Any) -> str | None:
    return None if not value else str(value)
