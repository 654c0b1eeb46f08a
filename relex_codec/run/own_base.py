"""The base that a file is decoded with: which it is, and that no output goes over it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.errors import InvalidArgument
from relex_codec.storage.urls import PathLike, is_url, join_path, local_path, without_secrets


def needed_base(decoder: TensorDecoder) -> SafetensorsCheckpoint | None:
    """Return the base that decoding a file needs; None where it has all of it.

    Raises:
        BaseMismatch, CheckpointError, InvalidArgument: there is one, and it is another one or cannot be opened.
    """
    index = decoder.container.index
    in_base = any(tensor.in_base for tensor in index.tensors) or not all(one.stored for one in index.manifest.files)
    return decoder.base.reader().checkpoint if in_base and not decoder.base.is_embedded else None


def refuse_own_base(output: PathLike, names: Iterable[str], base: SafetensorsCheckpoint | None) -> None:
    """Refuse to replace the weights of a base: without them nothing can be decoded any more.

    Args:
        output: a directory, path or URL.
        names: of the files that are going to be replaced there.
        base: what is read; None: nothing.

    Raises:
        InvalidArgument: one of the files is of the base.
    """
    own = set() if base is None else {_place(source.path) for source in base.sources}
    if base is not None and any(_place(join_path(os.fspath(output), name)) in own for name in names):
        raise InvalidArgument(
            f"cannot write {without_secrets(output)}: the base is there, {base.path}, and nothing can be decoded "
            "without it; choose another place"
        )


def _place(path: str) -> str:
    """Return what tells a file from others: its name, and where its directory really is."""
    if is_url(path):
        return without_secrets(path)
    folder, name = os.path.split(local_path(path))
    return os.path.join(os.path.realpath(folder), name)
