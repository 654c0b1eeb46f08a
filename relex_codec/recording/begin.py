"""Where a recording begins: the journal is made or opened, and the step that the next one follows is found."""

from __future__ import annotations

import os
from typing import NamedTuple

from relex_codec.checkpoints.base_model import open_base
from relex_codec.checkpoints.base_uri import uri_of_base
from relex_codec.errors import InvalidArgument
from relex_codec.journal.format import MARKER
from relex_codec.journal.reader import Journal
from relex_codec.journal.writer import JournalLock, make_journal, next_generation
from relex_codec.storage.hub.revisions import pinned_to_commit
from relex_codec.storage.urls import Options, PathLike, without_secrets


class Begun(NamedTuple):
    """Where recording goes on, as all ranks agree.

    Attributes:
        folder: of the journal.
        after: the step that the next one follows; None: the base.
        base: where that is.
    """

    folder: str
    generation: int
    after: int | None
    base: str


def begin(
    path: PathLike, base: PathLike | None, after: int | None, base_uri: str | None, options: Options
) -> tuple[Begun, JournalLock]:
    """Make or open a journal, and keep other recorders away from it; one rank does so for all.

    Args:
        path, base, after, base_uri, options: as of `Recorder`.

    Raises:
        InvalidArgument: it cannot be written, another recorder writes to it, or nothing says where the base is.
        CheckpointError: the base cannot be read.
        Corrupt, Truncated: the journal is damaged.
    """
    if base is not None:
        base = pinned_to_commit(base, options)
        open_base(base, options)  # before anything is made
    uri = without_secrets(base_uri) or None if base_uri is not None else None
    if base is not None and base_uri is None:
        uri = uri_of_base(base, os.path.join(os.path.abspath(path), MARKER))
    folder = make_journal(path, uri)
    lock = JournalLock(folder)
    try:
        journal = Journal(folder)
        place = os.fspath(base) if base is not None else journal.base_place()
        if place is None:
            raise InvalidArgument(f"journal {folder} does not say where its base is; pass base")
        steps = [step for step in journal.numbers if after is None or step <= after]
        return Begun(folder, next_generation(folder), steps[-1] if steps else None, place), lock
    except BaseException:
        lock.close()
        raise
