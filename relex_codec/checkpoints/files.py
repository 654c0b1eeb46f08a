"""Which files make up a checkpoint of the Hugging Face layout: its weights, its index, and what lies beside them.

The rules on names are in checkpoints/naming.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from relex_codec.core.filenames import INDEX, SINGLE, shard_allowed
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError
from relex_codec.format.safetensors_header import load_object
from relex_codec.storage.open import Item, list_directory, open_source
from relex_codec.storage.urls import Options, PathLike, is_url, join_path, local_path, without_secrets

from . import naming


class SideFile(NamedTuple):
    """A file beside the weights, as the listing of its directory has it.

    Attributes:
        size: in bytes; None where the listing does not say.
    """

    path: str
    size: int | None


class CheckpointFiles(NamedTuple):
    """The files of a checkpoint.

    Attributes:
        shards: path of each file of weights, by its name.
        weight_map: which file has which tensor, as the index says; None without an index.
        side_files: the files beside the weights that are carried along, by name.
    """

    shards: dict[str, str]
    weight_map: dict[str, str] | None
    side_files: dict[str, SideFile]


def find_files(
    path: PathLike,
    options: Options,
    where: str,
    items: list[Item] | None = None,
    index: Callable[[], bytes] | None = None,
) -> CheckpointFiles:
    """Choose the files of a checkpoint, which is enough to see whether any is missing.

    Args:
        path: a directory, or a single ``.safetensors`` file; local or an fsspec URL.
        where: what to call it in messages.
        items: what the directory holds, if it was listed already.
        index: gives the content of its index, if that is read already; only called if the directory has one.

    Raises:
        CheckpointError: there are no weights, some are missing, or which ones belong to the model cannot be told.
    """
    text = os.fspath(path)
    if without_secrets(text).endswith(".safetensors") if is_url(path) else os.path.isfile(local_path(path)):
        name = os.path.basename(without_secrets(text))
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{where} is a file that is not called .safetensors, expected one or a directory")
        return CheckpointFiles({_safe(name, where): text}, None, {})
    if items is None:
        items = list_directory(path, options, error=CheckpointError)
    sizes = {item.name: item.size for item in items if not item.is_dir}
    weight_map = None
    if INDEX in sizes:

        def parsed(raw: bytes) -> tuple[Any, list[str]]:
            found = load_object(raw, error=CheckpointError, where=f"{INDEX} of {where}").get("weight_map")
            return found, naming.shards_of_index(found, sizes, where)

        raw = index() if index else read_whole(join_path(path, INDEX), options)
        try:
            weight_map, shards = parsed(raw)
        except CheckpointError:
            again = read_whole(join_path(path, INDEX), options, anew=True) if is_url(path) else raw
            if again == raw:
                raise
            weight_map, shards = parsed(again)
    else:
        shards = naming.shards_without_index(sizes, where)
    return CheckpointFiles(
        {_safe(name, where): join_path(path, name) for name in shards},
        weight_map,
        {name: SideFile(join_path(path, name), sizes[name]) for name in naming.side_files(sizes)},
    )


def _safe(name: str, where: str) -> str:
    if not shard_allowed(name):
        raise CheckpointError(f"{where} has weights in {quote(name)}; rename it to {SINGLE}")
    return name


def read_whole(path: str, options: Options, *, anew: bool = False) -> bytes:
    """Return all bytes of a file, or raise CheckpointError; `anew`: as they are now, whatever was kept of them."""
    with open_source(path, options, keep_open=False, error=CheckpointError) as source:
        if anew:
            source.forget(0, source.size)
        return source.read(0, source.size)
