"""Checkpoints in files of `torch.save`: ``pytorch_model.bin``, its shards and index, and any ``.pt`` with a state dict.

The structure is read without loading storages (torch_archive.py), and slices of tensors are ranges of the file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from relex_codec.core.filenames import PICKLE_INDEX, PICKLES, SAFE_NAME
from relex_codec.core.text import quote
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.errors import CheckpointError
from relex_codec.format.safetensors_header import load_object
from relex_codec.storage.urls import Options, join_path, without_secrets

from .boxed import BoxedCheckpoint, Known, StoredBox, check_boxes, open_sources, shared
from .checkpoint import TensorInfo
from .files import list_side_files, read_whole
from .model_keys import is_of_model, left_out, model_prefix
from .torch_archive import TorchFile, nbytes_of, open_torch_file, whole
from .torch_values import StoredTensor, state_dict_of, tensor_of
from .weight_files import shards_of_index

DEPTH: Final = 4
"""Dicts within dicts that are looked into for the model."""
MOST_KEYS: Final = 1 << 20


def open_pickled(
    path: str, options: Options = None, *, names: Collection[str] = (), known: Known | None = None
) -> BoxedCheckpoint:
    """Open a file of `torch.save` with a state dict, or the index of several.

    Args:
        path: of the file, or of the index (`filenames.PICKLE_INDEX`); local or an fsspec URL.
        names: what the model's tensors are called, as far as that is known; tells them from others.
        known: tables of earlier checkpoints, which are shared and added to.

    Raises:
        CheckpointError: it cannot be read, holds no tensors of a model, or kinds of tensors that are not read.
        Truncated: a file ends early.
    """
    where = f"checkpoint {without_secrets(path)}"
    folder, _, name = path.rpartition("/")
    listed = _weight_map(path, options, where) if name == PICKLE_INDEX else {}
    files = sorted(set(listed.values())) or [name]
    sources = open_sources([join_path(folder, file) if folder else file for file in files], options)
    opened = parallel_map(lambda at: open_torch_file(sources[at], at), range(len(sources)), IO_THREADS)
    found: dict[str, tuple[TorchFile, StoredTensor]] = {}
    others: list[str] = []
    for file in opened:
        for key, value in flattened(file.value, file.where):
            try:
                tensor = tensor_of(value)
            except ValueError as e:
                raise CheckpointError(f"{file.where}: {quote(key)} {e}") from None
            if not isinstance(tensor, StoredTensor):
                others.append(key)
                continue
            if key in found:
                raise CheckpointError(f"{where} has tensor {quote(key)} twice; remove the one that is not the model's")
            found[key] = file, tensor
    prefix = model_prefix(found, names, where)
    mine = [key for key in found if is_of_model(key, prefix, names)]
    tensors: dict[str, TensorInfo] = {}
    boxes: dict[str, list[StoredBox]] = {}
    for key in mine:
        (file, tensor), inner = found[key], key[len(prefix) :]
        tensors[inner] = TensorInfo(inner, tensor.dtype, tensor.shape)
        boxes[inner] = [file.box(tensor, whole(tensor), key)]
    table = tensors, boxes
    check_boxes(where, table)
    rest = [(key, nbytes_of(tensor)) for key, (_, tensor) in found.items() if key not in set(mine)]
    notes = [left_out(prefix, rest, "tensors"), left_out(prefix, [(key, 0) for key in others], "values")]
    reader = BoxedCheckpoint(
        without_secrets(path), shared(table, known), sources,
        side_files=list_side_files(folder or ".", options), storage_options=options, notes=list(filter(None, notes)),
    )  # fmt: skip
    reader.absent = [name for name in listed if name not in found]
    return reader


def flattened(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield what a state dict holds, by key; those of dicts within it are joined with dots.

    Raises:
        CheckpointError: it is none, or has too many keys.
    """
    if state_dict_of(value) is None:
        raise CheckpointError(f"{where} holds no state dict, expected one with the weights of a model")
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    count = 0
    while waiting:
        key, here, depth = waiting.pop()
        inner = state_dict_of(here) if depth < DEPTH else None
        if inner is None:
            yield key, here
            continue
        count += len(inner)
        if count > MOST_KEYS:
            raise CheckpointError(f"{where} has more than {MOST_KEYS} keys, expected a state dict of a model")
        above = f"{key}." if depth else ""
        waiting += reversed([(above + name, child, depth + 1) for name, child in inner.items()])


def _weight_map(path: str, options: Options, where: str) -> dict[str, str]:
    """Return which file has which tensor, as an index of pickled files says."""
    index = load_object(read_whole(path, options), error=CheckpointError, where=f"{PICKLE_INDEX} of {where}")
    weight_map = index.get("weight_map")
    if type(weight_map) is not dict or not weight_map or not all(type(file) is str for file in weight_map.values()):
        raise CheckpointError(f"{where}: {PICKLE_INDEX} has no weight_map from tensors to files")
    plain: Mapping[str, str] = {tensor: re.sub(r"^(\./+)+", "", file) for tensor, file in weight_map.items()}
    for file in set(plain.values()):
        if not SAFE_NAME.fullmatch(file) or not file.endswith(PICKLES):
            raise CheckpointError(f"{where}: {PICKLE_INDEX} names {quote(file)}, expected files beside it")
    return dict(plain)


def check_pickled_index(path: str, options: Options, names: Collection[str], where: str) -> None:
    """Check that the files are there that an index names, of those that its directory has.

    Raises:
        CheckpointError: one is missing.
    """
    shards_of_index(_weight_map(path, options, where), names, where, PICKLE_INDEX)
