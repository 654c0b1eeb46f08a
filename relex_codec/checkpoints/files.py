"""Which files make up a checkpoint of the Hugging Face layout: its weights, its index, and what lies beside them.

The rules on names are in checkpoints/weight_files.py, and what is said where there are none in unreadable.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

from relex_codec.core.filenames import FOLDERS, INDEX, SINGLE, shard_allowed
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import CheckpointError, MissingCheckpoint
from relex_codec.format.safetensors_header import LFS_POINTER, lfs_pointer, load_object
from relex_codec.storage.open import Item, list_directory, open_source
from relex_codec.storage.remote import CONCURRENT_REQUESTS
from relex_codec.storage.urls import Options, PathLike, is_url, join_path, local_path, without_secrets

from . import unreadable, weight_files

TREE_DEPTH: Final = 3
TREE_LIMIT: Final = 40
"""Directories that are listed to say what a checkpoint holds that has no weights."""


class SideFile(NamedTuple):
    """A file beside the weights, as the listing of its directory has it.

    Attributes:
        size: in bytes; None where the listing does not say.
        content: of a file that is made of others, which is nowhere; `path` is then theirs.
    """

    path: str
    size: int | None
    content: bytes | None = None


class CheckpointFiles(NamedTuple):
    """The files of a checkpoint.

    Attributes:
        shards: path of each file of weights, by its name.
        weight_map: which file has which tensor, as the index says; None without an index.
        side_files: the files beside the weights that are carried along, by name.
        notes: what is not read, and why.
    """

    shards: dict[str, str]
    weight_map: dict[str, str] | None
    side_files: dict[str, SideFile]
    notes: tuple[str, ...] = ()


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
    shown = without_secrets(path)
    if message := unreadable.cache_root(os.path.abspath(shown), [item.name for item in items if item.is_dir]):
        raise CheckpointError(f"{where} {message}")
    sizes = {item.name: item.size for item in items if not item.is_dir}
    dangling = dangling_links(path)
    if lost := next((name for name in (SINGLE, INDEX) if name in dangling), None):
        raise CheckpointError(f"{where}: {unreadable.dangling_link(lost, dangling[lost])}")
    try:
        weight_map = _weight_map(path, options, sizes, where, index)
        if weight_map is not None:
            shards = weight_files.shards_of_index(weight_map, sizes, where)
        elif any(map(weight_files.is_weights, sizes)):
            shards = weight_files.shards_without_index(sizes, where, shown)
        else:
            shards = weight_files.shards_without_index(list_tree(path, options, items), where, shown)
    except CheckpointError:
        for name, target in dangling.items():
            if weight_files.is_weights(name):
                raise CheckpointError(f"{where}: {unreadable.dangling_link(name, target)}") from None
        raise
    note = weight_files.left_out([*sizes, *dangling], shards)
    if INDEX in sizes and weight_map is None:
        note = "; ".join(filter(None, [f"{INDEX} is not that of {SINGLE}, which is read as transformers does", note]))
    return CheckpointFiles(
        {_safe(name, where): join_path(path, name) for name in shards},
        weight_map,
        _side_files(path, options, items, sizes, shards),
        (note,) if note else (),
    )


def _side_files(
    path: PathLike, options: Options, items: list[Item], sizes: dict[str, int | None], shards: Collection[str]
) -> dict[str, SideFile]:
    """Return the files beside the weights, those in folders that belong to a checkpoint too."""
    found = dict(sizes)
    for item in items:
        if item.is_dir and item.name in FOLDERS:
            inside = list_directory(join_path(path, item.name), options, error=CheckpointError)
            found.update({f"{item.name}/{one.name}": one.size for one in inside if not one.is_dir})
    names = weight_files.side_files(found, shards)
    return {name: SideFile(join_path(path, name), found[name]) for name in names}


def _weight_map(
    path: PathLike, options: Options, names: Collection[str], where: str, index: Callable[[], bytes] | None
) -> dict[str, str] | None:
    """Return what the index says; None if there is none, or it is left over beside ``model.safetensors``.

    transformers takes ``model.safetensors`` wherever there is one.
    """
    if INDEX not in names:
        return None
    try:
        found = _read_index(path, options, names, where, index)
    except CheckpointError:
        if SINGLE in names:
            return None
        raise
    return None if SINGLE in names and SINGLE not in found.values() else found


def _read_index(
    path: PathLike, options: Options, names: Collection[str], where: str, index: Callable[[], bytes] | None
) -> dict[str, str]:
    """Return what the index says; if that cannot be right, what it says as it is fetched anew."""

    def parsed(raw: bytes) -> dict[str, str]:
        if raw.startswith(LFS_POINTER):
            raise CheckpointError(f"{where}: {lfs_pointer(INDEX)}")
        return weight_files.weight_map_of(load_object(raw, error=CheckpointError, where=f"{INDEX} of {where}"), where)

    raw = index() if index else read_whole(join_path(path, INDEX), options)
    try:
        found = parsed(raw)
        weight_files.shards_of_index(found, names, where)
    except CheckpointError:
        return parsed(read_whole(join_path(path, INDEX), options, anew=True) if is_url(path) else raw)
    return found


def dangling_links(path: PathLike) -> dict[str, str]:
    """Return the links in a directory that lead nowhere, and where to; listings leave them out."""
    if is_url(path):
        return {}
    found = {}
    try:
        with os.scandir(local_path(path)) as entries:
            for entry in entries:
                if entry.is_symlink() and not os.path.exists(entry.path):
                    found[entry.name] = os.readlink(entry.path)
    except OSError:  # it vanished, which its listing says better
        return {}
    return found


def list_tree(path: PathLike, options: Options, items: list[Item]) -> list[str]:
    """Return what lies in and below a directory, for a message: relative paths, those of directories with a ``/``.

    Args:
        items: what the directory itself holds.
    """
    found: list[str] = []
    waiting = [("", items)]
    listed = 0
    while waiting:
        below, here = waiting.pop(0)
        for item in here:
            name = f"{below}{item.name}"
            found.append(f"{name}/" if item.is_dir else name)
            if item.is_dir and below.count("/") < TREE_DEPTH and listed < TREE_LIMIT:
                listed += 1
                try:
                    inside = list_directory(join_path(path, name), options, error=CheckpointError)
                except CheckpointError:
                    continue
                waiting.append((f"{name}/", inside))
    return found


def _safe(name: str, where: str) -> str:
    if not shard_allowed(name):
        raise CheckpointError(f"{where} has weights in {quote(name)}; rename it to {SINGLE}")
    return name


def read_side_file(side: SideFile, options: Options) -> bytes:
    """Return the bytes of a file beside the weights.

    Raises:
        CheckpointError: it cannot be read, or is not as long as its directory said.
    """
    if side.content is not None:
        return side.content
    with open_source(side.path, options, keep_open=False, error=CheckpointError) as source:
        if side.size not in (None, source.size):
            raise CheckpointError(
                f"{source.path} has {source.size} bytes, its directory listed it with {side.size}: it was changed "
                "since; open the checkpoint again when nothing writes it"
            )
        return source.read(0, source.size)


def side_file_sizes(sides: Mapping[str, SideFile], options: Options) -> dict[str, int]:
    """Return the bytes of files beside the weights by name; those that a listing had are not asked for."""

    def size(side: SideFile) -> int:
        if side.size is not None:
            return side.size
        with open_source(side.path, options, keep_open=False, error=CheckpointError) as source:
            return source.size

    return dict(zip(sides, parallel_map(size, sides.values(), CONCURRENT_REQUESTS), strict=True))


def list_side_files(folder: str, options: Options, shards: Sequence[str] = ()) -> dict[str, SideFile]:
    """Return the files beside the weights that a directory has, by name; none where there is no such directory.

    Args:
        shards: the files of weights, as of `filenames.file_allowed`.
    """
    try:
        items = list_directory(folder, options, error=CheckpointError)
    except MissingCheckpoint:
        return {}
    sizes = {item.name: item.size for item in items if not item.is_dir}
    return {name: SideFile(join_path(folder, name), sizes[name]) for name in weight_files.side_files(sizes, shards)}


def list_names(folder: str, options: Options) -> list[str]:
    """Return the names of the files of a directory; none where there is no such directory."""
    try:
        return [item.name for item in list_directory(folder, options, error=CheckpointError) if not item.is_dir]
    except MissingCheckpoint:
        return []


def read_whole(path: str, options: Options, *, anew: bool = False) -> bytes:
    """Return all bytes of a file, or raise CheckpointError; `anew`: as they are now, whatever was kept of them."""
    with open_source(path, options, keep_open=False, error=CheckpointError) as source:
        if anew:
            source.forget(0, source.size)
        return source.read(0, source.size)
