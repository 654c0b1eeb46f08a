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
    """A tensor; origin is where W0 lies: `base`, `stored`, or `tied`."""

    name: str
    dtype: str
    shape: Sequence[int]
    bits: Any = ()
    origin: str = "base"
    origin_dtype: str = ""
    directions: list[Direction] = field(default_factory=list)
    framed: bool = False
    shard: int = 0
    """Of the base, and of the step."""
    sources: list[Any] = field(default_factory=list)
    """As in the manifest, where it is not all of the base's tensor of the same name."""
    target: int = 0
    """Number of the tensor that a tied one is another name of."""

    @property
    def n(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def kind(self) -> int:
        """Kind of the record."""
        if self.origin == "tied":
            return ref.TIED
        return ref.MOVING if self.directions else ref.FRAMED if self.framed else ref.SAME

    def row(self) -> list[Any]:
        """Its row of the manifest."""
        origin = [self.origin_dtype or self.dtype, self.sources or [self.shard]] if self.origin == "base" else None
        return [self.name, self.dtype, list(self.shape), origin]


@dataclass
class Recipe:
    """A valid file: what is in it, and which reads are recorded."""

    steps: list[int]
    tensors: list[Tensor]
    reads: Reads
    observed: int = 0
    embedded: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    """Those that the file holds."""
    more_files: Sequence[tuple[str, bytes]] = ()
    """Further ones that it holds, whose names may be those of others."""
    base_files: dict[str, bytes] = field(default_factory=dict)
    """Those that only the base has, with a digest unless they are documents."""
    gone: Sequence[str] = ()
    """Documents of `base_files` that the base does not have any more."""
    base_tensors: list[Tensor] | None = None
    """What the base has, where that is not the tensors that start from it."""
    base_shards: list[str] | None = None
    """Names of the base's files, where those are not `shards`."""
    layouts: list[dict[str, Any]] = field(default_factory=list)
    """As in the manifest; default: one with all tensors and files."""
    rows: list[list[Any]] = field(default_factory=list)
    """Directory and layout of each step, as in the manifest; default: null and the first one."""
    left_out: list[Any] = field(default_factory=list)
    errors: Sequence[float] = ()
    norms: Sequence[float] = ()
    checkpoints: bool = False
    """Whether what each read step is made of is recorded too."""
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
        tensors = list({tensor.name: tensor for tensor in self.tensors if tensor.origin == "base"}.values())
        tensors = tensors if self.base_tensors is None else self.base_tensors
        return safetensors(tensors) if tensors and (not self.embedded or self.base_beside) else None

    def stored(self) -> list[tuple[str, bytes]]:
        """The files that the file holds."""
        return [*self.files.items(), *self.more_files]

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
        held = [t.origin == "stored" or (self.embedded and t.origin == "base") for t in self.tensors]
        origins = [
            base.add(planes_of(tensor.bits) if held_here else [])
            for tensor, held_here in zip(self.tensors, held, strict=True)
        ]
        spans = [
            (directions.add(planes_of(np.asarray(d.factors, "<u2"))), directions.add(d.pieces(), pool_of(d)))
            for tensor in self.tensors
            for d in tensor.directions
        ]
        files = [base.add(cut(data), "text") for _, data in self.stored()]
        chunks = directions.close(0)
        chunks += base.close(len(chunks))
        tensors, digests, count = b"", b"", 0
        for tensor, origin in zip(self.tensors, origins, strict=True):
            in_base = tensor.origin == "base"
            fields = (len(digests) // 16 if in_base else 0, origin.chunk, origin.offset, 0, bytes(8))
            first = count if tensor.directions else 0
            first = tensor.target if tensor.origin == "tied" else first
            head = (tensor.kind, int(tensor.origin == "stored"), len(tensor.directions), first)
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
            "relex.errors": figures("f", self.errors, 2 * len(self.steps)),
            "relex.norms": figures("d", self.norms, len(self.tensors) + len(rows)),
            ref.DATA_DIRECTIONS: b"",
            ref.DATA_BASE: b"",
        }
        return Parts({name: bytearray(raw) for name, raw in entries.items()}, self.manifest(files), chunks)

    def manifest(self, files: Sequence[Span]) -> dict[str, Any]:
        """The manifest; `files` are the spans of the files that are stored."""
        shards = self.shards if self.base_shards is None else self.base_shards
        listed = [
            [name, len(data), half_digest(data), span.chunk, span.offset]
            for (name, data), span in zip(self.stored(), files, strict=True)
        ]
        for name, data in self.base_files.items():
            digest = None if name.lower() in ref.LICENCES or name.lower().endswith(".md") else half_digest(data)
            listed.append([name, len(data), digest, None, None])
        places = [tensor.shard for tensor in self.tensors]
        every = {"shards": self.shards, "indexed": self.indexed, "tensors": places, "files": list(range(len(listed)))}
        rows = self.rows or [[None, 0] for _ in self.steps]
        observed = self.observed or len(self.steps)
        return {
            "observed": observed,
            "exact": self.exact,
            "base": {"uri": self.uri, "embedded": self.embedded, "shards": shards},
            "quality": {"name": "default", "growth": self.growth},
            "tensors": [tensor.row() for tensor in self.tensors],
            "files": listed,
            "layouts": self.layouts or [every],
            "layout": rows[observed - 1][1],
            "steps": rows,
            "left_out": self.left_out,
        }


def half_digest(data: bytes) -> str:
    """The digest of a file."""
    return hashlib.sha256(data).hexdigest()[:32]


def figures(form: str, values: Sequence[float], count: int) -> bytes:
    """Numbers that are informative: NaN, if there are none."""
    return struct.pack(f"<{count}{form}", *(values or [math.nan] * count))


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
