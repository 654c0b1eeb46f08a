"""The result of a unit as a file: bytes one after another, then a JSON document that says what they are.

    body | document | magic, length of the document, its CRC-32, CRC-32 of the body

Such a file is made on one machine and joined on another, so it is read as data: nothing of it is executed. Its length
and both checksums tell one that was cut off or damaged.
"""

from __future__ import annotations

import io
import json
import os
import struct
import threading
import zlib
from collections import OrderedDict
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from relex_codec.errors import Corrupt

MAGIC: Final = b"relexun1"
TAIL: Final = struct.Struct("<8sQII")
COPY: Final = 1 << 20
OPEN_FILES: Final = 64
"""Files that are kept open."""
DTYPES: Final = frozenset({"<f8", "<f4", "<u8", "<u4", "|u1", "|b1", "<i8"})


class UnitWriter:
    """Writes the result of a unit to a file.

    Attributes:
        document: what the result says; references to bytes and arrays are made by `data` and `array`.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0
        self._crc = 0
        self.document: dict[str, Any] = {}

    @property
    def at(self) -> int:
        """Bytes that were written."""
        return self._at

    def write(self, data: Any) -> int:
        """Append bytes; return their number."""
        self._file.write(data)
        self._crc = zlib.crc32(data, self._crc)
        size = memoryview(data).nbytes
        self._at += size
        return size

    def data(self, data: Any) -> list[int]:
        """Append bytes; return what stands for them in the document: position and length."""
        at = self._at
        return [at, self.write(data)]

    def array(self, values: npt.NDArray[Any]) -> dict[str, Any]:
        """Append an array; return what stands for it in the document."""
        values = np.ascontiguousarray(values)
        at = self._at
        self.write(values.reshape(-1).view(np.uint8).data)
        return {"at": at, "dtype": values.dtype.str, "shape": list(values.shape)}

    def finish(self) -> None:
        """Write the document and the end."""
        text = json.dumps(self.document, separators=(",", ":"), allow_nan=False).encode()
        self._file.write(text)
        self._file.write(TAIL.pack(MAGIC, len(text), zlib.crc32(text), self._crc))


class OpenFiles:
    """Files that are read now and then: of many, the last ones are open."""

    def __init__(self, most: int = OPEN_FILES) -> None:
        self._most = most
        self._open: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, at: int, length: int) -> bytes:
        """Return bytes of a file."""
        with self._lock:
            file = self._open.pop(path, None)
            if file is None:
                if len(self._open) >= self._most:
                    self._open.popitem(last=False)[1].close()
                file = open(path, "rb", buffering=0)
            self._open[path] = file
            return os.pread(file.fileno(), length, at)

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


class UnitFile:
    """The result of a unit, in a local file.

    Args:
        path: of the file, or of one that has it within.
        files: through which it is read.
        begin, end: where it is in the file; None: all of it.

    Attributes:
        document: what it says.

    Raises:
        Corrupt: it is none, or not complete.
    """

    def __init__(self, path: str, files: OpenFiles, begin: int = 0, end: int | None = None) -> None:
        self.path, self._files, self._begin = path, files, begin
        size = (os.path.getsize(path) if end is None else end) - begin
        if size < TAIL.size:
            raise self._damaged("it ends early")
        self._body: int
        magic, length, crc, self._crc = TAIL.unpack(self.read(size - TAIL.size, TAIL.size))
        self._body = size - TAIL.size - length
        if magic != MAGIC or self._body < 0:
            raise self._damaged("it ends early, or is no result of a unit")
        text = self.read(self._body, length)
        if zlib.crc32(text) != crc:
            raise self._damaged("its document does not match its checksum")
        self.document: dict[str, Any] = json.loads(text)

    def within(self, at: int, length: int) -> UnitFile:
        """Return the result of a unit that is part of the body.

        Raises:
            Corrupt: it is none.
        """
        return UnitFile(self.path, self._files, self._begin + at, self._begin + at + length)

    def check(self) -> None:
        """Compare all bytes with their checksum.

        Raises:
            Corrupt: they are others.
        """
        crc = 0
        for at in range(0, self._body, COPY):
            crc = zlib.crc32(self.read(at, min(COPY, self._body - at)), crc)
        if crc != self._crc:
            raise self._damaged("it does not match its checksum")

    def read(self, at: int, length: int) -> bytes:
        """Return bytes by their place.

        Raises:
            Corrupt: the file ends before.
        """
        found = b""
        while len(found) < length:
            more = self._files.read(self.path, self._begin + at + len(found), length - len(found))
            if not more:
                raise self._damaged("it ends early")
            found = found + more if found else more
        return found

    def data(self, place: list[int]) -> bytes:
        """Return what `UnitWriter.data` wrote."""
        return self.read(*place)

    def array(self, place: dict[str, Any]) -> npt.NDArray[Any]:
        """Return what `UnitWriter.array` wrote.

        Raises:
            Corrupt: it is none.
        """
        if place["dtype"] not in DTYPES:
            raise self._damaged("it has an array of an unknown kind")
        dtype, shape = np.dtype(place["dtype"]), tuple(map(int, place["shape"]))
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self.read(place["at"], count * dtype.itemsize), dtype).reshape(shape).copy()

    def part(self, place: list[int]) -> FilePart:
        """Return bytes that are too many for memory, as a file."""
        return FilePart(self, *place)

    def _damaged(self, why: str) -> Corrupt:
        return Corrupt(f"{self.path} is damaged: {why}")


class FilePart(io.RawIOBase):
    """Bytes within the result of a unit, as a file that is read."""

    def __init__(self, unit: UnitFile, at: int, length: int) -> None:
        self._unit, self._begin, self._length, self._at = unit, at, length, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to a place; see `io.IOBase.seek`."""
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Read what there is, as much as `buffer` holds."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._length - self._at))
        view[:count] = self._unit.read(self._begin + self._at, count)
        self._at += count
        return count
