"""Encoding a run: arguments, memory, which steps; the work itself is in encoding/pipeline.py."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from relex_codec.checkpoints.base_model import open_base
from relex_codec.checkpoints.base_uri import checked_uri, uri_of_base
from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorReader
from relex_codec.checkpoints.checks import notes_on
from relex_codec.checkpoints.discovery import find_run, path_in_run
from relex_codec.checkpoints.left_out import files_kept, find_left_out
from relex_codec.checkpoints.name_matching import RenameRule
from relex_codec.checkpoints.opening import directory_of
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint
from relex_codec.checkpoints.series import open_series
from relex_codec.core.blas import single_threaded_blas
from relex_codec.core.left_out import LeftOut, describe
from relex_codec.core.progress import note
from relex_codec.core.sizes import DEFAULT_MEMORY, parse_memory
from relex_codec.core.steps import select_steps
from relex_codec.errors import CheckpointError, InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.writer import FileWriter
from relex_codec.journal.reader import is_delta_stream, is_journal
from relex_codec.storage.hub.revisions import pinned_to_commit
from relex_codec.storage.leftovers import ScratchDirectory
from relex_codec.storage.urls import Options, PathLike, without_secrets

from .adapter_run import NoBase
from .base_check import check_base, check_new_tensors
from .layouts import directory_names
from .matched_base import MatchedBase, started_somewhere
from .output import condition_of
from .pipeline import RunEncoder
from .planning import TensorPlan, plan_run
from .quality import Quality
from .surroundings import surroundings
from .usable_steps import left_out_of_fits

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
    rename: Sequence[str] = (),
    quality: str | float = "default",
    factor_rank: int | None = None,
    rank: int = 1,
    exact: bool = False,
    embed_base: bool = False,
    base_uri: str | None = None,
    memory: str | int = DEFAULT_MEMORY,
    skip_incomplete: bool = False,
    allow_any_base: bool = False,
    allow_new_tensors: bool = False,
    allow_pickle: bool = False,
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
        rename: rules ``OLD=NEW`` where run and base call a tensor differently, beyond the prefixes that are known:
            names of one with OLD in them, at the beginning or after a dot, are those of the other with NEW there.
        quality: ``raw fine default small micro``, or how much the weight error may grow, such as 0.03.
        factor_rank: factor pairs per matrix of quality ``micro`` (default 8).
        rank: number of directions; more than one does not help extrapolation.
        exact: store every step bit for bit as well, whatever tensors and files it has. Without, steps may differ in
            copies of tied weights only.
        embed_base: store the base losslessly in the file.
        base_uri: where the file shall say that its base is; empty: nowhere. Default: the URL of `base`, which is
            ``hf://org/name@commit`` in the cache of the Hub, or its path from the directory of the file.
        memory: budget in bytes or as ``4GB``.
        skip_incomplete: leave incomplete checkpoints out instead of refusing them, and missing ones of ``{step}``.
        allow_any_base: take the base although the first step is ten times farther from it than steps are from each
            other at that pace.
        allow_new_tensors: encode a run most of which is in tensors that the base does not have.
        allow_pickle: read checkpoints too that pickles describe: directories of torch.distributed.checkpoint, FSDP's
            ``model_world_size_W_rank_R.pt``, ``pytorch_model.bin``. Pickles can run code in what loads them; here they
            are parsed by a list of what is allowed, and nothing in them is run.
        overwrite: replace what is at `output`; otherwise an existing file is refused.
        progress: show a bar on stderr, or a line a minute where that is no terminal.
        storage_options: for fsspec, for all URLs, or by protocol: ``{"s3": {...}, "hf": {...}}``.

    Returns:
        The size of the file in bytes.

    Raises:
        CheckpointError: the run or the base cannot be read, or does not exist (then also a ``FileNotFoundError``), or
            steps differ.
        InvalidArgument: an argument cannot be, the output exists or cannot be written, or the base is not the one that
            the run began at.

    Example:
        >>> size = relex_codec.encode("ckpts/", "new.relex", base="base/", steps="10:40", exact=True)
        >>> relex_codec.open("new.relex").steps
        [10, 20, 30, 40]
    """
    budget, wanted = parse_memory(memory), Quality.parse(quality, factor_rank)
    rules = [RenameRule.parse(text) for text in rename]
    if not 1 <= rank <= 0xFFFF:
        raise InvalidArgument(f"rank is {rank}, expected at least 1")
    condition = condition_of(output, overwrite=overwrite, base=base, storage_options=storage_options)
    writer = FileWriter(output, storage_options, condition)  # refuses now what cannot be written
    reference = pinned_to_commit(base, storage_options)
    uri = uri_of_base(reference, output) if base_uri is None else checked_uri(without_secrets(base_uri)) or None
    base_reader = open_base(reference, storage_options)
    with ExitStack() as stack:
        series, found = _open_run(
            stack, run, base_reader, storage_options, steps, exclude_steps, skip_incomplete, allow_pickle
        )
        observed = _observed(series.steps, observe)
        # Work is spread over threads here, block by block: BLAS's own threads spin when another process holds a core,
        # and the same encode took 11 times as long beside one busy process on two cores (RATIONALE.md).
        stack.enter_context(single_threaded_blas())
        stack.enter_context(writer)
        series.check()
        of_adapters = series.checkpoint(observed - 1).is_adapter
        if of_adapters and embed_base:
            raise InvalidArgument("the base of adapters is not embedded: they are decoded without it; keep it")
        origin: TensorReader = NoBase(base_reader.path) if of_adapters else base_reader
        plan = plan_run(series, origin, observed, exact=exact, rules=rules)
        matched = MatchedBase(plan, base_reader.path)
        if not (allow_new_tensors or of_adapters):
            check_new_tensors([one.info for one in started_somewhere(plan)], base_reader, matched.tensors)
        if not allow_any_base:
            check_base(series, matched)
        report_notes(series, base_reader)
        for line in plan.notes:
            note(line)
        left_out = _left_out(run, found, series, storage_options) if found else []
        frames = partial(new_segment, writer, len(series.steps))
        job = RunEncoder(plan, writer, observed, wanted, rank, embed_base, budget, exact, frames)
        places = [path_in_run(run, directory_of(path)) for _, path in found] if found else [None for _ in series.steps]
        directories = directory_names(places, series.steps)
        around = surroundings(plan, origin, job.embed_file, embed_base, exact, uri, directories, left_out)
        size = job.write(around, progress)
        report_not_finite(job)
        return size


