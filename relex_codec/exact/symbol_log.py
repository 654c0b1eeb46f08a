"""The symbols of a group until its tables are known: compressed, and in a scratch file where they are many.

A group of steps that all differ, of float32 weights, has gigabytes of symbols; one of a usual run has some ten MB.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import IO, Final

import numpy as np
import zstandard

from relex_codec.format.packing import from_planes, to_planes

from .frame_encoder import Records
from .interval_lists import Longs
from .part_coder import Symbols

MEMORY: Final = 8 << 20
"""Bytes that are held before they go to the file."""
SMALL: Final = 512
"""Bytes that are not worth compressing."""
LEVEL: Final = -3
"""zstd level: a fast one, as what is compressed is soon decompressed, and for memory alone."""
NONE: Final = 0xFFFFFFFF
ENTRY: Final = np.dtype([
    ("at", "<i8"), ("stored", "<u4"), ("records", "<u4"), ("raws", "<u4"), ("dense", "<u4"), ("plain", "<u4"),
])  # fmt: skip
_WORD: Final = np.dtype("<u4")
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

    def append(self, data: bytes) -> int:
        """Append bytes, and return where they begin."""
        at = self._written + len(self._tail)
        self._tail += data
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
        raw = np.concatenate([symbols.records, symbols.raws])
        data = _compress(raw)
        plain = symbols.plain
        entry = (
            self._log.append(data + (plain or b"")), len(data), len(symbols.records), len(symbols.raws), symbols.dense,
            NONE if plain is None else len(plain),
        )  # fmt: skip
        self._entries[step] = entry

    def get(self, step: int) -> Symbols:
        """Return the symbols of a step."""
        at, stored, records, raws, dense, plain = self._entries[step].item()
        data = self._log.read(at, stored + (0 if plain == NONE else plain))
        words = _decompress(data[:stored], records + raws)
        return Symbols(words[:records], words[records:], dense, None if plain == NONE else data[stored:])

    def bounds(self) -> Longs:
        """Return how many bytes the stream of each step has at most."""
        most: Longs = 64 + 4 * self._entries["records"].astype(np.int64) + 4 * self._entries["raws"].astype(np.int64)
        return most


def _compress(words: Records) -> bytes:
    if words.nbytes <= SMALL:
        return words.tobytes()
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(LEVEL)
    found: bytes = _local.compressor.compress(to_planes(words).data)
    return found if len(found) < words.nbytes else words.tobytes()


def _decompress(data: bytes, count: int) -> Records:
    size = 4 * count
    if len(data) == size:
        return np.frombuffer(data, _WORD).copy()  # compiled code has one kind of array for what may be written
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    raw = _local.decompressor.decompress(data, max_output_size=size)
    return from_planes(np.frombuffer(raw, np.uint8), _WORD)
