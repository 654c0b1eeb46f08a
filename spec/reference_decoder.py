"""A slow decoder of `.relex` files that follows FORMAT.md and EXACT.md heading by heading, to be read beside them.

It needs numpy, zstandard and the standard library. It shares no code with the package, so that each is a test of the
other. It prefers plain steps to fast ones: the file is in memory, and every rule of the text is checked.

    python spec/reference_decoder.py FILE --step S [--tier T] [--base model.safetensors]

Of section 10, which leaves much to the writer, there is what a step is made of; tensors and files come out one at a
time. Sections 1 to 12 are those of FORMAT.md, 13 and 14 those of EXACT.md.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import itertools
import json
import math
import re
import struct
import sys
import zlib
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Span = tuple[int, int]
Base = Callable[[str], tuple[str, list[int], bytes]]  # name -> dtype, shape, bytes
BaseFiles = Callable[[str], bytes | None]  # name -> content of a file beside the base's shards, if there is one


class RelexError(Exception):
    """Any failure of this decoder."""


class Truncated(RelexError):
    """Bytes are missing."""


class Corrupt(RelexError):
    """The file violates the text."""


class Unsupported(RelexError):
    """A version or feature that this decoder does not know."""


class BaseMismatch(RelexError):
    """The base is not the one that the file was made from."""


class InvalidArgument(RelexError):
    """The caller asks for what cannot be."""


def require(condition: object, rule: str) -> None:
    """Raise Corrupt, naming the rule, unless the condition holds."""
    if not condition:
        raise Corrupt(rule)


# ---- 1. Terms ----

PIECE = 1 << 18
WIDTH = dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), 1)
WIDTH |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 2) | dict.fromkeys(("U32", "I32", "F32"), 4)
WIDTH |= dict.fromkeys(("U64", "I64", "F64", "C64"), 8)
FLOAT = ("BF16", "F16", "F32")
ALL_FLOATS = [dtype for dtype in WIDTH if dtype in (*FLOAT, "F64", "C64") or dtype.startswith("F8_")]


def is_integer(value: object, least: int, most: int) -> bool:
    """Whether a JSON value is an integer in a range; `true` is none, and neither is 1.0."""
    return type(value) is int and least <= value <= most


def elements(shape: Any) -> int:
    """n of a shape, within the limits of section 11, which a dimension of 0 does not lift for the others."""
    require(isinstance(shape, list) and len(shape) <= 64, "a shape is a list of at most 64 dimensions")
    require(all(is_integer(dimension, 0, (1 << 48) - 1) for dimension in shape), "a dimension is out of range")
    require(math.prod(max(dimension, 1) for dimension in shape) < 1 << 48, "a tensor has too many elements")
    return math.prod(shape)


def pieces(n: int) -> Iterator[tuple[int, int]]:
    """Where the pieces of an array of n elements start and stop."""
    return ((start, min(start + PIECE, n)) for start in range(0, n, PIECE))


# ---- 2. The file is a safetensors file ----

TABLES = {"relex.tensors": 32, "relex.directions": 64, "relex.digests": 16, "relex.chunks": 24}
DATA_DIRECTIONS, DATA_BASE = DATA = ["relex.data.directions", "relex.data.base"]
FIGURES = ["relex.errors", "relex.norms"]
ENTRIES = ["relex.root", "relex.steps", "relex.manifest", *TABLES, "relex.coefficients", *FIGURES, *DATA]
DTYPES = {"relex.steps": "I64", "relex.coefficients": "F64", "relex.errors": "F32", "relex.norms": "F64"}
SEGMENTS, FRAMES, DATA_FRAMES = EXACT = ["relex.exact.segments", "relex.exact.frames", "relex.data.frames"]
EXACT_TABLES = {SEGMENTS: 48, FRAMES: 24}
Entry = namedtuple("Entry", "dtype shape start end")  # start and end count from the beginning of the file


def parse_json(raw: bytes) -> dict[str, Any]:
    """A JSON object by the rules at the head of FORMAT.md."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require(len(dict(pairs)) == len(pairs), "JSON: a name occurs twice")
        return dict(pairs)

    def finite(word: str) -> float:
        require(math.isfinite(float(word)), "JSON: a number that is not finite")
        return float(word)

    def integer(word: str) -> float:
        value = finite(word)
        return value if word == "-0" else int(word)  # -0 is a number, but no integer of this format

    raw = raw.rstrip(b" ")
    require(raw[:1] == b"{" and raw[-1:] == b"}", "JSON: not an object")
    try:
        hooks: dict[str, Any] = {"parse_int": integer, "parse_float": finite, "parse_constant": finite}
        value: dict[str, Any] = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, **hooks)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails on an escaped surrogate that has no partner
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are ValueErrors; too deep a nesting
        raise Corrupt(f"JSON: {type(error).__name__}") from None
    return value


def header_length(data: bytes, limit: int) -> int:
    """Where the header ends."""
    end = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or len(data) < end <= 8 + limit:
        raise Truncated("the file ends within its header")
    require(end <= 8 + limit, "the header is too long")
    return end


def parse_entries(header: dict[str, Any], start: int, any_order: bool = False) -> dict[str, Entry]:
    """The entries of a safetensors header; a base may list them in another order than their data's."""
    rows = []
    for name, entry in header.items():
        require(isinstance(entry, dict), f"{name}: not an object")
        dtype, offsets = entry.get("dtype"), entry.get("data_offsets")
        require(isinstance(dtype, str) and dtype in WIDTH, f"{name}: unknown dtype")
        require(isinstance(offsets, list) and all(type(offset) is int for offset in offsets), f"{name}: offsets")
        rows.append((offsets, name, dtype, entry.get("shape")))
    entries: dict[str, Entry] = {}
    at = 0
    for offsets, name, dtype, shape in sorted(rows, key=lambda row: row[0]) if any_order else rows:
        end = at + elements(shape) * WIDTH[dtype]
        require(offsets == [at, end], f"{name}: offsets and shape do not tile the data")
        entries[name] = Entry(dtype, shape, start + at, start + end)
        at = end
    return entries


def check_metadata(metadata: Any) -> None:
    """`__metadata__`, if there is one, is an object of strings."""
    require(isinstance(metadata, dict), "__metadata__ is an object")
    require(all(isinstance(value, str) for value in metadata.values()), "__metadata__ holds strings")


def check_entries(entries: dict[str, Entry]) -> None:
    """The entries of version 1, in their order, in their dtypes and shapes; those of the frames: all or none."""
    names = ENTRIES + (EXACT if any(name in entries for name in EXACT) else [])
    require([name for name in entries if name in ENTRIES + EXACT] == names, "an entry is missing or out of order")
    rows = {name: entries[name].shape[0] if entries[name].shape else 0 for name in names}
    tables = TABLES | EXACT_TABLES
    for name in names:
        shape = [rows[name], tables[name]] if name in tables else [rows[name]]
        if name == "relex.coefficients":
            shape = [rows["relex.directions"], rows["relex.steps"]]
        if name == "relex.errors":
            shape = [2, rows["relex.steps"]]
        if name == "relex.norms":
            shape = [rows["relex.tensors"] + rows["relex.directions"]]
        if name == FRAMES:
            shape = [rows["relex.steps"], 24]
        require(
            (entries[name].dtype, entries[name].shape) == (DTYPES.get(name, "U8"), shape), f"{name}: dtype or shape"
        )


# ---- 3. Root ----


def open_root(f: RelexFile) -> None:
    """Header and root: first what holds in all versions, then the version, then what holds in version 1."""
    at = header_length(f.data, 25_000_000)
    header = parse_json(f.data[8:at])
    metadata: Any = header.pop("__metadata__", None)
    require(isinstance(metadata, dict) and metadata.get("format") == "relex", "__metadata__: format is not relex")
    for key in ("relex_version", "requires", "reader"):
        require(isinstance(metadata.get(key), str), f"__metadata__: {key}")
    entry: Any = header.get("relex.root")
    require(next(iter(header), None) == "relex.root" and isinstance(entry, dict), "relex.root: not the first entry")
    shape = entry.get("shape")
    require(entry.get("dtype") == "U8" and isinstance(shape, list) and len(shape) == 1, "relex.root: dtype or shape")
    require(is_integer(shape[0], 40, 1 << 48) and entry.get("data_offsets") == [0, shape[0]], "relex.root: offsets")
    require(all(type(offset) is int for offset in entry["data_offsets"]), "relex.root: offsets")
    end = at + shape[0]
    if len(f.data) < end:
        raise Truncated("the file ends within its root")
    magic, version, header_crc, length, e, reserved = struct.unpack_from("<8sIIQII", f.data, at)
    require(magic == b"RELEX\r\n\x1a", "not a relex file: no root after the header")
    require(end == at + 40 + 8 * e, "relex.root: its length")
    root_crc, reserved_end = struct.unpack_from("<II", f.data, end - 8)
    require(zlib.crc32(f.data[at : end - 8]) == root_crc, "relex.root: checksum")
    if len(f.data) < length:
        raise Truncated(f"{len(f.data)} of {length} bytes")
    require(len(f.data) == length, "bytes follow the file's end")
    require(zlib.crc32(f.data[:at]) == header_crc, "the header: checksum")

    if version != 1 or metadata["relex_version"] != "1" or metadata["requires"]:
        raise Unsupported(f"needs relex-codec {metadata['reader']} (requires {metadata['requires']!r})")

    check_metadata(metadata)
    require("producer" in metadata, "__metadata__: producer")
    f.entries = parse_entries(header, at)
    check_entries(f.entries)
    require(max(entry.end for entry in f.entries.values()) == length, "the entries do not end where the file does")
    require(len(f.entries) == e + 1 and reserved == reserved_end == 0, "relex.root: entries or reserved bytes")
    for name, row in zip(list(f.entries)[1:], struct.iter_unpack("<IB3s", f.data[at + 32 : end - 8]), strict=True):
        crc, coverage, reserved_row = row
        require(coverage == (name in [*DATA, "relex.coefficients", DATA_FRAMES]), f"{name}: coverage")
        require(crc == (zlib.crc32(f.bytes_of(name)) if coverage == 0 else 0), f"{name}: checksum")
        require(not any(reserved_row), f"{name}: reserved bytes")


