"""A span that has been compressed and waits for its place in a file."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Final, NamedTuple

from relex_codec.core.dtypes import Bytes

from .chunks import compress
from .tensor_record import Span

SHARED_BELOW: Final = 16 << 10
"""Spans of codes with fewer raw bytes than this share chunks with others of their packing: a chunk costs about 100
bytes (record, frame, Huffman table)."""
PLANES_SHARED_BELOW: Final = 1 << 10
"""The same for spans of several planes, which differ so much that a common Huffman table costs up to a bit a byte."""
IN_MEMORY: Final = 1 << 20
"""Compressed bytes of a span that are kept in memory, by default; more are in a scratch file."""


class ChunkRow(NamedTuple):
    """What the chunk table says of a chunk, but for its position."""

    stored: int
    raw: int
    crc: int
    codec: int
    fill: int


@dataclass(slots=True)
class PendingSpan:
    """A span whose chunk number is known once its chunk is closed."""

    chunk: int = 0
    offset: int = 0

    def resolved(self) -> Span:
        """Return the span; only valid after `ChunkWriter.close`."""
        return Span(self.chunk, self.offset)


@dataclass(slots=True)
class PackedSpan:
    """A span: raw pieces, if it shares a chunk with others of its kind, or the chunks of its own.

    Attributes:
        size: raw bytes.
        pool: what the pieces are, ``planes`` or the name of a packing.
        match: see `chunks.compress`.
        parts: raw pieces, if the span is to share a chunk.
        rows: one for each chunk of its own.
        data: what these chunks store, one after another; None when it has been written.
        place: where the span is in the file.
    """

    size: int
    pool: str
    match: bool
    parts: list[Bytes] = field(default_factory=list)
    rows: list[ChunkRow] = field(default_factory=list)
    data: IO[bytes] | None = None
    place: PendingSpan = field(default_factory=PendingSpan)

    @property
    def shares(self) -> bool:
        """Whether it is so small that it shares a chunk."""
        return self.size < (PLANES_SHARED_BELOW if self.pool == "planes" and not self.match else SHARED_BELOW)


class _Spooled(tempfile.SpooledTemporaryFile[bytes]):
    """A scratch file that may be dropped unread: where another tensor fails, what waits for its turn is let go of."""

    def __del__(self) -> None:
        self.close()


def compress_chunk(raw: Bytes, match: bool) -> tuple[ChunkRow, bytes]:
    """Return a chunk as it is stored, and what the table says of it."""
    codec, fill, stored = compress(raw, match=match)
    return ChunkRow(len(stored), len(raw), zlib.crc32(stored), codec, fill), stored


def pack(
    pieces: Iterable[Bytes],
    size: int,
    pool: str = "planes",
    *,
    match: bool = False,
    directory: str | None = None,
    in_memory: int = IN_MEMORY,
) -> PackedSpan:
    """Compress a span.

    Args:
        pieces: raw bytes of each piece, or of each plane of it, in order; taken one at a time.
        size: their total length.
        pool: what they are, ``planes`` or the name of a packing; small spans share chunks with their like.
        match: see `chunks.compress`.
        directory: where the scratch file of a large span is.
        in_memory: compressed bytes from which it is in a scratch file.
    """
    span = PackedSpan(size, pool, match)
    if size and span.shares:
        span.parts.extend(piece.copy() for piece in pieces)  # they may be views of what is soon used again
    elif size:
        span.data = _Spooled(in_memory, dir=directory)
        for piece in pieces:
            row, stored = compress_chunk(piece, match)
            span.rows.append(row)
            span.data.write(stored)
    return span
