"""Finding the checkpoints of a run: below one directory, by paths with ``{step}``, or each by its own path.

The rules on names are in checkpoints/naming.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

from relex_codec.core.filenames import INDEX
from relex_codec.core.steps import listed_steps, select_steps
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.errors import CheckpointError, InvalidArgument, RelexError
from relex_codec.storage.hub.paths import parse_model_url
from relex_codec.storage.hub.revisions import list_branches, refuse_offline
from relex_codec.storage.open import Item, list_directory
from relex_codec.storage.urls import Options, PathLike, is_url, join_path, local_path, options_for, without_secrets

from . import naming, unreadable
from .checkpoint import TensorReader
from .files import dangling_links
from .step_reader import FoundStep, StepReader, check_found, weights_folder
from .weight_files import is_weights

SEARCHED: Final = 30
"""Directories of a run that are looked into for directories of steps."""


def find_run(
    root: PathLike,
    storage_options: Options = None,
    *,
    steps: str | None = None,
    exclude_steps: str | None = None,
    skip_incomplete: bool = False,
    on_skip: Callable[[str], None] | None = None,
    base: TensorReader | None = None,
    allow_pickle: bool = False,
) -> list[tuple[int, str]]:
    """Find the checkpoints of a run under one directory.

    Args:
        root: local, or an fsspec URL: the directory of the steps, or one above it (`naming.ABOVE`). With ``{step}`` in
            it, the checkpoint of each step: ``hf://org/run@step_{step}`` is a run of which each branch is a step,
            ``s3://bucket/{step}/hf`` one of directories called by their number.
        storage_options: for fsspec, for all URLs, or by protocol.
        steps: which steps, as `core.steps.select_steps` takes them; what is not chosen is not looked into. With
            ``{step}``, both ends of a range mean all steps in it, whether they are there or not; without both, what
            there is is listed.
        exclude_steps: which of them are left out, written in the same way.
        skip_incomplete: leave out checkpoints that are incomplete, missing or cannot be read, instead of refusing the
            run. Headers of all checkpoints are then read here, since a file that ends early counts as incomplete.
        on_skip: called with a message for each checkpoint left out.
        base: what each checkpoint that is opened here is compared with, so that placeholders count as incomplete.
        allow_pickle: find checkpoints that pickles describe too: of torch.distributed, shards of FSDP, ``.bin`` files.
            Nothing in them is run (unpickling.py).

    Returns:
        Step and path of each, sorted by step; the path is that of the directory with the weights, or of the file that
        tells of which other kind the checkpoint is (opening.py).

    Raises:
        CheckpointError: no checkpoints, several layouts, one step twice, or incomplete checkpoints, all of which are
            named at once.
        Truncated: the only incomplete checkpoint has a file that ends early.
        InvalidArgument: `steps` and `exclude_steps` leave nothing, or a part of them finds none.
    """
    reader = StepReader(skip_incomplete, on_skip or (lambda message: None), base, allow_pickle)
    if naming.PLACEHOLDER in os.fspath(root):
        return _find_numbered(os.fspath(root), storage_options, steps, exclude_steps, reader)
    options = options_for(root, storage_options)
    refuse_offline(root)
    items = list_directory(root, options, error=CheckpointError)
    home, names = _steps_folder(os.fspath(root), options, items)
    where = f"run {without_secrets(home)}"
    dangling = dangling_links(home)
    complete, incomplete = naming.step_names([*names, *dangling])
    if not complete and not incomplete:
        raise CheckpointError(_nothing_found(os.fspath(root), items))
    complete = naming.of_one_layout(complete, where)
    first_choice = {entry.layout for entry in complete} - set(naming.SECOND_CHOICE)
    incomplete = [entry for entry in incomplete if entry.layout not in naming.SECOND_CHOICE or not first_choice]
    chosen = set(select_steps({entry.step for entry in (*complete, *incomplete)}, steps, exclude_steps))
    wanted = [entry for entry in complete if entry.step in chosen]
    naming.check_steps(wanted, where)
    failed = [
        FoundStep(entry.step, CheckpointError(f"{where} has an incomplete checkpoint, going by its name: {entry.name}"))
        for entry in incomplete
        if entry.step in chosen
    ]

    def look(entry: naming.StepName) -> FoundStep:
        if entry.name in dangling:
            message = unreadable.dangling_link(entry.name, dangling[entry.name])
            return FoundStep(entry.step, CheckpointError(f"{where}: {message}"))
        return reader.look(entry.step, join_path(home, entry.name), options)

    found = parallel_map(look, wanted, IO_THREADS if is_url(home) else 1)
    rest = (entry.name for entry in complete if entry.step not in chosen and entry.name not in dangling)
    others = (join_path(home, name) for name in rest)
    found = reader.without_marker(found, where, next(others, None), options)
    run = reader.readable(sorted([*failed, *found], key=lambda one: one.step), storage_options)
    if not run:
        first = next(iter([*failed, *found])).folder
        raise CheckpointError(
            f"{where} has no complete checkpoint; the first of {len(failed) + len(found)} left out: {first}"
        )
    return run


def _steps_folder(root: str, options: Options, items: list[Item]) -> tuple[str, list[str]]:
    """Return the directory that has the directories of the steps, which may be below the run's, and their names.

    Raises:
        CheckpointError: several directories may be meant.
    """

    def names(here: list[Item], *, second: bool) -> list[str]:
        complete, incomplete = naming.step_names(item.name for item in here if item.is_dir)
        return [e.name for e in (*complete, *incomplete) if second or e.layout not in naming.SECOND_CHOICE]

    second = not any(is_weights(item.name) or item.name == INDEX for item in items)
    if found := names(items, second=False):
        return root, names(items, second=True)
    folders = [item.name for item in items if item.is_dir and not item.name.startswith(".")]
    below: dict[str, list[str]] = {}
    for name in [n for n in naming.ABOVE if n in folders] + [n for n in folders if n not in naming.ABOVE][:SEARCHED]:
        if below and name not in naming.ABOVE and next(iter(below)) in naming.ABOVE:
            break
        inside = list_directory(join_path(root, name), options, error=CheckpointError)
        if found := names(inside, second=False):
            below[name] = found
    if len(below) > 1 and next(iter(below)) not in naming.ABOVE:
        raise CheckpointError(
            f"run {without_secrets(root)} is ambiguous: {naming.some(below)} have checkpoints in them; give one of them"
        )
    if below:
        name, found = next(iter(below.items()))
        return join_path(root, name), found
    return root, names(items, second=True) if second else []


def _find_numbered(
    template: str, storage_options: Options, steps: str | None, exclude_steps: str | None, reader: StepReader
) -> list[tuple[int, str]]:
    """Find the checkpoints of a run by paths with ``{step}``; result and errors are those of `find_run`."""
    where, options = f"run {without_secrets(template)}", options_for(template, storage_options)
    refuse_offline(template)
    listed = listed_steps(steps)
    if listed is None:
        entries = _list_numbered(template, options, where)
    else:
        entries = [naming.StepName(step, str(step), template) for step in listed]
    chosen = set(select_steps({entry.step for entry in entries}, steps, exclude_steps))
    wanted = [entry for entry in entries if entry.step in chosen]
    naming.check_steps(wanted, where)

    def look(entry: naming.StepName) -> FoundStep:
        path = template.replace(naming.PLACEHOLDER, entry.name)
        return reader.look(entry.step, path, options)

    found = parallel_map(look, wanted, IO_THREADS if is_url(template) else 1)
    found = reader.without_marker(found, where)
    if all(isinstance(one.folder, RelexError) for one in found):
        raise reader.all_broken(found, storage_options)
    return reader.readable(found, storage_options)


def _list_numbered(template: str, options: Options, where: str) -> list[naming.StepName]:
    """Return the steps that there are, with their digits."""
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
    found = naming.match_steps(names, segment)
    if not found:
        raise CheckpointError(
            f"{where} has no checkpoints: looked for {what} called {segment}; found {naming.some(names) or 'nothing'}"
        )
    return found


def find_checkpoints(
    paths: Sequence[PathLike],
    storage_options: Options = None,
    *,
    step: int | None = None,
    allow_pickle: bool = False,
) -> list[tuple[int, str]]:
    """Find single checkpoints, each by its own directory, whose name says which step it is.

    Args:
        paths: local, or fsspec URLs.
        storage_options: for fsspec, for all URLs, or by protocol.
        step: the number of the only checkpoint, whatever its name.
        allow_pickle: as of `find_run`.

    Returns:
        Step and path of each, as `find_run`.

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
        folder, items, _ = weights_folder(os.fspath(path), options, allow_pickle=allow_pickle)
        check_found(folder, items, options)
        number = step if step is not None else _step_of(path)
        if number in found:
            raise InvalidArgument(
                f"{without_secrets(path)} and {without_secrets(found[number])} are both step {number}"
            )
        found[number] = folder
    return sorted(found.items())


