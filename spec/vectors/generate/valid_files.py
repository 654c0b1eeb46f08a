"""Makes the files of `vectors/`: valid ones with what decoding gives, invalid ones with the error that they call for.

    python spec/make_vectors.py [DIRECTORY]

Valid files are laid out by the package's writer from tables that are made here, and their contents are computed by the
reference decoder. Invalid files are valid ones with one rule broken and all checksums that are not meant right again.
Everything comes from names through SHAKE-256, so that the same zstandard gives the same bytes anywhere. The files with
the exact tier are in make_exact_vectors.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import math
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from relex_codec.format import constants as layout
from relex_codec.format.index import Span
from relex_codec.format.manifest import FileEntry, Manifest, TensorEntry
from relex_codec.format.packing import pack_codes, packed_size, piece_lengths, split_planes
from relex_codec.format.writer import FileWriter, PendingSpan, Tables


def script(name: str) -> ModuleType:
    """A script beside this one, which belongs to no package."""
    full = f"relex_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


ref = script("reference_decoder")
Bits = npt.NDArray[Any]

# ---- Contents ----


def noise(seed: str, n: int) -> npt.NDArray[np.int64]:
    """n integers from 0 to 65535."""
    return np.frombuffer(hashlib.shake_256(seed.encode()).digest(2 * n), "<u2").astype(np.int64)


def codes(seed: str, n: int, z: int) -> npt.NDArray[np.int32]:
    """n codes of all sizes, many of them 0."""
    q = noise(seed, n) % (2 * z + 1) - z
    q[noise(seed + " zeros", n) % 3 == 0] = 0
    return q.astype(np.int32)


def floats(seed: str, shape: Sequence[int], dtype: str, scale: float = 1.0) -> Bits:
    """Bits of values between -scale and scale."""
    values = ((noise(seed, math.prod(shape)) - 32768) / 32768 * scale).astype(np.float32)
    return from_floats(values, dtype)


def from_floats(values: Any, dtype: str) -> Bits:
    """Bits of f32 values in a float dtype."""
    raw = ref.narrow(np.asarray(values, np.float32).reshape(-1), dtype)
    return np.frombuffer(raw, f"<u{ref.WIDTH[dtype]}")


def integers(values: Any, dtype: str) -> Bits:
    """Bits of integers in an integer dtype."""
    width = ref.WIDTH[dtype]
    return np.asarray(values, f"<i{width}").reshape(-1).view(f"<u{width}")


@dataclass
class Direction:
    """A direction: line, coefficients, remainder (codes, f32 bits or None) and factors (BF16 bits in stream order)."""

    row: Sequence[float]
    packing: str = "ternary"
    remainder: Any = None
    step: float = 0.0
    shift: float = 0.0
    rank: int = 0
    factors: Any = ()
    slope: float = 0.0
    intercept: float = 0.0


@dataclass
class Tensor:
    """A tensor; origin is where W0 lies: `base`, `stored` or `none`."""

    name: str
    dtype: str
    shape: Sequence[int]
    bits: Any = ()
    origin: str = "base"
    origin_dtype: str = ""
    directions: list[Direction] = field(default_factory=list)
    series: list[Bits] = field(default_factory=list)
    shard: int = 0

    @property
    def n(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def kind(self) -> int:
        """Kind of the record."""
        return layout.MOVING if self.directions else layout.EXACT_SERIES if self.series else layout.SAME


def pieces_of(bits: Bits) -> Iterator[Bits]:
    """The pieces of a stream."""
    return (bits[at : at + layout.PIECE] for at in range(0, len(bits), layout.PIECE))


def planes_of(bits: Bits) -> list[npt.NDArray[np.uint8]]:
    """The planes of all pieces of a stream."""
    return [plane for piece in pieces_of(bits) for plane in split_planes(piece)]


@dataclass
class Recipe:
    """A valid file: what is in it, and which reads are recorded."""

    steps: list[int]
    tensors: list[Tensor]
    reads: list[tuple[float, str]]
    observed: int = 0
    embedded: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    shards: list[str] = field(default_factory=lambda: ["model.safetensors"])
    indexed: bool = False
    growth: float | None = 0.05
    uri: str | None = None
    change: Callable[[Parts], None] | None = None
    expected: dict[str, list[Bits]] = field(default_factory=dict)
    """Of tensors in the exact tier: the bits at the origin and at each step."""

    def base(self) -> bytes | None:
        """The base as a safetensors file, if the file needs one."""
        tensors = [tensor for tensor in self.tensors if tensor.origin == "base"]
        return None if self.embedded or not tensors else safetensors(tensors)

    def build(self) -> bytes:
        """The file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.relex"
            with FileWriter(path) as writer:
                pending = [self._store(writer, tensor) for tensor in self.tensors]
                files = {
                    name: writer.base.add(list(pieces_of(np.frombuffer(data, np.uint8))), len(data), match=True)
                    for name, data in self.files.items()
                }
                writer.close_chunks()
                writer.finish(self._tables(pending, files))
            parts = Parts(path.read_bytes())
        assert parts.build() == parts.source, "the writer and this script lay files out alike"
        parts.metadata["producer"] = "spec/make_vectors.py"
        if self.change is not None:
            self.change(parts)
        return parts.build()

    def _held(self, tensor: Tensor) -> bool:
        return tensor.origin == "stored" or (tensor.origin == "base" and self.embedded)

    def _store(self, writer: FileWriter, tensor: Tensor) -> dict[str, Any]:
        spans: dict[str, Any] = {"directions": [], "series": {}}
        if self._held(tensor):
            spans["origin"] = writer.base.add(planes_of(tensor.bits), tensor.bits.nbytes)
        for direction in tensor.directions:
            packing = next(packing for packing in layout.PACKINGS if packing.name == direction.packing)
            factors = np.asarray(direction.factors, "<u2")
            raw: list[npt.NDArray[np.uint8]] = []
            for piece in pieces_of(np.asarray(direction.remainder)) if packing is not layout.NONE else ():
                if packing is layout.FLOAT32:
                    raw += split_planes(piece)
                else:
                    raw += list(pack_codes(piece, packing).reshape(packing.planes, -1))
            assert sum(map(len, raw)) == packing.planes * sum(packed_size(n, packing) for n in piece_lengths(tensor.n))
            pool = packing.name if packing.per_byte else "planes"
            spans["directions"].append(
                (
                    writer.directions.add(planes_of(factors), factors.nbytes),
                    writer.directions.add(raw, sum(map(len, raw)), pool),
                )
            )
        for bits in tensor.series:  # equal steps share a span
            key = bits.tobytes()
            if key not in spans["series"]:
                spans["series"][key] = writer.exact.add(planes_of(bits), bits.nbytes, match=True)
        return spans

    def _tables(self, pending: list[dict[str, Any]], files: dict[str, PendingSpan]) -> Tables:
        records = np.zeros(len(self.tensors), layout.TENSOR_RECORD)
        directions: list[Any] = []
        series: list[Span] = []
        digests: list[bytes] = []
        rows: list[Sequence[float]] = []
        for record, tensor, spans in zip(records, self.tensors, pending, strict=True):
            in_base = tensor.origin == "base"
            record["kind"], record["directions"] = tensor.kind, len(tensor.directions)
            record["origin"] = ["base", "stored", "none"].index(tensor.origin)
            record["first"] = [0, len(directions), len(series)][tensor.kind]
            record["digest"] = len(digests) if in_base else 0
            if self._held(tensor):
                record["chunk"], record["offset"] = spans["origin"].resolved()
            if in_base:
                digests += [hashlib.sha256(piece.tobytes()).digest()[:16] for piece in pieces_of(tensor.bits)]
            series += [spans["series"][bits.tobytes()].resolved() for bits in tensor.series]
            for direction, (factors, remainder) in zip(tensor.directions, spans["directions"], strict=True):
                row = np.zeros((), layout.DIRECTION_RECORD)
                row["slope"], row["intercept"] = direction.slope, direction.intercept
                row["step"], row["shift"], row["rank"] = direction.step, direction.shift, direction.rank
                row["packing"] = [packing.name for packing in layout.PACKINGS].index(direction.packing)
                row["chunk"], row["offset"] = remainder.resolved()
                row["factor_chunk"], row["factor_offset"] = factors.resolved()
                row["coefficients_crc"] = zlib.crc32(np.array(direction.row, "<f8").tobytes())
                row["r2"] = np.nan
                directions.append(row)
                rows.append(direction.row)
        manifest = Manifest(
            self.observed or len(self.steps), self.uri, self.embedded, "default", self.growth,
            [TensorEntry(t.name, t.dtype, tuple(t.shape), t.origin_dtype or t.dtype, t.shard) for t in self.tensors],
            self.shards, self.indexed,
            [FileEntry(name, len(data), *files[name].resolved()) for name, data in self.files.items()],
        )  # fmt: skip
        return Tables(
            steps=np.array(self.steps, np.int64),
            manifest=manifest,
            tensors=records,
            directions=np.array(directions, layout.DIRECTION_RECORD),
            series=np.array(series, layout.SPAN_RECORD),
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16),
            coefficients=np.array(rows, np.float64).reshape(-1, len(self.steps)),
        )


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


