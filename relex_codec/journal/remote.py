"""Journals at URLs: what is needed of one is fetched to the temporary directory, and read there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from relex_codec.core.threads import parallel_map
from relex_codec.errors import CheckpointError, RelexError
from relex_codec.storage.explain import write_error
from relex_codec.storage.leftovers import ScratchDirectory
from relex_codec.storage.open import list_directory, open_source
from relex_codec.storage.remote import CONCURRENT_REQUESTS
from relex_codec.storage.urls import Options, PathLike, is_url, join_path, options_for, without_secrets

from .format import HEAD, MARKER, MARKER_LIMIT, parse_name
from .reader import Journal, open_journal

PIECE: Final = 1 << 24
"""Bytes that are fetched at a time, of each file."""


@contextmanager
def journal_at(path: PathLike, options: Options = None, *, whole: bool = True) -> Iterator[Journal]:
    """Open a journal that has a step, wherever it is.

    Args:
        path: of its directory: local, or a URL, of which all is fetched first.
        options: for fsspec.
        whole: whether differences are read; without, only tables of a URL are fetched.

    Raises:
        CheckpointError, Corrupt, Truncated, Unsupported: as `open_journal`.
        InvalidArgument: the temporary directory has no room for it.
    """
    if not is_url(path):
        yield open_journal(path)
        return
    shown = without_secrets(path)
    with ScratchDirectory() as scratch:
        try:
            _fetch(path, options_for(path, options), scratch.path, whole)
            yield open_journal(scratch.path, path)
        except RelexError as error:  # which names a copy that is soon gone
            raise type(error)(str(error).replace(scratch.path, shown.rstrip("/"))) from None


def _fetch(path: PathLike, options: Options, folder: str, whole: bool) -> None:
    listed = [item.name for item in list_directory(path, options, error=CheckpointError) if not item.is_dir]
    commits = [name for name in listed if (found := parse_name(name)) and found[2] == "steps"]
    data = [name.removesuffix("steps") + "data" for name in commits]

    def fetch(name: str) -> None:
        with open_source(join_path(path, name), options, error=CheckpointError) as source:
            end = source.size
            if name == MARKER:
                end = min(end, MARKER_LIMIT + 1)
            elif name in data and not whole:
                end = min(end, _digests(os.path.join(folder, name.removesuffix("data") + "steps")))
            try:
                with open(os.path.join(folder, name), "wb") as out:
                    for at in range(0, end, PIECE):
                        out.write(source.read(at, min(at + PIECE, end)))
                    out.truncate(source.size)  # what is not fetched takes no room
            except OSError as e:
                raise write_error(folder, e) from None

    fetch(MARKER)
    # records before what they are about: so the recorder may go on meanwhile
    for names in (commits, data):
        parallel_map(fetch, names, CONCURRENT_REQUESTS)


def _digests(path: str) -> int:
    """Return how many bytes of digests a file of differences begins with, by the head beside it; 0: it has none."""
    with open(path, "rb") as file:
        head = file.read(HEAD.size)
    return int(HEAD.unpack(head)[3]) if len(head) == HEAD.size else 0
