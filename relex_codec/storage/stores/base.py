"""What a store is, what it answers, and what it raises."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, NamedTuple, TypeVar

from relex_codec.core.cancellation import check_cancelled, wait_for
from relex_codec.errors import Corrupt
from relex_codec.storage.config import StorageConfig

T = TypeVar("T")


class ObjectVersion(NamedTuple):
    """What a version of an object is known by.

    Attributes:
        size: in bytes.
        etag: what the storage calls the version: an ETag, a generation, a commit.
        modified: when it was last modified, as the storage writes it.
    """

    size: int
    etag: str | None = None
    modified: str | None = None

    @property
    def identifier(self) -> str | None:
        """All of it as text, or None where there is nothing but a size."""
        name = self.etag or self.modified
        return f"{name} {self.size}" if name else None

    def matches(self, other: ObjectVersion) -> bool:
        """Tell whether both can be of one version; an ETag is not outvoted by clocks of servers that differ."""
        if self.etag and other.etag:
            return (self.etag, self.size) == (other.etag, other.size)
        return self.size == other.size and (not self.modified or not other.modified or self.modified == other.modified)


class ObjectReplaced(Exception):
    """The object is no longer the one that was opened."""


class EmptyObject(Exception):
    """A range of an object without bytes was asked for."""


class RequestRefused(Exception):
    """A server answered with an error: its status, its message, and its code for it, if any."""

    def __init__(self, status: int, message: str = "", code: str = "") -> None:
        super().__init__(status, message, code)
        self.status, self.message, self.error_code = status, message, code


class Answer(NamedTuple):
    """Bytes, and the version of the object that they are of (None: the store does not know)."""

    data: bytes
    version: ObjectVersion | None


class ObjectStore(ABC):
    """One object on a filesystem of fsspec. Methods make one attempt, and raise what the filesystem raises.

    Attributes:
        has_versions: whether each answer says which version of the object it is of. Otherwise the object is looked at
            before and after.
        retries_internally: whether the library below makes failed requests again by itself, so that nothing above does.
    """

    has_versions = False
    retries_internally = False

    def __init__(self, filesystem: Any, name: str, config: StorageConfig) -> None:
        self.filesystem, self.name, self.config = filesystem, name, config

    @property
    def identity(self) -> Hashable:
        """What distinguishes its filesystem from others that have something under the same name."""
        return hash(self.filesystem)

    @property
    def is_immutable(self) -> bool:
        """Whether what has this name never changes, so that nobody needs to look whether it has."""
        return False

    @abstractmethod
    def get(self, start: int, end: int, version: ObjectVersion | None) -> Answer:
        """Return bytes `start` to `end`, of that version if one is given.

        Raises:
            ObjectReplaced: the object is another one now.
            Corrupt: the server ignores ranges; without reading the object where that can be seen before.
            EmptyObject: the object has no bytes.
        """

    @abstractmethod
    def head(self) -> ObjectVersion | None:
        """Return size and version of the object; None for what is no file of known size, or does not say so."""

    def listing(self) -> list[dict[str, Any]] | None:
        """Return what is in the directory of that name, as ``ls`` of fsspec does; None: ask the filesystem."""
        return None

    def conditional_upload(self, version: ObjectVersion | None) -> tuple[Any, dict[str, Any]]:
        """Return a filesystem and keywords for its ``put_file``, which then fails unless the object is `version`.

        None stands for no object at all. By itself this is a promise that the library does not keep: who uploads looks
        at the object just before as well.
        """
        return self.filesystem, {}

    def _run(self, coroutine: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Run a coroutine on the filesystem's event loop, and cancel it if this thread is cancelled or interrupted."""
        check_cancelled()
        future = asyncio.run_coroutine_threadsafe(coroutine(*arguments), self.filesystem.loop)
        try:
            return wait_for(future)
        except BaseException:
            future.cancel()
            raise


def object_size(content_range: str | None, status: int, length: int | None, start: int, end: int) -> int:
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


def raise_for_condition(status: int | None, e: BaseException | None) -> None:
    """Raise what a status says of the object: that it is another one, or empty; from `e`, if that is given."""
    if status == 412:
        raise ObjectReplaced from e
    if status == 416:
        raise EmptyObject from e


def protocols(filesystem: Any) -> tuple[str, ...]:
    """Return the names of a filesystem."""
    protocol = getattr(filesystem, "protocol", ())
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def text_or_none(value: Any) -> str | None:
    """Return a value of an answer as text; None for nothing."""
    return None if not value else str(value)