def _open_run(
    stack: ExitStack,
    run: PathLike,
    base: SafetensorsCheckpoint,
    storage_options: Options,
    steps: str | None,
    exclude_steps: str | None,
    skip_incomplete: bool,
    allow_pickle: bool,
) -> tuple[CheckpointSeries, list[tuple[int, str]]]:
    """Open the checkpoints of a run, or the steps of a journal; deltas become one in the temporary directory.

    Returns:
        The run, and where its checkpoints are, if it has any.
    """
    recorded = is_journal(run, storage_options)
    if recorded or is_delta_stream(run):
        from relex_codec.journal.remote import journal_at
        from relex_codec.journal.series import JournalSeries  # numba is only needed here

        place: PathLike = run
        if not recorded:
            from relex_codec.journal.deltas import record_deltas

            place = stack.enter_context(ScratchDirectory()).path
            record_deltas(run, place, base)
        journal = stack.enter_context(journal_at(place, storage_options))
        return JournalSeries(journal, base, select_steps(journal.numbers, steps, exclude_steps)), []
    found = find_run(
        run,
        storage_options,
        steps=steps,
        exclude_steps=exclude_steps,
        skip_incomplete=skip_incomplete,
        on_skip=_report_skip,
        base=base,
        allow_pickle=allow_pickle,
    )
    return open_series(found, storage_options, base=base, chosen=True, alike=False), found


def report_not_finite(job: RunEncoder) -> None:
    """Say on stderr which tensors had weights that are not finite, and were fitted without those steps."""
    lines = sum(isinstance(tensor, TensorPlan) and not tensor.held for tensor in job.plan.tensors)
    for line in left_out_of_fits(job.not_finite, job.steps, lines):
        note(line)


def new_segment(writer: FileWriter, count: int, old: ExactTier | None = None) -> SegmentJob:
    """Begin a segment of `count` steps, after those of `old`."""
    from relex_codec.exact.segment_writer import SegmentWriter  # numba is only needed here
    from relex_codec.exact.tier_writer import SegmentJob

    return SegmentJob(SegmentWriter(writer.scratch, count), old)


def _report_skip(message: str) -> None:
    note(f"left out: {message}")


def report_notes(series: CheckpointSeries, base: TensorReader | None = None) -> None:
    """Say on stderr what of the checkpoints is not read: nothing is left out in silence."""
    for line in notes_on(series, base):
        note(line)


def _left_out(
    run: PathLike, found: Sequence[tuple[int, str]], series: CheckpointSeries, storage_options: Options
) -> list[LeftOut]:
    """Return what else the run's directory holds, and say so on stderr: it is lost if somebody deletes that."""
    try:
        rest = find_left_out(run, found, lambda index: files_kept(series.checkpoint(index)), storage_options)
    except CheckpointError as e:
        note(f"what else the run holds is not known: {e}")
        return []
    if rest.rows:
        more = "" if rest.complete else ", and more in directories that were not listed"
        note(f"not in the file: {describe(rest.rows, len(found))}{more}")
    return rest.rows


def _observed(steps: Sequence[int], observe: int | None) -> int:
    if steps[0] < 0 or steps[-1] > f.STEP_LIMIT:
        raise InvalidArgument(f"steps run from {steps[0]} to {steps[-1]}, expected 0 to 2^53")
    if observe is None:
        return len(steps)
    count = sum(step <= observe for step in steps)
    if not count:
        raise InvalidArgument(f"no step up to {observe} to observe: the first is {steps[0]}")
    return count
