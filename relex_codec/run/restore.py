"""Writing stored steps back out: a whole run, bit for bit, in memory that does not grow with the model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from relex_codec.core.filenames import STEP_FOLDER
from relex_codec.core.steps import select_steps
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.errors import InvalidArgument
from relex_codec.format.index import Index
from relex_codec.format.step_layout import StepLayout
from relex_codec.storage.local_directory import AtomicDirectory
from relex_codec.storage.local_writer import create_file, flush_directory, write_at
from relex_codec.storage.outputs import UploadedDirectory
from relex_codec.storage.urls import Options, PathLike, is_url, without_secrets

from .export import Shard, check_room, completing_last, other_files, shards_of, stored_bytes, weight_files
from .own_base import needed_base, refuse_own_base
from .run_reader import RunReader

if TYPE_CHECKING:
    from relex_codec.engines.choice import EngineChoice

ROOM: Final = 0.8
"""Share of the free room in the temporary directory that files on their way to a URL may take."""


def choose_steps(decoder: TensorDecoder, spec: str | None, exclude: str | None = None) -> list[int]:
    """Return the stored steps that `spec` chooses without those of `exclude`, as `core.steps.select_steps` does.

    Raises:
        InvalidArgument: the file has no exact tier, or no step is left.
    """
    container = decoder.container
    if not container.index.has_exact:
        raise InvalidArgument(f"{container.source.path} has no exact tier: it was encoded without --exact")
    return select_steps((int(step) for step in container.index.steps), spec, exclude)


def numbered_steps(decoder: TensorDecoder, start: float | None, stop: float | None) -> dict[int, int]:
    """Return number (from 1 on) and step of the stored steps from `start` to `stop`; None is the first or the last.

    Raises:
        InvalidArgument: the file has no exact tier, or no step is left.
    """
    steps = choose_steps(decoder, None)
    numbers = {
        number: step
        for number, step in enumerate(steps, 1)
        if (start is None or step >= start) and (stop is None or step <= stop)
    }
    if not numbers:
        wanted = ":".join("" if end is None else str(end) for end in (start, stop))
        raise InvalidArgument(
            f"steps {wanted!r} leaves nothing, there is {steps[0]} to {steps[-1]} ({len(steps)} steps)"
        )
    return numbers


def restore(
    file: RunReader,
    output: PathLike,
    steps: Sequence[int],
    engine: EngineChoice,
    on_bytes: Callable[[int], Any] = lambda _: None,
    storage_options: Options = None,
    overwrite: bool = False,
    notes: Mapping[str, bytes] | None = None,
) -> None:
    """Write stored steps to the directory `output`, a checkpoint each; a local one appears when all are complete.

    What is in memory is what `exact.replay.replay_all` holds; one file is open at a time on each processor. At a URL,
    all weights come first, file by file: of each file, as many steps at a time as there is room for in the temporary
    directory here. Where there is not room for all, frames are decoded again for each lot.

    Args:
        engine: replays them; with that of Ray, `output` is a directory that all machines have.
        on_bytes: called with how many bytes of weights have been written since the last call.
        storage_options: for fsspec, if `output` is a URL.
        overwrite: replace files of the same names, as `Run.restore`.
        notes: further files by name, beside the directories of the steps.

    Raises:
        InvalidArgument: `output` is not empty or cannot be written, or there is not enough room.
        BaseMismatch: the base is not the one that the run was encoded against.
        Corrupt: the file is damaged; the message names the tensor or the byte.
    """
    decoder = file.decoder
    index = decoder.container.index
    if is_url(output) and engine.is_remote:
        raise InvalidArgument(
            f"cannot write {without_secrets(output)} with the engine 'ray': its workers fill files of a directory that "
            "all machines have; restore to one, or with another engine"
        )
    numbers = {int(step): number for number, step in enumerate(index.steps, 1)}
    groups: dict[StepLayout, dict[int, str]] = {}
    for step in steps:
        directory = index.manifest.steps[numbers[step] - 1].directory
        folder = STEP_FOLDER.format(step) if directory is None else directory
        groups.setdefault(index.layout_of(numbers[step]), {})[numbers[step]] = folder
    lots = [Group(layout, shards_of(layout), folders) for layout, folders in groups.items()]
    names = [
        f"{folder}/{name}"
        for lot in lots
        for folder in lot.folders.values()
        for name in weight_files(lot.layout, lot.shards)
    ]
    replaced = names if overwrite else None
    if replaced is not None:
        refuse_own_base(output, replaced, needed_base(decoder))
    if is_url(output):
        with UploadedDirectory(output, storage_options, replaced=replaced) as uploaded:
            _restore_to_url(file, uploaded, lots, engine, on_bytes)
            _write_notes(uploaded, notes or {})
    else:
        with AtomicDirectory(output, replaced=replaced) as directory_here:
            _restore_to_disk(file, directory_here, lots, engine, on_bytes)
            _write_notes(directory_here, notes or {})


def _write_notes(directory: AtomicDirectory | UploadedDirectory, notes: Mapping[str, bytes]) -> None:
    for name, content in notes.items():
        with directory.file(name) as out:
            out.write(content)


class Group(NamedTuple):
    """Steps of one layout.

    Attributes:
        folders: directory of each step, by its number from 1 on.
    """

    layout: StepLayout
    shards: list[Shard]
    folders: dict[int, str]

    def side(self, decoder: TensorDecoder) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Yield name and content of each file that is no weights."""
        return completing_last(self.layout, other_files(decoder, self.layout, self.shards))


