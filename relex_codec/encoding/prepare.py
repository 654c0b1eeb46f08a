"""Opening and planning what is encoded: everything before the work begins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

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
from relex_codec.core.sizes import parse_memory
from relex_codec.core.steps import select_steps
from relex_codec.engines.choice import EngineChoice
from relex_codec.engines.places import everywhere, placed
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
from .pipeline import RunEncoder
from .planning import plan_run
from .quality import Quality
from .run_source import CheckpointSource, JournalSource, OpenHere, OpenRun, RunSource
from .surroundings import Surroundings, surroundings
from .work_identity import Identity, identity_of, identity_of_journal


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for; attributes are arguments of `encode`."""

    run: PathLike
    base: PathLike
    observe: int | None
    steps: str | None
    exclude_steps: str | None
    rename: Sequence[str]
    quality: str | float
    factor_rank: int | None
    rank: int
    exact: bool
    embed_base: bool
    base_uri: str | None
    memory: str | int
    skip_incomplete: bool
    allow_any_base: bool
    allow_new_tensors: bool
    allow_pickle: bool
    workers: int | None
    engine: str
    address: str | None = None
    storage_options: Options = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is to be done.

    Attributes:
        request: what was asked for.
        job: the work.
        around: what the file says beside its tensors.
        reference: where the base is.
        base: the base.
        found: steps and paths of checkpoints; none of a journal.
        left_out: what else the run's directory holds.
    """

    request: Request
    job: RunEncoder
    around: Surroundings
    reference: str
    base: TensorReader
    found: list[tuple[int, str]]
    left_out: list[LeftOut]

    def identity(self) -> Identity:
        """Return what results are made of and with."""
        asked, job, options = self.request, self.job, self.request.storage_options
        given = {
            "--observe": asked.observe, "--quality": job.quality.name, "--factor-rank": asked.factor_rank,
            "--rank": asked.rank, "--exact": asked.exact, "--embed-base": asked.embed_base,
            "--base-uri": asked.base_uri, "--rename": sorted(asked.rename),
        }  # fmt: skip
        if self.found:
            return identity_of(self.found, job.plan.run.checkpoint, self.reference, self.base, given, options)
        return identity_of_journal(os.fspath(asked.run), job.steps, self.reference, self.base, given, options)


def prepare(request: Request, output: PathLike, writer: FileWriter, stack: ExitStack) -> Prepared:
    """Open and plan everything.

    Args:
        output: from whose directory a relative path to the base begins.
        writer: of the file, or of a part of it; entered here.
        stack: closes what is opened.

    Raises:
        CheckpointError, InvalidArgument: as `encode`.
    """
    options = request.storage_options
    budget, wanted = parse_memory(request.memory), Quality.parse(request.quality, request.factor_rank)
    choice = EngineChoice(request.engine, request.workers, request.address)
    rules = [RenameRule.parse(text) for text in request.rename]
    if not 1 <= request.rank <= 0xFFFF:
        raise InvalidArgument(f"rank is {request.rank}, expected at least 1")
    reference = pinned_to_commit(request.base, options)
    given = request.base_uri
    uri = uri_of_base(reference, output) if given is None else checked_uri(without_secrets(given)) or None
    base = open_base_to_encode(reference, options, embed=request.embed_base, allow_pickle=request.allow_pickle)
    series, found, recorded = _open_run(stack, request, base)
    observed = _observed(series.steps, request.observe)
    # Work is spread over threads here, block by block: BLAS's own threads spin when another process holds a core,
    # and the same encode took 11 times as long beside one busy process on two cores (RATIONALE.md).
    stack.enter_context(single_threaded_blas())
    stack.enter_context(writer)
    series.check()
    of_adapters = series.checkpoint(observed - 1).is_adapter
    if of_adapters and request.embed_base:
        raise InvalidArgument("the base of adapters is not embedded: they are decoded without it; keep it")
    origin: TensorReader = NoBase(base.path) if of_adapters else base
    plan = plan_run(series, origin, observed, exact=request.exact, rules=rules)
    matched = MatchedBase(plan, base.path)
    if not (request.allow_new_tensors or of_adapters):
        check_new_tensors([one.info for one in started_somewhere(plan)], base, matched.tensors)
    if not request.allow_any_base:
        check_base(series, matched)
    report_notes(series, base)
    for line in plan.notes:
        note(line)
    left_out = _left_out(request.run, found, series, options) if found else []
    source: RunSource = CheckpointSource(
        placed(found), everywhere(reference), of_adapters, request.embed_base and request.allow_pickle, options
    )  # fmt: skip
    if recorded is not None:
        source = replace(recorded, base=everywhere(reference))
    here = OpenHere(OpenRun(series, origin))
    job = RunEncoder(
        plan, source, here, writer, observed, wanted, request.rank, request.embed_base, budget, request.exact,
        engine=choice,
    )  # fmt: skip
    places = [path_in_run(request.run, directory_of(path)) for _, path in found] if found else [None] * len(job.steps)
    directories = directory_names(places, series.steps)
    around = surroundings(
        plan, origin, job.embed_file, request.embed_base, request.exact, uri, directories, left_out
    )  # fmt: skip
    return Prepared(request, job, around, reference, base, found, left_out)


def _open_run(
    stack: ExitStack, request: Request, base: TensorReader
) -> tuple[CheckpointSeries, list[tuple[int, str]], JournalSource | None]:
    """Open the checkpoints of a run, or the steps of a journal; deltas become one in the temporary directory.

    Returns:
        The run, where its checkpoints are, if it has any, and where its journal is, but for the base, if it is one.
    """
    run, options = request.run, request.storage_options
    recorded = is_journal(run, options)
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
        journal = stack.enter_context(journal_at(place, options))
        numbers = select_steps(journal.numbers, request.steps, request.exclude_steps)
        return JournalSeries(journal, base, numbers), [], JournalSource(
            everywhere(place), "", tuple(numbers), options
        )  # fmt: skip
    found = find_run(
        run,
        options,
        steps=request.steps,
        exclude_steps=request.exclude_steps,
        skip_incomplete=request.skip_incomplete,
        on_skip=_report_skip,
        base=base,
        allow_pickle=request.allow_pickle,
    )
    return open_series(found, options, base=base, chosen=True, alike=False), found, None


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
