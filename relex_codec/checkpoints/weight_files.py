"""Which files of a directory are the weights of a model, as transformers reads them, and which go along. No I/O."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from relex_codec.core.filenames import INDEX, SINGLE, file_allowed, shard_allowed
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError

from . import unreadable
from .naming import some

_NUMBERED: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.safetensors")
_NOT_WEIGHTS: Final = (".", "adapter", "optimizer", "scheduler", "scaler")
_NOT_SIDE: Final = frozenset({"latest_checkpointed_iteration.txt"})
"""What trainers leave beside a checkpoint under names that a `.relex` file could hold."""


def is_weights(name: str) -> bool:
    """Return whether a file holds weights of the model itself, whole ones, going by its name."""
    return name.endswith(".safetensors") and not name.startswith(_NOT_WEIGHTS) and not unreadable.SLICES.fullmatch(name)


def side_files(names: Iterable[str], shards: Collection[str] = ()) -> list[str]:
    """Return the files that a checkpoint carries besides weights: configuration, tokenizer, templates, code.

    Those that a `.relex` file may hold: training state, pickles and hidden files are left out.

    Args:
        names: of all its files, those in folders with a slash.
        shards: its files of weights.
    """
    return sorted(name for name in names if file_allowed(name, list(shards)) and name not in _NOT_SIDE)


def shards_without_index(names: Collection[str], where: str, path: str) -> list[str]:
    """Return the weight files of a checkpoint that has no index, sorted.

    Args:
        names: files of the directory.
        where: what to call it in messages.
        path: its path, for the commands in them.

    Raises:
        CheckpointError: there are none, or which ones belong to the model cannot be told; the message says what was
            found instead.
    """
    if SINGLE in names:
        return [SINGLE]
    found = sorted(filter(is_weights, names))
    if not found:
        raise CheckpointError(f"{where} {unreadable.explain(names, path)}")
    if len(found) > 1:
        numbered = [match for match in map(_NUMBERED.fullmatch, found) if match]
        if len({(match[1], match[3]) for match in numbered}) != 1 or len(numbered) != len(found):
            raise CheckpointError(
                f"{where} has {len(found)} safetensors files ({some(found)}) and no {INDEX}: "
                "which ones are the model is ambiguous; keep one, or add the index"
            )
    if match := _NUMBERED.fullmatch(found[0]):
        expected = [f"{match[1]}-{i:05d}-of-{match[3]}.safetensors" for i in range(1, int(match[3]) + 1)]
        if missing := [name for name in expected if name not in names]:
            raise CheckpointError(f"{where} is incomplete: shard {missing[0]} is missing ({len(missing)} in all)")
    return found


def weight_map_of(index: object, where: str) -> dict[str, str]:
    """Return which file has which tensor, of the parsed content of an index; ``./name`` is ``name``.

    Raises:
        CheckpointError: it does not map names to names of safetensors files beside it.
    """
    weight_map = index.get("weight_map") if type(index) is dict else None
    if type(weight_map) is not dict or not all(type(shard) is str for shard in weight_map.values()):
        raise CheckpointError(f"{where}: {INDEX} has no weight_map from tensors to files")
    plain = {tensor: re.sub(r"^(\./+)+", "", shard) for tensor, shard in weight_map.items()}
    for shard in set(plain.values()):
        if not shard_allowed(shard):
            raise CheckpointError(f"{where}: {INDEX} names {quote(shard)}, expected safetensors files beside it")
    if not plain:
        raise CheckpointError(f"{where}: {INDEX} lists no tensors")
    return plain


def shards_of_index(weight_map: dict[str, str], names: Collection[str], where: str, index: str = INDEX) -> list[str]:
    """Return the files that an index names, sorted.

    Args:
        names: files of the directory.
        where: what to call it in messages.
        index: name of the index.

    Raises:
        CheckpointError: one is missing.
    """
    shards = sorted(set(weight_map.values()))
    if missing := [shard for shard in shards if shard not in names]:
        count = f"{len(missing)} of {len(shards)} shards"
        raise CheckpointError(f"{where} is incomplete: {index} names {missing[0]}, which is missing ({count})")
    return shards


def left_out(names: Iterable[str], shards: Collection[str]) -> str | None:
    """Return a note on the safetensors files that are not read, if there are any: nothing is dropped in silence."""
    rest = sorted(
        name for name in names if name.endswith(".safetensors") and name not in shards and not name.startswith(".")
    )
    if not rest:
        return None
    return f"not read: {some(rest)}; the weights are {some(sorted(shards), 2)}, as transformers takes them"
