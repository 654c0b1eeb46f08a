"""Paths as units carry them: they mean the same in a process that works in another directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from relex_codec.storage.urls import PathLike, is_url, local_path


def everywhere(path: PathLike) -> str:
    """Return a path that means the same in a process that works in another directory."""
    if is_url(path):
        return os.fspath(path)
    text = os.fspath(path)
    with suppress(OSError):  # the working directory was removed
        if os.path.exists(local_path(text)):  # it may name a model of the Hub
            return os.path.abspath(local_path(text))
    return text


def placed(found: Sequence[tuple[int, str]]) -> tuple[tuple[int, str], ...]:
    """Return steps and paths of checkpoints as other processes find them."""
    return tuple((step, path if is_url(path) else everywhere(path)) for step, path in found)
