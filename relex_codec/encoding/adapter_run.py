"""Encoding a run of adapters: nothing of it is in the base, and its configuration goes with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, TensorReader
from relex_codec.core.digests import digest
from relex_codec.core.dtypes import Bits
from relex_codec.core.filenames import file_allowed
from relex_codec.format.writer import PendingSpan


class NoBase(TensorReader):
    """Stands for the base where a run starts from nothing in it.

    Args:
        path: of the base, for messages.
    """

    def __init__(self, path: str) -> None:
        self.path, self.tensors, self.shards = path, dict[str, TensorInfo](), ()

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Refuse: there are no tensors; see `TensorReader.read_into`."""
        self.check_range(name, lo, out.size)


class StoredFiles(NamedTuple):
    """The files of a run that are no weights.

    Attributes:
        files: name, content and place of each, once.
        layouts: the numbers of the files of a step, for each way in which steps have them.
        of_step: the number of the layout of each step.
    """

    files: list[tuple[str, bytes, PendingSpan | None]]
    layouts: list[list[int]]
    of_step: list[int]


def store_own_files(
    run: CheckpointSeries, observed: int, exact: bool, store: Callable[[bytes], PendingSpan]
) -> StoredFiles:
    """Store the files beside the weights of each step, equal ones once.

    Args:
        observed: how many steps are observed.
        exact: False: the file has one layout, that of the last observed step.
        store: writes a content to the file.
    """
    files: list[tuple[str, bytes, PendingSpan | None]] = []
    numbers: dict[tuple[str, bytes], int] = {}
    layouts: list[list[int]] = []

    def layout_of(checkpoint: TensorReader) -> int:
        names: Sequence[str] = [name for name in checkpoint.side_files if file_allowed(name, checkpoint.shards)]
        here = []
        for name, content in zip(names, checkpoint.read_files(names), strict=True):
            key = name, digest(content)
            if key not in numbers:
                numbers[key] = len(files)
                files.append((name, content, store(content)))
            here.append(numbers[key])
        if here not in layouts:
            layouts.append(here)
        return layouts.index(here)

    count = len(run.steps)
    if not exact:
        return StoredFiles(files, layouts, [layout_of(run.checkpoint(observed - 1))] * count)
    return StoredFiles(files, layouts, [layout_of(run.checkpoint(index)) for index in range(count)])
