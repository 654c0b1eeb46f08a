"""A file made by hand after FORMAT.md, in plain Python, whose parts can be changed."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard

from support.specification import ref


def pack(codes: list[int], packing: int) -> bytes:
    """Blocks of section 7, in plain Python."""
    if packing == 6:
        digits = [q + 32767 for q in codes]
        return bytes(d & 255 for d in digits) + bytes(d >> 8 for d in digits)
    k, radix, z = {2: (5, 3, 1), 3: (3, 5, 2), 4: (2, 16, 7), 5: (1, 256, 127)}[packing]
    out = bytearray()
    for start in range(0, len(codes), 4096 * k):
        digits = [q + z for q in codes[start : start + 4096 * k]]
        p = math.ceil(len(digits) / k)
        digits += [z] * (p * k - len(digits))
        out += bytes(sum(radix**j * digits[j * p + i] for j in range(k)) for i in range(p))
    return bytes(out)


W0 = np.array([1.0, -2.0, 0.5, 3.0, 0.0, -1.0], np.float32)  # the origin of "w", BF16 [2, 3]
CODES = [1, 0, -1, 1, 1, -1]
FACTORS = ([2.0, -1.0], [0.5, 1.0, 0.25])
SCALE, SHIFT, SLOPE, INTERCEPT, ROW = 0.5, 0.125, 0.25, 1.0, (1.5, 3.0)


def bf16(values: Any) -> bytes:
    """BF16 values that need no rounding."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()


def to_planes(raw: bytes, width: int) -> bytes:
    """Lowest bytes first, then the next ones."""
    return b"".join(raw[i::width] for i in range(width))