def path_in_run(root: PathLike, path: str) -> str | None:
    """Return the path of a checkpoint that `find_run` found, from the directory of the run on; None if nobody knows.

    Examples:
        >>> path_in_run("ckpts/", "ckpts/global_step_10/actor/huggingface")
        'global_step_10/actor/huggingface'
        >>> path_in_run("s3://bucket/m-{step}/hf", "s3://bucket/m-10/hf")
        'm-10/hf'
    """
    text = os.fspath(root) if is_url(root) else local_path(root)
    above = text.partition(naming.PLACEHOLDER)[0].rpartition("/")[0] if naming.PLACEHOLDER in text else text
    above = above.replace(os.sep, "/").rstrip("/") + "/" if above else ""
    path = path.replace(os.sep, "/")
    return path[len(above) :].strip("/") or None if path.startswith(above) else None


def path_of_step(path: str) -> str | None:
    """Return the path of a checkpoint that `find_checkpoints` found, from the directory of its step on.

    Examples:
        >>> path_of_step("/data/run/global_step_10/actor/huggingface")
        'global_step_10/actor/huggingface'
        >>> path_of_step("hf://org/run@step_10") is None
        True
    """
    parts = path.replace(os.sep, "/").rstrip("/").split("/")
    at = next((i for i in range(len(parts) - 1, -1, -1) if naming.step_names([parts[i]])[0]), None)
    return None if at is None else "/".join(parts[at:])


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


def _nothing_found(root: str, items: list[Item]) -> str:
    """Say what the directory of a run holds instead of steps."""
    shown = without_secrets(root).rstrip("/")
    where, folders = f"run {shown}", [item.name for item in items if item.is_dir]
    if message := unreadable.cache_root(os.path.abspath(shown), folders):
        return f"{where} {message}"
    if any(is_weights(item.name) for item in items) or naming.step_names([os.path.basename(shown)])[0]:
        return f"{where} is itself a checkpoint; give the directory above it, whose checkpoints are the run"
    found = naming.some(item.name for item in items) if items else "nothing"
    template = naming.suggest_template(folders)
    hint = f"'{shown}/{template}'" if template else f"'{shown}/.../{naming.PLACEHOLDER}/...'"
    return (
        f"{where} has no checkpoints: looked for directories {', '.join(naming.STEPS)}; found {found}; if the "
        f"steps are elsewhere, give their path with {naming.PLACEHOLDER} for the number: {hint}"
    )
