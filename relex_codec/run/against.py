"""Comparing the stored steps of a file with the checkpoints of a run, bit for bit.

Steps are replayed, which costs far less than restoring each, part by part of each tensor, several at the same time;
the same elements of the checkpoints are read beside them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np

from relex_codec.checkpoints.discovery import find_run
from relex_codec.checkpoints.left_out import RestOfRun, files_kept, find_left_out
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint
from relex_codec.core.digests import digest
from relex_codec.core.filenames import is_document
from relex_codec.core.progress import progress_bar
from relex_codec.core.steps import select_steps
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.engines.choice import EngineChoice
from relex_codec.engines.places import placed
from relex_codec.errors import CheckpointError, InvalidArgument, Truncated
from relex_codec.journal.reader import is_journal
from relex_codec.storage.source import Source
from relex_codec.storage.urls import Options, PathLike, without_secrets

from .compared_weights import ComparedWeights, CompareTask, Numbered
from .comparison import BaseFile, Comparison, Difference
from .own_base import needed_base
from .run_reader import RunReader
from .side_files import SideFiles

HASHED: Final = 8 << 20
"""Bytes of the base that are hashed at a time."""


def compare_with_run(
    reader: RunReader,
    run: PathLike,
    *,
    engine: EngineChoice,
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
    decoder = reader.decoder
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
    task = CompareTask(reader, tuple(stored[step] for step, _ in both), placed(both), storage_options)
    numbers = task.open()
    base = needed_base(decoder)
    weights = ComparedWeights(decoder, numbers)
    sources = base.sources if base else []
    total = weights.bytes + sum(source.size for source in sources)
    with progress_bar("compare", total, enabled=progress) as bar:
        weights.compare(task, engine.of(weights.bytes), bar.update)
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