# ---- 4. Steps, coefficients, manifest ----

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\..*)?")
LICENCES = ("license", "licence", "notice", "copying")
TEXTS = (".txt", ".md", ".jinja", ".py", ".tiktoken", ".spm", ".vocab")
JSON_WORDS = {
    "config", "configuration", "id2label", "label2id", "labels", "merges", "modules", "normalizer", "params",
    "preprocessor", "processor", "tekken", "template", "templates", "tokenizer", "tokens", "vocab", "vocabulary",
}  # fmt: skip
MODEL_WORDS = {
    "bpe", "piece", "sentencepiece", "sp", "spiece", "spm", "tokenizer", "tokens", "unigram", "vocab", "vocabulary",
}  # fmt: skip
FOLDERS = ("additional_chat_templates", "custom_generate")
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", ["adapter_model.safetensors"]
SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,254}")  # of the path of a directory
Named = namedtuple("Named", "name dtype shape origin_dtype sources n")
Source = namedtuple("Source", "shard name shape first count")
File = namedtuple("File", "name length digest chunk offset")
Layout = namedtuple("Layout", "shards indexed tensors files")


def writable(name: str) -> bool:
    """Whether Windows can write a file of this name."""
    return not name.endswith(".") and not DEVICE.fullmatch(name.lower())


def may_be_file(name: str) -> bool:
    """Whether a file that is no shard may have this name, which is in lower case."""
    stem, _, end = name.rpartition(".")
    words = set(re.split("[._-]", stem))
    if name in LICENCES:
        return True
    if re.fullmatch(r"v[0-9]{1,3}", end) and stem.endswith(".model"):
        end = "model"
    allowed = {"json": bool(words & JSON_WORDS), "model": bool(words & MODEL_WORDS)}
    return not words & {"adapter", "index"} and allowed.get(end, name.endswith(TEXTS))


def is_file_name(name: Any, shards: list[str]) -> bool:
    """Whether a file beside some shards may have this name."""
    if name == ADAPTER:
        return shards == ADAPTER_WEIGHTS
    *folders, last = name.split("/") if type(name) is str else [""]
    known = len(folders) == 0 or (len(folders) == 1 and folders[0] in FOLDERS)
    return bool(known and FILE_NAME.fullmatch(last) and writable(last) and may_be_file(last.lower()))


def check_shards(shards: list[Any]) -> None:
    """The names of the files of weights of the base, or of a step."""
    require(all(type(name) is str and FILE_NAME.fullmatch(name) for name in shards), "relex.manifest: a shard's name")
    require(all(name.endswith(".safetensors") and writable(name) for name in shards), "relex.manifest: a shard's name")
    require(len({name.lower() for name in shards}) == len(shards), "relex.manifest: a shard's name occurs twice")
    require(shards == sorted(shards), "relex.manifest: shards are in the order of their names")


def to_source(value: Any, name: str, shape: list[int], n: int) -> Source:
    """A source of a tensor's origin."""
    row = [value, name, shape, 0, n] if type(value) is int else value
    require(type(row) is list and len(row) == 5 and type(row[1]) is str, f"{name}: a source")
    source = Source._make(row)
    require(is_integer(source.shard, 0, (1 << 32) - 1) and source.name != "__metadata__", f"{name}: a source")
    least = 1 if n > 0 else 0
    require(is_integer(source.count, least, elements(source.shape)), f"{name}: elements of a source")
    require(is_integer(source.first, 0, elements(source.shape) - source.count), f"{name}: elements of a source")
    return source


def to_named(row: Any) -> Named:
    """A tensor of the manifest."""
    require(type(row) is list and len(row) == 4, "relex.manifest: tensors")
    name, dtype, shape, origin = row
    n = elements(shape)
    require(type(name) is str and name != "__metadata__", "relex.manifest: a tensor's name")
    require(type(dtype) is str and dtype in WIDTH, f"{name}: dtype")
    if origin is None:
        return Named(name, dtype, shape, dtype, [], n)
    require(type(origin) is list and len(origin) == 2 and type(origin[1]) is list, f"{name}: origin")
    require(type(origin[0]) is str and origin[0] in WIDTH and len(origin[1]) > 0, f"{name}: origin")
    sources = [to_source(value, name, shape, n) for value in origin[1]]
    require(sum(source.count for source in sources) == n, f"{name}: the elements of its sources")
    return Named(name, dtype, shape, origin[0], sources, n)


def to_file(row: Any) -> File:
    """A file of the manifest."""
    require(type(row) is list and len(row) == 5, "relex.manifest: files")
    file = File._make(row)
    require(file.name == ADAPTER or is_file_name(file.name, []), "relex.manifest: a file's name")
    require(is_integer(file.length, 0, (1 << 48) - 1), f"{file.name}: length")
    span = [file.chunk, file.offset]
    require(span == [None, None] or all(is_integer(value, 0, (1 << 32) - 1) for value in span), f"{file.name}: span")
    document = file.name.lower() in LICENCES or file.name.lower().endswith(".md")
    require(document or file.digest is not None, f"{file.name}: no digest")
    digest = "0" * 32 if file.digest is None else file.digest
    require(type(digest) is str and re.fullmatch("[0-9a-f]{32}", digest), f"{file.name}: digest")
    return file


def to_layout(f: RelexFile, value: Any) -> Layout:
    """A layout of the manifest, whose tensors and files are known."""
    require(isinstance(value, dict), "relex.manifest: layouts")
    for key, kind in {"shards": list, "indexed": bool, "tensors": list, "files": list}.items():
        require(type(value.get(key)) is kind, f"relex.manifest: {key} of a layout")
    layout = Layout(*(value[key] for key in ("shards", "indexed", "tensors", "files")))
    require(layout.shards, "relex.manifest: a layout without shards")
    check_shards(layout.shards)
    require(len(layout.tensors) == len(f.manifest), "relex.manifest: tensors of a layout")
    numbers = [number for number in layout.tensors if number is not None]
    require(
        all(is_integer(number, 0, len(layout.shards) - 1) for number in numbers), "relex.manifest: a tensor's shard"
    )
    require(len(names_of(f, layout)) == len(numbers), "relex.manifest: a layout has two tensors of one name")
    require(all(is_integer(i, 0, len(f.files) - 1) for i in layout.files), "relex.manifest: files of a layout")
    names = [f.files[i].name for i in layout.files]
    require(len({name.lower() for name in names}) == len(names), "relex.manifest: a layout has two files of one name")
    require(all(is_file_name(name, layout.shards) for name in names), "relex.manifest: the file of an adapter")
    return layout


def names_of(f: RelexFile, layout: Layout) -> dict[str, int]:
    """The tensors of a layout by name."""
    pairs = zip(f.manifest, layout.tensors, strict=True)
    return {named.name: i for i, (named, shard) in enumerate(pairs) if shard is not None}


def is_directory(path: Any) -> bool:
    """Whether the directory of a step may be called so."""
    parts = path.split("/") if type(path) is str else []
    return 1 <= len(parts) <= 8 and len(path) <= 1000 and all(SEGMENT.fullmatch(p) and writable(p) for p in parts)


def manifest_text(entry: bytes) -> bytes:
    """The manifest's JSON, which may be packed: 0, the number of bytes after the frame, two zeros, a frame, zeros."""
    if entry[:1] != b"\0":
        return entry
    require(len(entry) >= 4 and entry[1] < 8 and entry[2:4] == b"\0\0", "relex.manifest: what is before the frame")
    end = len(entry) - entry[1]
    require(end > 4 and not any(entry[end:]), "relex.manifest: what is after the frame")
    return unframe(entry[4:end], content_size(entry[4:end], 1, min(65536 + 64 * (end - 4), 1 << 21)))


