"""What a backend is, what it answers, and what it raises."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, NamedTuple, TypeVar

from relex_codec.core.cancellation import check_cancelled, wait_for
from relex_codec.errors import Corrupt
from relex_codec.storage.config import Settings

T = TypeVar("T")


class ObjectVersion(NamedTuple):
    """What a version of an object is known by."""

    size: int
    etag: str | None = None
    modified: str | None = None

    @property
    def version(self) -> str | None:
        """As text, or None where there is nothing but a size."""
        told = self.etag or self.modified
        return f"{told} {self.size}" if told else None

    def same(self, other: ObjectVersion) -> bool:
        """Tell whether both can be of one version; an ETag is not outvoted by clocks of servers that differ."""
        if self.etag and other.etag:
            return (self.etag, self.size) == (other.etag, other.size)
        return self.size == other.size and (not self.modified or not other.modified or self.modified == other.modified)


class Replaced(Exception):
    """The object is no longer the one that was opened."""


class EmptyObject(Exception):
    """A range of an object without bytes was asked for."""


class Refused(Exception):
    """What a server answered instead of what was asked for: its status, its words, and its code for it, if any."""

    def __init__(self, status: int, said: str = "", code: str = "") -> None:
        super().__init__(status, said, code)
        self.status, self.message, self.error_code = status, said, code


class Answer(NamedTuple):
    """Bytes, and the object that they are of (None: the backend does not tell)."""

    data: bytes
    mark: ObjectVersion | None


class ObjectStore(ABC):
    """One object on a filesystem of fsspec. Methods make one attempt, and raise what the filesystem raises.

    Attributes:
        tells: whether answers have marks.
        patient: whether failed requests are tried again further down already.
    """

    tells = False
    patient = False

    def __init__(self, filesystem: Any, name: str, settings: Settings) -> None:
        self.filesystem, self.name, self.settings = filesystem, name, settings

    @property
    def identity(self) -> Hashable:
        """What tells its filesystem from others that have something under the same name."""
        return hash(self.filesystem)

    @abstractmethod
    def get(self, start: int, end: int, mark: ObjectVersion | None) -> Answer:
        """Return bytes `start` to `end`, of the version `mark` if that is given.

        Raises:
            Replaced: the object is another one now.
            Corrupt: the server ignores ranges; without reading the object where that can be seen before.
            EmptyObject: the object has no bytes.
        """

    @abstractmethod
    def head(self) -> ObjectVersion | None:
        """Return size and version of the object; None for what is no file of known size, or does not say so."""

    def listing(self) -> list[dict[str, Any]] | None:
        """Return what is in the directory of that name as ``ls`` of fsspec tells it; None: that is to be asked."""
        return None

    def _run(self, coroutine: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Run a coroutine on the filesystem's event loop; who is interrupted takes it back."""
        check_cancelled()
        future = asyncio.run_coroutine_threadsafe(coroutine(*arguments), self.filesystem.loop)
        try:
            return wait_for(future)
        except BaseException:
            future.cancel()
            raise


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


def raise_for_condition(status: int | None, e: BaseException | None) -> None:
    """Raise what a status says of the object: that it is another one, or empty; from `e`, if that is given."""
    if status == 412:
        raise Replaced from e
    if status == 416:
        raise EmptyObject from e


def protocols(filesystem: Any) -> tuple[str, ...]:
    """Return the names of a filesystem."""
    protocol = getattr(filesystem, "protocol", ())
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def text(value: Any) -> str | None:
    """Return what a server tells as text; None for nothing."""
    return None if not value else str(value)
