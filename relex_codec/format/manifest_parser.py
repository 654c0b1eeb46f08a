"""Reading a manifest: every rule of FORMAT.md section 4 is checked here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.filenames import (
    ADAPTER_CONFIG,
    STEP_FOLDER,
    directory_allowed,
    file_allowed,
    is_document,
    shard_allowed,
)
from relex_codec.core.left_out import LeftOut
from relex_codec.core.text import quote
from relex_codec.errors import Corrupt

from .manifest import (
    LEFT_OUT_LIMIT,
    SIZE_LIMIT,
    BaseRange,
    FileEntry,
    Layout,
    Manifest,
    StepEntry,
    TensorEntry,
)
from .manifest_text import unpacked
from .safetensors_header import METADATA, load_object

_WHERE: Final = "relex.manifest"
_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
_NUMBERS: Final = 1 << 32
_LEFT_OUT_SIZE: Final = (1 << 53) + 1


def parse(raw: bytes, steps: Sequence[int]) -> Manifest:
    """Parse and check a manifest, as it is or packed, of a file with these steps.

    Raises:
        Corrupt: it breaks a rule of FORMAT.md section 4.
    """
    document = load_object(unpacked(raw), error=Corrupt, where=_WHERE, exact=True)
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
        base_shards=_get(base, "shards", list),
        quality=_get(quality, "name", str),
        growth=None if growth is None else float(growth),
        tensors=[_tensor(row) for row in _get(document, "tensors", list)],
        files=[_file(row) for row in _get(document, "files", list)],
        layouts=[_layout(value) for value in _get(document, "layouts", list)],
        layout=_get(document, "layout", int),
        steps=[_step(row) for row in _get(document, "steps", list)],
        left_out=[_left_out(row) for row in _get(document, "left_out", list)],
    )
    if not 1 <= manifest.observed <= len(steps):
        raise Corrupt(f"{_WHERE}: {manifest.observed} observed steps of {len(steps)}")
    if len(manifest.left_out) > LEFT_OUT_LIMIT:
        raise Corrupt(f"{_WHERE}: {len(manifest.left_out)} rows of left_out, at most {LEFT_OUT_LIMIT} allowed")
    _check_base(manifest)
    _check_files(manifest)
    for number, layout in enumerate(manifest.layouts):
        _check_layout(manifest, layout, number)
    _check_steps(manifest, steps)
    return manifest


def _get(document: dict[str, Any], key: str, kind: type) -> Any:
    value = document.get(key)
    if type(value) is not kind:  # a bool is no int here
        raise Corrupt(f"{_WHERE}: {key} is {quote(value)}, expected {kind.__name__}")
    return value


def _sized(value: object, limit: int = SIZE_LIMIT) -> bool:
    return type(value) is int and 0 <= value < limit


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(map(_sized, value))
        and math.prod(n for n in value if n) < SIZE_LIMIT
    )


def _row(value: object, length: int) -> list[Any]:
    """Return a row of a list, of so many values; otherwise one without any."""
    return value if isinstance(value, list) and len(value) == length else []


def _tensor(row: object) -> TensorEntry:
    match _row(row, 4):
        case [str(name), str(dtype), shape, origin] if (
            name != METADATA and dtype in ITEMSIZE and _is_shape(shape) and (origin is None or _row(origin, 2))
        ):
            entry = TensorEntry(name, dtype, tuple(shape), dtype)
            if origin is None:
                return entry
            match origin:
                case [str(own), [_, *_] as sources] if own in ITEMSIZE:
                    return entry._replace(origin_dtype=own, sources=tuple(_source(one, entry) for one in sources))
    raise Corrupt(f"{_WHERE}: {quote(row)} is no tensor")


def _source(value: object, entry: TensorEntry) -> BaseRange:
    """Return a source of a tensor: the number of a shard, or elements of a tensor of another name or shape."""
    if isinstance(value, int) and _sized(value, _NUMBERS):
        return BaseRange(value, entry.name, entry.shape, 0, entry.size)
    match _row(value, 5):
        case [shard, str(name), shape, first, count] if (
            _sized(shard, _NUMBERS)
            and name != METADATA
            and _is_shape(shape)
            and _sized(first)
            and _sized(count)
            and first + count <= math.prod(shape)
            and (count or not entry.size)
        ):
            return BaseRange(shard, name, tuple(shape), first, count)
    raise Corrupt(f"{_WHERE}: {quote(value)} is no source of tensor {quote(entry.name)}")


def _file(row: object) -> FileEntry:
    match _row(row, 5):
        case [str(name), *_] if not (file_allowed(name) or name == ADAPTER_CONFIG):
            raise Corrupt(f"{_WHERE}: {quote(name)} is no name of a file")
        case [str(name), length, digest, chunk, offset] if (
            _sized(length)
            and (is_document(name) if digest is None else isinstance(digest, str) and _DIGEST.fullmatch(digest))
            and ((chunk is None and offset is None) or (_sized(chunk, _NUMBERS) and _sized(offset, _NUMBERS)))
        ):
            return FileEntry(name, length, digest, chunk, offset)
    raise Corrupt(f"{_WHERE}: {quote(row)} is no file")


def _layout(value: object) -> Layout:
    if not isinstance(value, dict):
        raise Corrupt(f"{_WHERE}: {quote(value)} is no layout")
    shards, tensors, files = (_get(value, key, list) for key in ("shards", "tensors", "files"))
    return Layout(shards, _get(value, "indexed", bool), tensors, files)


def _step(row: object) -> StepEntry:
    match _row(row, 2):
        case [str() | None as directory, layout] if (directory is None or directory_allowed(directory)) and _sized(
            layout, _NUMBERS
        ):
            return StepEntry(directory, layout)
    raise Corrupt(f"{_WHERE}: {quote(row)} is no step")


def _left_out(row: object) -> LeftOut:
    match _row(row, 3):
        case [str(what), files, size] if _sized(files, _LEFT_OUT_SIZE) and _sized(size, _LEFT_OUT_SIZE):
            return LeftOut(what, files, size)
    raise Corrupt(f"{_WHERE}: {quote(row)} says nothing of what was left out")


def _check_shards(shards: list[Any], whose: str) -> None:
    for shard in shards:
        if not (type(shard) is str and shard_allowed(shard)):
            raise Corrupt(f"{_WHERE}: {quote(shard)} is no name of a shard")
    if shards != sorted(shards):
        raise Corrupt(f"{_WHERE}: the shards of {whose} are not sorted")
    _check_unequal(shards, f"two shards of {whose}")


def _check_unequal(names: Iterable[str], what: str) -> None:
    found = [name.lower() for name in names]
    if len(set(found)) != len(found):
        raise Corrupt(f"{_WHERE}: {what} have one name")


def _check_base(manifest: Manifest) -> None:
    """Shards of the base, and what tensors say of it."""
    _check_shards(manifest.base_shards, "the base")
    if len({(tensor.name, tensor.dtype) for tensor in manifest.tensors}) != len(manifest.tensors):
        raise Corrupt(f"{_WHERE}: two tensors have one name and one dtype")
    known: dict[str, tuple[int, str, tuple[int, ...]]] = {}
    for tensor in manifest.tensors:
        name = quote(tensor.name)
        if tensor.sources and sum(source.elements for source in tensor.sources) != tensor.size:
            raise Corrupt(f"{_WHERE}: the sources of tensor {name} do not have its {tensor.size} elements")
        for source in tensor.sources:
            if source.shard >= len(manifest.base_shards):
                raise Corrupt(f"{_WHERE}: {name} is in shard {source.shard} of {len(manifest.base_shards)} of the base")
            told = source.shard, tensor.origin_dtype, source.shape
            if known.setdefault(source.name, told) != told:
                raise Corrupt(f"{_WHERE}: two sources differ in what tensor {quote(source.name)} of the base is")


def _check_files(manifest: Manifest) -> None:
    outside = next((file for file in manifest.files if not file.stored), None)
    if outside is not None and (manifest.embedded or not manifest.base_shards):
        why = "is embedded" if manifest.embedded else "has no shards"
        raise Corrupt(f"{_WHERE}: file {quote(outside.name)} is only in the base, which {why}")


def _check_layout(manifest: Manifest, layout: Layout, number: int) -> None:
    where = f"layout {number}"
    if not layout.shards:
        raise Corrupt(f"{_WHERE}: {where} has no shards")
    _check_shards(layout.shards, where)
    if len(layout.tensors) != len(manifest.tensors) or not all(
        shard is None or _sized(shard, len(layout.shards)) for shard in layout.tensors
    ):
        raise Corrupt(f"{_WHERE}: {where} does not say which of its shards each tensor is in")
    names = [tensor.name for tensor, shard in zip(manifest.tensors, layout.tensors, strict=True) if shard is not None]
    if len(set(names)) != len(names):
        raise Corrupt(f"{_WHERE}: two tensors of {where} have one name")
    if not all(_sized(file, len(manifest.files)) for file in layout.files):
        raise Corrupt(f"{_WHERE}: {where} names a file that is not there")
    files = [manifest.files[file].name for file in layout.files]
    _check_unequal(files, f"two files of {where}")
    for name in files:
        if not file_allowed(name, layout.shards):
            raise Corrupt(f"{_WHERE}: {where} has {quote(name)} beside other weights than those of an adapter")


def _check_steps(manifest: Manifest, steps: Sequence[int]) -> None:
    count = len(manifest.layouts)
    if len(manifest.steps) != len(steps) or any(step.layout >= count for step in manifest.steps):
        raise Corrupt(f"{_WHERE}: the steps do not fit {len(steps)} steps and {count} layouts")
    if manifest.layout != manifest.steps[manifest.observed - 1].layout:
        raise Corrupt(f"{_WHERE}: layout {manifest.layout} is not that of the last observed step")
    if not manifest.exact and count > 1:
        raise Corrupt(f"{_WHERE}: {count} layouts without tier exact")
    found = {
        (STEP_FOLDER.format(step) if entry.directory is None else entry.directory).lower()
        for step, entry in zip(steps, manifest.steps, strict=True)
    }
    if len(found) != len(steps):
        raise Corrupt(f"{_WHERE}: two steps have one directory")
    for path in found:
        parts = path.split("/")
        if any("/".join(parts[:i]) in found for i in range(1, len(parts))):
            raise Corrupt(f"{_WHERE}: directory {quote(path)} is within that of another step")
