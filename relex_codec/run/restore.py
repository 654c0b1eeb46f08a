"""Writing stored steps back out: a whole run, bit for bit, in memory that does not grow with the model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np

from relex_codec.core.dtypes import ITEMSIZE, Bits
from relex_codec.core.steps import select_steps
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.storage.local_writer import AtomicDirectory, create_file, flush_directory, write_at
from relex_codec.storage.outputs import UploadedDirectory
from relex_codec.storage.urls import Options, PathLike, is_url

from .export import Shard, check_room, completing_last, embedded_bytes, nbytes, other_files, shards_of

FOLDER: Final = "global_step_{}"
"""What the directory of a step is called."""
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
    decoder: TensorDecoder,
    output: PathLike,
    steps: Sequence[int],
    on_bytes: Callable[[int], Any] = lambda _: None,
    storage_options: Options = None,
) -> None:
    """Write stored steps to the directory `output`, a checkpoint each; a local one appears when all are complete.

    What is in memory is what `exact.replay.replay_all` holds; one file is open at a time on each processor. At a URL,
    all weights come first, file by file: of each file, as many steps at a time as there is room for in the temporary
    directory here. Where there is not room for all, frames are decoded again for each lot.

    Args:
        on_bytes: called with how many bytes of weights have been written since the last call.
        storage_options: for fsspec, if `output` is a URL.

    Raises:
        InvalidArgument: `output` is not empty or cannot be written, or there is not enough room.
        BaseMismatch: the base is not the one that the run was encoded against.
        Corrupt: the file is damaged; the message names the tensor or the byte.
    """
    manifest = decoder.container.index.manifest
    shards = shards_of(decoder.container.index)
    numbers = {int(step): number for number, step in enumerate(decoder.container.index.steps, 1)}
    folders = {numbers[step]: FOLDER.format(step) for step in steps}
    side = completing_last(manifest.indexed, other_files(decoder, shards))
    if is_url(output):
        with UploadedDirectory(output, storage_options) as uploaded:
            _restore_to_url(decoder, uploaded, shards, folders, side, on_bytes)
    else:
        with AtomicDirectory(output) as directory:
            _restore_to_disk(decoder, directory, shards, folders, side, embedded_bytes(decoder), on_bytes)


def _restore_to_disk(
    decoder: TensorDecoder,
    directory: AtomicDirectory,
    shards: Sequence[Shard],
    folders: Mapping[int, str],
    side: Iterable[tuple[str, Iterable[bytes]]],
    side_bytes: int,
    on_bytes: Callable[[int], Any],
) -> None:
    def place(number: int, name: str) -> str:
        return os.path.join(directory.path, folders[number], name)

    size = sum(shard.size for shard in shards) + side_bytes
    hint = "choose fewer steps or another place"
    check_room(os.path.dirname(directory.path), directory.shown, "the steps have", len(folders) * size, hint)
    with directory.reported():
        for number in folders:
            os.mkdir(place(number, ""))
            for shard in shards:
                create_file(place(number, shard.name), shard.head, shard.size)
    _replay(decoder, shards, folders, place, directory.reported, on_bytes)
    first, *others = folders
    for name, content in side:
        _write_file(place(first, name), content, directory.reported)
        with directory.reported():
            for number in others:
                shutil.copyfile(place(first, name), place(number, name))
    with directory.reported():
        parallel_map(flush_directory, [place(number, "") for number in folders], IO_THREADS)


def _restore_to_url(
    decoder: TensorDecoder,
    directory: UploadedDirectory,
    shards: Sequence[Shard],
    folders: Mapping[int, str],
    side: Iterable[tuple[str, Iterable[bytes]]],
    on_bytes: Callable[[int], Any],
) -> None:
    def place(number: int, name: str) -> str:
        return os.path.join(directory.path, f"{number}-{name}")

    for shard in shards:
        for lot in _lots(directory, shard, list(folders)):
            with directory.local():
                for number in lot:
                    create_file(place(number, shard.name), shard.head, shard.size)
            _replay(decoder, [shard], lot, place, directory.local, on_bytes)
            directory.upload([(place(number, shard.name), f"{folders[number]}/{shard.name}") for number in lot])
    for name, content in side:
        path = place(0, name)
        _write_file(path, content, directory.local)
        directory.upload([(path, f"{folder}/{name}") for folder in folders.values()], keep=True)
        os.unlink(path)


def _replay(
    decoder: TensorDecoder,
    shards: Sequence[Shard],
    numbers: Collection[int],
    place: Callable[[int, str], str],
    reported: Callable[[], AbstractContextManager[None]],
    on_bytes: Callable[[int], Any],
) -> None:
    """Fill the files of some shards, ``place(step number, name)`` each."""
    from relex_codec.exact.replay import replay_all
    from relex_codec.exact.segments import PartInfo  # numba is only needed here

    places: dict[int, tuple[str, int]] = {}
    """File of each tensor, and where it begins in it."""
    for shard in shards:
        at = len(shard.head)
        for tensor in shard.tensors:
            places[tensor.number] = shard.name, at
            at += nbytes(tensor)

    def use(parts: list[PartInfo], number: int, found: list[Bits]) -> None:
        pieces: dict[str, list[tuple[int, Bits]]] = {}
        for part, bits in zip(parts, found, strict=True):
            name, begin = places[part.tensor]
            pieces.setdefault(name, []).append((begin + part.piece * f.PIECE * ITEMSIZE[part.dtype], bits))
        with reported():
            for name, rows in pieces.items():
                write_at(place(number, name), rows)

    replay_all(
        decoder.exact, numbers, decoder.part_origin, use, on_bytes, places.keys(),
        decoder.fetcher.replay_plan(decoder.exact, numbers),
    )  # fmt: skip


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
        create_file(path, b"", 0)
    for data in content:
        with reported():
            write_at(path, [(at, np.frombuffer(data, np.uint8))])
        at += len(data)
