"""Checkpoints of `torch.distributed.checkpoint`: ``.metadata``, which says what lies where, and ``__R_N.distcp``.

The metadata are a pickle, read by the list below; each chunk of a tensor is an archive of `torch.save` within one of
the files, which is opened when something is read of it (torch_archive.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection
from typing import Any, Final, NamedTuple

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.filenames import SAFE_NAME
from relex_codec.core.garbage import collector_paused
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError, Truncated
from relex_codec.storage.urls import Options, join_path, without_secrets

from .boxed import BoxedCheckpoint, Known, Storage, StoredBox, Table, check_boxes, open_sources, shared
from .boxes import Box, Sizes
from .checkpoint import TensorInfo
from .files import list_side_files, read_whole
from .model_keys import is_of_model, left_out, model_prefix
from .records import Global, Made, Pairs
from .torch_archive import open_archive_of_one
from .torch_values import allowed_of_tensors, dtype_of, sizes_of
from .unpickling import Beginning, unpickle, unpickle_beginning, unpickle_rest

METADATA: Final = ".metadata"
_ALLOWED: Final[dict[str, frozenset[str]]] = {
    "torch.distributed.checkpoint.metadata": frozenset({
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    }),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo", "_StoragePrefix"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "pathlib": frozenset({"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"}),
    "pathlib._local": frozenset({"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"}),
    "collections": frozenset({"OrderedDict", "defaultdict"}),
}  # fmt: skip
"""What may occur in metadata, besides ``torch.Size`` and the dtypes of torch."""


class _Chunk(NamedTuple):
    """Where a chunk lies: the file, and an archive in it."""

    file: str
    begin: int
    length: int
    transformed: bool


class _Plan(NamedTuple):
    """What metadata come to.

    Attributes:
        ends: the files by name, and how many bytes each must have.
        notes: on what is left out.
    """

    table: Table
    ends: dict[str, int]
    notes: list[str]


class _Kept(NamedTuple):
    """The plan of an earlier checkpoint, and how its metadata begin.

    Attributes:
        length, digest: of the bytes up to where the places of all chunks are told.
        names: those of the model that it was made with.
    """

    length: int
    digest: bytes
    names: frozenset[str]
    beginning: Beginning
    plan: _Plan


class _Last:
    """The plans of the latest checkpoints of a run; several threads replace the list, and each is a whole one."""

    def __init__(self) -> None:
        self.kept: list[_Kept] = []


_LAST: Final = b"plans of distributed checkpoints"
_KEPT: Final = 4
_AFTER_PLACES: Final = b"storage_meta"
"""The attribute that follows on the places of chunks: the path of the checkpoint and an identifier of its own, which
differ from step to step where nothing else does."""
_PLACES: Final = frozenset({"state_dict_metadata", "storage_data"})


def allowed_of_metadata(name: Global) -> bool:
    """Tell whether a name may occur in metadata."""
    return name.name in _ALLOWED.get(name.module, ()) or (name.module == "torch" and allowed_of_tensors(name))


def open_dcp(
    path: str, options: Options = None, *, names: Collection[str] = (), known: Known | None = None
) -> BoxedCheckpoint:
    """Open a checkpoint of `torch.distributed.checkpoint` by the path of its metadata.

    Args:
        path: of ``.metadata``; local or an fsspec URL.
        names: what the model's tensors are called, as far as that is known; tells their prefix.
        known: tables of earlier checkpoints, which are shared and added to.

    Raises:
        CheckpointError: metadata are damaged or of another kind, a file is missing, a tensor is not whole.
        Truncated: a file ends early.
    """
    folder = path.rpartition("/")[0] or "."
    where = f"checkpoint {without_secrets(folder)}"
    raw = read_whole(path, options)
    with collector_paused():
        plan = _read_plan(raw, names, where, known)
    sources = open_sources([join_path(folder, file) for file in plan.ends], options)
    for source, end in zip(sources, plan.ends.values(), strict=True):
        if source.size < end:
            raise Truncated(f"{source.path} has {source.size} bytes, {METADATA} says {end}: it is not complete")
    return BoxedCheckpoint(
        without_secrets(folder), shared(plan.table, known), sources,
        open_archive=open_archive_of_one, side_files=list_side_files(_beside(folder), options),
        storage_options=options, notes=plan.notes,
    )  # fmt: skip


def _read_plan(raw: bytes, names: Collection[str], where: str, known: Known | None) -> _Plan:
    """Return the plan of a checkpoint, that of an earlier one if only what follows on the places of chunks differs."""
    what = f"{METADATA} of {where}"
    last: _Last | None = None if known is None else known.setdefault(_LAST, _Last())
    for earlier in [] if last is None else last.kept:
        start = earlier.length
        if hashlib.blake2b(raw[:start]).digest() == earlier.digest and set(names) == earlier.names:
            rest = unpickle_rest(raw, what, start, earlier.beginning, allowed=allowed_of_metadata)
            if rest is not None and _PLACES.isdisjoint(rest.by_name()):
                return earlier.plan
    begun = unpickle_beginning(raw, what, allowed=allowed_of_metadata, name=_AFTER_PLACES)
    rest = unpickle_rest(raw, what, begun[1], begun[0], allowed=allowed_of_metadata) if begun else None
    if begun is None or rest is None or not _PLACES.isdisjoint(rest.by_name()):
        value, _ = unpickle(raw, what, allowed=allowed_of_metadata)
        return _plan(value, names, where)
    beginning, start = begun
    plan = _plan(beginning.made, names, where)
    if last is not None:
        slim = Beginning(Made(None, ()), beginning.memo)
        digest = hashlib.blake2b(raw[:start]).digest()
        last.kept = [_Kept(start, digest, frozenset(names), slim, plan), *last.kept[: _KEPT - 1]]
    return plan


def _plan(value: Any, names: Collection[str], where: str) -> _Plan:
    """Return what metadata come to: tensors of the model, where their boxes lie, and what is left out."""
    described, chunks = _described(value, where)
    tensors = {key: made for key, made in described.items() if made.name == "TensorStorageMetadata"}
    prefix = model_prefix(tensors, names, where)
    infos: dict[str, TensorInfo] = {}
    parts: dict[str, list[tuple[Box, _Chunk]]] = {}
    skipped: list[tuple[str, int]] = []
    for key, made in tensors.items():
        try:
            info, boxes = _tensor(key[len(prefix) :], made)
        except ValueError as e:
            if not is_of_model(key, prefix, names):
                skipped.append((key, 0))
                continue
            raise CheckpointError(f"{where}: tensor {quote(key)} {e}") from None
        if not is_of_model(key, prefix, names):
            skipped.append((key, info.size * ITEMSIZE[info.dtype]))
            continue
        infos[info.name] = info
        parts[info.name] = [(box, _chunk(chunks, key, box, where)) for box in boxes]
    ends: dict[str, int] = {}
    for found in parts.values():
        for _, chunk in found:
            ends[chunk.file] = max(ends.get(chunk.file, 0), chunk.begin + chunk.length)
    ends = dict(sorted(ends.items()))
    numbers = {file: number for number, file in enumerate(ends)}
    stored = {
        name: [
            StoredBox(box, Storage(numbers[chunk.file], chunk.begin, chunk.length, is_archive=True))
            for box, chunk in found
        ]
        for name, found in parts.items()
    }
    table = infos, stored
    check_boxes(where, table)
    others = [(key, chunk.length) for (key, _), chunk in chunks.items() if key not in tensors]
    notes = [left_out(prefix, skipped, "tensors"), left_out(prefix, others, "values")]
    return _Plan(table, ends, list(filter(None, notes)))


def _beside(folder: str) -> str:
    """Return where configuration and tokenizer lie: accelerate puts weights into a directory below."""
    above, _, name = folder.rstrip("/").rpartition("/")
    return above or "." if name.startswith("pytorch_model_fsdp") else folder


def _described(value: Any, where: str) -> tuple[dict[str, Made], dict[tuple[str, Sizes | None], _Chunk]]:
    """Return what metadata say of each key, and where each chunk lies by key and offsets."""
    if type(value) is not Made or value.name != "Metadata":
        raise CheckpointError(f"{METADATA} of {where} is not that of torch.distributed.checkpoint")
    fields = value.attributes()
    states, places = fields.get("state_dict_metadata"), fields.get("storage_data")
    if type(states) is not Pairs or type(places) is not Pairs:
        raise CheckpointError(
            f"{METADATA} of {where} does not say where its tensors lie, expected what FileSystemWriter of "
            "torch.distributed.checkpoint writes"
        )
    described = {key: made for key, made in states.by_name().items() if type(made) is Made}
    chunks: dict[tuple[str, Sizes | None], _Chunk] = {}
    for index, place in places:
        at = index.attributes() if type(index) is Made else {}
        to = place.attributes() if type(place) is Made else {}
        key, offset = at.get("fqn"), at.get("offset")
        file, begin, length = to.get("relative_path"), to.get("offset"), to.get("length")
        span = sizes_of((begin, length))
        if type(key) is not str or type(file) is not str or span is None:
            raise CheckpointError(f"{METADATA} of {where} has a place that is none; save it again")
        offsets = None if offset is None else sizes_of(offset)
        chunks[key, offsets] = _Chunk(file, span[0], span[1], bool(to.get("transform_descriptors")))
    return described, chunks


def _tensor(name: str, made: Made) -> tuple[TensorInfo, list[Box]]:
    """Return what metadata say of a tensor.

    Raises:
        ValueError: it cannot be stored.
    """
    fields = made.attributes()
    properties, shape, chunks = fields.get("properties"), sizes_of(fields.get("size")), fields.get("chunks")
    state = properties.state if type(properties) is Made else None
    if type(state) is tuple and state:
        dtype = dtype_of(state[0])
    else:
        dtype = dtype_of(properties.attributes().get("dtype") if type(properties) is Made else None)
    if shape is None or type(chunks) is not list:
        raise ValueError("has no shape")
    boxes = []
    for chunk in chunks:
        of_chunk = chunk.attributes() if type(chunk) is Made else {}
        offsets, sizes = sizes_of(of_chunk.get("offsets")), sizes_of(of_chunk.get("sizes"))
        if offsets is None or sizes is None:
            raise ValueError("has a chunk that is none")
        boxes.append(Box(offsets, sizes))
    return TensorInfo(name, dtype, shape), boxes


def _chunk(chunks: dict[tuple[str, Sizes | None], _Chunk], key: str, box: Box, where: str) -> _Chunk:
    """Return where a chunk of a tensor lies."""
    found = chunks.get((key, box.offsets)) or (chunks.get((key, None)) if not any(box.offsets) else None)
    if found is None:
        raise CheckpointError(
            f"{where} is incomplete: nothing says where {quote(key)} from {list(box.offsets)} on lies"
        )
    if found.transformed:
        raise CheckpointError(
            f"{where} has {quote(key)} written through extensions of torch.distributed.checkpoint (compression), "
            "expected tensors as they are; save it without"
        )
    if not SAFE_NAME.fullmatch(found.file):
        raise CheckpointError(f"{where}: {METADATA} names {quote(found.file)}, expected files beside it")
    if math.prod(box.sizes) and not found.length:
        raise CheckpointError(f"{where}: {quote(key)} has no bytes; save it again")
    return found
