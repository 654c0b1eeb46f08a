"""What an output may be called and what it may replace; asked before anything is read."""

from __future__ import annotations

import os
from contextlib import suppress

from relex_codec.checkpoints.base_uri import place_of_base, uri_of_base
from relex_codec.errors import InvalidArgument, RelexError
from relex_codec.run.run_reader import RunReader
from relex_codec.storage.condition import ABSENT, ANYTHING, Condition
from relex_codec.storage.hub.paths import parse_model_url
from relex_codec.storage.leftovers import remove_leftovers
from relex_codec.storage.outputs import file_exists
from relex_codec.storage.urls import Options, PathLike, is_url, local_path, normalized, without_secrets

SUFFIX = ".relex"


def condition_of(
    output: PathLike,
    *,
    overwrite: bool,
    base: PathLike | None,
    storage_options: Options,
    part: str | None = None,
) -> Condition:
    """Return what may be replaced by a new file.

    Args:
        output: path or URL of the new file.
        overwrite: whether the user said that what is there may go.
        base: of the new file; an archive that refers to the same one could be appended to.
        storage_options: for fsspec.
        part: what is written in place of `output`, where that is a part of it.

    Raises:
        InvalidArgument: the output is not called ``NAME.relex``, or it exists and is not to be replaced.
    """
    shown = without_secrets(output)
    name = os.fspath(output).rpartition("/")[2]
    if not name.lower().endswith(SUFFIX) or name.lower() == SUFFIX:
        raise InvalidArgument(f"cannot write {shown}: an output is called NAME{SUFFIX}; give it such a name")
    if overwrite:
        return ANYTHING
    if part is not None:
        if file_exists(part, storage_options):
            raise InvalidArgument(f"cannot write {without_secrets(part)}: it exists; -f (overwrite=True) replaces it")
        return ABSENT
    if not is_url(output):  # also where nothing is written, as the file is there
        with suppress(OSError):
            remove_leftovers(os.path.dirname(os.path.realpath(local_path(output))))
    if file_exists(output, storage_options):
        there = _archive_of(output, base, storage_options)
        raise InvalidArgument(f"cannot write {shown}: it exists{there}; -f (in Python overwrite=True) replaces it")
    return ABSENT


def is_same_file(one: PathLike, other: PathLike) -> bool:
    """Tell whether two paths or URLs name one file."""
    if is_url(one) or is_url(other):
        return is_url(one) and is_url(other) and without_secrets(normalized(one)) == without_secrets(normalized(other))
    return os.path.realpath(local_path(one)) == os.path.realpath(local_path(other))


def _archive_of(output: PathLike, base: PathLike | None, storage_options: Options) -> str:
    """Return what a message says of an output that exists, if it is an archive of the same base."""
    try:
        with RunReader(output, storage_options=storage_options) as run:
            steps, uri, exact = run.steps, run.container.index.manifest.base_uri, run.container.index.has_exact
    except RelexError:
        return ""
    if base is None or uri is None:
        return f" and holds {_count(steps)}".rstrip(",")
    if not _is_same_base(uri, base, output):
        return f" and holds {_count(steps)} of another base"
    can = "`relex-codec append` adds further steps to it" if exact else "without --exact, so nothing can be appended"
    return f" and holds {_count(steps)} of the same base; {can}"


def _is_same_base(uri: str, base: PathLike, output: PathLike) -> bool:
    """Tell whether what the file `output` calls its base is the one given, a branch where the file has a commit."""
    one, other = parse_model_url(uri), parse_model_url(uri_of_base(base, output) or base)
    if one is not None and other is not None:
        return (one.repo, one.below) == (other.repo, other.below)
    return is_same_file(place_of_base(uri, output), base)


def _count(steps: list[int]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps, {steps[0]} to {steps[-1]},"
