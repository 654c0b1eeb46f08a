"""All files below a directory, local or remote, with their sizes: one listing a directory, several at a time."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.errors import InvalidArgument, RelexError

from .open import Item, list_directory
from .remote import CONCURRENT_REQUESTS
from .urls import Options, PathLike, is_url, join_path, local_path

DIRECTORIES: Final = 20_000
"""That are listed at most: 500 steps with 40 directories each."""


class ListedFile(NamedTuple):
    """A file.

    Attributes:
        path: from the directory that was listed.
        size: in bytes; None where the listing does not say.
    """

    path: str
    size: int | None


class Tree(NamedTuple):
    """What there is below a directory.

    Attributes:
        files: of all directories that were listed.
        complete: whether that was all of them.
    """

    files: list[ListedFile]
    complete: bool


def list_files(
    path: PathLike,
    storage_options: Options = None,
    *,
    limit: int = DIRECTORIES,
    error: type[RelexError] = InvalidArgument,
) -> Tree:
    """List a directory and all below it; a link to a directory is followed if that lies elsewhere.

    Args:
        limit: directories that are listed at most, those nearer to `path` first.

    Raises:
        error: `path` itself cannot be listed. What lies below it and cannot makes the tree incomplete.
    """
    remote = is_url(path)
    home = "" if remote else os.path.realpath(local_path(path))
    seen: set[str] = set()
    files: list[ListedFile] = []
    complete = True

    def look(below: str) -> list[Item] | None:
        try:
            return list_directory(join_path(path, below) if below else path, storage_options, error=error)
        except RelexError as e:
            if not below:
                raise
            return [] if isinstance(e, FileNotFoundError) else None  # object stores have no empty directories

    def is_new(below: str) -> bool:
        """Tell whether a directory has not been, and will not be, listed under another name."""
        place = os.path.join(local_path(path), below)
        if remote or not os.path.islink(place):
            return True
        real = os.path.realpath(place)
        if os.path.commonpath((real, home)) in (real, home) or real in seen:
            return False
        seen.add(real)
        return True

    level = [""]
    while level:
        complete = complete and len(level) <= limit
        level = level[:limit]
        limit -= len(level)
        below: list[str] = []
        listings = parallel_map(look, level, CONCURRENT_REQUESTS if remote else IO_THREADS)
        for folder, items in zip(level, listings, strict=True):
            complete = complete and items is not None
            for item in items or ():
                name = f"{folder}/{item.name}" if folder else item.name
                if item.is_dir:
                    below.append(name)
                else:
                    files.append(ListedFile(name, item.size))
        level = [name for name in below if is_new(name)]
    return Tree(files, complete)
