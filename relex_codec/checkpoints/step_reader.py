"""The checkpoints of a run, one by one: where the weights of a step lie, and whether they are all there."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from relex_codec.core.filenames import INDEX
from relex_codec.errors import CheckpointError, RelexError, Truncated
from relex_codec.storage.open import Item, list_directory
from relex_codec.storage.urls import Options, join_path, without_secrets

from . import naming, unreadable
from .boxed import Known
from .broken import broken_steps
from .checkpoint import TensorReader
from .checks import check_against_base
from .files import dangling_links, find_files, list_tree
from .opening import (
    adapter_file,
    check_files,
    lone_pickle,
    needs_pickle,
    open_reader,
    refuse_pickle,
    telling_file,
    tells_kind,
)
from .series import open_series
from .weight_files import is_weights


class FoundStep(NamedTuple):
    """A step that was looked at.

    Attributes:
        folder: the directory that holds the weights, or the file that tells their kind (opening.py); or why it cannot
            be read.
        marker: the file in the step's own directory that says that it is complete, if there is one.
    """

    step: int
    folder: str | RelexError
    marker: str | None = None


class StepReader:
    """How the checkpoints of a run are looked at: what becomes of one that cannot be read, and which headers are read.

    Args:
        skip: leave out what cannot be read, and read headers to find that out.
        on_skip: called with a message for each that is left out.
        base: what opened checkpoints are compared with.
        allow_pickle: whether checkpoints are read that pickles describe.
    """

    def __init__(
        self, skip: bool, on_skip: Callable[[str], None], base: TensorReader | None, allow_pickle: bool = False
    ) -> None:
        self.skip, self._on_skip, self._base, self._allow_pickle = skip, on_skip, base, allow_pickle
        self._known: Known = {}

    def look(self, step: int, path: str, options: Options) -> FoundStep:
        """Look whether a checkpoint is there, with all its files; if it is not, return why."""
        try:
            folder, items, marker = weights_folder(path, options, allow_pickle=self._allow_pickle)
            if self.skip:
                names = () if self._base is None else self._base.tensors
                opened = open_reader(folder, options, known=self._known, names=names)
                if self._base is not None:
                    check_against_base(opened, self._base, f"step {step}")
            else:
                check_found(folder, items, options)
            return FoundStep(step, folder, marker)
        except (CheckpointError, Truncated) as e:
            return FoundStep(step, e)

    def without_marker(
        self, found: list[FoundStep], where: str, another: str | None = None, options: Options = None
    ) -> list[FoundStep]:
        """Return the steps, those without a marker of completeness as incomplete if another step has one.

        Args:
            another: path of a step that was not chosen: whether steps of this run have markers is seen there too.
        """
        readable = [one for one in found if not isinstance(one.folder, RelexError)]
        without = {one.step for one in readable if one.marker is None}
        if not without:
            return found
        marker = next((one.marker for one in readable if one.marker is not None), None)
        if marker is None and another is not None:
            with suppress(CheckpointError):  # it is not wanted: whatever is wrong with it is no matter
                marker = _marker(list_directory(another, options, error=CheckpointError))
        if marker is None:
            return found
        lacking = f"has no {marker}, which other steps have" + ("" if self.skip else "; wait for it")
        return [
            FoundStep(one.step, CheckpointError(f"{where}: step {one.step} {lacking}")) if one.step in without else one
            for one in found
        ]

    def readable(self, found: list[FoundStep], storage_options: Options) -> list[tuple[int, str]]:
        """Return steps and directories of those that can be read; tell what is left out.

        Raises:
            CheckpointError, Truncated: some cannot be read, and such are not left out.
        """
        run, failed = _parted(found)
        if failed and not self.skip:
            raise self.all_broken(found, storage_options)
        for _, error in failed:
            self._on_skip(str(error))
        return run

    def all_broken(self, found: list[FoundStep], storage_options: Options) -> RelexError:
        """Return the error for a run with broken steps: those of the rest that do not open are named with them."""
        run, failed = _parted(found)
        more = open_series(run, storage_options, base=self._base).failures() if run else {}
        return broken_steps({**dict(failed), **more}, {one.step for one in found}, skippable=not more)


def _parted(found: list[FoundStep]) -> tuple[list[tuple[int, str]], list[tuple[int, RelexError]]]:
    """Return the directories of the steps that can be read, and why the others cannot."""
    run: list[tuple[int, str]] = []
    failed: list[tuple[int, RelexError]] = []
    for one in found:
        if isinstance(one.folder, RelexError):
            failed.append((one.step, one.folder))
        else:
            run.append((one.step, one.folder))
    return run, failed


def check_found(folder: str, items: list[Item], options: Options) -> None:
    """Check that a checkpoint that `weights_folder` found has all its files.

    Raises:
        CheckpointError: some are missing, or which ones belong to the model cannot be told.
    """
    if not tells_kind(folder):
        find_files(folder, options, f"checkpoint {without_secrets(folder)}", items)
    elif items:
        check_files(folder, [item.name for item in items if not item.is_dir], options)


def weights_folder(path: str, options: Options, *, allow_pickle: bool = False) -> tuple[str, list[Item], str | None]:
    """Return where the weights of a step are, at or below its path; the listing of that; the step's marker.

    Whole safetensors come first, wherever they are; then other kinds of checkpoints.

    Args:
        path: the directory of a step, or a file of `torch.save`, or the file that tells the kind of a checkpoint.
        allow_pickle: whether checkpoints are found that pickles describe.

    Returns:
        A directory, or the file that tells the kind (opening.py).

    Raises:
        CheckpointError: there is none; the message says what there is instead.
    """
    if tells_kind(path):
        if needs_pickle(path) and not allow_pickle:
            raise refuse_pickle(path)
        return path, [], None
    listings = {"": list_directory(path, options, error=CheckpointError)}

    def look(below: str) -> list[Item]:
        if below not in listings:
            above, _, last = below.rpartition("/")
            there = any(item.is_dir and item.name == last for item in look(above))
            listings[below] = list_directory(join_path(path, below), options, error=CheckpointError) if there else []
        return listings[below]

    own = listings[""]
    for below in ("", *naming.BELOW):
        items, folder = look(below), join_path(path, below) if below else path
        dangling = dangling_links(folder) if items or not below else {}
        if any(not i.is_dir and (is_weights(i.name) or i.name == INDEX) for i in items):
            return folder, items, _marker(own)
        if lost := next((name for name in dangling if is_weights(name) or name == INDEX), None):
            shown = without_secrets(join_path(folder, lost))
            raise CheckpointError(f"checkpoint {unreadable.dangling_link(shown, dangling[lost])}")
    where = without_secrets(path)
    if message := unreadable.cache_root(os.path.abspath(where), [item.name for item in own if item.is_dir]):
        raise CheckpointError(f"checkpoint {where} {message}")
    could_be_read = False
    searched = [(below, adapter_file) for below in naming.ADAPTERS_BELOW]
    searched += [(below, tell) for tell in (telling_file, lone_pickle) for below in ("", *naming.BELOW)]
    for below, tell in searched:
        items = look(below)
        name = tell([item.name for item in items if not item.is_dir])
        if name is not None:
            told = join_path(join_path(path, below) if below else path, name)
            if allow_pickle or not needs_pickle(told):
                return told, items, _marker(own)
            could_be_read = True
    tree = list_tree(path, options, own)
    if elsewhere := sorted({name.rpartition("/")[0] for name in tree if is_weights(name.rpartition("/")[2])}):
        template = naming.suggest_template([os.path.basename(where)]) or naming.PLACEHOLDER
        raise CheckpointError(
            f"checkpoint {where} has weights in {naming.some(elsewhere)}, expected them in it or in one of "
            f"{naming.some(naming.BELOW, 4)}; give the run as '{os.path.dirname(where)}/{template}/{elsewhere[0]}'"
        )
    raise CheckpointError(f"checkpoint {where} {unreadable.explain(tree, where, allow=could_be_read)}")


def _marker(items: list[Item]) -> str | None:
    """Return the file that says that a step is complete, if its directory has one."""
    return next((item.name for item in items if item.name in naming.MARKERS), None)
