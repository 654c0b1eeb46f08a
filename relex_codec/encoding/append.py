"""Appending further checkpoints to a file with the exact tier: the old ones are not needed, the file restores them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Final

from threadpoolctl import threadpool_limits

from relex_codec.checkpoints.base_uri import carried_over
from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.checkpoints.discovery import find_checkpoints
from relex_codec.checkpoints.series import open_series
from relex_codec.core.filenames import ADAPTER_WEIGHTS
from relex_codec.core.sizes import DEFAULT_MEMORY, parse_memory
from relex_codec.core.text import quote
from relex_codec.errors import BaseMismatch, InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.constants import STEP_LIMIT
from relex_codec.format.writer import FileWriter
from relex_codec.run.run_reader import RunReader
from relex_codec.storage.local_writer import held_for_appending
from relex_codec.storage.prefetch import PrefetchingSource
from relex_codec.storage.urls import Options, PathLike

from .adapter_run import NoBase
from .appended_series import AppendedSeries, EmbeddedBase
from .encode import new_segment, report_notes
from .output import condition_of, is_same_file
from .pipeline import RunEncoder
from .quality import Quality

MICRO: Final = "micro"


def append(
    file: PathLike,
    checkpoints: Sequence[PathLike],
    *,
    base: PathLike | None = None,
    step: int | None = None,
    output: PathLike | None = None,
    overwrite: bool = False,
    allow_pickle: bool = False,
    memory: str | int = DEFAULT_MEMORY,
    progress: bool = False,
    storage_options: Options = None,
) -> int:
    """Add further steps to a file with the exact tier, as a new segment.

    The exact frames that are there are copied. Directions and lines are fitted again, with the file's quality: over all
    steps if the file's were, else over the same observed steps. The old checkpoints are not needed, as the file itself
    restores them.

    Args:
        file: ``.relex`` file, path or fsspec URL; it stays whole until the new one replaces it.
        checkpoints: directories of later steps, such as ``run/global_step_410`` or ``hf://org/run@step_410``.
        base: the base, if it is not where the file says.
        step: the number of the only checkpoint, if its name does not say it.
        output: where to write the new file instead of replacing `file`: ``NAME.relex``.
        overwrite: replace what is at `output`; otherwise an existing file is refused.
        allow_pickle: read checkpoints that pickles describe, as `encode` does.
        memory: budget in bytes or as ``4GB``.
        progress: show a bar on stderr, or a line a minute where that is no terminal.
        storage_options: for fsspec, for all URLs, or by protocol: ``{"s3": {...}, "hf": {...}}``.

    Returns:
        The size of the new file in bytes.

    Raises:
        InvalidArgument: the file has no exact tier, a step is not later than its last, the output exists or cannot be
            written, or another process appends to the file or has replaced it when the new one is complete.
        CheckpointError: a checkpoint cannot be read, or has other tensors than the file.
        BaseMismatch: the base is not the one that the file was made from.

    Example:
        >>> size = relex_codec.append("run.relex", ["ckpts/global_step_50"])
        >>> relex_codec.open("run.relex").steps
        [10, 20, 30, 40, 50]
    """
    budget = parse_memory(memory)
    in_place = output is None or is_same_file(file, output)
    if in_place and overwrite:
        raise InvalidArgument("overwrite is for another output; without one, append replaces the file that it reads")
    if output is None or in_place:
        writer = FileWriter(file, storage_options)  # refuses now what cannot be written
    else:
        condition = condition_of(output, overwrite=overwrite, base=base, storage_options=storage_options)
        writer = FileWriter(output, storage_options, condition)
    found = find_checkpoints(checkpoints, storage_options, step=step, allow_pickle=allow_pickle)
    if found[-1][0] > STEP_LIMIT:
        raise InvalidArgument(f"step {found[-1][0]} is beyond 2^53")
    with (
        held_for_appending(file) if in_place else nullcontext(),
        RunReader(file, base=base, storage_options=storage_options) as run,
    ):
        if in_place:
            writer.only_replace(run.container.source.version)
        index = run.container.index
        if not index.has_exact:
            raise InvalidArgument(
                f"{run.path} has no exact tier, so its old steps cannot be restored: encode the whole run again, "
                "with --exact if it shall grow"
            )
        further = open_series(found, storage_options, names={tensor.name for tensor in index.tensors})
        series = AppendedSeries(run.decoder, further)
        series.check()
        report_notes(further)
        observed = index.manifest.observed
        if observed == len(index.steps):
            observed = len(series.steps)
        rank = max((len(tensor.directions) for tensor in index.tensors), default=1) or 1
        with threadpool_limits(1, "blas"), writer:
            if isinstance(run.container.source, PrefetchingSource):
                # old steps are restored and copied: all of the file is read twice, by the piece
                run.container.source.copy_to(writer.scratch())
            frames = partial(new_segment, writer, len(series.steps) - len(index.steps), run.decoder.exact)
            job = RunEncoder(
                series, _base(run), writer, observed, _quality(run), rank, index.manifest.embedded, budget, True, frames
            )
            return job.write(carried_over(index.manifest.base_uri, file, file if output is None else output), progress)


def _base(run: RunReader) -> TensorReader:
    """The base, whose reads are checked."""
    index = run.container.index
    if list(index.layout.shards) == [ADAPTER_WEIGHTS]:
        return NoBase(run.path)
    if run.base_embedded:
        return EmbeddedBase(run.decoder)
    reader = run.base_reader()
    there = reader.tensors
    for tensor in index.tensors:
        stored = tensor.kind != f.TIED and tensor.origin == f.STORED
        if stored and tensor.name in there and there[tensor.name].shape == tensor.shape:
            raise BaseMismatch(
                f"base {reader.path} has tensor {quote(tensor.name)}, which the base of {run.path} lacked"
            )
    return reader


def _quality(run: RunReader) -> Quality:
    """The quality that the file was made with."""
    index = run.container.index
    name = index.manifest.quality
    if name != MICRO:
        return Quality.parse(name)
    return Quality.parse(MICRO, max((int(rank) for rank in index.directions["rank"]), default=0) or None)
