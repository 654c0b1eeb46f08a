"""Writing stored steps back out: a whole run, bit for bit, in memory that does not grow with the model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any, Final

from . import format as f
from .atomic import AtomicDirectory
from .decoder import Decoder
from .dtypes import ITEMSIZE, Bits
from .errors import InvalidArgument
from .export import Base, nbytes, other_files, shards_of
from .layouts import select_steps
from .parallel import IO_THREADS, in_parallel
from .paths import PathLike

FOLDER: Final = "global_step_{}"
"""What the directory of a step is called."""


def choose_steps(decoder: Decoder, spec: str | None) -> list[int]:
    """Return the stored steps that `spec` chooses, as `layouts.select_steps` does.

    Raises:
        InvalidArgument: the file has no exact tier, or no step is left.
    """
    container = decoder.container
    if not container.index.has_exact:
        raise InvalidArgument(f"{container.source.path} has no exact tier: it was encoded without --exact")
    return select_steps((int(step) for step in container.index.steps), spec)


def restore(
    decoder: Decoder,
    output: PathLike,
    steps: Sequence[int],
    base: Base | None,
    on_bytes: Callable[[int], Any] = lambda _: None,
) -> None:
    """Write stored steps to the directory `output`, a checkpoint each; it appears when all are complete.

    What is in memory is what `exact.replay.replay_all` holds; one file is open at a time on each processor.

    Args:
        base: where the base's other files come from; None for the embedded ones.
        on_bytes: called with how many bytes of weights have been written since the last call.

    Raises:
        InvalidArgument: `output` is not empty or cannot be written, or there is not enough room.
        BaseMismatch: the base is not the one that the run was encoded against.
        Corrupt: the file is damaged; the message names the tensor or the byte.
    """
    from .exact.layout import PartInfo  # numba is only needed here
    from .exact.replay import replay_all

    index = decoder.container.index
    shards = shards_of(index.manifest)
    places: dict[int, tuple[str, int]] = {}
    """File of each tensor, and where it begins in it."""
    for shard in shards:
        at = len(shard.head)
        for tensor in shard.tensors:
            places[decoder.number(tensor.name)] = shard.name, at
            at += nbytes(tensor)
    with AtomicDirectory(output) as directory:
        numbers = {int(step): number for number, step in enumerate(index.steps, 1)}
        folders = {numbers[step]: os.path.join(directory.path, FOLDER.format(step)) for step in steps}
        with directory.reported():
            _check_room(directory.path, output, len(steps) * sum(shard.size for shard in shards))
            for folder in folders.values():
                os.mkdir(folder)
                for shard in shards:
                    _create(os.path.join(folder, shard.name), shard.head, shard.size)

        def use(parts: list[PartInfo], number: int, found: list[Bits]) -> None:
            pieces: dict[str, list[tuple[int, Bits]]] = {}
            for part, bits in zip(parts, found, strict=True):
                name, begin = places[part.tensor]
                pieces.setdefault(name, []).append((begin + part.piece * f.PIECE * ITEMSIZE[part.dtype], bits))
            with directory.reported():
                for name, rows in pieces.items():
                    _fill(os.path.join(folders[number], name), rows)

        replay_all(decoder.exact, folders.keys(), decoder.part_origin, use, on_bytes)
        for name, content in other_files(decoder, shards, base):
            data = b"".join(content)
            with directory.reported():
                for folder in folders.values():
                    _create(os.path.join(folder, name), data, len(data))
        with directory.reported():
            in_parallel(_flush, folders.values(), IO_THREADS)


def _check_room(path: str, output: PathLike, size: int) -> None:
    """Refuse at once what would fail for lack of room after hours."""
    usage = shutil.disk_usage(path)
    if usage.total and usage.free < size:  # a file system that does not know says 0
        raise InvalidArgument(
            f"cannot write {os.fspath(output)}: the steps have {size:,} bytes, {usage.free:,} are free there; "
            "choose fewer steps or another place"
        )


def _create(path: str, head: bytes, size: int) -> None:
    """Make a file of `size` bytes that begins with `head`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write(fd, memoryview(head), 0)
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _fill(path: str, pieces: list[tuple[int, Bits]]) -> None:
    """Write pieces at their places in a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for at, bits in pieces:
            _write(fd, bits.data.cast("B"), at)
    finally:
        os.close(fd)


def _write(fd: int, data: memoryview, at: int) -> None:
    while data:  # a full disk writes a part first
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count


def _flush(folder: str) -> None:
    """Bring a directory and its files to the disk."""
    for path in (*(entry.path for entry in os.scandir(folder)), folder):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
