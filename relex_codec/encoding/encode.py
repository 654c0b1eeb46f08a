"""Encoding a run: arguments, memory, which steps; the work itself is in encoding/pipeline.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from relex_codec.checkpoints.base_uri import checked_uri, uri_of_base
from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorReader
from relex_codec.checkpoints.checks import notes_on
from relex_codec.checkpoints.discovery import find_run, path_in_run
from relex_codec.checkpoints.left_out import files_kept, find_left_out
from relex_codec.checkpoints.name_matching import RenameRule
from relex_codec.checkpoints.opening import directory_of
from relex_codec.checkpoints.pickled_base import open_base_to_encode
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
from .engines.choice import EngineChoice
from .layouts import directory_names
from .matched_base import MatchedBase, started_somewhere
from .output import condition_of
from .parts import Shard, write_part
from .pipeline import RunEncoder
from .planning import TensorPlan, plan_run
from .quality import Quality
from .run_source import CheckpointSource, JournalSource, OpenHere, OpenRun, RunSource, everywhere, placed
from .surroundings import surroundings
from .usable_steps import left_out_of_fits
from .work_dir import Identity, WorkDirectory, identity_of, identity_of_journal


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
    workers: int | None = None,
    engine: str = "auto",
    address: str | None = None,
    work_dir: PathLike | None = None,
    keep_work_dir: bool = False,
    shard: str | None = None,
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
        embed_base: store the base losslessly in the file. One that is pickled (``pytorch_model.bin``) can only be
            embedded, and with `allow_pickle`.
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
        workers: how many tensors are worked on at the same time; default: one for each processor.
        engine: where that is: ``local``, on threads of this process; ``processes``, in processes of this machine, each
            with its part of `memory`; ``ray``, on a cluster of Ray, where `memory` is for each tensor or group of small
            ones; ``auto``: processes for runs of some gigabytes. The file is the same.
        address: of the Ray cluster, as `ray.init` takes it; ``local``: a new one, on this machine, for as long as it
            takes. Default: the one that this process is connected to or runs beside, or a new one.
        work_dir: directory or URL where what is finished is kept, so that the same call goes on after a kill. What
            changed in between, of the run or the arguments, is noticed. It is removed when the file is complete.
        keep_work_dir: leave it there.
        shard: do one part of the work only, ``I/N`` for part I of N, and write it to ``OUTPUT.part-I-of-N``; `merge`
            joins them. ``auto`` takes it from a job array of Slurm, or from RANK and WORLD_SIZE.
        progress: show a bar on stderr, or a line a minute where that is no terminal.
        storage_options: for fsspec, for all URLs, or by protocol: ``{"s3": {...}, "hf": {...}}``.

    Returns:
        The size of the file in bytes; with `shard`, of the part.

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
    choice = EngineChoice(engine, workers, address)
    rules = [RenameRule.parse(text) for text in rename]
    if not 1 <= rank <= 0xFFFF:
        raise InvalidArgument(f"rank is {rank}, expected at least 1")
    if keep_work_dir and work_dir is None:
        raise InvalidArgument("there is no work directory to keep: give one")
    part = None if shard is None else Shard.parse(shard)
    target = output if part is None else part.name(output)
    condition = condition_of(
        output,
        overwrite=overwrite,
        base=base,
        storage_options=storage_options,
        part=os.fspath(target) if part is not None else None,
    )
    writer = FileWriter(target, storage_options, condition)  # refuses now what cannot be written
    reference = pinned_to_commit(base, storage_options)
    uri = uri_of_base(reference, output) if base_uri is None else checked_uri(without_secrets(base_uri)) or None
    base_reader = open_base_to_encode(reference, storage_options, embed=embed_base, allow_pickle=allow_pickle)
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
        pickled_base = not isinstance(base_reader, SafetensorsCheckpoint)
        source = _source(series, found, reference, of_adapters, storage_options, pickled_base)
        here = OpenHere(OpenRun(series, origin))
        job = RunEncoder(
            plan, source, here, writer, observed, wanted, rank, embed_base, budget, exact, engine=choice
        )  # fmt: skip
        places = [path_in_run(run, directory_of(path)) for _, path in found] if found else [None for _ in series.steps]
        directories = directory_names(places, series.steps)
        around = surroundings(plan, origin, job.embed_file, embed_base, exact, uri, directories, left_out)
        identity = None
        if work_dir is not None or part is not None:
            asked = {
                "--observe": observe, "--quality": wanted.name, "--factor-rank": factor_rank, "--rank": rank,
                "--exact": exact, "--embed-base": embed_base, "--base-uri": base_uri, "--rename": sorted(rename),
            }  # fmt: skip
            identity = _identity(run, series, found, reference, base_reader, asked, storage_options)
        work = None
        if work_dir is not None and identity is not None:
            mine = identity if part is None else identity.with_option("--shard", f"{part.number}/{part.count}")
            work = stack.enter_context(WorkDirectory(work_dir, mine, storage_options, keep=keep_work_dir))
        if part is not None and identity is not None:
            units = job.units()
            done = list(job.run(units, progress, work, part))
            keys = [unit.key for unit in units]
            return write_part(
                writer, job.outline(around), identity, everywhere(reference), base_uri is not None, part, keys, done
            )  # fmt: skip
        size = job.write(around, progress, work)
        report_not_finite(job)
        return size


def _open_run(
    stack: ExitStack,
    run: PathLike,
    base: TensorReader,
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
        if not isinstance(base, SafetensorsCheckpoint):
            raise InvalidArgument(
                f"{without_secrets(run)} was recorded from a base of safetensors; pass that as --base"
            )
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


def _source(
    series: CheckpointSeries,
    found: Sequence[tuple[int, str]],
    base: PathLike,
    of_adapters: bool,
    storage_options: Options,
    pickled_base: bool,
) -> RunSource:
    """Say where a run is, for other processes."""
    if found:
        return CheckpointSource(placed(found), everywhere(base), of_adapters, storage_options, pickled_base)
    journal = series.journal  # type: ignore[attr-defined]
    return JournalSource(everywhere(journal.path), everywhere(base), tuple(series.steps), storage_options)


def _identity(
    run: PathLike, series: CheckpointSeries, found: Sequence[tuple[int, str]], base: str,
    base_reader: TensorReader, options: dict[str, Any], storage_options: Options,
) -> Identity:  # fmt: skip
    """Say what results are made of and with."""
    if found:
        return identity_of(found, series.checkpoint, base, base_reader, options, storage_options)
    return identity_of_journal(os.fspath(run), series.steps, base, base_reader, options, storage_options)


def report_not_finite(job: RunEncoder) -> None:
    """Say on stderr which tensors had weights that are not finite, and were fitted without those steps."""
    lines = sum(isinstance(tensor, TensorPlan) and not tensor.held for tensor in job.plan.tensors)
    for line in left_out_of_fits(job.not_finite, job.steps, lines):
        note(line)


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
