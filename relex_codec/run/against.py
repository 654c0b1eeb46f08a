"""Comparing the stored steps of a file with the checkpoints of a run, bit for bit.

Steps are replayed, which costs far less than restoring each, part by part of each tensor, several at the same time;
the same elements of the checkpoints are read beside them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.checkpoints.discovery import find_run
from relex_codec.checkpoints.left_out import RestOfRun, files_kept, find_left_out
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint
from relex_codec.checkpoints.series import open_series
from relex_codec.core.digests import digest
from relex_codec.core.dtypes import ITEMSIZE, Bits, bits_dtype
from relex_codec.core.filenames import is_document
from relex_codec.core.progress import progress_bar
from relex_codec.core.steps import select_steps
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.errors import CheckpointError, InvalidArgument, Truncated
from relex_codec.format import constants as f
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.journal.reader import is_journal
from relex_codec.storage.prefetch import PlannedRange, ranges_to_fetch
from relex_codec.storage.source import Source
from relex_codec.storage.urls import Options, PathLike, without_secrets

from .comparison import BaseFile, Comparison, Difference
from .export import nbytes
from .own_base import needed_base
from .side_files import SideFiles

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo

V = TypeVar("V")
Numbered = Mapping[int, tuple[int, TensorReader]]
"""Step and checkpoint, by the number of the stored step."""
HASHED: Final = 8 << 20
"""Bytes of the base that are hashed at a time."""


def compare_with_run(
    decoder: TensorDecoder,
    run: PathLike,
    *,
    steps: str | None = None,
    exclude_steps: str | None = None,
    allow_pickle: bool = False,
    progress: bool = False,
    storage_options: Options = None,
) -> Comparison:
    """Compare the stored steps of a file with the checkpoints of a run; arguments are those of `Run.verify_against`.

    Raises:
        InvalidArgument: the file has no exact tier, or `steps` leaves nothing.
        CheckpointError: no checkpoint of the run can be read.
        BaseMismatch, Corrupt, Truncated: the file cannot be decoded.
    """
    path, index = decoder.container.source.path, decoder.container.index
    if not index.has_exact:
        raise InvalidArgument(f"{path} {_without_exact(decoder)}")
    if is_journal(run, storage_options):
        raise InvalidArgument(
            f"{without_secrets(run)} is a journal, expected checkpoints: verify checks a journal by itself"
        )
    unreadable: list[str] = []
    found = find_run(
        run, storage_options, steps=steps, exclude_steps=exclude_steps, skip_incomplete=True,
        on_skip=unreadable.append, allow_pickle=allow_pickle,
    )  # fmt: skip
    stored = {int(step): number for number, step in enumerate(index.steps, 1)}
    there = {step for step, _ in found}
    chosen = _chosen(stored.keys(), there, steps, exclude_steps)
    both = [(step, place) for step, place in found if step in chosen]
    names = {tensor.name for tensor in index.tensors}
    series = open_series(both, storage_options, alike=False, names=names) if both else None
    readers = parallel_map(series.checkpoint, range(len(both)), IO_THREADS) if series else []
    numbers = {stored[step]: (step, reader) for (step, _), reader in zip(both, readers, strict=True)}
    base = needed_base(decoder)
    weights = _Weights(decoder, numbers)
    sources = base.sources if base else []
    total = weights.bytes + sum(source.size for source in sources)
    with progress_bar("compare", total, enabled=progress) as bar:
        weights.compare(bar.update)
        base_files = _hashed(base, bar.update) if base else []
    files, kept = _compare_files(decoder, numbers)
    return Comparison(
        file=path,
        run=without_secrets(run),
        steps=[step for step, _ in both],
        bytes=weights.bytes,
        differences=sorted([*weights.differences(), *files]),
        only_in_run=[step for step, _ in found if step not in chosen],
        only_in_file=sorted(chosen - there),
        unreadable=unreadable,
        rest=_rest(run, both, kept, storage_options),
        base=None if base is None else base.path,
        base_files=base_files,
    )


def _without_exact(decoder: TensorDecoder) -> str:
    """Say of a file without the exact tier what can be said of its steps."""
    index = decoder.container.index
    first = [tensor.directions.start for tensor in index.tensors if tensor.directions]
    errors = index.directions["error_stored"][first]
    errors = errors[np.isfinite(errors)]
    off = ""
    if len(errors):
        last = int(index.steps[index.manifest.observed - 1])
        off = (
            f"; its line misses step {last} by {100 * float(np.median(errors)):.2g} % of the way from the base (the "
            "median of its tensors, info --tensors has all)"
        )
    return f"has no exact tier, so there are no bits to compare{off}; encode with --exact to keep every step"


def _chosen(stored: Collection[int], there: Collection[int], steps: str | None, exclude_steps: str | None) -> set[int]:
    """Return which steps of the file are wanted, where those of the run that are wanted are `there`."""
    excluded: list[int] = []
    if exclude_steps is not None:
        with suppress(InvalidArgument):  # the run has had the last word: the file may have none of them
            excluded = select_steps(stored, exclude_steps)
    return set(stored) & set(select_steps({*stored, *there}, steps)) - set(excluded)


class _Weights:
    """Compares the weights of some steps.

    Args:
        numbers: step and checkpoint, by the number of the stored step.
    """

    def __init__(self, decoder: TensorDecoder, numbers: Numbered) -> None:
        self._decoder, self._numbers = decoder, numbers
        self._index = decoder.container.index
        self._lock, self._local = threading.Lock(), threading.local()
        self._found: list[Difference] = []
        self._differ: dict[tuple[int, int], int] = {}
        """Elements that differ, by step number and tensor."""
        self._comparable = {number: self._check_tensors(number) for number in numbers}
        """At each step, tensors that both have, by the number of the tensor that they are restored from."""
        self.bytes = sum(
            nbytes(tensor) for by_target in self._comparable.values() for same in by_target.values() for tensor in same
        )

    def compare(self, on_bytes: Callable[[int], Any]) -> None:
        """Replay all steps, and read the checkpoints beside them.

        Args:
            on_bytes: called with how many bytes have been compared since the last call, by one thread at a time.
        """
        from relex_codec.exact.replay import replay_all  # numba is only needed here

        if not self._numbers:
            return
        tier = self._decoder.exact
        stored = self._decoder.fetcher.replay_plan(tier, self._numbers)

        def plan(parts: Sequence[PartInfo]) -> list[PlannedRange]:
            return [*stored(parts), *ranges_to_fetch(self._ranges(parts))]

        def use(parts: Sequence[PartInfo], number: int, found: Sequence[Bits]) -> None:
            compared = self._use(parts, number, found)
            with self._lock:
                on_bytes(compared)

        targets = {target for by_target in self._comparable.values() for target in by_target}
        replay_all(tier, self._numbers, self._decoder.part_origin, use, tensors=targets, plan=plan)

    def differences(self) -> list[Difference]:
        """Return what differs, after `compare`."""
        counted = [
            Difference(
                self._numbers[number][0],
                self._index.tensors[tensor].name,
                f"has {count:,} of {self._index.tensors[tensor].size:,} elements with other bits",
            )
            for (number, tensor), count in self._differ.items()
        ]
        return [*self._found, *counted]

    def _check_tensors(self, number: int) -> dict[int, list[TensorRecord]]:
        """Note tensors that only one side has, or that are of other kinds; return the others."""
        step, reader = self._numbers[number]
        layout = self._index.layout_of(number)
        self._found += [
            Difference(step, name, "is in the run, not in the file") for name in reader.tensors if name not in layout
        ]
        comparable: dict[int, list[TensorRecord]] = {}
        for tensor in layout.tensors:
            info = reader.tensors.get(tensor.name)
            if info is None:
                self._found.append(Difference(step, tensor.name, "is in the file, not in the run"))
            elif (info.dtype, info.shape) != (tensor.dtype, tuple(tensor.shape)):
                kinds = f"{info.dtype} {list(info.shape)} in the run, {tensor.dtype} {list(tensor.shape)} in the file"
                self._found.append(Difference(step, tensor.name, f"is {kinds}"))
            else:
                comparable.setdefault(self._index.target(tensor).number, []).append(tensor)
        return comparable

    def _use(self, parts: Sequence[PartInfo], number: int, found: Sequence[Bits]) -> int:
        """Compare parts of the step that is replayed, and return how many bytes; called from several threads."""
        reader = self._numbers[number][1]
        compared = 0
        for target, lo, pieces in _stretches(parts, found):
            for tensor in self._comparable[number].get(target, ()):
                size = sum(piece.size for piece in pieces)
                there = self._buffer(size * ITEMSIZE[tensor.dtype]).view(bits_dtype(tensor.dtype))
                reader.read_into(tensor.name, lo, there)
                compared += there.nbytes
                at = 0
                for piece in pieces:
                    if not np.array_equal(there[at : at + piece.size], piece):
                        self._count(number, tensor, int(np.count_nonzero(there[at : at + piece.size] != piece)))
                    at += piece.size
        return compared

    def _count(self, number: int, tensor: TensorRecord, count: int) -> None:
        with self._lock:
            key = number, tensor.number
            self._differ[key] = self._differ.get(key, 0) + count

    def _buffer(self, size: int) -> Any:
        """Memory of this thread, which is used again: a fresh array costs more than reading into it."""
        if getattr(self._local, "memory", None) is None or self._local.memory.size < size:
            self._local.memory = np.empty(size, np.uint8)
        return self._local.memory[:size]

    def _ranges(self, parts: Sequence[PartInfo]) -> Iterator[tuple[Source, int, int]]:
        """Yield what `_use` will read of checkpoints whose tensors lie each in one piece, in its order."""
        stretches = list(_stretches(parts, [part.elements for part in parts]))
        for number, (_, reader) in self._numbers.items():
            if not isinstance(reader, SafetensorsCheckpoint):
                continue
            for target, lo, sizes in stretches:
                for tensor in self._comparable[number].get(target, ()):
                    yield reader.place_of(tensor.name, lo, sum(sizes))


def _stretches(parts: Sequence[PartInfo], values: Sequence[V]) -> Iterator[tuple[int, int, list[V]]]:
    """Put parts together that follow each other in a tensor: its number, first element, and a value for each part."""
    at = 0
    while at < len(parts):
        end, (tensor, piece, *_) = at + 1, parts[at]
        while end < len(parts) and parts[end][:2] == (tensor, piece + end - at):
            end += 1
        yield tensor, piece * f.PIECE, list(values[at:end])
        at = end


def _compare_files(decoder: TensorDecoder, numbers: Numbered) -> tuple[list[Difference], list[set[str]]]:
    """Compare the files beside the weights; return what differs, and the names of those of each step that are kept.

    Documents may differ, which makes them no part of what is kept.
    """
    index = decoder.container.index
    layouts = {index.layout_of(number) for number in numbers}
    digests: dict[int, str] = {}
    """Of files that decoding gives, by their number in the manifest."""
    for layout in layouts:
        side = SideFiles(decoder, layout)
        for name in side.sizes():
            if (file := layout.files[name][0]) not in digests:
                digests[file] = digest(side.read(name)).hex()

    def one(number: int) -> tuple[list[Difference], set[str]]:
        step, reader = numbers[number]
        mine = {name: digests[file] for name, (file, _) in index.layout_of(number).files.items() if file in digests}
        names = [name for name in reader.side_files if name in mine]
        found = zip(names, reader.read_files(names), strict=True)
        differ = {name for name, content in found if digest(content).hex() != mine[name]}
        told = {name for name in differ if not is_document(name)}
        kept = files_kept(reader) - set(reader.side_files) | (set(names) - differ) | told
        return [Difference(step, name, "differs from the one that decoding gives", False) for name in told], kept

    results = parallel_map(one, numbers, IO_THREADS)
    return [difference for differences, _ in results for difference in differences], [kept for _, kept in results]


def _rest(
    run: PathLike, found: Sequence[tuple[int, str]], kept: Sequence[set[str]], storage_options: Options
) -> RestOfRun:
    try:
        return find_left_out(run, found, kept.__getitem__, storage_options)
    except (CheckpointError, Truncated):
        return RestOfRun([], False)


def _hashed(base: SafetensorsCheckpoint, on_bytes: Callable[[int], Any]) -> list[BaseFile]:
    """Return the SHA-256 of the base's files of weights, as ``sha256sum`` gives it."""
    lock = threading.Lock()

    def one(pair: tuple[str, Source]) -> BaseFile:
        name, source = pair
        digest = hashlib.sha256()
        for start in range(0, source.size, HASHED):
            data = source.read(start, min(start + HASHED, source.size))
            digest.update(data)
            with lock:
                on_bytes(len(data))
        return BaseFile(name, source.size, digest.hexdigest())

    return parallel_map(one, list(zip(base.shards, base.sources, strict=True)))