# ---- A file in parts that can be changed ----


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


def align(text: str) -> bytes:
    """JSON, with spaces up to a multiple of 8."""
    raw = text.encode("utf-8", "surrogatepass")
    return raw + b" " * (-len(raw) % 8)


class Parts:
    """A file taken apart; `build` puts it together with right checksums, lengths and positions."""

    def __init__(self, source: bytes) -> None:
        """Take a valid file apart."""
        self.source = source
        file = ref.RelexFile(source)
        end = ref.header_length(source, 1 << 25)
        self.metadata: dict[str, str] = json.loads(source[8:end])["__metadata__"]
        self.entries = {name: bytearray(file.bytes_of(name)) for name in file.entries if name != "relex.root"}
        self.dtypes = {name: entry.dtype for name, entry in file.entries.items()}
        self.manifest: dict[str, Any] = json.loads(self.entries["relex.manifest"])
        self.chunks = [
            Chunk(name, source[c.position : c.position + c.stored], c.raw, c.codec, c.fill)
            for name in ref.DATA
            for c in (file.chunks[i] for i in file.chunks_of[name])
        ]
        self.raw = [ref.read_chunk(file, i) for i in range(len(self.chunks))]
        self.tier = script("exact_encoder").parse(file) if file.exact else None
        self.version = 1
        self.coverage: dict[str, int] = {}
        self.text: bytes | None = None  # of the manifest, instead of `manifest`
        self.edit_header: Callable[[dict[str, Any]], Any] = lambda header: None
        self.edit_text: Callable[[bytes], bytes] = lambda text: text
        self.edit_root: Callable[[bytearray], Any] = lambda root: None

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
        return [size // ref.WIDTH[self.dtypes[name]]]

    def build(self) -> bytes:
        """The file."""
        entries = self.entries
        text = json.dumps(self.manifest, separators=(",", ":"), ensure_ascii=False)
        entries["relex.manifest"][:] = align(text) if self.text is None else self.text
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
        head = self.edit_text(align(json.dumps(header, separators=(",", ":"), ensure_ascii=False)))
        head = struct.pack("<Q", len(head)) + head
        self._place(len(head) + size)
        fields = (layout.MAGIC, self.version, zlib.crc32(head), len(head) + at, len(names), 0)
        root = bytearray(struct.pack("<8sIIQII", *fields))
        for name in names:
            coverage = self.coverage.get(name, int(name in layout.COVERED_ELSEWHERE))
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
        """Write the entries of the exact tier, those that there are; the blocks begin at byte `at` of the file."""
        for name, raw in {} if self.tier is None else self.tier.entries(at).items():
            if name in self.entries:
                self.entries[name][:] = raw


# ---- Valid files ----

AUTO = "auto"
LINE: dict[str, Any] = {"slope": 0.0009765625, "intercept": -0.0078125}
ROW = (0.125, -0.75, 1.0)
STEPS = [10, 20, 40]
READS: list[tuple[float, str]] = [(10, AUTO), (27.5, AUTO), (40, AUTO), (100, AUTO), (0, AUTO), (20, "line")]


def quantised(seed: str, n: int, packing: str, row: Sequence[float] = ROW, **more: Any) -> Direction:
    """A direction of codes."""
    z = next(p.zero for p in layout.PACKINGS if p.name == packing)
    options = {"step": 0.01171875 / z, "shift": 0.001953125 / z, **LINE, **more}
    return Direction(row, packing, codes(seed, n, z), **options)


def factors(seed: str, shape: Sequence[int], rank: int) -> dict[str, Any]:
    """Factors of a tensor of this shape."""
    count = math.prod(shape[:-2]) * rank * (shape[-2] + shape[-1])
    return {"rank": rank, "factors": floats(seed, [count], "BF16", 0.125)}


def moving(name: str, dtype: str, shape: Sequence[int], packing: str, **more: Any) -> Tensor:
    """A tensor with one direction of codes; options of the tensor in `more`."""
    origin = more.get("origin_dtype", dtype)
    bits = more.pop("bits", None)
    bits = floats(name, shape, origin) if bits is None else bits
    return Tensor(name, dtype, shape, bits, directions=[quantised(name + " q", math.prod(shape), packing)], **more)


def minimal() -> Recipe:
    """One BF16 tensor of shape [2, 3] in the base, one ternary direction: the file of the appendix."""
    direction = Direction([0.3, 1.5], "ternary", np.array([1, 0, -1, 1, 1, -1], np.int32), 0.25, 0.0625)
    direction.slope, direction.intercept = 0.125, 0.25
    tensor = Tensor("w", "BF16", [2, 3], from_floats([1.0, -2.0, 0.5, 3.0, 0.0, -1.0], "BF16"), directions=[direction])
    return Recipe([4, 8], [tensor], [(4, AUTO), (6, AUTO), (8, AUTO), (16, AUTO), (0, AUTO), (4, "line")])


def packings() -> Iterator[tuple[str, Recipe]]:
    """Each packing of codes in each float dtype, pieces of one short block."""
    dtypes = ["BF16", "F16", "F32", "BF16", "F16"]
    for packing, dtype in zip(["ternary", "quinary", "nibble", "byte", "word"], dtypes, strict=True):
        tensors = [moving(f"{packing}.{n}", dtype, [n], packing) for n in (1, 2, 5, 38)]
        yield f"packing-{packing}", Recipe(STEPS, tensors, READS)


def packing_float32() -> Recipe:
    """Directions that are not quantised, for all float dtypes."""
    tensors = []
    for dtype in ref.FLOAT:
        direction = Direction(ROW, "float32", floats(dtype + " v", [3 * 7], "F32", 0.5), **LINE)
        tensors.append(Tensor(dtype, dtype, [3, 7], floats(dtype, [21], dtype), directions=[direction]))
    return Recipe(STEPS, tensors, READS, growth=None)


def blocks() -> Recipe:
    """More than one block of each packing, origins in the file."""
    tensors = []
    for packing, n in (("ternary", 20487), ("quinary", 12290), ("nibble", 8193), ("byte", 4099), ("word", 4099)):
        bits = np.full(n, 0x3F80, "<u2")
        tensors.append(moving(packing, "BF16", [n], packing, bits=bits, origin="stored"))
    return Recipe(STEPS, tensors, [(20, AUTO), (33.25, AUTO)])


def factors_only() -> Recipe:
    """Packing `none`: factors of a matrix, of a stack of experts and of a stack of stacks."""
    tensors = []
    for name, dtype, shape, rank in (
        ("matrix", "BF16", [6, 4], 2),
        ("experts", "F16", [3, 5, 4], 3),
        ("stacks", "F32", [2, 2, 3, 1], 1),
    ):
        direction = Direction(ROW, "none", **factors(name + " f", shape, rank), **LINE)
        tensors.append(Tensor(name, dtype, shape, floats(name, shape, dtype), directions=[direction]))
    return Recipe(STEPS, tensors, READS)


def factors_and_remainder() -> Recipe:
    """Factors and a remainder together, with every packing."""
    shapes: list[tuple[str, list[int]]] = [
        ("ternary", [7, 5]), ("quinary", [4, 3, 5]), ("nibble", [1, 9]), ("byte", [9, 1]), ("word", [2, 3, 2, 2]),
    ]  # fmt: skip
    tensors = []
    for packing, shape in shapes:
        tensor = moving(packing, "BF16", shape, packing)
        tensor.directions[0] = replace(tensor.directions[0], **factors(packing + " f", shape, min(2, *shape[-2:])))
        tensors.append(tensor)
    plain = Direction(ROW, "float32", floats("plain v", [6], "F32", 0.1), **factors("plain f", [2, 3], 1), **LINE)
    tensors.append(Tensor("float32", "F32", [2, 3], floats("plain", [6], "F32"), directions=[plain]))
    return Recipe(STEPS, tensors, READS)


def two_directions() -> Recipe:
    """k = 2 and k = 3, in which the order of the sums shows."""
    shape = [5, 6]
    first = quantised("two a", 30, "byte", **factors("two f", shape, 2))
    second = quantised("two b", 30, "ternary", (-3.0, 2.5, 1e-3), slope=-0.03, intercept=0.3)
    third = Direction((1e-8, -1e-8, 7.0), "float32", floats("two c", [30], "F32", 0.3), slope=0.01, intercept=-0.1)
    tensors = [
        Tensor("two", "BF16", shape, floats("two", shape, "BF16"), directions=[first, second]),
        Tensor("three", "F32", shape, floats("three", shape, "F32"), directions=[third, second, first]),
        Tensor("again", "F16", shape, floats("again", shape, "F16"), directions=[second, second]),
    ]
    return Recipe(STEPS, tensors, READS, observed=2)


FILES = {"config.json": b'{"model_type": "test"}', "README.md": b"# A base\r\n" * 40, "empty.txt": b""}


def embedded() -> Recipe:
    """A file with its base: two shards, an index, other files, all kinds of tensors."""
    matrix = moving("b.weight", "BF16", [6, 8], "ternary", shard=1)
    matrix.directions[0] = replace(matrix.directions[0], **factors("b f", [6, 8], 1))
    tensors = [
        moving("a.weight", "BF16", [40], "nibble"),
        Tensor("a.ids", "I64", [5], integers([1, -2, 3, 0, 1 << 40], "I64")),
        matrix,
        Tensor(
            "b.count",
            "I32",
            [2],
            integers([0, -1], "I32"),
            series=[integers([i, 9], "I32") for i in (1, 1, 2)],
            shard=1,
        ),
        Tensor("new.weight", "F16", [3], floats("new", [3], "F16"), "stored", shard=1),
    ]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    return Recipe(
        STEPS, tensors, READS, embedded=True, files=FILES, shards=shards, indexed=True, uri="hf://org/name@0123abc"
    )


def same() -> Recipe:
    """Tensors that stay as they are in the base, of many dtypes, with bits of NaNs that are kept."""
    tensors = [Tensor("bf16", "BF16", [3], np.array([0x7FC1, 0xFF81, 0x8000], "<u2"))]
    tensors += [Tensor("f32", "F32", [2], np.array([0x7F800001, 0xFFFFFFFF], "<u4"))]
    for dtype, width in ref.WIDTH.items():
        bits = noise(dtype, 6 * width).astype(np.uint8).view(f"<u{width}")
        tensors.append(Tensor("as." + dtype, dtype, [2, 3], bits & 1 if dtype == "BOOL" else bits))
    return Recipe([7], tensors, [(7, AUTO), (0, AUTO), (1e6, "line")])


def origin_dtypes() -> Recipe:
    """Origins of other float dtypes than the tensors, moving, the same and series; overflow when they are converted."""
    tensors = []
    for origin in ref.FLOAT:
        for dtype in ref.FLOAT:
            values = [1.0009765625, -3.14159, 70000.0, 1e-5, 6e-8, -1e-41, 3.4e38, math.nan, -math.inf, -0.0]
            bits = from_floats(values, origin)
            tensors.append(moving(f"moving.{origin}.{dtype}", dtype, [10], "quinary", bits=bits, origin_dtype=origin))
            tensors.append(Tensor(f"same.{origin}.{dtype}", dtype, [10], bits, origin_dtype=origin))
    series = [from_floats([i, -i], "F16") for i in (1, 2, 3)]
    tensors.append(Tensor("series", "F16", [2], from_floats([1e6, 1e-7], "F32"), "base", "F32", series=series))
    return Recipe(STEPS, tensors, READS)


def stored_origins() -> Recipe:
    """Tensors that the base lacks: no base is needed to read them."""
    shape = [4, 4]
    direction = quantised("stored q", 16, "byte", **factors("stored f", shape, 1))
    tensors = [
        Tensor("moving", "BF16", shape, floats("stored", shape, "BF16"), "stored", directions=[direction]),
        Tensor("same", "F32", [9], floats("stored s", [9], "F32"), "stored"),
        Tensor("count", "U8", [3], np.array([1, 2, 255], "u1"), "stored"),
    ]
    return Recipe(STEPS, tensors, READS)


def series() -> Recipe:
    """Tensors stored step by step, with and without an origin; equal steps share a span."""
    values = [[1, 2, 3], [1, 2, 3], [4, 5, 6], [1, 2, 3], [7, 8, 9]]
    tensors = [Tensor("origin", "I64", [3], integers([-1, -2, -3], "I64"), series=[integers(v, "I64") for v in values])]
    for dtype in ("BOOL", "U8", "F8_E4M3", "U16", "F64", "C64"):
        width = ref.WIDTH[dtype]
        bits = [noise(f"{dtype} {i // 2}", 4 * width).astype(np.uint8).view(f"<u{width}") for i in range(5)]
        stored = [b & 1 if dtype == "BOOL" else b for b in bits]
        tensors.append(Tensor(dtype, dtype, [2, 2], origin="none", series=stored))
    steps = [0, 1, 5, 6, 1000]
    reads: list[tuple[float, str]] = [(t, AUTO) for t in (0, 0.5, 1, 4.99, 5, 6, 7, 1000, 2000)]
    return Recipe(steps, tensors, [*reads, (0, "track"), (-5, "line"), (6, "track")])


def many_steps() -> Recipe:
    """Reads at, between, before and after the steps, of which only the first three were observed."""
    steps = [0, 3, 4, 10, 1000003, 1 << 53]
    row = (0.1, -0.7, 1.0 / 3.0, 1e-3, -2.5, 1e10)
    tensors = [
        Tensor(
            f"{dtype}", dtype, [7], floats("steps " + dtype, [7], dtype),
            directions=[quantised("steps " + dtype, 7, "byte", row, slope=0.1, intercept=-0.3)],
        )
        for dtype in ref.FLOAT
    ]  # fmt: skip
    reads: list[tuple[float, str]] = [(t, AUTO) for t in (0, 1, 2.999, 3, 3.25, 4, 4.5, 10, 1000003, 1 << 53, 1e18, -2)]
    reads += [(t, "track") for t in (0, 1e-300, 0.1, 4.5, 10, 11.5, 999999.75, 1 << 53)]
    reads += [(t, "line") for t in (0, 3, -1e9, 2.5, 1e30)]
    return Recipe(steps, tensors, reads, observed=3)


def small_shapes() -> Recipe:
    """Scalars, shapes of ones, and tensors without elements."""
    tensors = [
        moving("scalar", "BF16", [], "ternary"),
        moving("ones", "F32", [1, 1, 1], "quinary"),
        Tensor("empty", "BF16", [0], np.zeros(0, "<u2")),
        Tensor("empty.matrix", "I64", [3, 0, 2], np.zeros(0, "<u8")),
        Tensor("empty.series", "U8", [0], np.zeros(0, "u1"), series=[np.zeros(0, "u1")] * 3),
        Tensor("scalar.integer", "I64", [], integers([-7], "I64")),
        Tensor("empty.stored", "F16", [0], np.zeros(0, "<u2"), "stored"),
        Tensor("scalar.series", "I8", [], origin="none", series=[np.array([i], "u1") for i in range(3)]),
        Tensor("empty.none", "I8", [2, 0], origin="none", series=[np.zeros(0, "u1")] * 3),
    ]
    return Recipe(STEPS, tensors, READS)


SPECIAL = {
    "BF16": "0000 8000 0001 8001 007f 0080 3f80 bf80 7f7f ff7f 7f80 ff80 7fc0 ff81 7fff 3f81",
    "F16": "0000 8000 0001 8001 03ff 0400 3c00 bc00 7bff fbff 7c00 fc00 7e00 fc01 7fff 3c01",
    "F32": "00000000 80000000 00000001 80000001 007fffff 00800000 3f800000 bf800000 7f7fffff ff7fffff 7f800000 ff800000"
    " 7fc00000 ff800001 477ff000 33000001",
}


def special(dtype: str) -> Bits:
    """Sixteen patterns: zeros, subnormals, ones, the largest numbers, infinities, NaNs and ties."""
    return np.array([int(word, 16) for word in SPECIAL[dtype].split()], f"<u{ref.WIDTH[dtype]}")


def special_values() -> Recipe:
    """NaN, infinities, -0 and subnormals in base, raw values, factors, coefficients, step and shift."""
    tensors = []
    rows = [(1.0, -1.5, 0.0), (1e-46, 1e-38, -1e-45), (3.4e38, -3e38, -0.0)]
    lines = [(0.0, 1.0), (1e-47, 0.0), (1e36, 0.0)]
    for dtype in ref.FLOAT:
        bits = np.repeat(special(dtype), 16)
        values = np.tile(special("F32"), 16)
        for i, (row, (slope, intercept)) in enumerate(zip(rows, lines, strict=True)):
            direction = Direction(row, "float32", values, slope=slope, intercept=intercept)
            tensors.append(Tensor(f"values.{dtype}.{i}", dtype, [16, 16], bits, directions=[direction]))
        few = np.tile(special("BF16"), 2)  # a_1 and b_1
        outer = Direction(rows[0], "none", rank=1, factors=few, slope=0.5)
        tensors.append(Tensor(f"factors.{dtype}", dtype, [16, 16], bits, directions=[outer]))
        for i, (step, shift) in enumerate([(1e-44, -1e-45), (3e38, 1e38), (0.0, -0.0), (1e-38, 3e38), (2.0, 3.0)]):
            quantiser = quantised(f"special {i}", 16, "word", rows[0], step=step, shift=shift, slope=0.5)
            name = f"codes.{dtype}.{i}"
            tensors.append(Tensor(name, dtype, [16], bits[::16].copy(), directions=[quantiser]))
    return Recipe(STEPS, tensors, [(10, AUTO), (20, AUTO), (40, AUTO), (0, AUTO), (2, "line"), (100, "line")])


def shared_chunk() -> Recipe:
    """Many small tensors, whose codes and origins share chunks."""
    tensors = [moving(f"layers.{i}.norm", "BF16", [16 + i], "nibble", origin="stored") for i in range(20)]
    return Recipe(STEPS, tensors, [(20, AUTO), (50, AUTO)])


def pieces() -> Recipe:
    """Tensors of more than one piece: planes, blocks and factors go on in further chunks."""
    n = (1 << 18) + 1000
    ones = np.full(n, 0x3F80, "<u2")
    sparse = np.zeros(n, np.int32)
    sparse[::4099], sparse[-1] = 1, -1
    values = np.zeros(n, "<u4")
    values[::30011] = 0x3E99999A
    tall = [1 << 18, 2]  # the factors are longer than a piece
    parts = np.zeros((1 << 18) + 2, "<u2")
    parts[::9973], parts[-2:] = 0x3E80, [0x3F80, 0xBF00]
    tensors = [
        Tensor("ternary", "BF16", [n], ones, "stored", directions=[Direction(ROW, "ternary", sparse, 0.25, 0.125)]),
        Tensor("word", "BF16", [2, n // 2], ones, "stored", directions=[Direction(ROW, "word", sparse * 999, 0.001)]),
        Tensor("float32", "F16", [n], ones, "stored", directions=[Direction(ROW, "float32", values)]),
        Tensor(
            "factors", "BF16", tall, np.full(1 << 19, 0x3F80, "<u2"), "stored",
            directions=[Direction(ROW, "none", rank=1, factors=parts)],
        ),
        Tensor("same", "I32", [n], np.zeros(n, "<u4"), "stored"),
        Tensor("series", "U8", [n], origin="none", series=[np.full(n, i, "u1") for i in (0, 7, 0)]),
    ]  # fmt: skip
    return Recipe(STEPS, tensors, [(10, AUTO), (20, AUTO), (0, AUTO)])


def unknown_entries() -> Recipe:
    """Entries, keys of the manifest and metadata that a reader of version 1 does not know, and ignores."""

    def change(parts: Parts) -> None:
        entries = {"relex.later.frames": bytearray(b"later"), **parts.entries, "org.example": bytearray(24)}
        names = list(parts.entries)
        middle = names.index("relex.data.exact")
        parts.entries = {
            name: entries[name] for name in ["relex.later.frames", *names[:middle], "org.example", *names[middle:]]
        }
        parts.dtypes |= {"relex.later.frames": "U8", "org.example": "F64"}
        parts.metadata["note"] = "ignored"
        parts.manifest["later"] = {"deep": [[[{}]]], "number": 1.5e-3}
        parts.manifest["base"]["revision"] = "0123abc"

    return replace(embedded(), change=change)


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


def chunk_codecs() -> Recipe:
    """Each codec of chunks; frames of the largest window; planes in chunks of their own; nothing but the fill byte."""
    names = ["stored", "frame", "filled", "all"]
    tensors = [Tensor(name, "U16", [5], integers([1, 2, 256, -1, 0], "U16"), "stored") for name in names]
    tensors[3].bits = np.full(5, 0x0303, "<u2")

    def change(parts: Parts) -> None:
        planes = [split_planes(tensor.bits) for tensor in tensors]
        low = [plane[0].tobytes() for plane in planes]
        high = [plane[1].tobytes() for plane in planes]
        parts.chunks = [
            Chunk("relex.data.base", low[0] + high[0], 10, 0),
            Chunk("relex.data.base", small_frame(low[1], 23), 5, 1),
            Chunk("relex.data.base", small_frame(high[1], 10), 5, 1),
            Chunk("relex.data.base", codec_filled(low[2] + high[2], 1), 10, 2, 1),
            Chunk("relex.data.base", codec_filled(low[3], 3), 5, 2, 3),
            Chunk("relex.data.base", codec_filled(high[3], 0), 5, 2, 0),
        ]
        for i, first in enumerate([0, 1, 3, 4]):
            parts.patch("relex.tensors", 32 * i + 12, "II", first, 0)

    return Recipe([1], tensors, [(1, AUTO)], change=change)


def names() -> Recipe:
    """Names of tensors in Unicode, with quotes, control characters, and none at all."""
    strange = ["", "\u00e9\u4e2d\U0001f600", 'a"b\\c/d', "\u0000\n\u007f", "relex.root", "  ", "x" * 300]
    tensors = [moving(name, "BF16", [3], "ternary") for name in strange]
    return Recipe(STEPS, tensors, [(10, AUTO)], uri="file \u00e9")


def nothing() -> Recipe:
    """A file without tensors."""
    return Recipe([0], [], [(0, AUTO), (3.5, AUTO)], shards=["a.safetensors", "b.safetensors"])


VALID: dict[str, Recipe] = {
    "minimal": minimal(),
    **dict(packings()),
    "packing-float32": packing_float32(),
    "blocks": blocks(),
    "factors-only": factors_only(),
    "factors-and-remainder": factors_and_remainder(),
    "two-directions": two_directions(),
    "embedded": embedded(),
    "same": same(),
    "origin-dtypes": origin_dtypes(),
    "stored-origins": stored_origins(),
    "series": series(),
    "many-steps": many_steps(),
    "small-shapes": small_shapes(),
    "special-values": special_values(),
    "shared-chunk": shared_chunk(),
    "pieces": pieces(),
    "unknown-entries": unknown_entries(),
    "chunk-codecs": chunk_codecs(),
    "names": names(),
    "nothing": nothing(),
}


# ---- Invalid files ----

Change = Callable[[Parts], Any]
Bend = Callable[[bytes], bytes]


@dataclass
class Invalid:
    """A file that breaks one rule, and how a reader notices it: by `open`, by `read` of a tensor, or by `verify`."""

    reason: str
    change: Change | None = None
    bend: Bend | None = None  # of the finished file
    source: str = "embedded"
    error: str = "Corrupt"
    operation: str = "open"
    tensor: str | None = None
    step: float = 10
    tier: str = AUTO
    base: str | None = None
    """The vector whose base is given, if it is not `source`."""

    def build(self) -> bytes:
        """The file."""
        data = built(self.source)
        if self.change is not None:
            parts = Parts(data)
            self.change(parts)
            data = parts.build()
        return data if self.bend is None else self.bend(data)


def flip(entry: str, offset: int = 0) -> Bend:
    """One bit of an entry."""

    def bend(data: bytes) -> bytes:
        return flip_at(data, ref.RelexFile(data).entries[entry].start + offset)

    return bend


def flip_at(data: bytes, at: int) -> bytes:
    """One bit of a file."""
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


def cut(where: Callable[[Any], int]) -> Bend:
    """The file up to a position."""
    return lambda data: data[: where(ref.RelexFile(data))]


def patch(entry: str, offset: int, form: str, *values: Any) -> Change:
    """Another value in a table."""
    return lambda parts: parts.patch(entry, offset, form, *values)


def root(offset: int, form: str, *values: Any) -> Change:
    """Another value in the root."""
    return lambda parts: setattr(parts, "edit_root", lambda raw: struct.pack_into("<" + form, raw, offset, *values))


def header(entry: str, **values: Any) -> Change:
    """Other values in the header."""
    return lambda parts: setattr(parts, "edit_header", lambda head: head[entry].update(values))


def header_text(old: bytes, new: bytes) -> Change:
    """Other bytes of the header."""
    return lambda parts: setattr(parts, "edit_text", lambda text: text.rstrip(b" ").replace(old, new))


def manifest(**values: Any) -> Change:
    """Other values in the manifest."""
    return lambda parts: parts.manifest.update(values)


def manifest_text(old: str, new: str) -> Change:
    """Other text in the manifest."""

    def change(parts: Parts) -> None:
        text = json.dumps(parts.manifest, separators=(",", ":"), ensure_ascii=False)
        assert text.count(old) == 1, (old, text)
        parts.text = align(text.replace(old, new))

    return change


def beside(text: str) -> Change:
    """One more key of the manifest."""
    return manifest_text('"indexed":true', '"indexed":true,' + text)


def around(before: bytes, after: bytes) -> Change:
    """Bytes around the manifest."""

    def change(parts: Parts) -> None:
        parts.text = before + align(json.dumps(parts.manifest)) + after

    return change


def file_name(name: str) -> Change:
    """Another name of an embedded file."""
    return lambda parts: parts.manifest["files"][0].__setitem__(0, name)


def row(tensor: int, column: int, value: Any) -> Change:
    """Another value in a row of the manifest's tensors."""
    return lambda parts: parts.manifest["tensors"][tensor].__setitem__(column, value)


def tensor(index: int, offset: int, form: str, *values: Any) -> Change:
    """Another value in a tensor's record."""
    return patch("relex.tensors", 32 * index + offset, form, *values)


def direction(index: int, offset: int, form: str, *values: Any) -> Change:
    """Another value in a direction's record."""
    return patch("relex.directions", 64 * index + offset, form, *values)


def chunk(index: int, **values: Any) -> Change:
    """Other values of a chunk."""
    return lambda parts: parts.chunks.__setitem__(index, replace(parts.chunks[index], **values))


def stored(index: int, codec: int, make: Callable[[bytes], bytes]) -> Change:
    """Other stored bytes of a chunk, made of its raw ones."""

    def change(parts: Parts) -> None:
        parts.chunks[index] = replace(parts.chunks[index], stored=make(parts.raw[index]), codec=codec)

    return change


def raw(index: int, edit: Callable[[bytearray], Any]) -> Change:
    """Other raw bytes of a chunk."""

    def change(parts: Parts) -> None:
        data = bytearray(parts.raw[index])
        edit(data)
        parts.set_raw(index, bytes(data))

    return change


def both(*changes: Change) -> Change:
    """Several changes."""
    return lambda parts: [change(parts) for change in changes]


def reorder(parts: Parts) -> None:
    """Two entries in the wrong order."""
    parts.entries = dict(sorted(parts.entries.items(), key=lambda item: item[0] == "relex.steps"))


def rename(entry: str) -> Change:
    """A file in which an entry has a name that no reader knows."""

    def change(parts: Parts) -> None:
        parts.entries = {"other" if name == entry else name: data for name, data in parts.entries.items()}
        parts.dtypes["other"] = parts.dtypes[entry]

    return change


def fewer_entries(parts: Parts) -> None:
    """A root that is complete, but for one entry less."""

    def edit(raw: bytearray) -> None:
        struct.pack_into("<I", raw, 24, 10)
        struct.pack_into("<II", raw, 32 + 80, zlib.crc32(raw[: 32 + 80]), 0)

    parts.edit_root = edit


def swap_header(parts: Parts) -> None:
    """The same entries, listed in another order than that of their data."""
    parts.edit_header = lambda head: head.update({"relex.steps": head.pop("relex.steps")})


def emptied(parts: Parts) -> None:
    """The only tensor, moving, without elements."""
    parts.manifest["tensors"][0][2] = [0, 3]
    parts.entries["relex.digests"].clear()
    parts.chunks.clear()


def grown(parts: Parts) -> None:
    """A moving tensor whose origin is stored, with 2^47 elements."""
    parts.manifest["tensors"] = [["w", "BF16", [1 << 47], "BF16", 0]]
    table = parts.entries
    table["relex.tensors"][:] = table["relex.tensors"][:32]
    table["relex.directions"][:] = table["relex.directions"][:64]
    table["relex.coefficients"][:] = table["relex.coefficients"][:24]
    table["relex.series"].clear()
    table["relex.digests"].clear()
    parts.patch("relex.tensors", 1, "B", 1)


def swapped_tensors(parts: Parts) -> None:
    """A tensor of origin 1 before the others."""
    parts.manifest["tensors"].insert(0, parts.manifest["tensors"].pop())
    table = parts.entries["relex.tensors"]
    table[:] = table[-32:] + table[:-32]


def split_chunk(parts: Parts) -> None:
    """A chunk that ends within a piece."""
    first = parts.chunks[0]
    parts.chunks[:1] = [replace(first, stored=first.stored[a:b], raw=b - a) for a, b in ((0, 7), (7, first.raw))]
    for i in range(5):
        if i != 3:
            parts.patch("relex.tensors", 32 * i + 12, "I", 5)
    parts.patch("relex.directions", 64 + 28, "I", 3)
    parts.patch("relex.directions", 64 + 56, "I", 2)
    parts.entries["relex.series"][:] = struct.pack("<6I", 4, 0, 4, 0, 4, 8)
    for file in parts.manifest["files"][:2]:
        file[2] = 6


def chunk_in_two_entries(parts: Parts) -> None:
    """A chunk that belongs to one entry by its position, and to the next by its length."""
    last = next(c for c in reversed(parts.chunks) if c.entry == "relex.data.directions")
    last.length = last.raw = len(last.stored) + 1
    last.crc = zlib.crc32(last.stored + next(c.stored for c in parts.chunks if c.entry == "relex.data.exact")[:1])


def unknown_coverage(value: int) -> Change:
    """Another coverage of an entry that no reader knows."""
    return lambda parts: parts.coverage.update({"org.example": value})


def future(parts: Parts) -> None:
    """Another version, in which everything may be different but the root."""
    parts.version, parts.metadata["relex_version"], parts.metadata["reader"] = 2, "2", "9.8"
    parts.entries = {"relex.new": bytearray(b"\1\2\3"), **{name: parts.entries[name] for name in parts.entries}}
    parts.dtypes["relex.new"] = "U8"
    parts.text = b"\0not JSON"


def other_frame(raw: bytes) -> bytes:
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


def frames(raw: bytes) -> bytes:
    """Two frames, of which the first states the length of both."""
    return small_frame(raw, 10) + small_frame(b"", 10)


def not_numbers() -> list[tuple[str, str, Change, str]]:
    """Records of directions with numbers that cannot be."""
    result: list[tuple[str, str, Change, str]] = []
    for field_name, offset, form in (("slope", 0, "d"), ("intercept", 8, "d"), ("step", 16, "f"), ("shift", 20, "f")):
        for word, value in (("nan", math.nan), ("infinite", -math.inf if field_name == "shift" else math.inf)):
            reason = f"{field_name} is not finite"
            result.append((f"direction-{field_name}-{word}", reason, direction(0, offset, form, value), "embedded"))
    result += [
        ("direction-step-negative", "the sign bit of step is set", direction(0, 16, "f", -0.5), "embedded"),
        ("direction-step-minus-zero", "the sign bit of step is set", direction(0, 16, "f", -0.0), "embedded"),
        ("direction-step-unused", "step with packing float32", direction(0, 16, "f", 1.0), "packing-float32"),
        ("direction-shift-unused", "shift with packing none", direction(0, 20, "f", 1.0), "factors-only"),
        ("direction-shift-minus-zero", "-0 is not all bits 0", direction(0, 20, "f", -0.0), "packing-float32"),
    ]
    return result


def put(index: int, value: int) -> Callable[[bytearray], Any]:
    """Another byte."""
    return lambda data: data.__setitem__(index, value)


def extra_series(parts: Parts) -> None:
    """A series span that no tensor uses."""
    parts.entries["relex.series"] += bytes(8)


def invalid() -> Iterator[tuple[str, Invalid]]:
    """All invalid files."""
    for name, where in (
        ("empty", lambda f: 0),
        ("length-word", lambda f: 5),
        ("header", lambda f: 700),
        ("root", lambda f: f.entries["relex.root"].start + 20),
        ("root-rows", lambda f: f.entries["relex.root"].end - 3),
        ("manifest", lambda f: f.entries["relex.manifest"].start + 9),
        ("tables", lambda f: f.entries["relex.chunks"].start),
        ("data", lambda f: f.entries["relex.data.base"].start + 3),
        ("last-byte", lambda f: len(f.data) - 1),
    ):
        yield f"truncated-{name}", Invalid(f"cut: {name}", bend=cut(where), error="Truncated")
    yield "extra-byte", Invalid("a byte follows the file's end", bend=lambda data: data + b"\0")
    yield "header-length-huge", Invalid("N above 25,000,000", bend=lambda data: struct.pack("<Q", 1 << 62) + data[8:])

    for name, bend, operation in (
        ("header", lambda data: flip_at(data, 300), "open"),
        ("root", flip("relex.root", 13), "open"),
        ("root-rows", flip("relex.root", 41), "open"),
        ("root-crc", flip("relex.root", 32 + 8 * 11), "open"),
        ("steps", flip("relex.steps", 1), "open"),
        ("manifest", flip("relex.manifest", 30), "open"),
        ("tensors", flip("relex.tensors", 25), "open"),
        ("directions", flip("relex.directions", 50), "open"),
        ("series", flip("relex.series", 4), "open"),
        ("digests", flip("relex.digests", 4), "open"),
        ("chunks", flip("relex.chunks", 17), "open"),
        ("coefficients", flip("relex.coefficients", 3), "verify"),
        ("data-directions", flip("relex.data.directions", 25), "verify"),
        ("data-exact", flip("relex.data.exact", 2), "verify"),
        ("data-base", flip("relex.data.base", 60), "verify"),
    ):
        yield f"flip-{name}", Invalid(f"one bit is wrong: {name}", bend=bend, operation=operation)
    yield (
        "flip-data-read",
        Invalid(
            "one bit of a chunk is wrong", bend=flip("relex.data.directions", 2), operation="read", tensor="a.weight"
        ),
    )
    yield "flip-unknown", Invalid(
        "one bit of an entry that is ignored is wrong",
        bend=flip("org.example", 2), source="unknown-entries", operation="verify",
    )  # fmt: skip

    opened: list[tuple[str, str, Change]] = [
        # section 3
        ("root-magic", "the magic", root(0, "B", 0x72)),
        ("root-header-crc", "the header's CRC", root(12, "I", 1)),
        ("root-length-short", "a longer file than its root says", root(16, "Q", 1000)),
        ("root-entries", "E is not the number of entries", fewer_entries),
        ("root-reserved", "reserved bytes of the root", root(28, "I", 1)),
        ("root-row-reserved", "reserved bytes of a row of the root", root(38, "B", 1)),
        ("root-end-reserved", "reserved bytes at the root's end", root(36 + 8 * 11, "I", 1)),
        ("coverage-table", "coverage 1 of relex.series", lambda p: p.coverage.update({"relex.series": 1})),
        ("coverage-data", "coverage 0 of relex.data.exact", lambda p: p.coverage.update({"relex.data.exact": 0})),
        ("coverage-2", "coverage 2", root(36 + 8 * 7, "B", 2)),
        ("coverage-crc", "a CRC beside coverage 1", root(32 + 8 * 7, "I", 1)),
        ("entry-crc", "the CRC of relex.steps", root(32, "I", 1)),
        # section 2
        ("header-leading-space", "the header does not begin with {", header_text(b'{"__meta', b' {"__meta')),
        ("header-newline", "a newline after the header's }", header_text(b"}}", b"}}\n")),
        ("header-duplicate", "a name occurs twice in the header", header_text(b'"relex.series"', b'"relex.digests"')),
        ("header-utf8", "the header is not UTF-8", header_text(b"make_vectors", b"make\xffvectors")),
        ("header-order", "the header lists entries in another order than their data", swap_header),
        ("header-hole", "a hole between entries", header("relex.data.exact", data_offsets=[0, 16])),
        ("header-shape", "a shape that does not give the bytes", header("relex.series", shape=[2, 8])),
        ("header-dtype", "an unknown dtype", header("relex.data.base", dtype="U9")),
        ("format", "format is not relex", lambda p: p.metadata.update(format="pt")),
        ("metadata-missing", "no reader in __metadata__", lambda p: p.metadata.pop("reader")),
        ("metadata-number", "a number in __metadata__", header("__metadata__", note=1)),
        ("entry-order", "relex.steps at the end", reorder),
        ("entry-missing", "relex.series is missing", rename("relex.series")),
        ("steps-dtype", "relex.steps is U64", header("relex.steps", dtype="U64")),
        ("root-shape", "relex.root has two dimensions", header("relex.root", shape=[16, 8])),
        ("coefficients-shape", "[D, T] turned round", header("relex.coefficients", shape=[3, 2])),
        ("digests-shape", "digests of 8 bytes", header("relex.digests", shape=[8, 8])),
        # section 4
        ("steps-order", "steps decrease", patch("relex.steps", 0, "qq", 20, 10)),
        ("steps-equal", "a step occurs twice", patch("relex.steps", 0, "qq", 20, 20)),
        ("steps-negative", "a negative step", patch("relex.steps", 0, "q", -1)),
        ("steps-wrap", "steps decrease by more than 2^63", patch("relex.steps", 0, "qqq", 200, 100 - (1 << 63), 40)),
        ("steps-large", "a step above 2^53", patch("relex.steps", 16, "q", (1 << 53) + 1)),
        ("observed-none", "K = 0", manifest(observed=0)),
        ("observed-many", "K > T", manifest(observed=4)),
        ("observed-boolean", "K is true", manifest(observed=True)),
        ("observed-float", "K is 3.0", manifest(observed=3.0)),
        ("manifest-array", "the manifest is an array", lambda p: setattr(p, "text", b"[{}]    ")),
        ("manifest-newline", "a newline after the manifest's }", around(b"", b"\n")),
        ("manifest-bom", "a byte order mark", around(b"\xef\xbb\xbf", b"")),
        ("manifest-missing", "no quality", lambda p: p.manifest.pop("quality")),
        ("manifest-duplicate", "a name occurs twice", beside('"indexed":true')),
        ("manifest-duplicate-inside", "a name occurs twice in an ignored object", beside('"z":[{"a":1,"a":1}]')),
        ("manifest-nan", "NaN is not JSON", beside('"z":NaN')),
        ("manifest-1e999", "a number that is not finite", beside('"z":1e999')),
        ("manifest-long-integer", "an integer beyond f64", manifest_text('"growth":0.05', '"growth":' + "9" * 400)),
        ("manifest-minus-zero", "an integer -0", beside('"z":-0')),
        ("manifest-negative", "an integer with a sign", beside('"z":-1')),
        ("manifest-leading-zero", "an integer 03", manifest_text('"observed":3', '"observed":03')),
        ("manifest-surrogate", "half a surrogate in a name", manifest_text('"new.weight"', '"\\ud800"')),
        ("manifest-trailing-comma", "a comma before }", beside(",")),
        ("manifest-deep", "too deep to be read, and not closed", beside('"z":' + "[" * 20000)),
        ("tensor-duplicate", "two tensors of one name", row(1, 0, "a.weight")),
        ("tensor-metadata", "a tensor called __metadata__", row(1, 0, "__metadata__")),
        ("tensor-dtype", "an unknown dtype", row(1, 1, "I128")),
        ("tensor-shard", "a shard that is not listed", row(4, 4, 2)),
        ("tensor-shape-float", "a dimension 40.0", row(0, 2, [40.0])),
        ("tensor-shape-negative", "a negative dimension", row(0, 2, [-40])),
        ("tensor-dimensions", "65 dimensions", row(0, 2, [40] + [1] * 64)),
        ("tensor-huge", "2^48 elements", row(0, 2, [1 << 24, 1 << 24])),
        ("tensor-huge-empty", "a dimension 2^48 beside 0", row(1, 2, [0, 1 << 48])),
        ("tensor-large-base", "2^47 elements in the base, one digest", row(0, 2, [1 << 47])),
        ("tensor-large-stored", "2^47 elements that the chunks do not hold", row(4, 2, [1 << 47])),
        ("tensor-large-moving", "2^47 elements, moving, that the chunks do not hold", grown),
        (
            "tensor-large-series",
            "2^47 elements, a series, that the chunks do not hold",
            both(
                row(3, 2, [1 << 47]),
                tensor(3, 1, "B", 2),
                row(3, 3, "I32"),
                tensor(3, 8, "IIII", 0, 0, 0, 0),
                lambda p: p.entries["relex.digests"].__delitem__(slice(48, 64)),
            ),
        ),
        (
            "file-large",
            "a file of 2^47 bytes that the chunks do not hold",
            lambda p: p.manifest["files"][1].__setitem__(1, 1 << 47),
        ),
        ("tensor-order", "a tensor of origin 1 before one of origin 0", swapped_tensors),
        ("tensor-shard-order", "shards of origin 0 decrease", both(row(0, 4, 1), row(1, 4, 0))),
        ("shard-path", "a path as the name of a shard", manifest(shards=["../a.safetensors", "b.safetensors"])),
        ("shard-newline", "a newline after a name", manifest(shards=["a.safetensors", "b.safetensors\n"])),
        ("shard-hidden", "a name that begins with a dot", manifest(shards=[".safetensors", "b.safetensors"])),
        ("shard-long", "a name of 256 bytes", manifest(shards=["a.safetensors", "b" * 244 + ".safetensors"])),
        ("shard-pickle", "a shard that is no safetensors file", manifest(shards=["a.bin", "b.safetensors"])),
        ("shard-order", "shards are not sorted", manifest(shards=["b.safetensors", "a.safetensors"])),
        ("shard-case", "shards differ in case only", manifest(shards=["A.safetensors", "a.safetensors"])),
        ("shards-none", "no shards", manifest(shards=[])),
        ("file-path", "a path as the name of a file", file_name("../config.json")),
        ("file-backslash", "a backslash in a name", file_name("a\\b")),
        ("file-dots", "a name ..", file_name("..")),
        ("file-shard", "a file that is a shard", file_name("c.safetensors")),
        ("file-index", "a file that is the index", file_name(ref.INDEX)),
        ("file-duplicate", "files differ in case only", file_name("readme.md")),
        *[(f"file-pickle-{end[1:]}", "a pickle", file_name("x" + end)) for end in ref.PICKLES],
        # section 5
        ("tensor-reserved", "reserved bytes of a tensor", tensor(2, 31, "B", 1)),
        ("tensor-kind", "kind 3", tensor(1, 0, "B", 3)),
        ("tensor-origin", "origin 3", tensor(4, 1, "B", 3)),
        ("tensor-no-directions", "moving without directions", tensor(0, 2, "H", 0)),
        ("tensor-directions-same", "same with a direction", tensor(1, 2, "H", 1)),
        ("tensor-directions-many", "more directions than there are", tensor(2, 2, "H", 2)),
        ("tensor-first", "a direction is used twice", tensor(2, 4, "I", 0)),
        ("tensor-first-same", "an index that is not used", tensor(1, 4, "I", 1)),
        ("tensor-digest", "a digest is used twice", tensor(1, 8, "I", 0)),
        ("tensor-digest-stored", "an index that is not used", tensor(4, 8, "I", 4)),
        ("tensor-moving-integers", "moving of I16", both(row(0, 1, "I16"), row(0, 3, "I16"))),
        ("tensor-origin-integers", "moving of BF16 from U16", row(0, 3, "U16")),
        ("tensor-origin-dtype", "the same of I64 from U64", row(1, 3, "U64")),
        ("tensor-stored-dtype", "another dtype than the origin that the file holds", row(4, 3, "BF16")),
        ("tensor-same-none", "the same without an origin", tensor(4, 1, "B", 2)),
        (
            "tensor-series-stored",
            "a series with an origin that is stored",
            both(tensor(3, 1, "B", 1), tensor(3, 8, "I", 0)),
        ),
        ("tensor-records", "a record too many", lambda p: p.entries["relex.tensors"].extend(bytes(32))),
        ("series-unused", "a series span that no tensor uses", extra_series),
        ("digest-unused", "a digest that no tensor uses", lambda p: p.entries["relex.digests"].extend(bytes(16))),
        ("direction-reserved", "reserved byte of a direction", direction(1, 27, "B", 1)),
        ("direction-packing", "packing 7", direction(0, 26, "B", 7)),
        (
            "direction-nothing",
            "packing none without factors",
            both(direction(0, 26, "B", 0), direction(0, 16, "ff", 0, 0)),
        ),
        ("direction-factors-vector", "factors of a vector", direction(0, 24, "H", 1)),
        # section 6
        ("chunk-reserved", "reserved bytes of a chunk", chunk(0, reserved=b"\0\1")),
        ("chunk-codec", "codec 3", chunk(0, codec=3)),
        ("chunk-fill", "a fill byte without codec 2", chunk(0, fill=1)),
        ("chunk-stored-empty", "stored length 0", chunk(3, length=0)),
        ("chunk-raw-empty", "raw length 0", chunk(4, raw=0)),
        ("chunk-raw-huge", "raw length 2^32 - 1", chunk(4, raw=(1 << 32) - 1)),
        ("chunk-raw-large", "raw length 2^21 + 1", chunk(4, raw=(1 << 21) + 1)),
        ("chunk-two-lengths", "codec 0 with two lengths", chunk(1, raw=27)),
        ("chunk-overlap", "a chunk begins before the last one ends", chunk(1, shift=-1)),
        ("chunk-gap", "bytes between two chunks", chunk(1, before=b"\0")),
        ("chunk-hole-at-end", "bytes of an entry after its last chunk", chunk(3, length=15, raw=15)),
        ("chunk-two-entries", "a chunk goes on in the next entry", chunk_in_two_entries),
        ("chunk-position", "a position beyond the file", chunk(5, shift=1 << 40)),
        ("chunk-position-wraps", "a position that wraps round 2^64", chunk(0, shift=(1 << 64) - (1 << 20))),
        ("span-outside", "a span begins after the last chunk", direction(1, 28, "I", 99)),
        ("span-offset", "a span goes on beyond its chunk", direction(1, 32, "I", 1)),
        ("span-offset-end", "a span begins at the end of its chunk", direction(1, 56, "II", 0, 20)),
        ("span-entry", "a span of a direction in relex.data.exact", direction(1, 28, "I", 3)),
        ("span-overlap", "two spans share bytes", tensor(1, 16, "I", 79)),
        ("span-twice", "two tensors share a span", tensor(2, 12, "II", 4, 80)),
        ("span-series-overlap", "spans of a series overlap", patch("relex.series", 20, "I", 4)),
        ("span-empty", "the span of an empty file is not (0, 0)", lambda p: p.manifest["files"][2].__setitem__(2, 5)),
        ("span-factors-without", "a span of factors with r = 0", direction(0, 56, "II", 0, 1)),
        (
            "span-hidden",
            "raw bytes at a chunk's end belong to no span",
            lambda p: p.manifest["files"][1].__setitem__(1, 399),
        ),
        (
            "span-hidden-begin",
            "raw bytes at a chunk's begin belong to no span",
            patch("relex.series", 0, "IIII", 3, 8, 3, 8),
        ),
        ("span-crossing", "a piece crosses the end of a chunk", split_chunk),
    ]
    for name, reason, change in opened:
        yield name, Invalid(reason, change)
    for name, reason, change, source in not_numbers():
        yield name, Invalid(reason, change, source=source)
    opened_others: list[tuple[str, str, str, Change]] = [
        ("coverage-unknown", "coverage 1 of an unknown entry", "unknown-entries", unknown_coverage(1)),
        (
            "steps-none",
            "T = 0",
            "nothing",
            both(manifest(observed=0), lambda p: setattr(p, "entries", p.entries | {"relex.steps": bytearray()})),
        ),
        ("tensor-moving-empty", "moving with n = 0", "minimal", emptied),
        ("tensor-span-unused", "a span of an origin that the file does not hold", "minimal", tensor(0, 16, "I", 1)),
        ("files-not-embedded", "files without an embedded base", "minimal", manifest(files=[["config.json", 0, 0, 0]])),
        ("series-two-tensors", "two series share a span", "series", patch("relex.series", 8 * 5, "II", 0, 0)),
        (
            "direction-large-rank",
            "65535 factor pairs that the chunks do not hold",
            "factors-only",
            direction(0, 24, "H", 65535),
        ),
    ]
    for name, reason, source, change in opened_others:
        yield name, Invalid(reason, change, source=source)

    for name, reason, change in (
        ("version", "version 2 in the root", lambda p: setattr(p, "version", 2)),
        ("version-metadata", "version 2 in __metadata__", lambda p: p.metadata.update(relex_version="2", reader="2.0")),
        (
            "requires",
            "a feature that no reader knows",
            lambda p: p.metadata.update(requires="time-travel", reader="3.1"),
        ),
        ("future", "version 2, and all else breaks rules of version 1", future),
    ):
        yield name, Invalid(reason, change, error="Unsupported")
    yield "root-length-long", Invalid("a shorter file than its root says", root(16, "Q", 99999), error="Truncated")

    verified: list[tuple[str, str, str, Change]] = [
        ("coefficient-nan", "a coefficient is NaN", "embedded", lambda p: p.set_row(1, 1.0, math.nan, 1.0)),
        ("coefficient-infinite", "a coefficient is infinite", "embedded", lambda p: p.set_row(0, 1.0, 2.0, -math.inf)),
        ("coefficients-crc", "the CRC of a row of coefficients", "embedded", direction(0, 36, "I", 1)),
        ("codes-ternary", "a byte 243", "packing-ternary", raw(0, put(0, 243))),
        (
            "codes-ternary-padding",
            "a digit beyond the last element is not z",
            "packing-ternary",
            raw(0, put(0, 121 + 81)),
        ),
        ("codes-quinary", "a byte 125", "packing-quinary", raw(0, put(0, 125))),
        (
            "codes-quinary-padding",
            "a digit beyond the last element is not z",
            "packing-quinary",
            raw(0, put(0, 62 - 25)),
        ),
        ("codes-nibble-low", "digit 15 in the low half", "packing-nibble", raw(0, put(1, 0x7F))),
        ("codes-nibble-high", "digit 15 in the high half", "packing-nibble", raw(0, put(1, 0xF7))),
        ("codes-nibble-padding", "a digit beyond the last element is not z", "packing-nibble", raw(0, put(0, 0x87))),
        ("codes-byte", "digit 255", "packing-byte", raw(0, put(3, 255))),
        ("codes-word", "digit 65535", "packing-word", raw(0, lambda data: data.__setitem__(slice(0, 2), b"\xff\xff"))),
        ("chunk-crc", "the CRC of a chunk", "embedded", chunk(1, crc=1)),
        (
            "frame-content-size",
            "another content size than the raw length",
            "embedded",
            stored(1, 1, lambda r: small_frame(r + b"x", 10)),
        ),
        ("frame-no-content-size", "a frame without a content size", "embedded", stored(1, 1, other_frame)),
        ("frame-short", "a frame with less than it states", "embedded", stored(1, 1, short_frame)),
        ("frame-trailing", "a byte after the frame", "embedded", stored(1, 1, lambda r: small_frame(r, 10) + b"\0")),
        ("frame-two", "a second frame after the first", "embedded", stored(1, 1, frames)),
        ("frame-cut", "a frame that is cut", "embedded", stored(1, 1, lambda r: small_frame(r, 10)[:-1])),
        ("frame-skippable", "a skippable frame", "embedded", stored(1, 1, skippable_frame)),
        ("frame-dictionary", "a frame that needs a dictionary", "embedded", stored(1, 1, dictionary_frame)),
        ("frame-window", "a window of 2^24 bytes", "embedded", stored(1, 1, lambda r: small_frame(r, 24))),
        ("frame-not", "no frame at all", "embedded", stored(1, 1, lambda r: r)),
        ("filled-short", "codec 2 without the length L", "chunk-codecs", stored(3, 2, lambda r: b"\0\0\0")),
        (
            "filled-length",
            "L beyond the stored bytes",
            "chunk-codecs",
            stored(3, 2, lambda r: b"\xff" * 4 + codec_filled(r, 1)[4:]),
        ),
        (
            "filled-flags",
            "flags of another length",
            "chunk-codecs",
            stored(3, 2, lambda r: codec_filled(r + b"\1" * 7, 1)),
        ),
        (
            "filled-beyond",
            "a flag beyond the last byte",
            "chunk-codecs",
            stored(3, 2, lambda r: codec_filled(r + b"\2", 1)),
        ),
        (
            "filled-fill-byte",
            "a flag at a byte that is the fill byte",
            "chunk-codecs",
            stored(3, 2, lambda r: codec_filled(r, 2)),
        ),
        (
            "filled-fewer",
            "fewer bytes than flags",
            "chunk-codecs",
            stored(3, 2, lambda r: codec_filled(r, 1)[:19] + small_frame(r[:5], 10)),
        ),
        (
            "filled-frame",
            "an empty frame where no flag is set",
            "chunk-codecs",
            stored(4, 2, lambda r: codec_filled(r, 3) + small_frame(b"", 10)),
        ),
        (
            "filled-trailing",
            "a byte after the second frame",
            "chunk-codecs",
            stored(3, 2, lambda r: codec_filled(r, 1) + b"\0"),
        ),
        ("embedded-digest", "a digest of the embedded base", "embedded", patch("relex.digests", 0, "B", 0)),
    ]
    for name, reason, source, change in verified:
        yield name, Invalid(reason, change, source=source, operation="verify")
    yield (
        "read-embedded-digest",
        Invalid(
            "a digest of the embedded base", patch("relex.digests", 0, "B", 0), operation="read", tensor="a.weight"
        ),
    )
    yield (
        "read-coefficient",
        Invalid(
            "a coefficient is NaN", lambda p: p.set_row(1, 1.0, math.nan, 1.0), operation="read", tensor="b.weight"
        ),
    )
    yield (
        "read-codes",
        Invalid("a byte 243", raw(0, put(0, 243)), source="packing-ternary", operation="read", tensor="ternary.1"),
    )

    for name, reason, change in (
        ("digest", "the base's bits differ", patch("relex.digests", 15, "B", 0)),
        ("shape", "the base's shape differs", row(0, 2, [3, 2])),
        ("dtype", "the base's dtype differs", row(0, 3, "F16")),
        ("missing", "the base lacks the tensor", row(0, 0, "v")),
    ):
        tensor_name = "v" if name == "missing" else "w"
        yield (
            f"base-{name}",
            Invalid(reason, change, source="minimal", error="BaseMismatch", operation="read", tensor=tensor_name),
        )


# ---- Writing ----


def recipes() -> dict[str, Recipe]:
    """All valid files."""
    exact: dict[str, Recipe] = script("make_exact_vectors").VALID
    return VALID | exact


@cache
def built(name: str) -> bytes:
    """A valid file."""
    return recipes()[name].build()


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read(data: bytes, base: bytes | None, reads: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    """What the reference decoder gives."""
    file = ref.RelexFile(data)
    file.check_all()
    given = None
    if base is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "base.safetensors"
            path.write_bytes(base)
            given = ref.read_safetensors(path)
    result = []
    for step, tier in reads:
        tensors = {name: sha256(file.tensor(name, step, tier, given)) for name in file.index}
        result.append({"step": step, "tier": tier, "tensors": tensors})
    return result


def make(folder: Path) -> None:
    """Write all files into a directory."""
    for part in ("valid", "invalid"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"zstandard": zstandard.__version__, "valid": [], "invalid": []}
    bases = set()
    for name, recipe in recipes().items():
        data, base = built(name), recipe.base()
        entry: dict[str, Any] = {"path": f"valid/{name}.relex", "sha256": sha256(data), "base": None}
        (folder / entry["path"]).write_bytes(data)
        if base is not None:
            entry["base"] = {"path": f"valid/{name}.safetensors", "sha256": sha256(base)}
            (folder / entry["base"]["path"]).write_bytes(base)
            bases.add(name)
        reads = read(data, base, recipe.reads)
        for found in reads if recipe.expected else ():
            if found["tier"] == "exact":
                number = recipe.steps.index(found["step"]) + 1
                for tensor_name, rows in recipe.expected.items():
                    assert found["tensors"][tensor_name] == sha256(rows[number].tobytes()), (name, tensor_name, number)
        document["valid"].append(entry | {"reads": reads})
    for name, wrong in itertools.chain(invalid(), script("make_exact_vectors").invalid()):
        data = wrong.build()
        entry = {"path": f"invalid/{name}.relex", "sha256": sha256(data), "base": None, "reason": wrong.reason}
        entry |= {"error": wrong.error, "operation": wrong.operation}
        if wrong.operation == "read":
            entry |= {"tensor": wrong.tensor, "step": wrong.step, "tier": wrong.tier}
            if (wrong.base or wrong.source) in bases:
                entry["base"] = f"valid/{wrong.base or wrong.source}.safetensors"
        (folder / entry["path"]).write_bytes(data)
        document["invalid"].append(entry)
    text = json.dumps(document, indent=1, ensure_ascii=True)
    (folder / "manifest.json").write_text(text + "\n", newline="\n")


if __name__ == "__main__":
    script("make_vectors").make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("vectors"))