def open_manifest(f: RelexFile) -> None:
    """Steps and manifest."""
    f.steps = [row[0] for row in struct.iter_unpack("<q", f.bytes_of("relex.steps"))]
    require(f.steps and f.steps[0] >= 0 and f.steps[-1] <= 1 << 53, "relex.steps: none, or out of range")
    require(all(a < b for a, b in itertools.pairwise(f.steps)), "relex.steps: not increasing")

    manifest = parse_json(manifest_text(f.bytes_of("relex.manifest")))
    types: dict[str, type] = dict.fromkeys(("tensors", "files", "layouts", "steps", "left_out"), list)
    types |= {"base": dict, "quality": dict, "exact": bool}
    for key, kind in types.items():
        require(type(manifest.get(key)) is kind, f"relex.manifest: {key}")
    require(is_integer(manifest.get("observed"), 1, len(f.steps)), "relex.manifest: observed")
    base, quality, shards = manifest["base"], manifest["quality"], manifest["base"].get("shards")
    f.observed, f.has_exact, f.embedded = manifest["observed"], manifest["exact"], base.get("embedded")
    require(isinstance(base.get("uri", 0), str | None) and type(f.embedded) is bool, "relex.manifest: base")
    require(type(shards) is list, "relex.manifest: shards of the base")
    check_shards(shards)
    require(type(quality.get("growth", "")) in (int, float, type(None)), "relex.manifest: quality")
    require(type(quality.get("name")) is str, "relex.manifest: quality")

    f.manifest = [to_named(row) for row in manifest["tensors"]]
    pairs = {(named.name, named.dtype) for named in f.manifest}
    require(len(pairs) == len(f.manifest), "relex.manifest: two tensors of one name and dtype")
    known: dict[str, Any] = {}
    for named in f.manifest:
        for source in named.sources:
            require(source.shard < len(shards), f"{named.name}: a shard that the base does not have")
            told = [source.shard, source.shape, named.origin_dtype]
            require(known.setdefault(source.name, told) == told, f"{source.name}: two sources differ")

    f.files = [to_file(row) for row in manifest["files"]]
    beside = not f.embedded and len(shards) > 0
    require(beside or all(file.chunk is not None for file in f.files), "relex.manifest: a file that is nowhere")

    f.layouts = [to_layout(f, value) for value in manifest["layouts"]]
    most = len(f.layouts) - 1
    f.directories, f.layout_of = [], []
    for row, t in zip(manifest["steps"], f.steps, strict=False):
        require(type(row) is list and len(row) == 2 and is_integer(row[1], 0, most), "relex.manifest: steps")
        require(row[0] is None or is_directory(row[0]), "relex.manifest: a directory")
        f.directories.append(f"global_step_{t}" if row[0] is None else row[0])
        f.layout_of.append(row[1])
    require(len(manifest["steps"]) == len(f.steps), "relex.manifest: not as many steps as there are")
    require(is_integer(manifest.get("layout"), 0, most), "relex.manifest: layout")
    f.layout = manifest["layout"]
    require(f.layout == f.layout_of[f.observed - 1], "relex.manifest: layout is not that of the last observed step")
    require(f.has_exact or len(f.layouts) == 1, "relex.manifest: layouts without tier exact")
    paths = sorted(path.lower() + "/" for path in f.directories)
    require(not any(b.startswith(a) for a, b in itertools.pairwise(paths)), "relex.manifest: one directory in another")
    f.index = names_of(f, f.layouts[f.layout])

    require(len(manifest["left_out"]) <= 1000, "relex.manifest: left_out")
    for row in manifest["left_out"]:
        require(type(row) is list and len(row) == 3 and type(row[0]) is str, "relex.manifest: left_out")
        require(all(is_integer(value, 0, 1 << 53) for value in row[1:]), "relex.manifest: left_out")


# ---- 5. Records ----

SAME, MOVING, FRAMED, TIED = 0, 1, 2, 3
IN_BASE, STORED = 0, 1
Tensor = namedtuple("Tensor", "kind origin directions first digest chunk offset segment reserved")  # <BBHIIIII8s
Direction = namedtuple(  # <ddffHBBIII16sII
    "Direction",
    "slope intercept scale shift pairs packing reserved chunk offset row_crc informative factors_chunk factors_offset",
)


