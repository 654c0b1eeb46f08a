"""The symbols of a group until its tables are known: in a scratch file where they are many, compressed beyond a bound.

A group of steps that all differ, of float32 weights, has gigabytes of symbols; one of a usual run has some ten MB, and
one of a run of which half changes at each of 32 steps 60 MB: compressing those, fast as it is, and decompressing them
took a quarter of the time of encoding.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import IO, Final

import numpy as np
import zstandard

from relex_codec.format.packing import from_planes, to_planes

from .frame_encoder import Codes, Records
from .interval_lists import Longs
from .part_coder import Symbols

MEMORY: Final = 8 << 20
"""Bytes that are held before they go to the file."""
AS_THEY_ARE: Final = 64 << 20
"""Bytes of a group that are not compressed."""
SMALL: Final = 512
"""Bytes of a part and step that are never worth compressing."""
LEVEL: Final = -3
"""zstd level: a fast one, as what is compressed is soon decompressed, and for memory alone."""
NONE: Final = 0xFFFFFFFF
ENTRY: Final = np.dtype([
    ("at", "<i8"), ("stored", "<u4"), ("records", "<u4"), ("raws", "<u4"), ("dense", "<u4"), ("plain", "<u4"),
])  # fmt: skip
_RECORD: Final = np.dtype("<u2")
_RAW: Final = np.dtype("<u4")
Buffer = bytes | memoryview
_local = threading.local()


class SymbolLog:
    """Bytes that are appended, and read when all are there.

    Args:
        scratch: opens a file for what exceeds `MEMORY`; called once if at all.
    """

    def __init__(self, scratch: Callable[[], IO[bytes]]) -> None:
        self._scratch = scratch
        self._file: IO[bytes] | None = None
        self._written = 0
        self._tail = bytearray()

    @property
    def size(self) -> int:
        """How many bytes were appended."""
        return self._written + len(self._tail)

    def append(self, *data: Buffer) -> int:
        """Append bytes, and return where they begin."""
        at = self.size
        for one in data:
            self._tail += one
        if len(self._tail) > MEMORY:
            if self._file is None:
                self._file = self._scratch()
            self._file.seek(self._written)
            self._file.write(self._tail)
            self._file.flush()
            self._written += len(self._tail)
            self._tail = bytearray()
        return at

    def read(self, at: int, length: int) -> bytes:
        """Return bytes that were appended together; may be called from several threads."""
        if at >= self._written:
            return bytes(memoryview(self._tail)[at - self._written : at - self._written + length])
        assert self._file is not None
        return os.pread(self._file.fileno(), length, at)

    def clear(self) -> None:
        """Forget everything."""
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()
        self._written, self._tail = 0, bytearray()


class PartSymbols:
    """The symbols of one part, by step of the segment.

    Args:
        log: that holds them.
        count: steps of the segment.
    """

    def __init__(self, log: SymbolLog, count: int) -> None:
        self._log = log
        self._entries = np.zeros(count + 1, ENTRY)

    def put(self, step: int, symbols: Symbols) -> None:
        """Keep the symbols of a step."""
        records, raws, plain = symbols.records, symbols.raws, symbols.plain
        size = records.nbytes + raws.nbytes
        data: tuple[Buffer, ...] = records.data, raws.data
        if size > SMALL and self._log.size + size > AS_THEY_ARE:
            compressed = _compress(records, raws)
            if len(compressed) < size:
                data, size = (compressed,), len(compressed)
        at = self._log.append(*data, plain or b"")
        self._entries[step] = (
            at, size, len(records), len(raws), symbols.dense, NONE if plain is None else len(plain)
        )  # fmt: skip

    def get(self, step: int) -> Symbols:
        """Return the symbols of a step."""
        at, stored, records, raws, dense, plain = self._entries[step].item()
        data = self._log.read(at, stored + (0 if plain == NONE else plain))
        found = data[:stored] if stored == 2 * records + 4 * raws else _decompress(data[:stored], records, raws)
        # copied, as compiled code has one kind of array for what may be written
        return Symbols(
            np.frombuffer(found, _RECORD, records).copy(), np.frombuffer(found, _RAW, raws, 2 * records).copy(),
            dense, None if plain == NONE else data[stored:],
        )  # fmt: skip

    def bounds(self) -> Longs:
        """Return how many bytes the stream of each step has at most."""
        most: Longs = 64 + 2 * self._entries["records"].astype(np.int64) + 4 * self._entries["raws"].astype(np.int64)
        return most


def _compress(records: Codes, raws: Records) -> bytes:
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(LEVEL)
    found: bytes = _local.compressor.compress(np.concatenate([to_planes(records), to_planes(raws)]).data)
    return found


def _decompress(data: bytes, records: int, raws: int) -> bytes:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    planes = np.frombuffer(_local.decompressor.decompress(data, max_output_size=2 * records + 4 * raws), np.uint8)
    cut = 2 * records
    return from_planes(planes[:cut], _RECORD).tobytes() + from_planes(planes[cut:], _RAW).tobytes()
