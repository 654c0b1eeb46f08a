"""Plain implementations that the tests compare with, and a plain reader of `.relex` tables; nothing of the package.

Everything is whole arrays in float64 or float32, written after FORMAT.md and the definitions in it.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

Array = np.ndarray[Any, Any]
PIECE = 1 << 18
MAGIC = b"RELEX\r\n\x1a"
COVERED_ELSEWHERE = ("relex.coefficients", "relex.data.directions", "relex.data.base", "relex.data.frames")
FRAME_ENTRIES = ("relex.exact.segments", "relex.exact.frames", "relex.data.frames")


def manifest_text(entry: bytes) -> bytes:
    """Return the JSON of a manifest that may be packed."""
    return zstandard.ZstdDecompressor().decompress(entry[4 : len(entry) - entry[1]]) if entry[0] == 0 else entry


def widen(dtype: str, bits: Array) -> Array:
    """Return float32 values of the bits of a float tensor."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) * np.uint32(65536)).view(np.float32)
    return bits.view(np.float16).astype(np.float32) if dtype == "F16" else bits.view(np.float32)


def narrow(dtype: str, values: Array) -> Array:
    """Return the bits of float32 values rounded to nearest even; NaNs become the one of FORMAT.md section 8."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return np.where(np.isnan(values), np.uint16(0x7E00), values.astype(np.float16).view(np.uint16))
    if dtype == "F32":
        return np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))
    wide = values.view(np.uint32).astype(np.int64)
    high, low = wide >> 16, wide & 0xFFFF
    high += (low > 0x8000) | ((low == 0x8000) & (high & 1 == 1))
    return np.where(np.isnan(values), 0x7FC0, high).astype(np.uint16)


def deltas(dtype: str, steps: list[Array], origin_dtype: str, origin: Array) -> Array:
    """Return the float64 [T, d] matrix of differences of float32 values."""
    start = widen(origin_dtype, origin).reshape(-1)
    return np.array([widen(dtype, bits).reshape(-1) - start for bits in steps]).astype(np.float64)


def fit(delta: Array, steps: list[int], observed: int, rank: int = 1) -> tuple[Array, Array, list[tuple[float, float]]]:
    """Return directions [k, d], coefficients [k, T] and (slope, intercept) of each, all in float64.

    A full singular value decomposition of the observed deltas, and ordinary least squares; the line rises.
    """
    _, _, right = np.linalg.svd(delta[:observed], full_matrices=False)
    vectors = right[:rank]
    coefficients = vectors @ delta.T
    lines = []
    for j in range(len(vectors)):
        t, c = np.array(steps[:observed], np.float64), coefficients[j, :observed]
        design = np.stack([t, np.ones_like(t)], axis=1)
        slope, intercept = np.linalg.lstsq(design, c, rcond=None)[0]
        if slope < 0:
            vectors[j], coefficients[j], slope, intercept = -vectors[j], -coefficients[j], -slope, -intercept
        lines.append((float(slope), float(intercept)))
    return vectors, coefficients, lines


def track(steps: list[int], row: Array, t: float) -> np.float32:
    """Return g of tier ``track``."""
    for i, step in enumerate(steps):
        if step == t:
            return np.float32(row[i])
        if step > t:
            low, high = float(steps[i - 1]), float(step)
            a, b = float(row[i - 1]), float(row[i])
            return np.float32(a + (b - a) * ((float(t) - low) / (high - low)))
    raise AssertionError(t)


def read_safetensors(path: Path | str) -> tuple[dict[str, tuple[str, Array]], dict[str, str] | None]:
    """Return the tensors of a safetensors file as (dtype, bits), in file order, and its metadata."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        lo, hi = (8 + length + x for x in entry["data_offsets"])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        width = (hi - lo) // count if count else 1
        tensors[name] = entry["dtype"], np.frombuffer(data[lo:hi], f"<u{width}").reshape(entry["shape"])
    return tensors, metadata


@dataclass
class Direction:
    """A direction record of FORMAT.md section 5."""

    slope: float
    intercept: float
    scale: float
    shift: float
    rank: int
    packing: int
    chunk: int
    offset: int
    crc: int
    explained: float
    r2: float
    error_line: float
    error_stored: float
    factor_chunk: int
    factor_offset: int


