"""The valid vectors whose subject is FORMAT.md."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import reference_decoder as ref

from .chunks import Chunk, codec_filled, small_frame, zstd_frame
from .contents import bits, floats, from_floats, integers, noise, planes_of, special
from .exact_recipe import Exact, Plan
from .parts import Parts, align, compact, packed
from .recipe import AUTO, LINE, READS, ROW, STEPS, Direction, Reads, Recipe, Tensor, factors, moving, quantised


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
        Tensor("b.count", "I32", [2], integers([0, -1], "I32"), framed=True, shard=1),
        Tensor("new.weight", "F16", [3], floats("new", [3], "F16"), "stored", shard=1),
    ]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    rows = [integers(row, "I32") for row in ([0, -1], [1, 9], [1, 9], [2, 9])]
    more: dict[str, Any] = {"shards": shards, "indexed": True, "uri": "hf://org/name@0123abc"}
    frames = Exact({"b.count": rows}, [Plan(3)])
    return Recipe(STEPS, tensors, READS, embedded=True, files=FILES, frames=frames, **more)


def same() -> Recipe:
    """Tensors that stay as they are in the base, of many dtypes, with bits of NaNs that are kept."""
    tensors = [Tensor("bf16", "BF16", [3], np.array([0x7FC1, 0xFF81, 0x8000], "<u2"))]
    tensors += [Tensor("f32", "F32", [2], np.array([0x7F800001, 0xFFFFFFFF], "<u4"))]
    for dtype, width in ref.WIDTH.items():
        bits = noise(dtype, 6 * width).astype(np.uint8).view(f"<u{width}")
        tensors.append(Tensor("as." + dtype, dtype, [2, 3], bits & 1 if dtype == "BOOL" else bits))
    return Recipe([7], tensors, [(7, AUTO), (0, AUTO), (1e6, "line")])


def origin_dtypes() -> Recipe:
    """Origins of other float dtypes than the tensors, moving and the same; overflow when they are converted."""
    tensors = []
    for origin in ref.FLOAT:
        for dtype in ref.FLOAT:
            values = [1.0009765625, -3.14159, 70000.0, 1e-5, 6e-8, -1e-41, 3.4e38, math.nan, -math.inf, -0.0]
            bits = from_floats(values, origin)
            tensors.append(moving(f"moving.{origin}.{dtype}", dtype, [10], "quinary", bits=bits, origin_dtype=origin))
            tensors.append(Tensor(f"same.{origin}.{dtype}", dtype, [10], bits, origin_dtype=origin))
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


def framed() -> Recipe:
    """Tensors without a line, from the base and from the file, in two segments; every tier but `exact`."""
    values = [[-1, -2, -3], [1, 2, 3], [1, 2, 3], [4, 5, 6], [1, 2, 3], [7, 8, 9]]
    rows = {"base": [integers(row, "I64") for row in values]}
    tensors = [Tensor("base", "I64", [3], rows["base"][0], framed=True)]
    for dtype in ("BOOL", "U8", "I8", "U16", "I32", "U64"):
        own = [bits(f"{dtype} {max(i, 0) // 2}", 4, dtype) for i in range(-1, 5)]
        rows[dtype] = own
        tensors.append(Tensor(dtype, dtype, [2, 2], own[0], "stored", framed=True))
    tensors.append(moving("moving", "BF16", [5], "ternary", origin="stored"))
    tensors[-1].directions[0].row = (0.5, 1.0, -1.0, 0.25, 2.0)
    steps = [0, 1, 5, 6, 1000]
    reads: Reads = [(t, AUTO) for t in (0, 0.5, 1, 4.99, 5, 6, 7, 1000, 2000)]
    reads += [(0, "track"), (-5, "line"), (6, "track"), (0, "line")]
    return Recipe(steps, tensors, reads, frames=Exact(rows, [Plan(3), Plan(2, 2)], {"U8": 2}))


def framed_floats() -> Recipe:
    """Tensors of floats without a line: they are there at stored steps, and at step 0, which is the base."""
    large = from_floats([1e6, 1e-7], "F32")
    tensors = [Tensor("origin", "F16", [2], large, origin_dtype="F32", framed=True)]
    converted = np.frombuffer(ref.narrow(large.view(np.float32), "F16"), "<u2")
    rows = {"origin": [converted, *(from_floats([i, -i], "F16") for i in (1, 2, 3))]}
    for dtype in ("BF16", "F32", "F64", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0"):
        rows[dtype] = [bits(f"{dtype} {i}", 4, dtype) for i in range(4)]
        tensors.append(Tensor(dtype, dtype, [2, 2], rows[dtype][0], framed=True))
    tensors.append(Tensor("none", "F8_E4M3FNUZ", [0], np.zeros(0, "u1"), framed=True))
    reads: Reads = [(t, tier) for t in STEPS for tier in (AUTO, "line", "track")]
    return Recipe(STEPS, tensors, [*reads, (0, AUTO)], frames=Exact(rows, [Plan(3)]), observed=2)


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
        Tensor("empty.framed", "U8", [0], np.zeros(0, "u1"), framed=True),
        Tensor("scalar.integer", "I64", [], integers([-7], "I64")),
        Tensor("empty.stored", "F16", [0], np.zeros(0, "<u2"), "stored"),
        Tensor("scalar.framed", "I8", [], np.array([0], "u1"), "stored", framed=True),
        Tensor("empty.stored.framed", "I8", [2, 0], np.zeros(0, "u1"), "stored", framed=True),
    ]
    rows = {"scalar.framed": [np.array([i], "u1") for i in (0, 0, 1, 2)]}
    return Recipe(STEPS, tensors, READS, frames=Exact(rows, [Plan(3)]))


def empty_framed() -> Recipe:
    """A framed tensor without elements needs no frames."""
    tensors = [Tensor("empty", "U8", [0], np.zeros(0, "u1"), "stored", framed=True)]
    return Recipe(STEPS, tensors, READS)


def special_values() -> Recipe:
    """NaN, infinities, -0 and subnormals in base, raw values, factors, coefficients, scale and shift."""
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
        for i, (scale, shift) in enumerate([(1e-44, -1e-45), (3e38, 1e38), (0.0, -0.0), (1e-38, 3e38), (2.0, 3.0)]):
            quantiser = quantised(f"special {i}", 16, "word", rows[0], scale=scale, shift=shift, slope=0.5)
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
    ]  # fmt: skip
    return Recipe(STEPS, tensors, [(10, AUTO), (20, AUTO), (0, AUTO)])


def unknown_entries() -> Recipe:
    """Entries, keys of the manifest and metadata that a reader of version 1 does not know, and ignores."""

    def change(parts: Parts) -> None:
        entries = {"relex.later.frames": bytearray(b"later"), **parts.entries, "org.example": bytearray(24)}
        names = list(parts.entries)
        middle = names.index(ref.DATA_BASE)
        parts.entries = {
            name: entries[name] for name in ["relex.later.frames", *names[:middle], "org.example", *names[middle:]]
        }
        parts.dtypes |= {"relex.later.frames": "U8", "org.example": "F64"}
        parts.metadata["note"] = "ignored"
        parts.metadata["producer"] = ""
        numbers = [-1, -0.5, -0.0, 1.5e-3, 2**63, -(10**40), 5e-324]
        parts.manifest["later"] = {"deep": [[[{}]]], "numbers": numbers, "negative zero": 0}
        parts.manifest["base"]["revision"] = "0123abc"
        parts.manifest["quality"] |= {"growth": -1, "later": -2}
        text = compact(parts.manifest).replace('"negative zero":0', '"negative zero":-0,"":1E+2')
        parts.text = align(text.replace('"indexed"', '"indexed "').replace('"indexed ":', '"indexed": '))
        parts.edit_header = lambda header: header["org.example"].update(note=[-1, None])

    return replace(embedded(), change=change)


def packed_manifest() -> Recipe:
    """A manifest in a frame, with as many bytes after it as there may be."""

    def change(parts: Parts) -> None:
        parts.text = packed(compact(parts.manifest).encode(), 7)

    return replace(embedded(), change=change)


def packed_densely() -> Recipe:
    """A manifest in a frame that holds as many bytes as it may."""

    def change(parts: Parts) -> None:
        text, allowed = compact(parts.manifest).encode(), 0
        while len(text) != allowed:
            text = text.rstrip(b" ").ljust(allowed)
            allowed = 65536 + 64 * len(zstd_frame(text))
        parts.text = packed(text)

    return replace(embedded(), change=change)


def chunk_codecs() -> Recipe:
    """Each codec of chunks; frames of the largest window; planes in chunks of their own; nothing but the fill byte."""
    names = ["stored", "frame", "filled", "all"]
    tensors = [Tensor(name, "U16", [5], integers([1, 2, 256, -1, 0], "U16"), "stored") for name in names]
    tensors[3].bits = np.full(5, 0x0303, "<u2")

    def change(parts: Parts) -> None:
        planes = [planes_of(tensor.bits) for tensor in tensors]
        low, high = [own[0] for own in planes], [own[1] for own in planes]
        parts.chunks = [
            Chunk(ref.DATA_BASE, low[0] + high[0], 10, 0),
            Chunk(ref.DATA_BASE, small_frame(low[1], 23), 5, 1),
            Chunk(ref.DATA_BASE, small_frame(high[1], 10), 5, 1),
            Chunk(ref.DATA_BASE, codec_filled(low[2] + high[2], 1), 10, 2, 1),
            Chunk(ref.DATA_BASE, codec_filled(low[3], 3), 5, 2, 3),
            Chunk(ref.DATA_BASE, codec_filled(high[3], 0), 5, 2, 0),
        ]
        for i, first in enumerate([0, 1, 3, 4]):
            parts.patch("relex.tensors", 32 * i + 12, "II", first, 0)

    return Recipe([1], tensors, [(1, AUTO)], change=change)


def names() -> Recipe:
    """Names of tensors in Unicode, with quotes, control characters, and none at all."""
    strange = ["", "\u00e9\u4e2d\U0001f600", 'a"b\\c/d', "\u0000\n\u007f", "relex.root", "  ", "x" * 300]
    tensors = [moving(name, "BF16", [3], "ternary") for name in strange]
    return Recipe(STEPS, tensors, [(10, AUTO)], uri="file \u00e9")


def file_names() -> Recipe:
    """Names of embedded files and of shards: each word and ending that is allowed, in small letters and in capitals."""
    texts = [
        "a.txt",
        "adapters.md",
        "INDEXES.MD",
        "chat_template.jinja",
        "_config.py",
        "x.tiktoken",
        "x.spm",
        "x.vocab",
    ]
    found = [*texts, "LICENSE", "licence", "Notice", "COPYING", "x" * 251 + ".txt", "model.bin.txt", "console.md"]
    found += [f"{word}.json" for word in sorted(ref.JSON_WORDS)] + [f"{word}.model" for word in sorted(ref.MODEL_WORDS)]
    found += ["tokenizer.model.v3", "a.SPM.Model.V012", "custom_generate/LICENSE", "additional_chat_templates/x.jinja"]
    found += ["model.Config-1.JSON", "a_tokenizer.b.model", "com10.txt", "nul_.txt", "config..json"]
    tensors = [Tensor("x", "BF16", [3], np.array([1, 2, 3], "<u2"))]
    shards = ["LPT.safetensors", "model.bin.safetensors", "x" * 243 + ".safetensors"]
    return Recipe([1], tensors, [(1, AUTO)], embedded=True, files=dict.fromkeys(found, b""), shards=shards)


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
    "embedded-given": replace(embedded(), base_beside=True),
    "same": same(),
    "origin-dtypes": origin_dtypes(),
    "stored-origins": stored_origins(),
    "framed": framed(),
    "framed-floats": framed_floats(),
    "many-steps": many_steps(),
    "small-shapes": small_shapes(),
    "empty-framed": empty_framed(),
    "special-values": special_values(),
    "shared-chunk": shared_chunk(),
    "pieces": pieces(),
    "unknown-entries": unknown_entries(),
    "packed-manifest": packed_manifest(),
    "packed-densely": packed_densely(),
    "chunk-codecs": chunk_codecs(),
    "names": names(),
    "file-names": file_names(),
    "nothing": nothing(),
}