def needed_tensors(index: Index, numbers: Iterable[int]) -> dict[int, set[int]]:
    """Return which tensors are to be restored at some stored steps, by numbers: those that others are names of."""
    return {number: {index.target(one).number for one in index.layout_of(number).tensors} for number in numbers}


def _restore_to_disk(
    file: RunReader,
    directory: AtomicDirectory,
    groups: Sequence[Group],
    engine: EngineChoice,
    on_bytes: Callable[[int], Any],
) -> None:
    from .filled_shards import FillTask, fill  # engines are only needed here

    folders = {number: folder for group in groups for number, folder in group.folders.items()}

    def place(number: int, name: str) -> str:
        return os.path.join(directory.path, folders[number], name)

    size = 0
    for layout, shards, steps in groups:
        size += len(steps) * (sum(shard.size for shard in shards) + stored_bytes(layout))
    hint = "choose fewer steps or another place"
    check_room(os.path.dirname(directory.path), directory.shown, "the steps have", size, hint)
    with directory.reported():
        for group in groups:
            for number in group.folders:
                os.makedirs(place(number, ""))
                for shard in group.shards:
                    create_file(place(number, shard.name), shard.head, shard.size)
    filling = FillTask.of(
        file, {number: group.shards for group in groups for number in group.folders}, lambda number: place(number, ""),
        directory.shown,
    )  # fmt: skip
    fill(filling, engine, on_bytes)
    for group in groups:
        first, *others = group.folders
        for name, content in group.side(file.decoder):
            _write_file(place(first, name), content, directory.reported)
            with directory.reported():
                for number in others:
                    os.makedirs(os.path.dirname(place(number, name)), exist_ok=True)
                    shutil.copyfile(place(first, name), place(number, name))
    with directory.reported():
        parallel_map(flush_directory, [path for path, _, _ in os.walk(directory.path)], IO_THREADS)


def _restore_to_url(
    file: RunReader,
    directory: UploadedDirectory,
    groups: Sequence[Group],
    engine: EngineChoice,
    on_bytes: Callable[[int], Any],
) -> None:
    from .filled_shards import FillTask, fill  # engines are only needed here

    def place(number: int, name: str) -> str:
        return os.path.join(directory.path, f"{number}-{name}")

    for _, shards, folders in groups:
        for shard in shards:
            own = [shard]
            for lot in _lots(directory, shard, list(folders)):
                with directory.local():
                    for number in lot:
                        create_file(place(number, shard.name), shard.head, shard.size)
                here = f"{directory.shown} by way of {directory.path}"
                fill(FillTask.of(file, dict.fromkeys(lot, own), lambda at: place(at, ""), here), engine, on_bytes)
                directory.upload([(place(number, shard.name), f"{folders[number]}/{shard.name}") for number in lot])
    for group in groups:
        for name, content in group.side(file.decoder):
            path = place(0, name.replace("/", "-"))
            _write_file(path, content, directory.local)
            directory.upload([(path, f"{folder}/{name}") for folder in group.folders.values()], keep=True)
            os.unlink(path)


def _lots(directory: UploadedDirectory, shard: Shard, numbers: list[int]) -> Iterator[list[int]]:
    """Cut steps into lots for whose files of one kind there is room here, of about the same size."""
    usage = shutil.disk_usage(directory.path)
    fit = int(usage.free * ROOM) // shard.size if usage.total else len(numbers)
    if not fit:
        raise InvalidArgument(
            f"cannot write {directory.shown}: {shard.name} has {shard.size:,} bytes, {usage.free:,} are free in "
            f"{directory.path}; set TMPDIR to a place with more room"
        )
    lots = -(-len(numbers) // fit)
    size = -(-len(numbers) // lots)
    for at in range(0, len(numbers), size):
        yield numbers[at : at + size]


def _write_file(path: str, content: Iterable[bytes], reported: Callable[[], AbstractContextManager[None]]) -> None:
    """Write a new file as its bytes come, which need not fit the memory."""
    at = 0
    with reported():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        create_file(path, b"", 0)
    for data in content:
        with reported():
            write_at(path, [(at, np.frombuffer(data, np.uint8))])
        at += len(data)
