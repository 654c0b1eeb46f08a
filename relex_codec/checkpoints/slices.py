"""Slices of tensors in safetensors files: what ``HuggingFaceStorageWriter`` of `torch.distributed.checkpoint` leaves.

Each rank's file ``shard-R-model-I-of-N.safetensors`` has a part of every tensor, and says in its header where each part
begins (`unreadable.SHARDING_INFO`). There is no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import CheckpointError
from relex_codec.format.safetensors_header import Entry
from relex_codec.storage.open import list_directory
from relex_codec.storage.remote import CONCURRENT_REQUESTS
from relex_codec.storage.urls import Options, join_path, without_secrets

from . import unreadable
from .boxed import BoxedCheckpoint, Known, Storage, StoredBox, check_boxes, open_sources, shared
from .boxes import Box, Sizes
from .checkpoint import TensorInfo
from .files import list_side_files
from .model_keys import is_of_model, left_out, model_prefix
from .safetensors import parsed_header


def open_slices(
    path: str, options: Options = None, *, names: Collection[str] = (), known: Known | None = None
) -> BoxedCheckpoint:
    """Open a checkpoint of slices.

    Args:
        path: of one of its files; the others lie beside it.
        names: what the model's tensors are called, as far as that is known.
        known: tables of earlier checkpoints, which are shared and added to.

    Raises:
        CheckpointError: slices are missing or overlap, a header is damaged.
        Truncated: a file ends early.
    """
    folder = path.rpartition("/")[0] or "."
    where = f"checkpoint {without_secrets(folder)}"
    items = list_directory(folder, options, error=CheckpointError)
    files = sorted(item.name for item in items if not item.is_dir and unreadable.SLICES.fullmatch(item.name))
    sources = open_sources([join_path(folder, file) for file in files], options)
    headers = parallel_map(parsed_header, sources, CONCURRENT_REQUESTS)
    parts: dict[str, list[tuple[int, Entry, Sizes]]] = {}
    for number, (metadata, entries) in enumerate(headers):
        offsets = _offsets(metadata.get(unreadable.SHARDING_INFO), sources[number].path)
        for entry in entries:
            begin = offsets.get(entry.name, (0,) * len(entry.shape))
            if len(begin) != len(entry.shape):
                raise CheckpointError(f"{sources[number].path}: {quote(entry.name)} has {len(begin)} offsets")
            parts.setdefault(entry.name, []).append((number, entry, begin))
    prefix = model_prefix(parts, names, where)
    infos: dict[str, TensorInfo] = {}
    boxes: dict[str, list[StoredBox]] = {}
    skipped: list[tuple[str, int]] = []
    for key, found in parts.items():
        if not is_of_model(key, prefix, names):
            skipped += [(key, entry.end - entry.begin) for _, entry, _ in found]
            continue
        name, dtype = key[len(prefix) :], found[0][1].dtype
        shapes = {len(entry.shape) for _, entry, _ in found}
        if len(shapes) > 1 or any(entry.dtype != dtype for _, entry, _ in found):
            raise CheckpointError(f"{where}: slices of {quote(key)} are not of one dtype and dimension; save it again")
        ends = [[a + n for a, n in zip(begin, entry.shape, strict=True)] for _, entry, begin in found]
        infos[name] = TensorInfo(name, dtype, tuple(map(max, zip(*ends, strict=True))))
        boxes[name] = [
            StoredBox(Box(begin, entry.shape), Storage(number, entry.begin, entry.end - entry.begin))
            for number, entry, begin in found
        ]
    table = infos, boxes
    check_boxes(where, table)
    note = left_out(prefix, skipped, "slices")
    reader = BoxedCheckpoint(
        without_secrets(folder), shared(table, known), sources, side_files=list_side_files(folder, options),
        storage_options=options, notes=[note] if note else [],
    )  # fmt: skip
    reader.may_be_slices = True  # where the last slice is missing, a tensor is whole and too short
    return reader


def _offsets(text: str | None, path: str) -> dict[str, Sizes]:
    """Return where the slices of a file begin, as its header says.

    Raises:
        CheckpointError: it says nothing that can be understood.
    """
    try:
        described = json.loads(text or "{}")
        found = {name: tuple(tensor["saved_offsets"]) for name, tensor in described.items()}
        if not all(type(at) is int and at >= 0 for offsets in found.values() for at in offsets):
            raise ValueError
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        raise CheckpointError(f"{path} does not say where its slices begin ({unreadable.SHARDING_INFO})") from None
    return found
