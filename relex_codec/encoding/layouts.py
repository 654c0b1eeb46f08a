"""How the checkpoints of a run are laid out: which tensors and files a step has, and what its directory is called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.core.filenames import STEP_FOLDER, directory_allowed
from relex_codec.format.manifest import Layout, StepEntry

from .run_plan import Key


@dataclass(slots=True)
class Layouts:
    """The different layouts of a run, and which of them each step has.

    Args:
        tensors: all of the file, in its order.
    """

    tensors: Sequence[Key]
    layouts: list[Layout] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    _known: dict[tuple[tuple[str, ...], bool, tuple[int | None, ...], tuple[int, ...]], int] = field(
        default_factory=dict
    )

    def add(self, shards: Sequence[str], indexed: bool, table: Mapping[str, TensorInfo], files: Sequence[int]) -> None:
        """Add the next step.

        Args:
            shards: names of its files of weights.
            indexed: whether it has an index.
            table: its tensors, with the numbers of their shards.
            files: numbers of its other files.
        """
        order = sorted(range(len(shards)), key=lambda i: shards[i])
        places = {number: place for place, number in enumerate(order)}
        there = (table.get(key.name) for key in self.tensors)
        numbers = tuple(
            places[info.shard] if info is not None and info.dtype == key.dtype else None
            for key, info in zip(self.tensors, there, strict=True)
        )
        self._number(tuple(shards[i] for i in order), indexed, numbers, tuple(files))

    def add_known(self, layout: Layout, files: Sequence[int]) -> None:
        """Add the next step, which a file has: it had the first tensors only."""
        more = [None] * (len(self.tensors) - len(layout.tensors))
        self._number(tuple(layout.shards), layout.indexed, (*layout.tensors, *more), tuple(files))

    def _number(
        self, shards: tuple[str, ...], indexed: bool, tensors: tuple[int | None, ...], files: tuple[int, ...]
    ) -> None:
        key = shards, indexed, tensors, files
        if key not in self._known:
            self._known[key] = len(self.layouts)
            self.layouts.append(Layout(list(shards), indexed, list(tensors), list(files)))
        self.steps.append(self._known[key])


def directory_names(paths: Iterable[str | None], steps: Sequence[int]) -> list[str | None]:
    """Return what the directories of steps are called in a file; None for all where one cannot be called so everywhere.

    Args:
        paths: from the directory of the run on; None where nobody knows.
        steps: their numbers.

    Returns:
        None for a step whose directory is called ``global_step_N``, as those are that have no name.

    Examples:
        >>> directory_names(["checkpoint-5", "checkpoint-10"], [5, 10])
        ['checkpoint-5', 'checkpoint-10']
        >>> directory_names(["a/é-5", "a/é-10"], [5, 10])
        [None, None]
        >>> directory_names(["global_step_1", "best"], [1, 2])
        [None, 'best']
    """
    names = [path if path is not None and directory_allowed(path) else None for path in paths]
    called = [(name or STEP_FOLDER.format(step)).lower() for name, step in zip(names, steps, strict=True)]
    above = {"/".join(name.split("/")[:i]) for name in called for i in range(1, name.count("/") + 1)}
    if len(set(called)) < len(called) or above & set(called):
        return [None] * len(names)
    return [None if name == STEP_FOLDER.format(step) else name for name, step in zip(names, steps, strict=True)]


def step_entries(directories: Sequence[str | None], layouts: Sequence[int]) -> list[StepEntry]:
    """Return what the manifest says of the steps."""
    return [StepEntry(directory, layout) for directory, layout in zip(directories, layouts, strict=True)]
