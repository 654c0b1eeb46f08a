"""A file of a step as fsspec opens it, and the place below the root of the filesystem that it has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from fsspec.spec import AbstractBufferedFile

from relex_codec.errors import CheckpointError, InvalidArgument, RelexError
from relex_codec.run.step_files import StepFiles


class Place(NamedTuple):
    """A path below the root, understood; the name is empty for the directory of a step itself."""

    files: StepFiles
    step: float
    asked: str
    """The tier that was asked for."""
    tier: str
    """What the step is read from."""
    name: str

    def read(self, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` of the file."""
        with base_found():
            return self.files.read(self.name, self.step, self.asked, start, end)

    def stream(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes of the file, tensor by tensor."""
        with base_found():
            yield from self.files.stream(self.name, self.step, self.asked)

    def size(self) -> int | None:
        """Return the bytes of the file, or None if there is none of that name."""
        with base_found():
            return self.files.at(self.step, self.asked).size(self.name)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file of the step by name."""
        with base_found():
            return self.files.at(self.step, self.asked).sizes()

    def widened(self, start: int, end: int) -> tuple[int, int]:
        """Return the range that reading `start` to `end` of the file decodes in any case."""
        shards = self.files.at(self.step, self.asked).shards
        if self.name in shards:
            return shards[self.name].widened(start, end)
        return 0, self.size() or 0  # the other files are small, and read whole


class RelexFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file of a step, opened for reading.

    It reads no further ahead than decoding does by itself, and keeps the end of what was decoded last, so that small
    reads one after another decode each piece of a tensor once. It goes on reading what it was opened on.
    """

    def __init__(self, *args: Any, place: Place, **kwargs: Any) -> None:
        self._place = place
        self._kept: tuple[int, bytes] = (0, b"")  # where the bytes kept begin, and these
        super().__init__(*args, **kwargs)

    def _fetch_range(self, start: int, end: int) -> bytes:
        begin, kept = self._kept
        end = min(end, self.size)
        found = kept[start - begin : end - begin] if start >= begin else b""
        at = start + len(found)
        if at < end:
            low, high = self._place.widened(at, end)
            data = self._place.read(low, high)
            found += data[at - low : end - low]
            last = max(low, self._place.widened(end - 1, end)[0])
            self._kept = last, data[last - low :]
        return found


@contextmanager
def base_found() -> Iterator[None]:
    """Turn the error for a base or ``.relex`` file that is gone into one that is no ``FileNotFoundError``.

    Of a path of this filesystem that would say that the path does not exist, which callers of fsspec pass over in
    silence.
    """
    try:
        yield
    except FileNotFoundError as error:
        if isinstance(error, RelexError):
            kind = InvalidArgument if isinstance(error, InvalidArgument) else CheckpointError
            raise kind(str(error)) from None
        raise
