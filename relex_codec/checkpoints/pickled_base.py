"""A base in files of `torch.save`: read while it is embedded, and refused where a file would refer to it.

Decoding reads ranges of a base that a file refers to, years later and by whoever has the file: that one is safetensors,
and nothing in it has to be parsed as a pickle. What is embedded is read once, by who encodes.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from relex_codec.core.filenames import INDEX, PICKLE, PICKLE_INDEX, PICKLES
from relex_codec.errors import CheckpointError, InvalidArgument, RelexError
from relex_codec.storage.open import list_directory
from relex_codec.storage.urls import Options, PathLike, join_path, options_for, without_secrets

from .base_model import open_base
from .checkpoint import TensorReader
from .opening import FSDP_WHOLE, lone_pickle
from .pickled import open_pickled
from .weight_files import is_weights


def open_base_to_encode(
    uri: PathLike, storage_options: Options, *, embed: bool, allow_pickle: bool
) -> TensorReader:  # fmt: skip
    """Open a base for encoding: as `open_base`, or a pickled one that will be embedded.

    Args:
        embed: whether the base will lie in the file.
        allow_pickle: whether a pickled one may be read; nothing in it is run (unpickling.py).

    Raises:
        CheckpointError: as `open_base`; or it is pickled, and would not be embedded or may not be read.
        InvalidArgument: the URL needs a package that is not installed.
    """
    try:
        return open_base(uri, storage_options)
    except (CheckpointError, InvalidArgument):
        found = _pickle_of(uri, storage_options)
        if found is None:
            raise
    if embed and allow_pickle:
        return open_pickled(found, options_for(uri, storage_options))
    raise CheckpointError(_how_to(found))


def _pickle_of(uri: PathLike, storage_options: Options) -> str | None:
    """Return the pickled file, or the index of several, that a base consists of; None if it is none such."""
    text = os.fspath(uri).rstrip("/")
    if text.endswith(PICKLES):
        return text
    try:
        items = list_directory(uri, options_for(uri, storage_options), error=CheckpointError)
    except RelexError:
        return None
    names = [item.name for item in items if not item.is_dir]
    name = None if any(is_weights(one) or one == INDEX for one in names) else _telling(names)
    return None if name is None else join_path(text, name)


def _telling(names: Collection[str]) -> str | None:
    return next((name for name in (PICKLE, PICKLE_INDEX, FSDP_WHOLE) if name in names), None) or lone_pickle(names)


def _how_to(path: str) -> str:
    folder, _, name = without_secrets(path).rpartition("/")
    folder = folder or "."
    return (
        f"base {folder} is pickled ({name}), and decoding reads a base that is safetensors: embed it with --embed-base "
        f"--allow-pickle, or make safetensors of it and pass --base '{folder}-safetensors': python -c \"from "
        f"transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}', dtype='auto').save_pretrained("
        f"'{folder}-safetensors')\""
    )
