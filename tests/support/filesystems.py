"""fsspec's memory filesystem, and copies of directories on filesystems."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec


@contextmanager
def empty_memory() -> Iterator[Any]:
    """Give fsspec's memory filesystem, which all tests share, and empty it before and after."""
    filesystem = fsspec.filesystem("memory")
    try:
        filesystem.store.clear()
        filesystem.pseudo_dirs[:] = [""]
        yield filesystem
    finally:
        filesystem.store.clear()
        filesystem.pseudo_dirs[:] = [""]


def upload(filesystem: Any, folder: Path, target: str) -> None:
    """Copy a local directory to a filesystem of fsspec."""
    for path in folder.rglob("*"):
        if path.is_file():
            filesystem.pipe_file(f"{target}/{path.relative_to(folder)}", path.read_bytes())
