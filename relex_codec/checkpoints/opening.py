"""Which kind of checkpoint a directory holds, and opening it: one place for all readers.

A checkpoint of whole safetensors is known by the path of its directory. One of another kind is known by the path of the
file that tells what it is: ``.metadata`` of a distributed checkpoint, the shard of rank 0, ``pytorch_model.bin``. So a
path says how it is opened, and steps of one run may be of several kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from relex_codec.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLE, PICKLE_INDEX, PICKLES
from relex_codec.errors import CheckpointError
from relex_codec.storage.hub.revisions import pinned_to_commit
from relex_codec.storage.urls import Options, without_secrets

from . import unreadable
from .adapters import open_adapter
from .boxed import BoxedCheckpoint, Known
from .checkpoint import TensorReader
from .dcp import METADATA, open_dcp
from .pickled import check_pickled_index, open_pickled
from .safetensors import open_checkpoint
from .shards import RANK_FILE, open_shards, rank_files
from .slices import open_slices
from .wrapped_adapters import has_adapter, open_wrapped_adapter

ADAPTER_PICKLE: Final = "adapter_model.bin"
FSDP_WHOLE: Final = "pytorch_model_fsdp.bin"
"""The whole model as accelerate saves it with a full state dict."""


def telling_file(names: Collection[str]) -> str | None:
    """Return the file of a directory that tells which kind of checkpoint it holds, if it is none of whole safetensors.

    Examples:
        >>> telling_file([".metadata", "__0_0.distcp", "__1_0.distcp"])
        '.metadata'
        >>> telling_file(["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt", "fsdp_config.json"])
        'model_world_size_2_rank_0.pt'
        >>> telling_file(["optimizer.pt", "config.json"])
    """
    if slices := sorted(filter(unreadable.SLICES.fullmatch, names)):
        return slices[0]
    if METADATA in names and "common.pt" not in names and any(name.endswith(".distcp") for name in names):
        return METADATA
    if ranks := sorted(filter(RANK_FILE.fullmatch, names)):
        return ranks[0]
    for name in (PICKLE, PICKLE_INDEX, FSDP_WHOLE):
        if name in names:
            return name
    return None


def lone_pickle(names: Collection[str]) -> str | None:
    """Return the only pickled file of a directory that is no training state, whatever it is called.

    Examples:
        >>> lone_pickle(["policy.pt", "optimizer.pt", "rng_state_0.pth", "config.json"])
        'policy.pt'
        >>> lone_pickle(["policy.pt", "value.pt"])
    """
    found = [name for name in names if name.endswith(PICKLES) and not unreadable.is_training_state(name)]
    return found[0] if len(found) == 1 and found[0] != ADAPTER_PICKLE else None


def adapter_file(names: Collection[str]) -> str | None:
    """Return the file of a directory that has the weights of an adapter, if there is one."""
    return next((name for name in (ADAPTER_WEIGHTS, ADAPTER_PICKLE) if name in names), None)


def tells_kind(path: str) -> bool:
    """Tell whether a path is that of a file that tells the kind of a checkpoint."""
    name = _name(path)
    return name in (METADATA, PICKLE_INDEX, ADAPTER_WEIGHTS) or name.endswith(PICKLES) or _is_slice(path)


def directory_of(path: str) -> str:
    """Return the directory of a checkpoint by the path that it is known by.

    Examples:
        >>> directory_of("run/checkpoint-10/adapter_model.safetensors"), directory_of("run/checkpoint-10")
        ('run/checkpoint-10', 'run/checkpoint-10')
    """
    return path.rpartition("/")[0] if tells_kind(path) else path


def needs_pickle(path: str) -> bool:
    """Tell whether reading the checkpoint that a path is of reads pickles."""
    return tells_kind(path) and not path.endswith(".safetensors")


def check_files(path: str, names: Collection[str], options: Options) -> None:
    """Check that a checkpoint of a kind that `telling_file` found has all its files, without opening them.

    Args:
        path: of the file that tells.
        names: of what its directory has.

    Raises:
        CheckpointError: some are missing.
    """
    where = f"checkpoint {without_secrets(path.rpartition('/')[0])}"
    if RANK_FILE.fullmatch(_name(path)):
        rank_files(names, where)
    elif _name(path) in (ADAPTER_WEIGHTS, ADAPTER_PICKLE) and ADAPTER_CONFIG not in names:
        raise CheckpointError(f"{where} is incomplete: an adapter without {ADAPTER_CONFIG}")
    elif _name(path) == PICKLE_INDEX:
        check_pickled_index(path, options, names, where)


def open_reader(
    path: str, options: Options = None, *, known: Known | None = None, names: Collection[str] = ()
) -> TensorReader:
    """Open a checkpoint of any kind.

    Args:
        path: its directory, or the file that tells its kind; local or an fsspec URL.
        options: for fsspec.
        known: what earlier checkpoints of the run share with later ones; added to.
        names: what the model's tensors are called, as far as that is known.

    Raises:
        CheckpointError, Truncated: it cannot be read.
    """
    if not tells_kind(path):
        return open_checkpoint(path, options, known=known)
    path = pinned_to_commit(path, options)
    if _name(path) in (ADAPTER_WEIGHTS, ADAPTER_PICKLE):
        return open_adapter(path, options, known=known)
    opens: Callable[..., BoxedCheckpoint] = open_pickled
    if _name(path) == METADATA:
        opens = open_dcp
    elif RANK_FILE.fullmatch(_name(path)):
        opens = open_shards
    elif _is_slice(path):
        opens = open_slices
    reader = opens(path, options, names=names, known=known)
    return reader if has_adapter(reader.tensors, names) is None else open_wrapped_adapter(reader, path, options)


def refuse_pickle(path: str) -> CheckpointError:
    """Return the error for a path whose checkpoint is read from pickles, where these are not allowed."""
    return CheckpointError(f"checkpoint {without_secrets(path)} is a pickle; {unreadable.ALLOW}")


def _is_slice(path: str) -> bool:
    return unreadable.SLICES.fullmatch(_name(path)) is not None


def _name(path: str) -> str:
    return path.rpartition("/")[2]
