"""Runs on disk: find the checkpoints, order them, and read slices of one tensor over all steps.

How one checkpoint is opened is in checkpoint.py, the rules on names are in layouts.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from . import layouts
from .checkpoint import Checkpoint as Checkpoint
from .checkpoint import TensorInfo as TensorInfo
from .checkpoint import Tensors, find_files
from .checkpoint import open_checkpoint as open_checkpoint
from .dtypes import Bits, bits_dtype
from .errors import CheckpointError, InvalidArgument, Truncated
from .header import quote
from .layouts import select_steps as select_steps
from .parallel import IO_THREADS, in_parallel
from .paths import Options, PathLike, is_url, join, public
from .storage import Item, list_directory


def find_run(
    root: PathLike,
    storage_options: Options = None,
    *,
    steps: str | None = None,
    skip_incomplete: bool = False,
    on_skip: Callable[[str], None] | None = None,
) -> list[tuple[int, str]]:
    """Find the checkpoints of a run under one directory.

    Parameters
    ----------
    root : str or path
        Local, or an fsspec URL.
    storage_options : dict, optional
        For fsspec.
    steps : str, optional
        Which steps, as `select_steps` takes them; what is not chosen is not looked into.
    skip_incomplete : bool
        Leave out checkpoints that are incomplete or cannot be read, instead of refusing the run. Headers of all
        checkpoints are then read here, since a file that ends early counts as incomplete.
    on_skip : callable, optional
        Called with a message for each checkpoint left out.

    Returns
    -------
    list of (step, path)
        Sorted by step; the path is that of the directory with the weights.

    Raises
    ------
    CheckpointError
        No checkpoints, several layouts, one step twice, or an incomplete checkpoint.
    InvalidArgument
        `steps` leaves nothing.
    """
    where = f"run {public(root)}"
    items = list_directory(root, storage_options, error=CheckpointError)
    complete, incomplete = layouts.step_names(item.name for item in items if item.is_dir)
    numbers = {entry.step for entry in (*complete, *incomplete)}
    chosen = set(select_steps(numbers, steps)) if numbers else set()
    layouts.one_layout(complete, where)
    skipped = []
    known: dict[bytes, Tensors] = {}

    def look(entry: layouts.StepName) -> tuple[int, str] | CheckpointError:
        try:
            folder, found = _weights_folder(join(root, entry.name), storage_options)
            if skip_incomplete:
                open_checkpoint(folder, storage_options, known=known)
            else:
                find_files(folder, storage_options, f"checkpoint {public(folder)}", found)
        except (CheckpointError, Truncated) as e:
            if not skip_incomplete:
                raise
            return CheckpointError(str(e))
        return entry.step, folder

    run: list[tuple[int, str]] = []
    for entry in incomplete:
        if entry.step in chosen:
            message = f"{where} has an incomplete checkpoint, going by its name: {entry.name}"
            if not skip_incomplete:
                raise CheckpointError(f"{message}; remove it, or ask to skip incomplete checkpoints")
            skipped.append(message)
    wanted = [entry for entry in complete if entry.step in chosen]
    for result in in_parallel(look, wanted, IO_THREADS if is_url(root) else 1):
        if isinstance(result, CheckpointError):
            skipped.append(str(result))
        else:
            run.append(result)
    for message in skipped:
        if on_skip is not None:
            on_skip(message)
    if not run:
        raise CheckpointError(_nothing_found(where, items, skipped))
    return run


def find_checkpoints(
    paths: Sequence[PathLike], storage_options: Options = None, *, step: int | None = None
) -> list[tuple[int, str]]:
    """Find single checkpoints, each by its own directory, whose name says which step it is.

    Parameters
    ----------
    paths : sequence of str or path
        Local, or fsspec URLs.
    storage_options : dict, optional
        For fsspec.
    step : int, optional
        The number of the only checkpoint, whatever its name.

    Returns
    -------
    list of (step, path)
        Sorted by step; the path is that of the directory with the weights.

    Raises
    ------
    CheckpointError
        A checkpoint is incomplete or cannot be read.
    InvalidArgument
        None are given, a name says no step, or two are of one step.
    """
    if not paths:
        raise InvalidArgument("no checkpoints are given")
    if step is not None and len(paths) > 1:
        raise InvalidArgument(f"one step is given, and {len(paths)} checkpoints")
    found: dict[int, str] = {}
    for path in paths:
        folder, items = _weights_folder(os.fspath(path), storage_options)
        find_files(folder, storage_options, f"checkpoint {public(folder)}", items)
        number = step if step is not None else _step_of(path)
        if number in found:
            raise InvalidArgument(f"{public(path)} and {public(found[number])} are both step {number}")
        found[number] = folder
    return sorted(found.items())


def _step_of(path: PathLike) -> int:
    text = os.fspath(path).rstrip("/")
    complete, _ = layouts.step_names([text.rpartition("/")[2]])
    if not complete:
        raise InvalidArgument(
            f"{public(path)} does not say which step it is: call it one of {', '.join(layouts.STEPS)}, or pass --step"
        )
    return complete[0].step


def _weights_folder(path: str, options: Options) -> tuple[str, list[Item]]:
    """Return the directory of a step that holds the weights, which may be below it, and its listing."""
    listings = {"": list_directory(path, options, error=CheckpointError)}

    def look(below: str) -> list[Item]:
        if below not in listings:
            above, _, last = below.rpartition("/")
            there = any(item.is_dir and item.name == last for item in look(above))
            listings[below] = list_directory(join(path, below), options, error=CheckpointError) if there else []
        return listings[below]

    for below in ("", *layouts.BELOW):
        items = look(below)
        if any(not i.is_dir and (layouts.is_weights(i.name) or i.name == layouts.INDEX) for i in items):
            return (join(path, below) if below else path), items
    names = [item.name for items in listings.values() for item in items if not item.is_dir]
    raise CheckpointError(f"checkpoint {public(path)} {layouts.instead(names)}")


def _nothing_found(where: str, items: list[Item], skipped: list[str]) -> str:
    if skipped:
        return f"{where} has no complete checkpoint; the first of {len(skipped)} left out: {skipped[0]}"
    if any(layouts.is_weights(item.name) for item in items):
        return f"{where} is itself a checkpoint; give the directory above it, whose checkpoints are the run"
    found = layouts.some(item.name for item in items) if items else "nothing"
    return f"{where} has no checkpoints: looked for directories {', '.join(layouts.STEPS)}; found {found}"


class Run:
    """The checkpoints of a run, opened when first needed and each checked against the first one.

    Parameters
    ----------
    checkpoints : sequence of (step, path)
        As `find_run` returns them.
    storage_options : dict, optional
        For fsspec.
    threads : int
        Concurrent reads.
    """

    def __init__(
        self, checkpoints: Sequence[tuple[int, str]], storage_options: Options = None, *, threads: int = IO_THREADS
    ) -> None:
        if not checkpoints:
            raise CheckpointError("a run needs at least one checkpoint")
        self.steps = [step for step, _ in checkpoints]
        self.paths = [path for _, path in checkpoints]
        self._options, self._threads = storage_options, threads
        self._known: dict[bytes, Tensors] = {}
        self._opened: list[Checkpoint | None] = [None] * len(checkpoints)

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in the order of the first checkpoint."""
        return list(self.checkpoint(0).tensors)

    def info(self, name: str) -> TensorInfo:
        """Return name, dtype and shape of a tensor; where it lies holds for the first checkpoint only."""
        return self.checkpoint(0).info(name)

    def checkpoint(self, index: int) -> Checkpoint:
        """Return checkpoint number `index`, opened and checked against the first.

        Raises
        ------
        CheckpointError
            A tensor is missing, additional, or of another dtype or shape; the message names step and tensor.
        """
        opened = self._opened[index]
        if opened is None:
            step, path = self.steps[index], self.paths[index]
            known = dict(self._known) if index else self._known  # what is not like the first is not kept
            opened = open_checkpoint(path, self._options, step=step, known=known)
            if index:
                self._compare(opened, self.checkpoint(0))
                if opened.tensors == self.checkpoint(0).tensors:  # headers may differ in their metadata only
                    opened.tensors = self.checkpoint(0).tensors
            self._opened[index] = opened
        return opened

    def check(self) -> None:
        """Open all checkpoints, so that a run that does not fit together is refused before any work."""
        self.checkpoint(0)
        in_parallel(self.checkpoint, range(len(self.steps)), self._threads)

    def read(self, name: str, lo: int = 0, hi: int | None = None) -> Bits:
        """Return the bits of elements `lo` to `hi` (default: all) of a tensor at all steps: an array [T, hi - lo]."""
        info = self.info(name)
        out: Bits = np.empty((len(self.steps), (info.size if hi is None else hi) - lo), bits_dtype(info.dtype))
        self.read_into(name, lo, out)
        return out

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill the rows of `out`, [rows, elements], from element `lo` on: one row for each of the first steps."""

        def rows(first: int) -> None:
            for index in range(first, len(out), workers):
                self.checkpoint(index).read_into(name, lo, out[index])

        self.checkpoint(0)
        # a task for each thread, not for each step: small tensors cost microseconds a step
        workers = min(self._threads, len(out))
        in_parallel(rows, range(workers), workers)

    def _compare(self, found: Checkpoint, first: Checkpoint) -> None:
        if found.tensors is first.tensors:
            return
        for name in first.tensors.keys() ^ found.tensors.keys():
            here, there = (self.steps[0], found.step) if name in first.tensors else (found.step, self.steps[0])
            raise CheckpointError(f"tensor {quote(name)} is in the checkpoint of step {here}, but not in step {there}")
        for name, expected in first.tensors.items():
            info = found.tensors[name]
            if (info.dtype, info.shape) != (expected.dtype, expected.shape):
                raise CheckpointError(
                    f"tensor {quote(name)} of step {found.step} is {info.dtype} {list(info.shape)}, "
                    f"expected {expected.dtype} {list(expected.shape)} as in step {self.steps[0]}"
                )