def open_records(f: RelexFile) -> None:
    """Tensors, directions, digests: each used in the order of the tensors, exactly once."""
    f.tensors = [Tensor(*row) for row in struct.iter_unpack("<BBHIIIII8s", f.bytes_of("relex.tensors"))]
    f.directions = [Direction(*row) for row in struct.iter_unpack("<ddffHBBIII16sII", f.bytes_of("relex.directions"))]
    f.digests = [row[0] for row in struct.iter_unpack("<16s", f.bytes_of("relex.digests"))]
    require(len(f.tensors) == len(f.manifest), "relex.tensors: not as many as in the manifest")
    framed = [t.kind == FRAMED and named.n > 0 for t, named in zip(f.tensors, f.manifest, strict=True)]
    require(f.has_frames == (f.has_exact or any(framed)), "the entries of the frames: missing, or not needed")
    segments = len(f.bytes_of(SEGMENTS)) // 48 if f.has_frames else 0
    directions, digests = 0, 0
    for tensor, named, in_frames in zip(f.tensors, f.manifest, framed, strict=True):
        name, kind, origin = named.name, tensor.kind, tensor.origin
        require(kind <= TIED and origin <= STORED and not any(tensor.reserved), f"{name}: kind, origin or reserved")
        if kind == TIED:
            require(tensor.first < len(f.tensors), f"{name}: another name of a tensor that is not there")
            target, other = f.tensors[tensor.first], f.manifest[tensor.first]
            require(target.kind != TIED, f"{name}: another name of another name")
            require((other.dtype, other.shape) == (named.dtype, named.shape), f"{name}: not what it is a name of")
            require(not any([*tensor[1:3], *tensor[4:8]]) and not named.sources, f"{name}: more than another name")
            continue
        require((tensor.directions >= 1) == (kind == MOVING), f"{name}: number of directions")
        require(tensor.first == (directions if kind == MOVING else 0), f"{name}: index of its first direction")
        directions += tensor.directions
        require((origin == IN_BASE) == (len(named.sources) > 0), f"{name}: sources of its origin")
        require(tensor.digest == (digests if origin == IN_BASE else 0), f"{name}: index of its first digest")
        digests = digests - (-named.n // PIECE) if origin == IN_BASE else digests
        equal, floats = named.dtype == named.origin_dtype, named.dtype in FLOAT and named.origin_dtype in FLOAT
        require(floats and named.n > 0 if kind == MOVING else floats or equal, f"{name}: dtypes, or nothing to move")
        require(f.holds(tensor) or tensor.chunk == tensor.offset == 0, f"{name}: a span that is not used")
        require(tensor.segment <= segments, f"{name}: in a segment that is not there")
        require(tensor.segment == 0 or named.n > 0, f"{name}: in a segment, but empty")
        require(tensor.segment > 0 or not in_frames, f"{name}: framed, but in no segment")
        require(tensor.segment == 0 or in_frames or f.has_exact, f"{name}: in a segment, but in no tier")
    require(directions == len(f.directions), "relex.directions: unused records")
    require(digests == len(f.digests), "relex.digests: not as many as the tensors need")

    for tensor, named in zip(f.tensors, f.manifest, strict=True):
        for d in f.directions_of(tensor):
            require(all(map(math.isfinite, d[:4])) and math.copysign(1, d.scale) == 1, f"{named.name}: a number")
            require(d.reserved == 0, f"{named.name}: reserved byte of a direction")
            require(d.packing <= WORD and (d.packing != NO_REMAINDER or d.pairs > 0), f"{named.name}: packing")
            zero = struct.pack("<ff", d.scale, d.shift) == bytes(8)
            require(d.packing > FLOAT32 or zero, f"{named.name}: a scale or shift that is not used")
            require(
                d.pairs <= min(named.shape[-2:] if len(named.shape) > 1 else [0]), f"{named.name}: too many factors"
            )


# ---- 6. Chunks and spans ----

Chunk = namedtuple("Chunk", "position stored raw crc codec fill reserved")  # <QIIIBB2s

AS_IT_IS, ZSTD, FILLED = 0, 1, 2


def open_chunks(f: RelexFile) -> None:
    """The table of chunks, which tile the two data entries, and the spans, which tile the raw chunks."""
    f.chunks = [Chunk(*row) for row in struct.iter_unpack("<QIIIBB2s", f.bytes_of("relex.chunks"))]
    for chunk in f.chunks:
        require(chunk.stored >= 1 and 1 <= chunk.raw <= 1 << 21, "relex.chunks: length")
        require(chunk.codec <= FILLED and not any(chunk.reserved), "relex.chunks: codec or reserved bytes")
        require(chunk.codec != AS_IT_IS or chunk.stored == chunk.raw, "relex.chunks: length of a chunk stored as it is")
        require(chunk.codec == FILLED or chunk.fill == 0, "relex.chunks: a fill byte that is not used")
    at = 0
    for name in DATA:
        first, position, end = at, f.entries[name].start, f.entries[name].end
        while position < end:
            require(at < len(f.chunks) and f.chunks[at].position == position, f"{name}: chunks leave a hole")
            position, at = position + f.chunks[at].stored, at + 1
        require(position == end, f"{name}: a chunk crosses the end")
        f.chunks_of[name] = range(first, at)
    require(at == len(f.chunks), "relex.chunks: one too many")

    filled = [0] * len(f.chunks)
    for index, begin, end in sorted(piece for span in spans(f) for piece in walk(f, *span)):
        require(begin == filled[index], "a hole between spans, or an overlap")
        filled[index] = end
    require(filled == [chunk.raw for chunk in f.chunks], "a hole after the last span of a chunk")


def spans(f: RelexFile) -> Iterator[tuple[Span, Iterable[int], str]]:
    """Every span, with the lengths of its pieces and its entry."""
    for tensor, named in zip(f.tensors, f.manifest, strict=True):
        for d in f.directions_of(tensor):
            yield (
                (d.factors_chunk, d.factors_offset),
                lengths_of(factor_count(d.pairs, named.shape), 2),
                DATA_DIRECTIONS,
            )
            yield (d.chunk, d.offset), remainder_lengths(d.packing, named.n), DATA_DIRECTIONS
        if f.holds(tensor):
            yield (tensor.chunk, tensor.offset), lengths_of(named.n, WIDTH[named.origin_dtype]), DATA_BASE
    for file in f.files:
        if file.chunk is not None:
            yield (file.chunk, file.offset), lengths_of(file.length, 1), DATA_BASE


def lengths_of(n: int, width: int) -> Iterator[int]:
    """The lengths of the planes of an array of n elements; each plane is a piece of its own."""
    return (stop - start for start, stop in pieces(n) for _ in range(width))


def walk(f: RelexFile, span: Span, lengths: Iterable[int], entry: str) -> Iterator[tuple[int, int, int]]:
    """Chunk, begin and end of each piece of a span."""
    chunk, at = span
    empty = True
    for length in lengths:
        if not empty and at == f.chunks[chunk].raw:
            chunk, at = chunk + 1, 0
        require(chunk in f.chunks_of[entry], f"{entry}: a span leaves the entry's chunks")
        require(at + length <= f.chunks[chunk].raw, f"{entry}: a piece crosses the end of a chunk")
        yield chunk, at, at + length
        at, empty = at + length, False
    require(not empty or span == (0, 0), f"{entry}: the span of an empty list is not (0, 0)")


def read(f: RelexFile, span: Span, lengths: Iterable[int], entry: str) -> Iterator[bytes]:
    """The pieces of a span."""
    index, raw = -1, b""
    for chunk, begin, end in walk(f, span, lengths, entry):
        if chunk != index:
            index, raw = chunk, read_chunk(f, chunk)
        yield raw[begin:end]


def read_chunk(f: RelexFile, index: int) -> bytes:
    """The raw bytes of a chunk, whose checksum comes first."""
    chunk = f.chunks[index]
    stored = f.data[chunk.position : chunk.position + chunk.stored]
    require(zlib.crc32(stored) == chunk.crc, f"chunk {index}: checksum")
    if chunk.codec == AS_IT_IS:
        return stored
    if chunk.codec == ZSTD:
        return unframe(stored, chunk.raw)
    end = 4 + int.from_bytes(stored[:4], "little")
    require(len(stored) >= end, f"chunk {index}: the flags end early")
    flags = np.unpackbits(np.frombuffer(unframe(stored[4:end], -(-chunk.raw // 8)), np.uint8), bitorder="little")
    require(not flags[chunk.raw :].any(), f"chunk {index}: flags beyond the last byte")
    where = np.flatnonzero(flags)
    different = np.frombuffer(unframe(stored[end:], len(where)) if len(where) else stored[end:], np.uint8)
    require(len(different) == len(where) and np.all(different != chunk.fill), f"chunk {index}: flags and bytes")
    raw = np.full(chunk.raw, chunk.fill, np.uint8)
    raw[where] = different
    return raw.tobytes()


def unframe(stored: bytes, size: int) -> bytes:
    """The content of one zstd frame, after what the frame states about itself."""
    require(content_size(stored, size, size) == size, "the content size of a frame")
    try:
        frame = zstandard.get_frame_parameters(stored)
        require(frame.dict_id == 0 and frame.window_size <= 1 << 23, "a frame's dictionary or window")
        raw = zstandard.ZstdDecompressor().decompress(stored, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Corrupt(f"a frame: {error}") from None
    require(len(raw) == size, "the length of a frame's content")
    return raw


def content_size(stored: bytes, least: int, most: int) -> int:
    """The content size that a zstd frame states."""
    require(stored[:4] == b"\x28\xb5\x2f\xfd", "not a zstd frame, or a skippable one")
    try:
        size: int = zstandard.get_frame_parameters(stored).content_size
    except zstandard.ZstdError as error:
        raise Corrupt(f"a frame: {error}") from None
    require(least <= size <= most, "the content size of a frame")
    return size


def from_planes(raw: bytes, width: int) -> bytes:
    """The elements of a piece, whose planes are joined in `raw`."""
    return np.frombuffer(raw, np.uint8).reshape(width, -1).T.tobytes()


def read_bits(f: RelexFile, span: Span, n: int, width: int, entry: str) -> bytes:
    """An array of elements in planes."""
    return b"".join(from_planes(piece, width) for piece in joined(read(f, span, lengths_of(n, width), entry), width))


def joined(planes: Iterator[bytes], width: int) -> Iterator[bytes]:
    """The planes of a piece as one."""
    while piece := b"".join(itertools.islice(planes, width)):
        yield piece


# ---- 7. The arrays of a direction ----

NO_REMAINDER, FLOAT32, WORD = 0, 1, 6
RADIX = {2: (5, 3, 1), 3: (3, 5, 2), 4: (2, 16, 7), 5: (1, 256, 127)}  # packing: codes a byte, radix, zero


def factor_count(pairs: int, shape: list[int]) -> int:
    """The number of factor values: for each matrix, `pairs` times rows + columns."""
    return math.prod(shape[:-2]) * pairs * sum(shape[-2:]) if pairs > 0 else 0


def remainder_lengths(packing: int, n: int) -> Iterator[int]:
    """The lengths of the pieces, or of their planes, of a remainder of n elements."""
    if packing not in RADIX:
        return lengths_of(n, {NO_REMAINDER: 0, FLOAT32: 4, WORD: 2}[packing])
    full = 4096 * RADIX[packing][0]  # elements of a full block
    sizes = (divmod(stop - start, full) for start, stop in pieces(n))
    return (4096 * blocks + -(-rest // RADIX[packing][0]) for blocks, rest in sizes)


def unpack_codes(raw: bytes, packing: int, n: int) -> Integers:
    """The codes q of a piece of n elements, packings 2 to 6."""
    if packing == WORD:
        digits: Integers = np.frombuffer(from_planes(raw, 2), "<u2").astype(np.int64)
        require(np.all(digits <= 2 * 32767), "a digit out of range")
        return digits - 32767
    per_byte, radix, zero = RADIX[packing]
    codes = np.zeros(n, np.int64)
    at = 0
    for start in range(0, n, 4096 * per_byte):
        x = min(4096 * per_byte, n - start)
        size = -(-x // per_byte)
        block = np.frombuffer(raw, np.uint8, size, at).astype(np.int64)
        require(np.all(block < radix**per_byte), "a byte that has more in it than its digits")
        digits = np.concatenate([block // radix**j % radix for j in range(per_byte)])
        require(np.all(digits <= 2 * zero), "a digit out of range")
        require(np.all(digits[x:] == zero), "a digit that is not zero's beyond the end")
        codes[start : start + x] = digits[:x] - zero
        at += size
    return codes


def direction_values(f: RelexFile, d: Direction, named: Named) -> Iterator[tuple[int, int, Floats]]:
    """p of section 8, piece by piece, with the piece's first element and the one past its last."""
    span = d.factors_chunk, d.factors_offset
    factors = widen(read_bits(f, span, factor_count(d.pairs, named.shape), 2, DATA_DIRECTIONS), "BF16")
    planes = read(f, (d.chunk, d.offset), remainder_lengths(d.packing, named.n), DATA_DIRECTIONS)
    remainder = joined(planes, {FLOAT32: 4, WORD: 2}.get(d.packing, 1))
    for start, stop in pieces(named.n):
        p = np.zeros(stop - start, np.float32)
        if d.pairs > 0:
            rows, columns = named.shape[-2:]
            i = np.arange(start, stop, dtype=np.int64)
            matrix = i // (rows * columns) * d.pairs * (rows + columns)  # where the factors of an element's matrix lie
            a, b = matrix + i // columns % rows, matrix + d.pairs * rows + i % columns  # and a_1 and b_1 of the element
            for j in range(d.pairs):
                p = p + factors[a + j * rows] * factors[b + j * columns]
        if d.packing == FLOAT32:
            p = p + widen(from_planes(next(remainder), 4), "F32")
        elif d.packing != NO_REMAINDER:
            q = unpack_codes(next(remainder), d.packing, stop - start)
            scale, shift = np.float32(d.scale), np.float32(d.shift)
            p = p + (q.astype(np.float32) * scale - np.sign(q).astype(np.float32) * shift)
        yield start, stop, p


# ---- 8. Arithmetic ----


def line(slope: float, intercept: float, t: float) -> float:
    """The coefficient of tier `line`; a Python float is an f64, and the interpreter fuses nothing."""
    return slope * t + intercept


def track(steps: list[int], c: tuple[float, ...], t: float) -> float:
    """The coefficient of tier `track`, t_1 <= t <= t_T."""
    i = bisect.bisect_right(steps, t) - 1
    if steps[i] == t:
        return c[i]
    return c[i] + (c[i + 1] - c[i]) * ((t - steps[i]) / (steps[i + 1] - steps[i]))


def to_g(c: float) -> np.float32:
    """c rounded to f32, which must be finite."""
    with np.errstate(all="ignore"):
        g = np.float32(c)
    if not np.isfinite(g):
        raise InvalidArgument("a coefficient is not finite at this step")
    return g


def read_row(f: RelexFile, index: int) -> tuple[float, ...]:
    """The coefficients of a direction, whose checksum is in its record."""
    size = 8 * len(f.steps)
    raw = f.bytes_of("relex.coefficients")[size * index : size * (index + 1)]
    require(zlib.crc32(raw) == f.directions[index].row_crc, f"relex.coefficients: checksum of row {index}")
    row = struct.unpack(f"<{len(f.steps)}d", raw)
    require(all(map(math.isfinite, row)), f"relex.coefficients: row {index} is not finite")
    return row


def widen(raw: bytes, dtype: str) -> Floats:
    """Float elements as f32, exactly, by integer arithmetic on the bits."""
    if dtype == "F32":
        return np.frombuffer(raw, "<f4").astype(np.float32)
    bits = np.frombuffer(raw, "<u2").astype(np.int64)
    result = bits << 16
    if dtype == "F16":
        exponent, fraction = bits >> 10 & 31, bits & 1023
        top = sum((fraction >> i > 0).astype(np.int64) for i in range(1, 10))  # highest bit of a subnormal's fraction
        subnormal = np.where(fraction > 0, (top + 103 << 23) | (fraction << 23 - top & 0x7FFFFF), 0)
        magnitude = np.where(exponent > 0, (exponent + 112 << 23) | fraction << 13, subnormal)
        result = np.where(exponent == 31, 0x7F800000 | fraction << 13, magnitude) | bits >> 15 << 31
    return result.astype(np.uint32).view(np.float32)


def halve(value: Integers, count: Integers | int) -> Integers:
    """value / 2^count, value not negative and count at least 1, rounded to nearest, ties to even."""
    result: Integers = value + (np.left_shift(1, count - 1) - 1) + (value >> count & 1) >> count
    return result


def narrow(x: Floats, dtype: str) -> bytes:
    """f32 converted to a float dtype, by integer arithmetic on the bits."""
    bits = x.view(np.uint32).astype(np.int64)
    sign, magnitude = bits >> 31, bits & 0x7FFFFFFF
    is_nan = magnitude > 0x7F800000
    if dtype == "F32":
        return np.where(is_nan, 0x7FC00000, bits).astype("<u4").tobytes()
    if dtype == "BF16":
        return np.where(is_nan, 0x7FC0, sign << 15 | halve(magnitude, 16)).astype("<u2").tobytes()
    exponent = magnitude >> 23
    normal = np.minimum(halve(np.maximum(magnitude - (112 << 23), 0), 13), 0x7C00)
    # Below 2^-14 the result counts units of 2^-24; 2^-25 and less, a shift of 25 or more, is 0.
    subnormal = halve(magnitude & 0x7FFFFF | 0x800000, np.clip(126 - exponent, 1, 26))
    result = sign << 15 | np.where(exponent >= 113, normal, subnormal)
    return np.where(is_nan, 0x7E00, result).astype("<u2").tobytes()


def choose_tier(f: RelexFile, t: float, tier: str) -> str:
    """What a step is read from: `line`, `track`, `exact` or `origin`."""
    inside, stored = f.steps[0] <= t <= f.steps[-1], f.has_exact and t in f.steps
    there = {"auto": True, "line": True, "track": inside, "exact": stored}.get(tier, False)
    if not math.isfinite(t) or not there:
        raise InvalidArgument(f"no step {t} of tier {tier!r}; the file has steps {f.steps[0]} to {f.steps[-1]}")
    if tier != "auto":
        return tier
    if stored:
        return "exact"
    targets = [f.tensors[f.target(index)] for index in f.index.values()]
    if t == 0 and all(target.origin == IN_BASE for target in targets):
        return "origin"
    return "track" if f.steps[0] <= t <= f.steps[f.observed - 1] else "line"


def read_tensor(f: RelexFile, index: int, t: float, tier: str, base: Base | None) -> bytes:
    """A tensor at a step, in a tier that has it."""
    index = f.target(index)
    tensor, named = f.tensors[index], f.manifest[index]
    in_frames = tensor.kind == FRAMED and tier != "origin"
    if in_frames and named.dtype in ALL_FLOATS and named.n > 0 and t not in f.steps:
        raise InvalidArgument(f"{named.name}: has no line, and {t} is no stored step")
    if tier == "exact" or in_frames:
        return restore(f, index, max(bisect.bisect_right(f.steps, t), 1), base)

    directions = f.directions_of(tensor) if tier != "origin" else []
    multipliers = [
        to_g(line(d.slope, d.intercept, t) if tier == "line" else track(f.steps, read_row(f, tensor.first + i), t))
        for i, d in enumerate(directions)
    ]
    if not directions:
        return read_same(f, index, base)
    x = widen(read_origin(f, tensor, named, base), named.origin_dtype)
    with np.errstate(all="ignore"):  # infinities and NaN are results like any other
        for d, g in zip(directions, multipliers, strict=True):
            for start, stop, p in direction_values(f, d, named):
                x[start:stop] = x[start:stop] + p * g
    return narrow(x, named.dtype)


def read_same(f: RelexFile, index: int, base: Base | None) -> bytes:
    """The bits of kind `same`: the origin's, converted if it has another dtype."""
    named = f.manifest[index]
    bits = read_origin(f, f.tensors[index], named, base)
    return bits if named.dtype == named.origin_dtype else narrow(widen(bits, named.origin_dtype), named.dtype)


# ---- 9. The base ----


def read_origin(f: RelexFile, tensor: Tensor, named: Named, base: Base | None) -> bytes:
    """W0 of a tensor, from the file or the base, checked; a base that the caller gives goes before an embedded one."""
    width = WIDTH[named.origin_dtype]
    embedded = f.embedded and base is None
    if tensor.origin == STORED or embedded:
        bits = read_bits(f, (tensor.chunk, tensor.offset), named.n, width, DATA_BASE)
    elif base is None:
        raise InvalidArgument(f"{named.name}: needs the base")
    else:
        bits = b"".join(read_source(source, named.origin_dtype, base) for source in named.sources)
    for i, (start, stop) in enumerate(pieces(named.n) if tensor.origin == IN_BASE else ()):
        if hashlib.sha256(bits[width * start : width * stop]).digest()[:16] != f.digests[tensor.digest + i]:
            raise (Corrupt if embedded else BaseMismatch)(f"{named.name}: not the bits that the file was made from")
    return bits


def read_source(source: Source, dtype: str, base: Base) -> bytes:
    """The elements of a source."""
    found, shape, bits = base(source.name)
    if (found, list(shape)) != (dtype, source.shape):
        raise BaseMismatch(f"{source.name}: {dtype} {source.shape} expected, {found} {shape} found")
    return bits[WIDTH[dtype] * source.first : WIDTH[dtype] * (source.first + source.count)]


def read_safetensors(path: str | Path) -> Base:
    """A base in one safetensors file, as the callable that `RelexFile.tensor` takes; it is held in memory."""
    data = Path(path).read_bytes()
    start = header_length(data, 100_000_000)
    header = parse_json(data[8:start])
    check_metadata(header.pop("__metadata__", {}))
    entries = parse_entries(header, start, any_order=True)
    end = max((entry.end for entry in entries.values()), default=start)
    if len(data) < end:
        raise Truncated(f"{path}: {len(data)} of {end} bytes")
    require(len(data) == end, f"{path}: bytes follow the data")

    def base(name: str) -> tuple[str, list[int], bytes]:
        if name not in entries:
            raise BaseMismatch(f"{name}: not in the base {path}")
        entry = entries[name]
        return entry.dtype, entry.shape, data[entry.start : entry.end]

    return base


# ---- 10. Writing a step out ----

Checkpoint = namedtuple("Checkpoint", "directory shards indexed files")  # shards: the names of their tensors


def checkpoint_at(f: RelexFile, t: float, tier: str) -> Checkpoint:
    """What a step is made of, in a tier that has it; the directory of a step that is not stored is not known."""
    layout = f.layout_at(t, tier)
    shards: dict[str, list[str]] = {}
    for named, number in zip(f.manifest, layout.tensors, strict=True):
        if number is not None:
            shards.setdefault(layout.shards[number], []).append(named.name)
    directory = f.directories[f.steps.index(int(t))] if t in f.steps else None
    return Checkpoint(directory, shards, layout.indexed, [f.files[i].name for i in layout.files])


def read_file(f: RelexFile, index: int, given: BaseFiles | None) -> bytes | None:
    """A file of a step; none of a document that the base does not have any more."""
    file = f.files[index]
    if file.chunk is not None:
        content: bytes | None = b"".join(read(f, (file.chunk, file.offset), lengths_of(file.length, 1), DATA_BASE))
    elif given is None:
        raise InvalidArgument(f"{file.name}: needs the base")
    else:
        content = given(file.name)
    if file.digest is not None and (content is None or hashlib.sha256(content).hexdigest()[:32] != file.digest):
        raise (BaseMismatch if file.chunk is None else Corrupt)(f"{file.name}: not the file that the run has")
    return content


# ---- EXACT.md: 13. Segments and frames ----

Segment = namedtuple("Segment", "before count left table_sets groups limit position length reserved")  # <IIIIIIQQ8s
Frame = namedtuple("Frame", "position length table_set reserved")  # <QQB7s
Part = namedtuple("Part", "tensor start stop")  # the tensor's number; where the piece starts and stops
Coded = namedtuple("Coded", "digest coding stream")  # what the blob of a frame has for a part
TableSet = namedtuple("TableSet", "dense contexts tables")  # the table of each context; the frequencies of each table
NO_TABLE = 255
MANTISSA = {"BF16": 7, "F16": 10, "F32": 23, "C64": 23}
MANTISSA |= {"F8_E4M3": 3, "F8_E4M3FNUZ": 3, "F8_E5M2": 2, "F8_E5M2FNUZ": 2}


def half_of(dtype: str) -> int:
    """Half of the values that the words of a dtype have."""
    return 1 << (8 * min(WIDTH[dtype], 4) - 1)


def order(u: Integers, dtype: str) -> Integers:
    """Bits of words as words."""
    half = half_of(dtype)
    if dtype in MANTISSA:
        return np.where(u < half, u + half, 2 * half - 1 - u)
    return (u + half) % (2 * half) if dtype in ("I8", "I16", "I32") else u


def to_words(bits: bytes, dtype: str) -> Integers:
    """Elements as words."""
    return order(np.frombuffer(bits, f"<u{min(WIDTH[dtype], 4)}").astype(np.int64), dtype)


def from_words(words: Integers, dtype: str) -> bytes:
    """Words as elements."""
    half = half_of(dtype)
    u = np.where(words >= half, words - half, 2 * half - 1 - words) if dtype in MANTISSA else order(words, dtype)
    return u.astype(f"<u{min(WIDTH[dtype], 4)}").tobytes()


def frame_order(count: int) -> list[tuple[int, int]]:
    """The steps of a segment in the order of their frames, each with how many of the segment's frames it needs."""
    result, level, needed = [(count, 1)], [(0, count)], 2
    while level:
        intervals = [(left, right, (left + right) // 2) for left, right in level if right - left > 1]
        result += [(middle, needed) for _, _, middle in intervals]
        level = [half for left, right, middle in intervals for half in ((left, middle), (middle, right))]
        needed += 1
    return result


def open_exact(f: RelexFile) -> None:
    """Segments, frames and groups; where tables and frames lie, and how many frames a step needs."""
    f.segments = [Segment(*row) for row in struct.iter_unpack("<IIIIIIQQ8s", f.bytes_of(SEGMENTS))]
    f.frames = [Frame(*row) for row in struct.iter_unpack("<QQB7s", f.bytes_of(FRAMES))]
    needs = [0]  # frames, by number of the step
    position = f.entries[DATA_FRAMES].start
    for segment in f.segments:
        require(segment.before == len(needs) - 1, f"{SEGMENTS}: the segments do not tile the steps")
        require(1 <= segment.count <= len(f.steps) - segment.before, f"{SEGMENTS}: number of steps")
        require(segment.left <= segment.before, f"{SEGMENTS}: the left end is no earlier step")
        require(1 <= segment.table_sets <= 255 and segment.limit >= 1, f"{SEGMENTS}: table sets, or words in a group")
        require(not any(segment.reserved), f"{SEGMENTS}: reserved bytes")
        in_order = frame_order(segment.count)
        frames = [f.frames[segment.before + step - 1] for step, _ in in_order]
        for own in (segment, *frames):
            require(own.position == position, f"{DATA_FRAMES}: tables and frames do not tile it")
            require(own.length == 0 or segment.groups > 0, f"{DATA_FRAMES}: no groups, but bytes")
            position += own.length
        for frame in frames:
            require(frame.table_set < segment.table_sets, f"{FRAMES}: a table set that its segment lacks")
            require(not any(frame.reserved), f"{FRAMES}: reserved bytes")
        needs += [needs[segment.left] + needed for _, needed in sorted(in_order)]
    require(len(needs) == len(f.steps) + 1, f"{SEGMENTS}: the segments do not tile the steps")
    require(position == f.entries[DATA_FRAMES].end, f"{DATA_FRAMES}: tables and frames do not tile it")
    most = math.ceil(math.log2(len(f.steps))) + 2
    require(max(needs) <= most, f"{SEGMENTS}: a step needs more than {most} frames")
    for k, segment in enumerate(f.segments):
        lengths = [f.frames[segment.before + step - 1].length for step in range(1, segment.count + 1)]
        count = sum(-(-named.n // PIECE) for i, named in enumerate(f.manifest) if segment_holds(f, k, i))
        require(min(lengths) >= 9 * count, f"{DATA_FRAMES}: a frame cannot hold the parts of its segment")
        f.groups.append(groups_of(f, k))
        require(len(f.groups[k]) == segment.groups, f"{SEGMENTS}: number of groups")


def segment_holds(f: RelexFile, k: int, index: int) -> bool:
    """Whether segment k, counted from 0, holds a tensor."""
    return bool(0 < f.tensors[index].segment <= k + 1)


def groups_of(f: RelexFile, k: int) -> list[list[Part]]:
    """The parts of a segment, in groups."""
    groups: list[list[Part]] = []
    words, dtype = 0, ""
    for index, named in enumerate(f.manifest):
        for start, stop in pieces(named.n) if segment_holds(f, k, index) else ():
            own = (stop - start) * max(1, WIDTH[named.dtype] // 4)
            if not groups or named.dtype != dtype or words + own > f.segments[k].limit:
                groups.append([])
                words = 0
            groups[-1].append(Part(index, start, stop))
            words, dtype = words + own, named.dtype
    return groups


def read_blob(f: RelexFile, own: Segment | Frame, groups: int, group: int) -> bytes:
    """The blob of a group in a frame, or in the tables of a segment; its checksum comes first."""
    data = f.data[own.position : own.position + own.length]
    require(len(data) >= 12 * groups, f"{DATA_FRAMES}: an index is cut")
    index = list(struct.iter_unpack("<QI", data[: 12 * groups]))
    ends = [12 * groups, *(end for end, _ in index)]
    require(all(a <= b for a, b in itertools.pairwise(ends)), f"{DATA_FRAMES}: a blob ends before it begins")
    require(ends[-1] == len(data), f"{DATA_FRAMES}: the last blob does not end with its frame or tables")
    blob = data[ends[group] : ends[group + 1]]
    require(zlib.crc32(blob) == index[group][1], f"{DATA_FRAMES}: checksum of a blob")
    return blob


def read_tables(f: RelexFile, k: int, group: int) -> tuple[int, list[TableSet]]:
    """`low` and the table sets of a group."""
    count = f.segments[k].table_sets
    blob = read_blob(f, f.segments[k], len(f.groups[k]), group)
    return parse_tables(unframe(blob, content_size(blob, 1 + 1077 * count, 1 + 33843 * count)), count)


def parse_tables(raw: bytes, count: int) -> tuple[int, list[TableSet]]:
    """`low` and the table sets in the content of a blob of tables."""
    low, at = raw[0], 1 + 2 * count
    heads = list(struct.iter_unpack("<BB", raw[1:at]))
    contexts = [raw[at + 1075 * i : at + 1075 * (i + 1)] for i in range(count)]
    at += 1075 * count
    number = sum(tables for _, tables in heads)
    lengths = raw[at : at + number]
    at += number
    require(len(lengths) == number and all(1 <= length <= 64 for length in lengths), "the length of a table")
    require(len(raw) == at + 2 * sum(lengths), "the length of a blob of tables")
    values = [low + 256 * high for low, high in zip(raw[at : at + sum(lengths)], raw[at + sum(lengths) :], strict=True)]
    tables, at = [], 0
    for length in lengths:
        tables.append(values[at : at + length])
        at += length
        require(sum(tables[-1]) == 4096 and tables[-1][-1] > 0, "the frequencies of a table")
    table_sets = []
    for (dense, own), row in zip(heads, contexts, strict=True):
        require(dense <= 16 and own <= 254, "the classes or tables of a table set")
        require(all(table < own or table == NO_TABLE for table in row), "a table that its set lacks")
        table_sets.append(TableSet(dense, row, [tables.pop(0) for _ in range(own)]))
    return low, table_sets


def read_frame(f: RelexFile, k: int, group: int, step: int) -> list[Coded]:
    """What the frame of a step of a segment has for each part of a group."""
    frame = f.frames[f.segments[k].before + step - 1]
    return parse_frame(read_blob(f, frame, len(f.groups[k]), group), len(f.groups[k][group]))


def parse_frame(blob: bytes, parts: int) -> list[Coded]:
    """What the blob of a frame has for each part."""
    at = 8 * parts
    numbers = []
    for _ in range(parts):
        number = length = 0
        while length == 0 or blob[at - 1] >= 128:
            require(at < len(blob) and length < 5, "the blob of a frame: a number ends early, or has too many bytes")
            number |= (blob[at] & 127) << 7 * length
            at, length = at + 1, length + 1
        require(blob[at - 1] > 0 or length == 1, "the blob of a frame: a number is longer than it must be")
        numbers.append(number)
    result = []
    for i, number in enumerate(numbers):
        result.append(Coded(blob[8 * i : 8 * i + 8], number % 2, blob[at : at + number // 2]))
        at += number // 2
    require(at == len(blob), "the blob of a frame: the streams do not end where it does")
    return result


def restore(f: RelexFile, index: int, number: int, base: Base | None) -> bytes:
    """A tensor at the step of a number, 1 to T."""
    named = f.manifest[index]
    width = WIDTH[named.dtype]
    same = read_same(f, index, base)
    result = b""
    for start, stop in pieces(named.n):
        part = Part(index, start, stop)
        result += restore_part(f, part, number, same[width * start : width * stop], check=True)
    return result


def restore_part(f: RelexFile, part: Part, number: int, same: bytes, check: bool = False) -> bytes:
    """A part at the step of a number, 0 to T; 0 and segments that do not hold it are `same`."""
    k = sum(segment.before < number for segment in f.segments) - 1
    if k < 0 or not segment_holds(f, k, part.tensor):
        return same
    segment = f.segments[k]
    left = restore_part(f, part, segment.left, same)
    group = next(i for i, parts in enumerate(f.groups[k]) if part in parts)
    place = f.groups[k][group].index(part)
    low, table_sets = read_tables(f, k, group)

    def coded(step: int) -> tuple[Coded, TableSet]:
        own = table_sets[f.frames[segment.before + step - 1].table_set]
        return read_frame(f, k, group, step)[place], own

    named, step = f.manifest[part.tensor], number - segment.before
    result = Segmented(left, named.dtype, low).restore(segment.count, step, coded)
    digest = hashlib.sha256(result).digest()[:8]
    require(not check or digest == coded(step)[0].digest, f"{named.name}: not what the digest of its step says")
    return result


# ---- EXACT.md: 14. Streams of coding 0 ----

LANES_FROM = 1 << 14
LIST, GAP, MOVE, DENSE, MOVED, BELOW, ABOVE = 0, 1024, 1040, 1056, 1072, 1073, 1074
Words = list[int]  # of a part at one step, by rank
# Two steps and the near one of them; by rank, the words at both, and the outer movements.
Interval = namedtuple("Interval", "left right near a b before after")


class Stream:
    """The symbols and numbers of a stream; `lane` is the one that they are taken from."""

    def __init__(self, data: bytes, dense: int, table_set: TableSet) -> None:
        """Cut a stream with so many dense words into its lanes and refills."""
        at = len(data) if len(data) <= 8 else 5 + (len(data) - 5) % 4
        self.lanes, self.last = [int.from_bytes(data[:at], "little")], 1
        if dense >= LANES_FROM:
            at = 32
            require(len(data) >= at and len(data) % 4 == 0, "a stream of four lanes: its length")
            self.lanes, self.last = list(struct.unpack_from("<4Q", data)), 1 << 32
        self.refills = [refill for (refill,) in struct.iter_unpack("<I", data[at:])]
        self.used, self.lane, self.table_set = 0, 0, table_set

    def element(self, j: int) -> None:
        """Go to the lane of an element."""
        self.lane = j % len(self.lanes)

    def symbol(self, context: int) -> int:
        """Take a symbol."""
        x = self.lanes[self.lane]
        table = self.table_set.contexts[context]
        frequencies = [4096] if table == NO_TABLE else self.table_set.tables[table]
        slot, s, start = x % 4096, 0, 0
        while slot >= start + frequencies[s]:
            start, s = start + frequencies[s], s + 1
        self.refill(frequencies[s] * (x // 4096) + slot - start)
        return s

    def raw(self, bits: int) -> int:
        """Take raw bits."""
        x = self.lanes[self.lane]
        self.refill(x >> bits)
        return x % (1 << bits)

    def refill(self, x: int) -> None:
        """Put the lane back, with a refill if there is room for it."""
        if x < 1 << 32 and self.used < len(self.refills):
            x = (x << 32) + self.refills[self.used]
            self.used += 1
        self.lanes[self.lane] = x

    def number(self, context: int) -> int:
        """Take a number."""
        v = self.symbol(context)
        if v < 2:
            return v
        b = v // 2 - 1
        return ((2 + v % 2) << b) + (self.raw(b) if b > 0 else 0)

    def end(self) -> None:
        """Nothing may be left."""
        require(self.used == len(self.refills), "a stream goes on after its end")
        require(all(x == self.last for x in self.lanes), "a stream does not end as it must")


def zigzag(z: int) -> int:
    """The integer that a number stands for."""
    return z // 2 if z % 2 == 0 else -(z + 1) // 2


def clip(v: int) -> int:
    """An outer movement."""
    return max(-2, min(2, v))


def class_of(word: int, dtype: str, low: int) -> int:
    """The class of a word."""
    if dtype not in MANTISSA:
        return 0
    half = half_of(dtype)
    magnitude = word - half if word >= half else half - 1 - word
    return max(0, min(15, (magnitude >> MANTISSA[dtype]) - low))


def list_context(distance: int, own: int, beyond_near: int, beyond_far: int) -> int:
    """The context of a word of a list, `own` being its class."""
    if distance == 1:
        return LIST + 25 * own + 5 * beyond_near + beyond_far
    if distance < 8:
        return LIST + 400 + 80 * (distance - 2) + 5 * own + beyond_near
    return LIST + 880 + 16 * min(distance.bit_length() - 4, 8) + own


class Segmented:
    """A part in a segment. Its words are in the order of ranks."""

    def __init__(self, zero: bytes, dtype: str, low: int) -> None:
        """Sort the words at step 0 of the segment."""
        words = to_words(zero, dtype).tolist()
        by_place = [class_of(word, dtype, low) for word in words]
        self.dtype, self.low, self.mod = dtype, low, 2 * half_of(dtype)
        self.places = sorted(range(len(words)), key=by_place.__getitem__)  # of the ranks; this sort is stable
        self.classes = [by_place[place] for place in self.places]
        self.zero = [words[place] for place in self.places]

    def words(self, bits: bytes) -> Words:
        """Elements as words."""
        words = to_words(bits, self.dtype).tolist()
        return [words[place] for place in self.places]

    def bits(self, words: Words) -> bytes:
        """Words as elements."""
        result = np.zeros(len(words), np.int64)
        result[self.places] = words
        return from_words(result, self.dtype)

    def restore(self, count: int, step: int, coded: Callable[[int], tuple[Coded, TableSet]]) -> bytes:
        """The elements at a step, 1 to count; `coded` gives stream and table set of the frame of a step."""
        interval = self.whole(count, self.first_frame(*coded(count)))
        while step != interval.right:
            x = self.other_frame(interval, *coded((interval.left + interval.right) // 2))
            low, high = self.halves(interval, x)
            interval = low if step <= low.right else high
        return self.bits(interval.b)

    def whole(self, count: int, last: Words) -> Interval:
        """The interval (0, count)."""
        still = [0] * len(last)
        return Interval(0, count, 0, self.zero, last, still, still)

    def halves(self, i: Interval, x: Words) -> tuple[Interval, Interval]:
        """The intervals on both sides of the middle, where the words are x."""
        middle = (i.left + i.right) // 2
        before = [outer if a != b else 0 for a, b, outer in zip(i.a, i.b, i.before, strict=True)]
        after = [outer if a != b else 0 for a, b, outer in zip(i.a, i.b, i.after, strict=True)]
        low = Interval(i.left, middle, middle, i.a, x, before, [clip(b - w) for b, w in zip(i.b, x, strict=True)])
        high = Interval(middle, i.right, middle, x, i.b, [clip(w - a) for a, w in zip(i.a, x, strict=True)], after)
        return low, high

    def first_frame(self, coded: Coded, table_set: TableSet) -> Words:
        """The words at step `count`."""
        if coded.coding == 1:
            return self.plain(coded.stream, self.zero)
        result = list(self.zero)
        if coded.stream:
            dense = sum(e < table_set.dense for e in self.classes)
            stream = Stream(coded.stream, dense, table_set)
            for j in range(dense):
                stream.element(j)
                result[j] = (result[j] + zigzag(stream.number(DENSE + self.classes[j]))) % self.mod
            self.the_rest(stream, dense, [True] * len(result), result)
        return result

    def other_frame(self, i: Interval, coded: Coded, table_set: TableSet) -> Words:
        """The words at the middle of an interval."""
        if coded.coding == 1:
            return self.plain(coded.stream, i.a)
        quiet = [a == b for a, b in zip(i.a, i.b, strict=True)]
        require(coded.stream or all(quiet), "a stream of no length, but words that differ")
        result = list(i.a)
        if coded.stream:
            stream = Stream(coded.stream, 0, table_set)
            for j, rank in enumerate(rank for rank, still in enumerate(quiet) if not still):
                stream.element(j)
                result[rank] = self.word_of_list(stream, i, rank)
            self.the_rest(stream, 0, quiet, result)
        return result

    def word_of_list(self, stream: Stream, i: Interval, rank: int) -> int:
        """The word of a list at the middle."""
        context, near, distance, sign = self.around(i, rank)
        way: int
        if distance >= 8:
            k = abs((i.left + i.right) // 2 - i.near)
            way = distance * k // (i.right - i.left) + zigzag(stream.number(context))
        else:
            way = stream.symbol(context)
            if way == distance + 1:
                way = -1 - stream.number(BELOW)
            elif way > distance + 1:
                way = distance + 1 + stream.number(ABOVE)
        return (near + sign * way) % self.mod

    def around(self, i: Interval, rank: int) -> tuple[int, int, int, int]:
        """The context of a word of a list, the word at the near end, distance and sign."""
        before, after, near_is_left = i.before[rank], i.after[rank], i.near == i.left
        near, far = (i.a[rank], i.b[rank]) if near_is_left else (i.b[rank], i.a[rank])
        distance, sign = abs(far - near), 1 if far > near else -1
        beyond = (2 + sign * before, 2 + sign * after) if near_is_left else (2 - sign * after, 2 - sign * before)
        return list_context(distance, class_of(near, self.dtype, self.low), *beyond), near, distance, sign

    def the_rest(self, stream: Stream, rank: int, quiet: list[bool], result: Words) -> None:
        """Quiet words that moved, from a rank on; `result` has them as they are at the left end."""
        stream.element(0)
        size, moved = len(result), stream.number(MOVED)
        require(moved <= sum(quiet[rank:]), "more words moved than are quiet")
        for _ in range(moved):
            require(rank < size, "a gap begins after the last word")
            gap = stream.number(GAP + self.classes[rank])
            rank = next(itertools.islice((r for r in range(rank, size) if quiet[r]), gap, None), size)
            require(rank < size, "a gap ends after the last word")
            z = stream.number(MOVE + self.classes[rank])
            result[rank] = (result[rank] + zigzag(z + 1)) % self.mod
            rank += 1
        stream.end()

    def plain(self, stream: bytes, left: Words) -> Words:
        """Words of coding 1."""
        there = np.frombuffer(self.bits(left), np.uint8)
        xor = from_planes(unframe(stream, len(there)), WIDTH[self.dtype])
        return self.words((there ^ np.frombuffer(xor, np.uint8)).tobytes())


# ---- The file, which ties the sections together ----


class RelexFile:
    """A `.relex` file. All but chunks and coefficients is checked when it is opened; `check_all` checks the rest."""

    data: bytes
    entries: dict[str, Entry]
    steps: list[int]
    observed: int
    embedded: bool
    has_exact: bool  # the manifest's key `exact`
    manifest: list[Named]
    files: list[File]
    layouts: list[Layout]
    layout: int  # of tiers `line` and `track`, and of the origin
    layout_of: list[int]  # of each step
    directories: list[str]  # of each step
    index: dict[str, int]  # the tensors of `layout` by name
    tensors: list[Tensor]
    directions: list[Direction]
    digests: list[bytes]
    chunks: list[Chunk]
    chunks_of: dict[str, range]  # which chunks an entry has
    segments: list[Segment]
    frames: list[Frame]  # of each step
    groups: list[list[list[Part]]]  # of each segment

    def __init__(self, data: bytes) -> None:
        """Open the bytes of a file."""
        self.data = data
        self.manifest, self.chunks_of = [], {}
        self.segments, self.frames, self.groups = [], [], []
        open_root(self)
        open_manifest(self)
        open_records(self)
        open_chunks(self)
        if self.has_frames:
            open_exact(self)

    @property
    def has_frames(self) -> bool:
        """Whether the file has segments and frames."""
        return DATA_FRAMES in self.entries

    def bytes_of(self, entry: str) -> bytes:
        """The bytes of an entry."""
        return self.data[self.entries[entry].start : self.entries[entry].end]

    def holds(self, tensor: Tensor) -> bool:
        """Whether the file holds the tensor's origin."""
        in_base = tensor.kind != TIED and tensor.origin == IN_BASE
        return bool(tensor.origin == STORED or (in_base and self.embedded))

    def target(self, index: int) -> int:
        """The tensor that is read for one: itself, unless it is another name."""
        tensor = self.tensors[index]
        return int(tensor.first) if tensor.kind == TIED else index

    def layout_at(self, t: float, tier: str) -> Layout:
        """The layout of a step in a tier that has it."""
        return self.layouts[self.layout_of[self.steps.index(int(t))] if tier == "exact" else self.layout]

    def directions_of(self, tensor: Tensor) -> list[Direction]:
        """The directions of a tensor."""
        return self.directions[tensor.first : tensor.first + tensor.directions]

    def tensor(self, name: str, step: float, tier: str = "auto", base: Base | None = None) -> bytes:
        """The bytes of a tensor at a step, little-endian, in row-major order."""
        t, tier = self.at(step, tier)
        names = names_of(self, self.layout_at(t, tier))
        if name not in names:
            raise InvalidArgument(f"there is no tensor {name!r} at step {t} in tier {tier}")
        return read_tensor(self, names[name], t, tier, base)

    def at(self, step: float, tier: str = "auto") -> tuple[float, str]:
        """A step as a number, and what it is read from."""
        try:
            t = float(step)
        except (OverflowError, TypeError, ValueError):
            raise InvalidArgument(f"no step: {step!r}") from None
        return t, choose_tier(self, t, tier)

    def checkpoint(self, step: float, tier: str = "auto") -> Checkpoint:
        """What a step is made of."""
        return checkpoint_at(self, *self.at(step, tier))

    def file(self, name: str, step: float, tier: str = "auto", given: BaseFiles | None = None) -> bytes | None:
        """The bytes of a file of a step that is no weights and no index."""
        numbers = {self.files[i].name: i for i in self.layout_at(*self.at(step, tier)).files}
        if name not in numbers:
            raise InvalidArgument(f"there is no file {name!r} at step {step}")
        return read_file(self, numbers[name], given)

    def check_all(self) -> None:
        """Check what opening leaves: all chunks, coefficients and codes, digests of stored files and an embedded base.

        Of the frames: all blobs, and every step of the tensors whose origin the file holds.
        """
        for i in range(len(self.chunks)):
            read_chunk(self, i)
        for i in range(len(self.directions)):
            read_row(self, i)
        for tensor, named in zip(self.tensors, self.manifest, strict=True):
            with np.errstate(all="ignore"):
                for d in self.directions_of(tensor):
                    for _ in direction_values(self, d, named):
                        pass
            if self.holds(tensor):
                read_origin(self, tensor, named, None)
        for i, file in enumerate(self.files):
            if file.chunk is not None:
                read_file(self, i, None)
        for k, segment in enumerate(self.segments):
            for group, parts in enumerate(self.groups[k]):
                read_tables(self, k, group)
                for step in range(1, segment.count + 1):
                    for part, found in zip(parts, read_frame(self, k, group, step), strict=True):
                        if found.coding == 1:
                            unframe(found.stream, (part.stop - part.start) * WIDTH[self.manifest[part.tensor].dtype])
        for index, tensor in enumerate(self.tensors):
            for number in range(1, len(self.steps) + 1) if tensor.segment > 0 and self.holds(tensor) else ():
                restore(self, index, number, None)


def main() -> int:
    """Check a file; print SHA-256, dtype, shape and name of each tensor at a step."""
    parser = argparse.ArgumentParser(description="Decode a .relex file slowly and print SHA-256 of its tensors.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--step", type=float, required=True)
    parser.add_argument("--tier", default="auto", choices=("auto", "line", "track", "exact"))
    parser.add_argument("--base", type=Path, help="the base, one safetensors file")
    options = parser.parse_args()
    try:
        file = RelexFile(options.file.read_bytes())
        file.check_all()
        base = None if options.base is None else read_safetensors(options.base)
        t, tier = file.at(options.step, options.tier)
        for index in names_of(file, file.layout_at(t, tier)).values():
            named = file.manifest[index]
            digest = hashlib.sha256(file.tensor(named.name, options.step, options.tier, base)).hexdigest()
            print(digest, named.dtype, named.shape, named.name)
    except (RelexError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
