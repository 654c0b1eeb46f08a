"""What a file says beside its tensors: layouts of steps, names of directories, and the files that are no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorReader
from relex_codec.core.left_out import LeftOut
from relex_codec.decoding.stored_pieces import embedded_file
from relex_codec.format.packed_span import PendingSpan
from relex_codec.run.run_reader import RunReader

from .layouts import Layouts, directory_names
from .planning import RunPlan
from .run_plan import Key
from .side_files import BaseFiles, FileStore, StoredFile, files_of_step


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a file says beside its tensors.

    Attributes:
        base_uri: where the base is.
        base_shards: names of its files of weights.
        layouts: what each step has.
        directories: what its directory is called.
        files: those of all steps that are no weights.
        left_out: what the run's directory held besides.
    """

    base_uri: str | None
    base_shards: Sequence[str]
    layouts: Layouts
    directories: Sequence[str | None]
    files: Sequence[StoredFile]
    left_out: Sequence[LeftOut] = ()


def surroundings(
    plan: RunPlan,
    base: TensorReader,
    store: Callable[[bytes], PendingSpan],
    embed: bool,
    exact: bool,
    base_uri: str | None,
    directories: Sequence[str | None],
    left_out: Sequence[LeftOut],
) -> Surroundings:
    """Collect what a new file says beside its tensors.

    Args:
        store: writes the content of a file.
        embed: whether the file holds the base.
        exact: whether each step has its own layout; otherwise all have that of the last observed one.
        base_uri: where the base is.
        directories: of the steps.
        left_out: what the run's directory holds besides.
    """
    files = FileStore(store)
    of_base = BaseFiles(base, files, embed, _elements(plan))
    layouts = Layouts([tensor.planned.key for tensor in plan.tensors])
    for i in range(len(plan.run.steps)):
        step = plan.run.checkpoint(i if exact else plan.main)
        if i and not exact:
            layouts.steps.append(layouts.steps[0])
        else:
            numbers = files_of_step(step, of_base.own, of_base.names, of_base.number)
            layouts.add(step.shards, step.indexed, step.tensors, numbers)
    return Surroundings(base_uri, base.shards, layouts, directories, files.files, left_out)


def appended_surroundings(
    tensors: Sequence[Key],
    run: RunReader,
    further: CheckpointSeries,
    store: Callable[[bytes], PendingSpan],
    base_uri: str | None,
    directories: Sequence[str | None],
    *,
    copied: bool,
) -> Surroundings:
    """Collect what a file says beside its tensors when steps are appended.

    Files that further steps lack are those of the last step before. Without the exact tier, all are what they were.

    Args:
        tensors: of the new file; those that it had come first.
        run: the file.
        further: later steps.
        directories: of those.
        copied: whether all chunks of the file are copied as they are.
    """
    index = run.container.index
    manifest = index.manifest
    files = FileStore(store)
    numbers: list[int] = []
    for number, entry in enumerate(manifest.files):
        if entry.stored and not copied:
            numbers.append(files.add(entry.name, b"".join(embedded_file(run.container, number))))
        else:
            numbers.append(files.keep(entry))
    layouts = Layouts(tensors)
    for step in manifest.steps:
        layout = manifest.layouts[step.layout]
        layouts.add_known(layout, sorted(numbers[file] for file in layout.files))
    last = {files.files[number].name: number for number in layouts.layouts[layouts.steps[-1]].files}
    for i in range(len(further.steps)):
        if not manifest.exact:
            layouts.steps.append(layouts.steps[-1])
            continue
        checkpoint = further.checkpoint(i)
        found = files_of_step(checkpoint, files.add, last, last.__getitem__)
        layouts.add(checkpoint.shards, checkpoint.indexed, checkpoint.tensors, found)
        last = {files.files[number].name: number for number in found}
    called, steps = [step.directory for step in manifest.steps], [*map(int, index.steps), *further.steps]
    names = directory_names([*called, *directories], steps)
    if not any(names):  # those of the file stay what they are
        names = directory_names([*called, *(None for _ in directories)], steps)
    return Surroundings(base_uri, manifest.base_shards, layouts, names, files.files, manifest.left_out)


def _elements(plan: RunPlan) -> dict[str, int]:
    """Return how many elements of each dtype the last observed step has."""
    found: dict[str, int] = {}
    for info in plan.run.checkpoint(plan.main).tensors.values():
        found[info.dtype] = found.get(info.dtype, 0) + info.size
    return found
