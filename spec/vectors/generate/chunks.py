"""Chunks and zstd frames: a plain layout of spans in chunks, and frames that an encoder would not make."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import zstandard


@dataclass
class Chunk:
    """A chunk; the fields of its record follow from it unless they are given."""

    entry: str
    stored: bytes
    raw: int
    codec: int
    fill: int = 0
    reserved: bytes = bytes(2)
    crc: int | None = None
    length: int | None = None
    shift: int = 0  # of its position
    before: bytes = b""  # bytes of the entry that belong to no chunk


@dataclass
class Span:
    """Where pieces lie; the number of the chunk is known when the layout is closed."""

    chunk: int = 0
    offset: int = 0


@dataclass
class _Shared:
    pieces: list[bytes] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces))


class Layout:
    """The chunks of one entry in the making: small spans share chunks with their like, others have one a piece."""

    def __init__(self, entry: str) -> None:
        """An entry without chunks."""
        self.entry = entry
        self.chunks: list[Chunk] = []
        self._shared: dict[str, _Shared] = {}
        self._spans: list[Span] = []

    def add(self, pieces: Sequence[bytes], pool: str = "planes") -> Span:
        """Place pieces; `pool` says what they are: planes, text, or a packing."""
        span, size = Span(), sum(map(len, pieces))
        if size == 0:
            return span
        self._spans.append(span)
        if size < (1 << 10 if pool == "planes" else 16 << 10):
            shared = self._shared.setdefault(pool, _Shared())
            span.offset = shared.size
            shared.pieces += pieces
            shared.spans.append(span)
            return span
        span.chunk = len(self.chunks)
        self.chunks += [smallest(self.entry, piece, pool == "text") for piece in pieces]
        return span

    def close(self, first: int) -> list[Chunk]:
        """The chunks; `first` is the number of the first one in the file."""
        for pool, shared in self._shared.items():
            for span in shared.spans:
                span.chunk = len(self.chunks)
            self.chunks.append(smallest(self.entry, b"".join(shared.pieces), pool == "text"))
        for span in self._spans:
            span.chunk += first
        return self.chunks


def smallest(entry: str, raw: bytes, text: bool = False) -> Chunk:
    """A chunk in the codec in which it is smallest."""
    values = np.frombuffer(raw, np.uint8)
    options = [Chunk(entry, raw, len(raw), 0), Chunk(entry, zstd_frame(raw, text), len(raw), 1)]
    fill = int(np.bincount(values).argmax())
    different = values != fill
    flags = zstd_frame(np.packbits(different, bitorder="little").tobytes())
    rest = zstd_frame(values[different].tobytes()) if different.any() else b""
    options.append(Chunk(entry, struct.pack("<I", len(flags)) + flags + rest, len(raw), 2, fill))
    return min(options, key=lambda option: len(option.stored))


def zstd_frame(raw: bytes, text: bool = True) -> bytes:
    """A zstd frame; codes and planes are noise, in which repetitions are chance."""
    if text:
        return bytes(zstandard.ZstdCompressor(level=19).compress(raw))
    plain = zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, window_log=17, write_content_size=True
    )
    return bytes(zstandard.ZstdCompressor(compression_params=plain).compress(raw))


# ---- Frames made by hand ----


def small_frame(raw: bytes, window: int) -> bytes:
    """One zstd frame that holds `raw` as it is and asks for a window of 2^window bytes."""
    head = struct.pack("<IBBI", 0xFD2FB528, 0x80, window - 10 << 3, len(raw))
    return head + (len(raw) << 3 | 1).to_bytes(3, "little") + raw


def codec_filled(raw: bytes, fill: int) -> bytes:
    """A chunk of codec 2."""
    values = np.frombuffer(raw, np.uint8)
    flags = small_frame(np.packbits(values != fill, bitorder="little").tobytes(), 10)
    rest = values[values != fill].tobytes()
    return struct.pack("<I", len(flags)) + flags + (small_frame(rest, 10) if rest else b"")


def unsized_frame(raw: bytes) -> bytes:
    """A frame that does not state its content size: a window, one raw block."""
    return struct.pack("<IBB", 0xFD2FB528, 0, 0) + (len(raw) << 3 | 1).to_bytes(3, "little") + raw


def dictionary_frame(raw: bytes) -> bytes:
    """A frame that names a dictionary."""
    head = struct.pack("<IBBBI", 0xFD2FB528, 0x81, 0, 7, len(raw))
    return head + (len(raw) << 3 | 1).to_bytes(3, "little") + raw


def skippable_frame(raw: bytes) -> bytes:
    """A skippable frame."""
    return struct.pack("<II", 0x184D2A50, len(raw)) + raw


def short_frame(raw: bytes) -> bytes:
    """A frame with three bytes less than it states."""
    size = len(raw) - 3
    return small_frame(raw, 10)[:10] + (size << 3 | 1).to_bytes(3, "little") + raw[:size]


def two_frames(raw: bytes) -> bytes:
    """Two frames, of which the first states the length of both."""
    return small_frame(raw, 10) + small_frame(b"", 10)


def states(size: int) -> bytes:
    """A frame that states a content size, and has less."""
    return struct.pack("<IBBI", 0xFD2FB528, 0x80, 0x38, size) + b"\3\0\0\0"
