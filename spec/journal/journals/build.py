"""A plain writer of journals: parts of files that can be changed."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import reference_decoder as ref
import reference_journal
import zstandard
from reference_journal import CHUNK, ORDERED

Files = dict[str, bytes]
Bits = Any
Rows = dict[str, tuple[str, Bits]]
"""Tensors of a step: dtype, array of bits."""


def safetensors(tensors: Rows) -> bytes:
    """A file of weights."""
    header, at = {}, 0
    for name, (dtype, bits) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(bits.shape), "data_offsets": [at, at + bits.nbytes]}
        at += bits.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(bits.tobytes() for _, bits in tensors.values())


def word(u: int, dtype: str) -> int:
    """The word of an element's bits."""
    full = 1 << 8 * ref.WIDTH[dtype]
    if dtype not in ORDERED:
        return u
    return u + full // 2 if u < full // 2 else full - 1 - u


def number(old: int, new: int, dtype: str) -> int:
    """The number that stands for a change."""
    full = 1 << 8 * ref.WIDTH[dtype]
    change = (word(new, dtype) - word(old, dtype)) % full
    return 2 * change if change < full // 2 else 2 * (full - change) - 1


def stream(raw: bytes, codec: int) -> bytes:
    """A stream; codec 255 where all is 0."""
    if not any(raw):
        return struct.pack("<BBBH", 255, 0, 0, 0)
    stored, fill = raw, 0
    if codec == 1:
        stored = zstandard.ZstdCompressor(level=3).compress(raw)
    elif codec == 2:
        fill = max(set(raw), key=raw.count)
        array = np.frombuffer(raw, np.uint8)
        flags = np.packbits(array != fill, bitorder="little").tobytes()
        rest = array[array != fill].tobytes()
        frames = [zstandard.ZstdCompressor(level=3).compress(part) for part in (flags, rest) if part]
        stored = struct.pack("<I", len(frames[0])) + b"".join(frames)
    return struct.pack("<BBBH", codec, fill, len(stored) & 255, len(stored) >> 8) + stored


def skips_of(positions: Sequence[int]) -> bytes:
    """The bytes that say which elements changed."""
    found, at = bytearray(), 0
    for position in positions:
        gap = position - at
        found += b"\xff" * (gap // 255) + bytes([gap % 255])
        at = position + 1
    return bytes(found)


def blob(old: Bits, new: Bits, dtype: str, codec: int, dense: bool) -> bytes:
    """What turns a chunk into another one."""
    positions = np.flatnonzero(old != new).tolist()
    if not positions:
        return b""
    chosen = range(len(old)) if dense else positions
    numbers = [number(int(old[i]), int(new[i]), dtype) for i in chosen]
    planes = [bytes(n >> 8 * plane & 255 for n in numbers) for plane in range(ref.WIDTH[dtype])]
    skips = b"" if dense else skips_of(positions)
    head = struct.pack("<II", 0 if dense else len(positions), len(skips))
    # the first skip may be 0, and skips are never absent
    first = [] if dense else [stream(skips, codec) if any(skips) else struct.pack("<BBBH", 0, 0, len(skips), 0) + skips]
    return head + b"".join(first + [stream(plane, codec) for plane in planes])


def part(name: str, dtype: str, shape: Sequence[int], base: str | None, box: Any = None) -> dict[str, Any]:
    """A part of a head; `box` is offset and size."""
    found = {"name": name, "dtype": dtype, "shape": list(shape), "base": base}
    return found if box is None else {**found, "offset": list(box[0]), "size": list(box[1])}


def boxed(row: dict[str, Any], bits: Bits) -> Bits:
    """The elements of a part."""
    offset, size = row.get("offset", [0] * bits.ndim), row.get("size", bits.shape)
    return bits[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))].reshape(-1)


def digests(parts: Sequence[dict[str, Any]], base: Rows) -> bytes:
    """The digests that a rank answers for."""
    found = b""
    for row in parts:
        described = reference_journal.read_part(row)
        for piece in reference_journal.own_pieces(described):
            raw = base[row["name"]][1].reshape(-1)[piece * ref.PIECE : (piece + 1) * ref.PIECE].tobytes()
            found += hashlib.sha256(raw).digest()[:16]
    return found


class Rank:
    """The two files of a rank."""

    def __init__(
        self, generation: int, rank: int, world: int, after: int | None, parts: list[dict[str, Any]], base: Rows
    ) -> None:
        self.parts, self.data, self.records = parts, digests(parts, base) if after is None else b"", 0
        self.name = f"{generation:04d}-{rank:05d}"
        document = {"generation": generation, "rank": rank, "world": world, "after": after, "tensors": parts}
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        head = struct.pack("<8sIIQI", b"RELEXJ\r\n", 1, len(text), len(self.data), zlib.crc32(self.data))
        self.crc = zlib.crc32(head + text)
        self.steps = head + struct.pack("<I", self.crc) + text

    def add(self, step: int, old: Rows, new: Rows, codec: int = 1, dense: bool = False) -> None:
        """Commit a step."""
        begin, index = len(self.data), b""
        for row in self.parts:
            before, after = (boxed(row, rows[row["name"]][1]) for rows in (old, new))
            section = struct.pack("<Q", len(self.data))
            for lo in range(0, len(before), CHUNK):
                made = blob(before[lo : lo + CHUNK], after[lo : lo + CHUNK], row["dtype"], codec, dense)
                section += struct.pack("<II", len(made), zlib.crc32(made))
                self.data += made
            index += section + struct.pack("<I", zlib.crc32(section))
        self.commit(step, begin, index)

    def commit(self, step: int, begin: int, index: bytes) -> None:
        """Write an index and a commit record."""
        at = len(self.data)
        self.data += index
        record = struct.pack("<QQQQI", step, begin, at, len(self.data), self.records)
        self.steps += record + struct.pack("<I", zlib.crc32(record, self.crc))
        self.records += 1

    def files(self) -> Files:
        """By their names."""
        return {f"{self.name}.steps": self.steps, f"{self.name}.data": self.data}


MARKER = json.dumps({"format": "relex-journal", "version": 1, "base": None}).encode() + b"\n"


def bf16(*values: int) -> tuple[str, Bits]:
    """A BF16 tensor of bits."""
    return "BF16", np.array(values, np.uint16)
