"""Finding the checkpoints of a run: below one directory, by paths with ``{step}``, or each by its own path.

The rules on names are in checkpoints/naming.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence

from relex_codec.core.filenames import INDEX
from relex_codec.core.steps import listed_steps, select_steps
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.errors import CheckpointError, InvalidArgument, RelexError, Truncated
from relex_codec.format.constants import STEP_LIMIT
from relex_codec.storage.hub.paths import parse_model_url
from relex_codec.storage.hub.revisions import list_branches, refuse_offline
from relex_codec.storage.open import Item, list_directory
from relex_codec.storage.urls import Options, PathLike, is_url, join_path, options_for, without_secrets

from . import naming
from .broken import broken_steps
from .files import find_files
from .safetensors import KnownTables, open_checkpoint
from .series import open_series


def find_run(
    root: PathLike,
    storage_options: Options = None,
    *,
    steps: str | None = None,
    exclude_steps: str | None = None,
    skip_incomplete: bool = False,
    on_skip: Callable[[str], None] | None = None,
) -> list[tuple[int, str]]:
    """Find the checkpoints of a run under one directory.

    Args:
        root: local, or an fsspec URL. With ``{step}`` in it, the checkpoint of each step: ``hf://org/run@step_{step}``
            is a run of which each branch is a step, ``s3://bucket/{step}/hf`` one of directories called by their
            number.
        storage_options: for fsspec, for all URLs, or by protocol.
        steps: which steps, as `core.steps.select_steps` takes them; what is not chosen is not looked into. With
            ``{step}``, both ends of a range mean all steps in it, whether they are there or not; without both, what
            there is is listed.
        exclude_steps: which of them are left out, written in the same way.
        skip_incomplete: leave out checkpoints that are incomplete, missing or cannot be read, instead of refusing the
            run. Headers of all checkpoints are then read here, since a file that ends early counts as incomplete.
        on_skip: called with a message for each checkpoint left out.

    Returns:
        Step and path of each, sorted by step; the path is that of the directory with the weights.

    Raises:
        CheckpointError: no checkpoints, several layouts, one step twice, or incomplete checkpoints, all of which are
            named at once.
        InvalidArgument: `steps` and `exclude_steps` leave nothing, or a part of them finds none.
    """
    if naming.PLACEHOLDER in os.fspath(root):
        return find_numbered(os.fspath(root), storage_options, steps, exclude_steps, skip_incomplete, on_skip)
    where = f"run {without_secrets(root)}"
    options = options_for(root, storage_options)
    refuse_offline(root)
    items = list_directory(root, options, error=CheckpointError)
    complete, incomplete = naming.step_names(item.name for item in items if item.is_dir)
    numbers = {entry.step for entry in (*complete, *incomplete)}
    chosen = set(select_steps(numbers, steps, exclude_steps)) if numbers else set()
    naming.one_layout(complete, where)
    known: KnownTables | None = {} if skip_incomplete else None

    def look(entry: naming.StepName) -> str | RelexError:
        try:
            return _look(join_path(root, entry.name), options, known)
        except (CheckpointError, Truncated) as e:
            return e

    failures: list[tuple[int, RelexError]] = [
        (entry.step, CheckpointError(f"{where} has an incomplete checkpoint, going by its name: {entry.name}"))
        for entry in incomplete
        if entry.step in chosen
    ]
    run: list[tuple[int, str]] = []
    wanted = [entry for entry in complete if entry.step in chosen]
    for entry, result in zip(wanted, parallel_map(look, wanted, IO_THREADS if is_url(root) else 1), strict=True):
        if isinstance(result, RelexError):
            failures.append((entry.step, result))
        else:
            run.append((entry.step, result))
    if failures and not skip_incomplete:
        raise _all_broken(dict(failures), run, chosen, storage_options)
    skipped = [str(error) for _, error in failures]
    for message in skipped:
        if on_skip is not None:
            on_skip(message)
    if not run:
        raise CheckpointError(_nothing_found(where, items, skipped))
    return run


def find_numbered(
    template: str,
    storage_options: Options,
    steps: str | None,
    exclude_steps: str | None,
    skip_incomplete: bool,
    on_skip: Callable[[str], None] | None,
) -> list[tuple[int, str]]:
    """Find the checkpoints of a run by paths with ``{step}``; arguments, result and errors are those of `find_run`."""
    where, options = f"run {without_secrets(template)}", options_for(template, storage_options)
    refuse_offline(template)
    listed = listed_steps(steps)
    if listed is None:
        digits = _list_numbered(template, options, where)
    else:
        digits = {step: str(step) for step in listed}
    chosen = select_steps(digits, steps, exclude_steps)
    if chosen[-1] > STEP_LIMIT:
        raise CheckpointError(f"{where}: step {chosen[-1]} is above the limit of {STEP_LIMIT}")
    paths = {step: template.replace(naming.PLACEHOLDER, digits[step]) for step in chosen}
    known: KnownTables | None = {} if skip_incomplete else None

    def look(step: int) -> str | RelexError:
        try:
            return _look(paths[step], options, known)
        except (CheckpointError, Truncated) as e:
            return e

    found = dict(zip(chosen, parallel_map(look, chosen, IO_THREADS if is_url(template) else 1), strict=True))
    failed = {step: result for step, result in found.items() if isinstance(result, RelexError)}
    if failed and (not skip_incomplete or len(failed) == len(found)):
        rest = [(step, folder) for step, folder in found.items() if not isinstance(folder, RelexError)]
        raise _all_broken(failed, rest, found, storage_options)
    for error in failed.values():
        if on_skip is not None:
            on_skip(str(error))
    return [(step, folder) for step, folder in found.items() if not isinstance(folder, RelexError)]


def _all_broken(
    failures: dict[int, RelexError], rest: list[tuple[int, str]], chosen: Collection[int], storage_options: Options
) -> RelexError:
    """Return the error for a run with broken steps: those of the rest that do not open are named with them."""
    more = open_series(rest, storage_options).failures() if rest else {}
    return broken_steps({**failures, **more}, chosen, skippable=not more)


def _list_numbered(template: str, options: Options, where: str) -> dict[int, str]:
    """Return the digits of each step that there is."""
    model = parse_model_url(template)
    if model is not None and naming.PLACEHOLDER in (model.revision or ""):
        names, segment = list_branches(template, options), str(model.revision)
        what = "branches"
    else:
        before, _, after = template.partition(naming.PLACEHOLDER)
        cut = before.rfind("/") + 1
        above, segment = before[:cut] or ".", before[cut:] + naming.PLACEHOLDER + after.partition("/")[0]
        if is_url(template) and (above.endswith("://") or "::" in template):
            raise InvalidArgument(f"{where} cannot be listed; say which steps, for example --steps 1:500")
        names = [item.name for item in list_directory(above, options, error=CheckpointError) if item.is_dir]
        what = f"directories in {without_secrets(above).rstrip('/') or above}"
    found = naming.match_steps(names, segment, where)
    if not found:
        raise CheckpointError(
            f"{where} has no checkpoints: looked for {what} called {segment}; found {naming.some(names) or 'nothing'}"
        )
    return found


def _look(path: str, options: Options, known: KnownTables | None) -> str:
    """Return the directory of a checkpoint that holds the weights, all of them; with `known`, headers are read too."""
    folder, items = _weights_folder(path, options)
    if known is not None:
        open_checkpoint(folder, options, known=known)
    else:
        find_files(folder, options, f"checkpoint {without_secrets(folder)}", items)
    return folder


def find_checkpoints(
    paths: Sequence[PathLike], storage_options: Options = None, *, step: int | None = None
) -> list[tuple[int, str]]:
    """Find single checkpoints, each by its own directory, whose name says which step it is.

    Args:
        paths: local, or fsspec URLs.
        storage_options: for fsspec, for all URLs, or by protocol.
        step: the number of the only checkpoint, whatever its name.

    Returns:
        Step and path of each, sorted by step; the path is that of the directory with the weights.

    Raises:
        CheckpointError: a checkpoint is incomplete or cannot be read.
        InvalidArgument: none are given, a name says no step, or two are of one step.
    """
    if not paths:
        raise InvalidArgument("no checkpoints are given")
    if step is not None and len(paths) > 1:
        raise InvalidArgument(f"one step is given, and {len(paths)} checkpoints")
    found: dict[int, str] = {}
    for path in paths:
        options = options_for(path, storage_options)
        refuse_offline(path)
        folder = _look(os.fspath(path), options, None)
        number = step if step is not None else _step_of(path)
        if number in found:
            raise InvalidArgument(
                f"{without_secrets(path)} and {without_secrets(found[number])} are both step {number}"
            )
        found[number] = folder
    return sorted(found.items())


def _step_of(path: PathLike) -> int:
    name = os.fspath(path).rstrip("/").rpartition("/")[2]
    model = parse_model_url(path)
    if model is not None and not model.below:
        name = model.revision or ""
    complete, _ = naming.step_names([name])
    if not complete:
        raise InvalidArgument(
            f"{without_secrets(path)} does not say which step it is: call it one of {', '.join(naming.STEPS)}, or pass "
            "--step"
        )
    return complete[0].step


def _weights_folder(path: str, options: Options) -> tuple[str, list[Item]]:
    """Return the directory of a step that holds the weights, which may be below it, and its listing."""
    listings = {"": list_directory(path, options, error=CheckpointError)}

    def look(below: str) -> list[Item]:
        if below not in listings:
            above, _, last = below.rpartition("/")
            there = any(item.is_dir and item.name == last for item in look(above))
            listings[below] = list_directory(join_path(path, below), options, error=CheckpointError) if there else []
        return listings[below]

    for below in ("", *naming.BELOW):
        items = look(below)
        if any(not i.is_dir and (naming.is_weights(i.name) or i.name == INDEX) for i in items):
            return (join_path(path, below) if below else path), items
    names = [item.name for items in listings.values() for item in items if not item.is_dir]
    raise CheckpointError(f"checkpoint {without_secrets(path)} {naming.instead(names)}")


def _nothing_found(where: str, items: list[Item], skipped: list[str]) -> str:
    if skipped:
        return f"{where} has no complete checkpoint; the first of {len(skipped)} left out: {skipped[0]}"
    if any(naming.is_weights(item.name) for item in items):
        return f"{where} is itself a checkpoint; give the directory above it, whose checkpoints are the run"
    found = naming.some(item.name for item in items) if items else "nothing"
    return f"{where} has no checkpoints: looked for directories {', '.join(naming.STEPS)}; found {found}"
