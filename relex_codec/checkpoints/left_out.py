"""What the directory of a run holds that is neither weights nor files beside them: optimizer states, logs, other steps.

`group_files` is the rule, on a listing; `find_left_out` lists. What it is called by kind is in core/left_out.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from relex_codec.core.filenames import INDEX, PROVENANCE
from relex_codec.core.left_out import OTHER_FILES, OTHER_STEPS, LeftOut, summed
from relex_codec.core.text import on_one_line
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.errors import CheckpointError
from relex_codec.format.manifest import LEFT_OUT_LIMIT
from relex_codec.storage.tree import ListedFile, Tree, list_files
from relex_codec.storage.urls import Options, PathLike, join_path, options_for

from . import naming
from .checkpoint import TensorReader
from .opening import directory_of

LONGEST: Final = 200
"""Characters of a name."""


class StepFolder(NamedTuple):
    """Where a step that was read lies below the directory that is listed.

    Attributes:
        step: its number.
        top: path of the step's own directory; empty: what is listed is that.
        path: of the directory with its weights, which may lie below.
        held: names of the files that are kept, from there on.
    """

    step: int
    top: str
    path: str
    held: Collection[str]


class RestOfRun(NamedTuple):
    """What is not kept.

    Attributes:
        rows: the largest first.
        complete: whether everything was looked into.
    """

    rows: list[LeftOut]
    complete: bool


def files_kept(checkpoint: TensorReader) -> set[str]:
    """Return the names of the files of a checkpoint that decoding gives back, or all of whose content it does."""
    files = {*checkpoint.shards, *checkpoint.side_files, *([INDEX] if checkpoint.indexed else [])}
    return files | set(checkpoint.read_whole)


def group_files(files: Iterable[ListedFile], steps: Sequence[StepFolder]) -> list[LeftOut]:
    """Group the files that are not kept: those of steps by their name in the step, the rest by what has them.

    Numbers in names become ``*``: the states of 8 ranks at 500 steps are one row.

    Args:
        files: of the run's directory and all below it.
        steps: those that are kept.

    Examples:
        >>> names = ["a-1/x.safetensors", "a-1/optimizer.pt", "a-2/x.safetensors", "a-2/optimizer.pt", "x/1.log"]
        >>> steps = [StepFolder(n, f"a-{n}", f"a-{n}", {"x.safetensors"}) for n in (1, 2)]
        >>> group_files([ListedFile(name, 10) for name in names], steps)
        [LeftOut(what='optimizer.pt', files=2, bytes=20), LeftOut(what='x/', files=1, bytes=10)]
    """
    kept = {f"{step.path}/{name}" if step.path else name for step in steps for name in step.held}
    tops = {step.top: step.step for step in steps}
    homes = {top.rpartition("/")[0] for top in tops}
    name_of = _Namer(tops, homes)
    rows: dict[str, tuple[int, int]] = {}
    for file in files:
        if file.path in kept or file.path.rpartition("/")[2] == PROVENANCE:
            continue
        what = name_of(file.path)
        count, size = rows.get(what, (0, 0))
        rows[what] = count + 1, size + (file.size or 0)
    found = summed(LeftOut(what, *counted) for what, counted in rows.items())
    if len(found) > LEFT_OUT_LIMIT:
        rest = [row._replace(what=OTHER_FILES) for row in found[LEFT_OUT_LIMIT - 1 :]]
        found = [*found[: LEFT_OUT_LIMIT - 1], *summed(rest)]
    return found


class _Namer:
    """What a file that is not kept counts as.

    Args:
        tops: directories of steps, and their numbers.
        homes: directories that have those.
    """

    def __init__(self, tops: Mapping[str, int], homes: Collection[str]) -> None:
        self._tops, self._homes, self._steps = tops, homes, frozenset(tops.values())

    def __call__(self, path: str) -> str:
        parts = path.split("/")
        for end in range(len(parts)):
            if (top := "/".join(parts[:end])) in self._tops:
                return _generic(path[len(top) + 1 if top else 0 :])
        at = next((end for end in reversed(range(len(parts))) if "/".join(parts[:end]) in self._homes), 0)
        name, is_folder = parts[at], len(parts) > at + 1
        if is_folder and self._is_other_step(name):
            return OTHER_STEPS
        return _generic(f"{name}/" if is_folder else name)

    def _is_other_step(self, name: str) -> bool:
        complete, incomplete = naming.step_names([name])
        return any(entry.step not in self._steps for entry in complete) or bool(incomplete)


def _generic(path: str) -> str:
    name = on_one_line(re.sub("[0-9]+", "*", path).encode("utf-8", "replace").decode())
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."


def find_left_out(
    run: PathLike,
    found: Sequence[tuple[int, str]],
    kept: Callable[[int], Collection[str]],
    storage_options: Options = None,
) -> RestOfRun:
    """List the directory of a run, and return what is not kept of it.

    Of a run whose paths have ``{step}``, only the directories of its steps are looked into.

    Args:
        run: as it was given to `discovery.find_run`.
        found: what that returned.
        kept: gives the names of the files that are kept of ``found[index]``; `files_kept` says which those can be.

    Raises:
        CheckpointError: a directory cannot be listed.
    """
    places = [_place(os.fspath(run), directory_of(path)) for _, path in found]
    roots: dict[str, list[StepFolder]] = {}
    for index, ((step, _), (root, below)) in enumerate(zip(found, places, strict=True)):
        top = _top(step, below) if naming.PLACEHOLDER not in os.fspath(run) else ""
        roots.setdefault(root, []).append(StepFolder(step, top, below, kept(index)))

    def look(root: str) -> Tree:
        return list_files(root, options_for(root, storage_options), error=CheckpointError)

    trees = parallel_map(look, roots, IO_THREADS)
    rows = [row for tree, steps in zip(trees, roots.values(), strict=True) for row in group_files(tree.files, steps)]
    return RestOfRun(summed(rows)[:LEFT_OUT_LIMIT], all(tree.complete for tree in trees))


def _place(run: str, path: str) -> tuple[str, str]:
    """Return the directory to list for a step, and where its weights lie below it."""
    if naming.PLACEHOLDER in run:
        until = run.find("/", run.index(naming.PLACEHOLDER))
        count = len(run[: until if until >= 0 else len(run)].split("/"))
        parts = path.split("/")
        return "/".join(parts[:count]), "/".join(parts[count:])
    root = join_path(run, "")
    return (run, path[len(root) :]) if path.startswith(root) else (path, "")


def _top(step: int, path: str) -> str:
    """Return the directory of a step by that of its weights: the part that is called by its number, or all of it."""
    parts = path.split("/")
    for end, name in enumerate(parts, 1):
        complete, _ = naming.step_names([name])
        if complete and complete[0].step == step:
            return "/".join(parts[:end])
    return path
