"""The manifest: what the index says in JSON (FORMAT.md section 4)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.filenames import SAFE_NAME, file_allowed
from relex_codec.core.text import quote
from relex_codec.errors import Corrupt

from .safetensors_header import METADATA, load_object

SIZE_LIMIT: Final = 1 << 48
_WHERE: Final = "relex.manifest"


class TensorEntry(NamedTuple):
    """What the manifest says about one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    origin_dtype: str
    shard: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class FileEntry(NamedTuple):
    """A file of the base that is embedded: a span of bytes."""

    name: str
    length: int
    chunk: int
    offset: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest's content; attributes are its keys.

    Attributes:
        exact: whether the file offers tier ``exact``: its frames hold every tensor that changes.
    """

    observed: int
    exact: bool
    base_uri: str | None
    embedded: bool
    quality: str
    growth: float | None
    tensors: list[TensorEntry]
    shards: list[str]
    indexed: bool
    files: list[FileEntry] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """Serialise, padded with spaces to a multiple of 8."""
        document = {
            "observed": self.observed,
            "exact": self.exact,
            "base": {"uri": self.base_uri, "embedded": self.embedded},
            "quality": {"name": self.quality, "growth": self.growth},
            "tensors": self.tensors,
            "shards": self.shards,
            "indexed": self.indexed,
            "files": self.files,
        }
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        return text + b" " * (-len(text) % 8)


def parse(raw: bytes, steps: int) -> Manifest:
    """Parse and check a manifest of a file with `steps` steps.

    Raises:
        Corrupt: it breaks a rule of FORMAT.md section 4.
    """
    document = load_object(raw, error=Corrupt, where=_WHERE, exact=True)
    base, quality = _get(document, "base", dict), _get(document, "quality", dict)
    growth = quality.get("growth", math.inf)
    if growth is not None and not (type(growth) in (int, float) and math.isfinite(growth)):
        raise Corrupt(f"{_WHERE}: growth is {quote(growth)}, expected a number or null")
    uri = base.get("uri", 0)
    if uri is not None and type(uri) is not str:
        raise Corrupt(f"{_WHERE}: uri is {quote(uri)}, expected a string or null")
    manifest = Manifest(
        observed=_get(document, "observed", int),
        exact=_get(document, "exact", bool),
        base_uri=uri,
        embedded=_get(base, "embedded", bool),
        quality=_get(quality, "name", str),
        growth=None if growth is None else float(growth),
        tensors=[_tensor(row) for row in _get(document, "tensors", list)],
        shards=_get(document, "shards", list),
        indexed=_get(document, "indexed", bool),
        files=[_file(row) for row in _get(document, "files", list)],
    )
    if not 1 <= manifest.observed <= steps:
        raise Corrupt(f"{_WHERE}: {manifest.observed} observed steps of {steps}")
    _check_names(manifest)
    return manifest


def _get(document: dict[str, Any], key: str, kind: type) -> Any:
    value = document.get(key)
    if type(value) is not kind:  # a bool is no int here
        raise Corrupt(f"{_WHERE}: {key} is {quote(value)}, expected {kind.__name__}")
    return value


def _sized(value: object, limit: int = SIZE_LIMIT) -> bool:
    return type(value) is int and 0 <= value < limit


def _tensor(row: object) -> TensorEntry:
    if not (isinstance(row, list) and len(row) == 5):
        raise Corrupt(f"{_WHERE}: {quote(row)} is no tensor")
    name, dtype, shape, origin_dtype, shard = row
    if not (
        type(name) is str
        and name != METADATA
        and type(dtype) is str
        and dtype in ITEMSIZE
        and type(origin_dtype) is str
        and origin_dtype in ITEMSIZE
        and _sized(shard, 1 << 32)
        and isinstance(shape, list)
        and len(shape) <= 64
        and all(map(_sized, shape))
        and math.prod(n for n in shape if n) < SIZE_LIMIT
    ):
        raise Corrupt(f"{_WHERE}: {quote(row)} is no tensor")
    return TensorEntry(name, dtype, tuple(shape), origin_dtype, shard)


def _file(row: object) -> FileEntry:
    if not (
        isinstance(row, list)
        and len(row) == 4
        and type(row[0]) is str
        and _sized(row[1])
        and all(_sized(x, 1 << 32) for x in row[2:])
    ):
        raise Corrupt(f"{_WHERE}: {quote(row)} is no file")
    return FileEntry(*row)


def _check_names(manifest: Manifest) -> None:
    if len({tensor.name for tensor in manifest.tensors}) != len(manifest.tensors):
        raise Corrupt(f"{_WHERE}: two tensors have one name")
    if not manifest.shards:
        raise Corrupt(f"{_WHERE}: no shards")
    if manifest.files and not manifest.embedded:
        raise Corrupt(f"{_WHERE}: files without an embedded base")
    for shard in manifest.shards:
        if not (type(shard) is str and SAFE_NAME.fullmatch(shard) and shard.endswith(".safetensors")):
            raise Corrupt(f"{_WHERE}: {quote(shard)} is no name of a shard")
    if manifest.shards != sorted(manifest.shards):
        raise Corrupt(f"{_WHERE}: the shards are not sorted")
    for file in manifest.files:
        if not file_allowed(file.name):
            raise Corrupt(f"{_WHERE}: {quote(file.name)} is no name of a file")
    names = [name.lower() for name in (*manifest.shards, *(file.name for file in manifest.files))]
    if len(set(names)) != len(names):
        raise Corrupt(f"{_WHERE}: two files have one name")
    for tensor in manifest.tensors:
        if tensor.shard >= len(manifest.shards):
            raise Corrupt(f"{_WHERE}: tensor {quote(tensor.name)} is in shard {tensor.shard} of {len(manifest.shards)}")