def filled(raw: bytes, fill: int) -> bytes:
    """A chunk of codec 2, in plain Python."""
    flags = bytearray(-(-len(raw) // 8))
    for i, byte in enumerate(raw):
        flags[i // 8] |= (byte != fill) << (i % 8)
    frame = zstandard.compress(bytes(flags))
    different = bytes(byte for byte in raw if byte != fill)
    return struct.pack("<I", len(frame)) + frame + (zstandard.compress(different) if different else b"")


def half_digest(content: bytes) -> str:
    """The digest of a file."""
    return hashlib.sha256(content).hexdigest()[:32]


class Builder:
    """A file with a `moving` tensor, a `same` and a `framed` one; change its parts, then build."""

    def __init__(self, embedded: bool = False) -> None:
        """The parts of a good file."""
        self.metadata = {"format": "relex", "relex_version": "1", "producer": "x", "reader": "0.1", "requires": ""}
        self.version, self.steps = 1, [10, 20]
        self.manifest: dict[str, Any] = {
            "observed": 2,
            "exact": False,
            "base": {"uri": None, "embedded": embedded, "shards": ["model.safetensors"]},
            "quality": {"name": "default", "growth": 0.05},
            "tensors": [
                ["w", "BF16", [2, 3], ["BF16", [0]]],
                ["same", "I64", [2], ["I64", [0]]],
                ["framed", "U8", [3], None],
            ],
            "files": [["config.json", 2, half_digest(b"{}"), 1, 31]] if embedded else [],
            "layouts": [
                {
                    "shards": ["model.safetensors"],
                    "indexed": False,
                    "tensors": [0, 0, 0],
                    "files": [0] if embedded else [],
                }
            ],
            "layout": 0,
            "steps": [[None, 0], [None, 0]],
            "left_out": [],
        }
        self.integers = struct.pack("<2q", 7, -7)
        base = to_planes(bf16(W0), 2) + to_planes(self.integers, 8) if embedded else b""
        self.tensors: list[tuple[Any, ...]] = [
            (1, 0, 1, 0, 0, int(embedded), 0, 0, bytes(8)),
            (0, 0, 0, 0, 1, int(embedded), 12 * embedded, 0, bytes(8)),
            (2, 1, 0, 0, 0, 1, len(base), 1, bytes(8)),
        ]
        crc = zlib.crc32(struct.pack("<2d", *ROW))
        self.directions: list[tuple[Any, ...]] = [
            (SLOPE, INTERCEPT, SCALE, SHIFT, 1, 2, 0, 0, 10, crc, bytes(16), 0, 0)
        ]
        self.row = ROW
        self.digests = [hashlib.sha256(raw).digest()[:16] for raw in (bf16(W0), self.integers)]
        direction = to_planes(bf16([*FACTORS[0], *FACTORS[1]]), 2) + pack(CODES, 2)
        self.raw = [direction, base + b"abc" + (b"{}" if embedded else b"")]
        self.codecs = [1, 0]
        self.fill = 0
        self.framed, self.width = (b"abc", b"abd", b"xyz"), 1  # at step 0 of the segment and at both steps
        self.chunk_changes: Callable[[int, list[Any]], list[Any]] = lambda i, row: row
        self.coverage: Callable[[str, int], int] = lambda name, value: value
        self.extra: dict[str, tuple[str, list[int], bytes]] = {}

    def frames(self, position: int) -> tuple[bytes, bytes, bytes]:
        """One segment of one group, in coding 1; its data begin at a position. Empty without framed tensors."""
        if not self.framed:
            return b"", b"", b""
        blobs = [zstandard.compress(bytes([0, 0, 0]) + b"\xff" * 1075)]  # one table set, without tables
        for bits in (self.framed[2], self.framed[1]):
            moved = bytes(a ^ b for a, b in zip(bits, self.framed[0], strict=True))
            stream = zstandard.compress(to_planes(moved, self.width))
            assert len(stream) < 63
            blobs.append(hashlib.sha256(bits).digest()[:8] + bytes([2 * len(stream) + 1]) + stream)
        blocks = [struct.pack("<QI", 12 + len(blob), zlib.crc32(blob)) + blob for blob in blobs]
        at = [position, position + len(blocks[0]), position + len(blocks[0] + blocks[1])]
        segment = struct.pack("<6IQQ8x", 0, 2, 0, 1, 1, 9, at[0], len(blocks[0]))
        records = [struct.pack("<QQ8x", at[i], len(blocks[i])) for i in (2, 1)]
        return segment, b"".join(records), b"".join(blocks)

    def build(self) -> bytes:
        """The file."""
        coders: list[Callable[[bytes], bytes]] = [bytes, zstandard.compress, lambda raw: filled(raw, self.fill)]
        stored = [coders[codec](raw) for raw, codec in zip(self.raw, self.codecs, strict=False)]
        data = [stored[0], b"".join(stored[1:])]
        entries: dict[str, tuple[str, list[int], bytes]] = {
            "relex.steps": ("I64", [len(self.steps)], np.array(self.steps, "<i8").tobytes()),
            "relex.manifest": ("U8", [], json.dumps(self.manifest).encode() + b"  "),
            "relex.tensors": ("U8", [32], b"".join(struct.pack("<BBHIIIII8s", *row) for row in self.tensors)),
            "relex.directions": (
                "U8",
                [64],
                b"".join(struct.pack("<ddffHBBIII16sII", *row) for row in self.directions),
            ),
            "relex.digests": ("U8", [16], b"".join(self.digests)),
            "relex.chunks": ("U8", [24], bytes(24 * len(stored))),
            "relex.coefficients": ("F64", [len(self.steps)], struct.pack(f"<{len(self.row)}d", *self.row)),
            "relex.errors": ("F32", [len(self.steps)], struct.pack("<4f", *([math.nan] * 4))),
            "relex.norms": ("F64", [], struct.pack("<4d", *([math.nan] * 4))),
            **{name: ("U8", [], raw) for name, raw in zip(ref.DATA, data, strict=True)},
        }
        tails = {name: [width] if (width := ref.EXACT_TABLES.get(name)) else [] for name in ref.EXACT}
        if self.framed:
            frames = zip(ref.EXACT, self.frames(0), strict=True)
            entries |= {name: ("U8", tails[name], raw) for name, raw in frames}
        entries |= self.extra
        header: dict[str, Any] = {"__metadata__": self.metadata}
        root_length = 40 + 8 * len(entries)
        header["relex.root"] = {"dtype": "U8", "shape": [root_length], "data_offsets": [0, root_length]}
        at = root_length
        for name, (dtype, tail, raw) in entries.items():
            rows = len(raw) // (math.prod(tail) * ref.WIDTH[dtype])
            header[name] = {"dtype": dtype, "shape": [rows, *tail], "data_offsets": [at, at + len(raw)]}
            if name in ("relex.steps",):
                header[name]["shape"] = [rows * tail[0]]
            at += len(raw)
        text = json.dumps(header).encode()
        starts = {name: 8 + len(text) + header[name]["data_offsets"][0] for name in entries}
        position = starts[ref.DATA_DIRECTIONS]
        for name, raw in zip(ref.EXACT, self.frames(starts.get(ref.DATA_FRAMES, 0)), strict=True):
            if name in entries:
                entries[name] = ("U8", tails[name], raw)
        records = []
        for i, raw in enumerate(stored):
            fill = self.fill if self.codecs[i] == 2 else 0
            row = [position, len(raw), len(self.raw[i]), zlib.crc32(raw), self.codecs[i], fill, bytes(2)]
            records.append(struct.pack("<QIIIBB2s", *self.chunk_changes(i, row)))
            position += len(raw)
        entries["relex.chunks"] = ("U8", [24], b"".join(records))
        head = struct.pack("<Q", len(text)) + text
        root = struct.pack(
            "<8sIIQII", b"RELEX\r\n\x1a", self.version, zlib.crc32(head), len(head) + at, len(entries), 0
        )
        for name, (_, _, raw) in entries.items():
            coverage = self.coverage(name, int(name.startswith("relex.data") or name == "relex.coefficients"))
            root += struct.pack("<IB3s", 0 if coverage else zlib.crc32(raw), coverage, bytes(3))
        root += struct.pack("<II", zlib.crc32(root), 0)
        return head + root + b"".join(raw for _, _, raw in entries.values())


def base_of(name: str) -> tuple[str, list[int], bytes]:
    """The base of the file made by hand."""
    return {"w": ("BF16", [2, 3], bf16(W0)), "same": ("I64", [2], struct.pack("<2q", 7, -7))}[name]


def expected(g: float) -> bytes:
    """The tensor "w", by hand."""
    a, b = FACTORS
    out = []
    for i, (w, q) in enumerate(zip(W0, CODES, strict=True)):
        p = np.float32(a[i // 3] * b[i % 3]) + np.float32(q * SCALE - math.copysign(SHIFT, q) * (q != 0))
        out.append(np.float32(w) + p * np.float32(g))
    return bytes(ref.narrow(np.array(out, np.float32), "BF16"))
