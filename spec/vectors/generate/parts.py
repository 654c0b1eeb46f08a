"""A file in parts that can be changed; `build` puts it together with right checksums, lengths and positions."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import reference_decoder as ref

from .chunks import Chunk, zstd_frame
from .exact_tier import Tier, parse

METADATA = {
    "format": "relex",
    "relex_version": "1",
    "producer": "spec/vectors/generate",
    "reader": "0.1.0",
    "requires": "",
}
ELSEWHERE = [*ref.DATA, "relex.coefficients", ref.DATA_FRAMES]
"""Entries whose checksums are elsewhere: coverage 1."""


def align(text: str) -> bytes:
    """JSON, with spaces up to a multiple of 8."""
    raw = text.encode("utf-8", "surrogatepass")
    return raw + b" " * (-len(raw) % 8)


def compact(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def packed(text: bytes, after: int = 0, frame: Callable[[bytes], bytes] = zstd_frame) -> bytes:
    """A manifest in a frame, with `after` zeros after it."""
    return struct.pack("<BBH", 0, after, 0) + frame(text) + bytes(after)


class Parts:
    """The parts of a file, and what is to be changed when it is put together."""

    def __init__(self, entries: dict[str, bytearray], manifest: dict[str, Any], chunks: list[Chunk]) -> None:
        """The entries but the root (those of chunks and blobs are made when it is built), in their order."""
        self.entries, self.manifest, self.chunks = entries, manifest, chunks
        self.metadata = dict(METADATA)
        self.dtypes = dict.fromkeys(entries, "U8") | ref.DTYPES
        self.raw: list[bytes] = []  # of the chunks, where the file was taken apart
        self.tier: Tier | None = None
        self.version = 1
        self.coverage: dict[str, int] = {}
        self.text: bytes | None = None  # of the manifest, instead of `manifest`
        self.edit_header: Callable[[dict[str, Any]], Any] = lambda header: None
        self.edit_text: Callable[[bytes], bytes] = lambda text: text
        self.edit_root: Callable[[bytearray], Any] = lambda root: None

    @classmethod
    def taken_from(cls, source: bytes) -> Parts:
        """The parts of a valid file."""
        file = ref.RelexFile(source)
        entries = {name: bytearray(file.bytes_of(name)) for name in file.entries if name != "relex.root"}
        chunks = [
            Chunk(name, source[c.position : c.position + c.stored], c.raw, c.codec, c.fill)
            for name in ref.DATA
            for c in (file.chunks[i] for i in file.chunks_of[name])
        ]
        parts = cls(entries, json.loads(ref.manifest_text(bytes(entries["relex.manifest"]))), chunks)
        parts.metadata = json.loads(source[8 : ref.header_length(source, 1 << 25)])["__metadata__"]
        parts.dtypes = {name: entry.dtype for name, entry in file.entries.items()}
        parts.raw = [ref.read_chunk(file, i) for i in range(len(chunks))]
        parts.tier = parse(file) if file.has_frames else None
        return parts

    def patch(self, entry: str, offset: int, form: str, *values: Any) -> None:
        """Overwrite a field of a table."""
        struct.pack_into("<" + form, self.entries[entry], offset, *values)

    def set_raw(self, index: int, raw: bytes) -> None:
        """Other raw bytes of a chunk, stored as they are."""
        self.chunks[index] = Chunk(self.chunks[index].entry, raw, len(raw), 0)

    def set_row(self, index: int, *values: float) -> None:
        """Another row of coefficients."""
        raw = struct.pack(f"<{len(values)}d", *values)
        self.entries["relex.coefficients"][len(raw) * index : len(raw) * (index + 1)] = raw
        self.patch("relex.directions", 64 * index + 36, "I", zlib.crc32(raw))

    def _shape(self, name: str) -> list[int]:
        size = len(self.entries[name])
        tables = ref.TABLES | ref.EXACT_TABLES
        if name in tables:
            return [size // tables[name], tables[name]]
        if name == "relex.coefficients":
            return [len(self.entries["relex.directions"]) // 64, len(self.entries["relex.steps"]) // 8]
        if name == "relex.errors":
            return [2, size // 8]
        return [size // ref.WIDTH[self.dtypes[name]]]

    def build(self) -> bytes:
        """The file."""
        entries = self.entries
        entries["relex.manifest"][:] = align(compact(self.manifest)) if self.text is None else self.text
        for name in ref.DATA:
            entries[name] = bytearray(b"".join(c.before + c.stored for c in self.chunks if c.entry == name))
        self._place_tier(0)
        entries["relex.chunks"] = bytearray(24 * len(self.chunks))
        names = list(entries)
        at = size = 40 + 8 * len(names)
        header: dict[str, Any] = {"__metadata__": self.metadata}
        header["relex.root"] = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
        for name in names:
            span = [at, at + len(entries[name])]
            header[name] = {"dtype": self.dtypes[name], "shape": self._shape(name), "data_offsets": span}
            at = span[1]
        self.edit_header(header)
        head = self.edit_text(align(compact(header)))
        head = struct.pack("<Q", len(head)) + head
        self._place(len(head) + size)
        fields = (b"RELEX\r\n\x1a", self.version, zlib.crc32(head), len(head) + at, len(names), 0)
        root = bytearray(struct.pack("<8sIIQII", *fields))
        for name in names:
            coverage = self.coverage.get(name, int(name in ELSEWHERE))
            root += struct.pack("<IB3s", zlib.crc32(entries[name]) * (coverage == 0), coverage, bytes(3))
        root += bytes(8)
        self.edit_root(root)
        struct.pack_into("<I", root, size - 8, zlib.crc32(root[:-8]))
        return head + root + b"".join(entries.values())

    def _place(self, at: int) -> None:
        """Write the table of chunks; the entries begin at byte `at` of the file."""
        records = b""
        for name, raw in self.entries.items():
            position = at
            for c in (c for c in self.chunks if c.entry == name):
                position += len(c.before)
                length = len(c.stored) if c.length is None else c.length
                crc = zlib.crc32(c.stored) if c.crc is None else c.crc
                row = (position + c.shift, length, c.raw, crc, c.codec, c.fill, c.reserved)
                records += struct.pack("<QIIIBB2s", *row)
                position += len(c.stored)
            if name == ref.DATA_FRAMES:
                self._place_tier(at)
            at += len(raw)
        self.entries["relex.chunks"][:] = records

    def _place_tier(self, at: int) -> None:
        """Write the entries of the frames, those that there are; the frames begin at byte `at` of the file."""
        for name, raw in {} if self.tier is None else self.tier.entries(at).items():
            if name in self.entries:
                self.entries[name][:] = raw
