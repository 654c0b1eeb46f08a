"""Encoding a run: arguments, memory, which steps; the work itself is in encoding/pipeline.py."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

from relex_codec.checkpoints.base_model import open_base
from relex_codec.checkpoints.base_uri import uri_of_base
from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorReader
from relex_codec.checkpoints.checks import notes_on
from relex_codec.checkpoints.discovery import find_run
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint
from relex_codec.checkpoints.series import open_series
from relex_codec.core.progress import note
from relex_codec.core.sizes import DEFAULT_MEMORY, parse_memory
from relex_codec.core.steps import select_steps
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.writer import FileWriter
from relex_codec.journal.reader import is_delta_stream, is_journal, open_journal
from relex_codec.storage.hub.revisions import pinned_to_commit
from relex_codec.storage.urls import Options, PathLike, without_secrets

from .output import condition_of
from .pipeline import RunEncoder
from .quality import Quality

if TYPE_CHECKING:
    from relex_codec.exact.tier_reader import ExactTier
    from relex_codec.exact.tier_writer import SegmentJob


def encode(
    run: PathLike,
    output: PathLike,
    *,
    base: PathLike,
    observe: int | None = None,
    steps: str | None = None,
    exclude_steps: str | None = None,
    quality: str | float = "default",
    factor_rank: int | None = None,
    rank: int = 1,
    exact: bool = False,
    embed_base: bool = False,
    base_uri: str | None = None,
    memory: str | int = DEFAULT_MEMORY,
    skip_incomplete: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    storage_options: Options = None,
) -> int:
    """Encode a run of checkpoints into one ``.relex`` file.

    Args:
        run: directory or fsspec URL that holds ``global_step_N/``, ``checkpoint-N/`` and the like; or one with
            ``{step}`` in it, the checkpoint of each step: ``hf://org/run@step_{step}``. Or a journal (`Recorder`), or
            slime's disk deltas (``weight_vNNNNNN/``).
        output: path or fsspec URL of the file, ``NAME.relex``; it appears when it is complete.
        base: the model that training started from: directory, ``.safetensors`` file, URL or ``hf://org/name@revision``,
            whose commit the file then refers to.
        observe: fit directions and lines on steps up to this number; later ones still get coefficients. Default: all.
        steps: the steps to encode: ``A:B``, ``A:B:K`` (ends included, every K-th from A) or ``N``, or several of them:
            ``1:4,6,8``.
        exclude_steps: which of them are left out, written in the same way.
        quality: ``raw fine default small micro``, or how much the weight error may grow, such as 0.03.
        factor_rank: factor pairs per matrix of quality ``micro`` (default 8).
        rank: number of directions; more than one does not help extrapolation.
        exact: store every step bit for bit as well.
        embed_base: store the base losslessly in the file.
        base_uri: where the file shall say that its base is; empty: nowhere. Default: the URL of `base`, which is
            ``hf://org/name@commit`` in the cache of the Hub, or its path from the directory of the file.
        memory: budget in bytes or as ``4GB``.
        skip_incomplete: leave incomplete checkpoints out instead of refusing them, and missing ones of ``{step}``.
        overwrite: replace what is at `output`; otherwise an existing file is refused.
        progress: show a bar on stderr, or a line a minute where that is no terminal.
        storage_options: for fsspec, for all URLs, or by protocol: ``{"s3": {...}, "hf": {...}}``.

    Returns:
        The size of the file in bytes.

    Raises:
        CheckpointError: the run or the base cannot be read, or does not exist (then also a ``FileNotFoundError``).
        InvalidArgument: an argument cannot be, or the output exists or cannot be written.

    Example:
        >>> size = relex_codec.encode("ckpts/", "new.relex", base="base/", steps="10:40", exact=True)
        >>> relex_codec.open("new.relex").steps
        [10, 20, 30, 40]
    """
    budget, wanted = parse_memory(memory), Quality.parse(quality, factor_rank)
    if not 1 <= rank <= 0xFFFF:
        raise InvalidArgument(f"rank is {rank}, expected at least 1")
    condition = condition_of(output, overwrite=overwrite, base=base, storage_options=storage_options)
    writer = FileWriter(output, storage_options, condition)  # refuses now what cannot be written
    reference = pinned_to_commit(base, storage_options)
    base_reader = open_base(reference, storage_options)
    with ExitStack() as stack:
        series = _open_run(stack, run, base_reader, storage_options, steps, exclude_steps, skip_incomplete)
        observed = _observed(series.steps, observe)
        # Work is spread over threads here, block by block: BLAS's own threads spin when another process holds a core,
        # and the same encode took 11 times as long beside one busy process on two cores (RATIONALE.md).
        stack.enter_context(threadpool_limits(1, "blas"))
        stack.enter_context(writer)
        series.check()
        report_notes(series, base_reader)
        frames = partial(new_segment, writer, len(series.steps))
        job = RunEncoder(series, base_reader, writer, observed, wanted, rank, embed_base, budget, exact, frames)
        uri = uri_of_base(reference, output) if base_uri is None else without_secrets(base_uri) or None
        return job.write(uri, progress)


def _open_run(
    stack: ExitStack,
    run: PathLike,
    base: SafetensorsCheckpoint,
    storage_options: Options,
    steps: str | None,
    exclude_steps: str | None,
    skip_incomplete: bool,
) -> CheckpointSeries:
    """Open the checkpoints of a run, or the steps of a journal; deltas become one in the temporary directory."""
    if is_journal(run) or is_delta_stream(run):
        from relex_codec.journal.series import JournalSeries  # numba is only needed here

        place: PathLike = run
        if not is_journal(run):
            from relex_codec.journal.deltas import record_deltas

            place = stack.enter_context(TemporaryDirectory(prefix="relex-"))
            record_deltas(run, place, base)
        journal = open_journal(place)
        return JournalSeries(journal, base, select_steps(journal.numbers, steps, exclude_steps))
    found = find_run(
        run,
        storage_options,
        steps=steps,
        exclude_steps=exclude_steps,
        skip_incomplete=skip_incomplete,
        on_skip=_report_skip,
        base=base,
    )
    return open_series(found, storage_options, base=base, chosen=True)


def new_segment(writer: FileWriter, count: int, old: ExactTier | None = None) -> SegmentJob:
    """Begin a segment of `count` steps, after those of `old`."""
    from relex_codec.exact.segment_writer import SegmentWriter  # numba is only needed here
    from relex_codec.exact.tier_writer import SegmentJob

    return SegmentJob(SegmentWriter(writer.scratch(), count), old)


def _report_skip(message: str) -> None:
    note(f"left out: {message}")


def report_notes(series: CheckpointSeries, base: TensorReader | None = None) -> None:
    """Say on stderr what of the checkpoints is not read: nothing is left out in silence."""
    for line in notes_on(series, base):
        note(line)


def _observed(steps: Sequence[int], observe: int | None) -> int:
    if steps[0] < 0 or steps[-1] > f.STEP_LIMIT:
        raise InvalidArgument(f"steps run from {steps[0]} to {steps[-1]}, expected 0 to 2^53")
    if observe is None:
        return len(steps)
    count = sum(step <= observe for step in steps)
    if not count:
        raise InvalidArgument(f"no step up to {observe} to observe: the first is {steps[0]}")
    return count
