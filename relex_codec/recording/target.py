"""Where a run that is watched goes: its journal, and the file that is made of it in the end."""

from __future__ import annotations

import os
from typing import NamedTuple

from relex_codec.errors import InvalidArgument
from relex_codec.storage.outputs import file_exists
from relex_codec.storage.urls import Options, PathLike, is_url, without_secrets


class Target(NamedTuple):
    """Where a watched run goes.

    Attributes:
        journal: local path.
        file: path or URL of the ``.relex`` file that is written in the end; None: there is none.
    """

    journal: str
    file: str | None


def target_of(output: PathLike, storage_options: Options = None) -> Target:
    """Return where a watched run goes.

    Args:
        output: the journal, or a file ``NAME.relex``, whose journal is ``NAME.journal`` beside it; that of a URL is in
            the current directory.

    Raises:
        InvalidArgument: the file is there already, or cannot be asked for.
    """
    text = os.fspath(output)
    name = without_secrets(text) if is_url(text) else text
    if not name.lower().endswith(".relex"):
        return Target(text, None)
    if file_exists(output, storage_options):
        raise InvalidArgument(f"cannot watch into {name}: it is there already; give a new file, or a journal")
    place = name.rpartition("/")[2] if is_url(text) else text
    return Target(place[: -len(".relex")] + ".journal", text)
