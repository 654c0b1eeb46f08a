"""What is in a valid vector, and how it becomes a file."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import reference_decoder as ref

from .chunks import Layout, Span
from .contents import Bits, codes, floats, pack, pieces_of, planes_of
from .exact_recipe import Exact
from .parts import Parts

PACKINGS = ["none", "float32", "ternary", "quinary", "nibble", "byte", "word"]
ZERO = {"ternary": 1, "quinary": 2, "nibble": 7, "byte": 127, "word": 32767}
AUTO = "auto"
Reads = list[tuple[float, str]]


@dataclass
class Direction:
    """A direction: line, coefficients, remainder (codes, f32 bits or None), factors (BF16 bits in the file's order)."""

    row: Sequence[float]
    packing: str = "ternary"
    remainder: Any = None
    scale: float = 0.0
    shift: float = 0.0
    rank: int = 0
    factors: Any = ()
    slope: float = 0.0
    intercept: float = 0.0

    def pieces(self) -> list[bytes]:
        """The pieces of the remainder, or their planes."""
        if self.packing == "none":
            return []
        if self.packing == "float32":
            return planes_of(np.asarray(self.remainder, "<u4"))
        return pack(self.remainder, PACKINGS.index(self.packing))


@dataclass
class Tensor:
    """A tensor; origin is where W0 lies: `base` or `stored`."""

    name: str
    dtype: str
    shape: Sequence[int]
    bits: Any = ()
    origin: str = "base"
    origin_dtype: str = ""
    directions: list[Direction] = field(default_factory=list)
    framed: bool = False
    shard: int = 0

    @property
    def n(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def kind(self) -> int:
        """Kind of the record."""
        return ref.MOVING if self.directions else ref.FRAMED if self.framed else ref.SAME


@dataclass
class Recipe:
    """A valid file: what is in it, and which reads are recorded."""

    steps: list[int]
    tensors: list[Tensor]
    reads: Reads
    observed: int = 0
    embedded: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    shards: list[str] = field(default_factory=lambda: ["model.safetensors"])
    indexed: bool = False
    growth: float | None = 0.05
    uri: str | None = None
    frames: Exact | None = None
    exact: bool = False
    """Whether the file offers tier `exact`."""
    change: Callable[[Parts], None] | None = None
    base_beside: bool = False
    """Whether a base is given although the file embeds it."""

    def base(self) -> bytes | None:
        """The base as a safetensors file, if reading the file needs one."""
        tensors = [tensor for tensor in self.tensors if tensor.origin == "base"]
        return safetensors(tensors) if tensors and (not self.embedded or self.base_beside) else None

    def build(self) -> bytes:
        """The file."""
        parts = self.parts()
        if self.frames is not None:
            self.frames.add(parts)
        if self.change is not None:
            self.change(parts)
        return parts.build()

    def parts(self) -> Parts:
        """The file in parts, but for what its change and its frames add."""
        directions, base = Layout(ref.DATA_DIRECTIONS), Layout(ref.DATA_BASE)
        held = [tensor.origin == "stored" or self.embedded for tensor in self.tensors]
        origins = [
            base.add(planes_of(tensor.bits) if held_here else [])
            for tensor, held_here in zip(self.tensors, held, strict=True)
        ]
        spans = [
            (directions.add(planes_of(np.asarray(d.factors, "<u2"))), directions.add(d.pieces(), pool_of(d)))
            for tensor in self.tensors
            for d in tensor.directions
        ]
        files = [base.add(cut(data), "text") for data in self.files.values()]
        chunks = directions.close(0)
        chunks += base.close(len(chunks))
        tensors, digests, count = b"", b"", 0
        for tensor, origin in zip(self.tensors, origins, strict=True):
            in_base = tensor.origin == "base"
            fields = (len(digests) // 16 if in_base else 0, origin.chunk, origin.offset, 0, bytes(8))
            first = count if tensor.directions else 0
            head = (tensor.kind, int(not in_base), len(tensor.directions), first)
            tensors += struct.pack("<BBHIIIII8s", *head, *fields)
            count += len(tensor.directions)
            for piece in pieces_of(tensor.bits) if in_base else ():
                digests += hashlib.sha256(piece.tobytes()).digest()[:16]
        rows = [d for tensor in self.tensors for d in tensor.directions]
        entries = {
            "relex.steps": struct.pack(f"<{len(self.steps)}q", *self.steps),
            "relex.manifest": b"",
            "relex.tensors": tensors,
            "relex.directions": b"".join(record(d, *own) for d, own in zip(rows, spans, strict=True)),
            "relex.digests": digests,
            "relex.chunks": b"",
            "relex.coefficients": b"".join(coefficients(d) for d in rows),
            ref.DATA_DIRECTIONS: b"",
            ref.DATA_BASE: b"",
        }
        return Parts({name: bytearray(raw) for name, raw in entries.items()}, self.manifest(files), chunks)

    def manifest(self, files: Sequence[Span]) -> dict[str, Any]:
        """The manifest; `files` are the spans of the embedded files."""
        return {
            "observed": self.observed or len(self.steps),
            "exact": self.exact,
            "base": {"uri": self.uri, "embedded": self.embedded},
            "quality": {"name": "default", "growth": self.growth},
            "tensors": [[t.name, t.dtype, list(t.shape), t.origin_dtype or t.dtype, t.shard] for t in self.tensors],
            "shards": self.shards,
            "indexed": self.indexed,
            "files": [
                [name, len(data), span.chunk, span.offset]
                for (name, data), span in zip(self.files.items(), files, strict=True)
            ],
        }


def cut(data: bytes) -> list[bytes]:
    """The pieces of an embedded file."""
    return [piece.tobytes() for piece in pieces_of(np.frombuffer(data, np.uint8))]


def pool_of(direction: Direction) -> str:
    """What the pieces of a remainder share chunks with."""
    return "planes" if direction.packing in ("float32", "word") else direction.packing


def coefficients(direction: Direction) -> bytes:
    """A row of coefficients."""
    return struct.pack(f"<{len(direction.row)}d", *direction.row)


def record(d: Direction, factors: Span, remainder: Span) -> bytes:
    """The record of a direction."""
    crc, informative = zlib.crc32(coefficients(d)), struct.pack("<4f", 0, math.nan, 0, 0)
    head = (d.slope, d.intercept, d.scale, d.shift, d.rank, PACKINGS.index(d.packing), 0)
    spans = (remainder.chunk, remainder.offset, crc, informative, factors.chunk, factors.offset)
    return struct.pack("<ddffHBBIII16sII", *head, *spans)


def safetensors(tensors: Sequence[Tensor]) -> bytes:
    """A safetensors file with the origins of tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        size = tensor.bits.nbytes
        dtype = tensor.origin_dtype or tensor.dtype
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, ensure_ascii=False).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(tensor.bits.tobytes() for tensor in tensors)


# ---- Common ingredients ----

LINE: dict[str, Any] = {"slope": 0.0009765625, "intercept": -0.0078125}
ROW = (0.125, -0.75, 1.0)
STEPS = [10, 20, 40]
READS: Reads = [(10, AUTO), (27.5, AUTO), (40, AUTO), (100, AUTO), (0, AUTO), (20, "line")]


def quantised(seed: str, n: int, packing: str, row: Sequence[float] = ROW, **more: Any) -> Direction:
    """A direction of codes."""
    z = ZERO[packing]
    options = {"scale": 0.01171875 / z, "shift": 0.001953125 / z, **LINE, **more}
    return Direction(row, packing, codes(seed, n, z), **options)


def factors(seed: str, shape: Sequence[int], rank: int) -> dict[str, Any]:
    """Factors of a tensor of this shape."""
    count = math.prod(shape[:-2]) * rank * (shape[-2] + shape[-1])
    return {"rank": rank, "factors": floats(seed, [count], "BF16", 0.125)}


def moving(name: str, dtype: str, shape: Sequence[int], packing: str, **more: Any) -> Tensor:
    """A tensor with one direction of codes; options of the tensor in `more`."""
    origin = more.get("origin_dtype", dtype)
    bits: Bits | None = more.pop("bits", None)
    bits = floats(name, shape, origin) if bits is None else bits
    return Tensor(name, dtype, shape, bits, directions=[quantised(name + " q", math.prod(shape), packing)], **more)


def exact_recipe(
    steps: list[int],
    tensors: list[Tensor],
    frames: Exact,
    reads: Sequence[tuple[float, str]] = ((0, AUTO),),
    framed: Sequence[str] = (),
    **more: Any,
) -> Recipe:
    """A file that offers tier `exact`, of which each stored step is read, and what `reads` says; `framed` are names."""
    for tensor in tensors:
        tensor.framed = tensor.name in framed
    every: Reads = [(t, "exact") for t in steps]
    return Recipe(steps, tensors, [*every, *reads], frames=frames, exact=True, **more)