class File:
    """The entries of a `.relex` file as bytes, its manifest and records; for files that are known to be good."""

    def __init__(self, path: Path | str) -> None:
        self.data = Path(path).read_bytes()
        (length,) = struct.unpack_from("<Q", self.data)
        header = json.loads(self.data[8 : 8 + length])
        self.metadata = header.pop("__metadata__")
        self.shapes = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
        self.places = {name: tuple(8 + length + x for x in e["data_offsets"]) for name, e in header.items()}
        self.entries = {name: self.data[lo:hi] for name, (lo, hi) in self.places.items()}
        self.manifest = json.loads(manifest_text(self.entries["relex.manifest"]))
        self.steps = [x[0] for x in struct.iter_unpack("<q", self.entries["relex.steps"])]
        self.names = [tensor[0] for tensor in self.manifest["tensors"]]
        # kind, origin, k, first, digest, chunk, offset, segment
        self.tensors = [x[:8] for x in struct.iter_unpack("<BBHIIIII8s", self.entries["relex.tensors"])]
        self.directions = [
            Direction(*x[:6], *x[7:]) for x in struct.iter_unpack("<ddffHBBIIIffffII", self.entries["relex.directions"])
        ]
        # position, stored, raw, crc, codec, fill
        self.chunks = [x[:6] for x in struct.iter_unpack("<QIIIBB2s", self.entries["relex.chunks"])]
        rows = np.frombuffer(self.entries["relex.coefficients"], "<f8")
        self.coefficients = rows.reshape(-1, len(self.steps))

    def kind(self, name: str) -> tuple[int, int]:
        """Return kind and origin of a tensor."""
        return self.tensors[self.names.index(name)][:2]

    def numbers(self, name: str) -> range:
        """Return the numbers of a tensor's directions."""
        _, _, k, first = self.tensors[self.names.index(name)][:4]
        return range(first, first + k)

    def chunk(self, number: int) -> bytes:
        """Return the raw bytes of a chunk."""
        position, stored, raw, _, codec, fill = self.chunks[number]
        data = self.data[position : position + stored]
        if codec < 2:
            return zstandard.ZstdDecompressor().decompress(data) if codec else data
        end = 4 + int.from_bytes(data[:4], "little")
        flags = zstandard.ZstdDecompressor().decompress(data[4:end])
        rest = iter(zstandard.ZstdDecompressor().decompress(data[end:]) if data[end:] else b"")
        return bytes(next(rest) if flags[i // 8] >> (i % 8) & 1 else fill for i in range(raw))

    def planes(self, chunk: int, offset: int, count: int, width: int) -> Array:
        """Return a stream of elements of `width` bytes that lies in planes, as unsigned integers."""
        parts = []
        raw = self.chunk(chunk) if count else b""
        for lo in range(0, count, PIECE):
            found = []
            for _ in range(width):
                length = min(PIECE, count - lo)
                if offset == len(raw):
                    chunk, offset = chunk + 1, 0
                    raw = self.chunk(chunk)
                found.append(np.frombuffer(raw[offset : offset + length], np.uint8))
                offset += length
            parts.append(np.stack(found, axis=1).copy().view(f"<u{width}").reshape(-1))
        return np.concatenate(parts)

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor."""
        return list(self.manifest["tensors"][self.names.index(name)][2])

    def raw_vector(self, name: str, j: int = 0) -> Array:
        """Return a direction that is stored as float32, flat."""
        record = self.directions[self.numbers(name)[j]]
        assert (record.packing, record.rank) == (1, 0)
        size = int(np.prod(self.shape(name), dtype=np.int64))
        return self.planes(record.chunk, record.offset, size, 4).view(np.float32)

    def factor_values(self, name: str, j: int = 0) -> Array:
        """Return the factors of a direction, float32, in the order of FORMAT.md section 7."""
        record, shape = self.directions[self.numbers(name)[j]], self.shape(name)
        count = int(np.prod(shape[:-2], dtype=np.int64)) * record.rank * (shape[-2] + shape[-1])
        return widen("BF16", self.planes(record.factor_chunk, record.factor_offset, count, 2))

    def rebuilt(self, changes: dict[str, bytes], shapes: dict[str, list[int]] | None = None) -> bytes:
        """Return the file with other bytes in some entries, and header, root and checksums made to fit.

        Positions in the tables are moved with the data. Only what an attacker could do too.
        """
        entries = {**self.entries, **changes, "relex.root": bytes(40 + 8 * (len(self.shapes) - 1))}
        at, listing = 0, {}
        for name, (dtype, shape) in self.shapes.items():
            shape = (shapes or {}).get(name) or ([len(entries[name])] if dtype == "U8" and len(shape) == 1 else shape)
            listing[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(entries[name])]}
            at += len(entries[name])
        text = json.dumps({"__metadata__": self.metadata, **listing}).encode()
        text += b" " * (-len(text) % 8)
        head = struct.pack("<Q", len(text)) + text
        if "relex.chunks" not in changes:
            entries["relex.chunks"] = self._shift(len(head) + listing["relex.data.directions"]["data_offsets"][0])
        for name, field, size in (("relex.exact.segments", 24, 48), ("relex.exact.frames", 0, 24)):
            if name in listing and name not in changes:
                start = len(head) + listing["relex.data.frames"]["data_offsets"][0]
                records = np.frombuffer(entries[name], np.uint8).reshape(-1, size).copy()
                positions = records[:, field : field + 8].view("<u8")
                positions += np.uint64((start - self.places["relex.data.frames"][0]) % 2**64)
                entries[name] = records.tobytes()
        total = len(head) + at
        names = [name for name in self.shapes if name != "relex.root"]
        body = struct.pack("<8sIIQII", MAGIC, 1, zlib.crc32(head), total, len(names), 0)
        for name in names:
            elsewhere = name in COVERED_ELSEWHERE
            body += struct.pack("<IB3x", 0 if elsewhere else zlib.crc32(entries[name]), elsewhere)
        entries["relex.root"] = body + struct.pack("<II", zlib.crc32(body), 0)
        return head + b"".join(entries[name] for name in self.shapes)

    def _shift(self, start: int) -> bytes:
        first = self.places["relex.data.directions"][0]
        records = []
        for position, *others in self.chunks:
            records.append(struct.pack("<QIIIBB2x", position - first + start, *others))
        return b"".join(records)
