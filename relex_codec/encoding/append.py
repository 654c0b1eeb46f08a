"""Appending further checkpoints to a file: what the user asked for; the work is in later_steps.py.

With ``refit`` the whole run is encoded again (pipeline.py), of which the file restores the old steps itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

from relex_codec.checkpoints.base_uri import carried_over
from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo
from relex_codec.checkpoints.discovery import find_checkpoints, find_run, path_of_step
from relex_codec.checkpoints.name_matching import compatible
from relex_codec.checkpoints.naming import PLACEHOLDER, step_names
from relex_codec.checkpoints.opening import directory_of
from relex_codec.checkpoints.series import open_series
from relex_codec.core.blas import single_threaded_blas
from relex_codec.core.filenames import ADAPTER_WEIGHTS
from relex_codec.core.progress import note
from relex_codec.core.sizes import DEFAULT_MEMORY, parse_memory
from relex_codec.core.text import quote
from relex_codec.engines.choice import EngineChoice
from relex_codec.engines.places import placed
from relex_codec.errors import BaseMismatch, CheckpointError, InvalidArgument, RelexError
from relex_codec.format import constants as f
from relex_codec.format.constants import STEP_LIMIT
from relex_codec.format.writer import FileWriter
from relex_codec.journal.reader import is_journal
from relex_codec.run.run_reader import RunReader
from relex_codec.storage.local_writer import held_for_appending
from relex_codec.storage.prefetch import PrefetchingSource
from relex_codec.storage.urls import Options, PathLike, without_secrets

from .appended_series import AppendedSeries
from .encode import report_not_finite
from .known_steps import check_unchanged, split
from .later_steps import StepAppender, has_all_targets
from .output import condition_of, is_same_file
from .pipeline import RunEncoder
from .planning import plan_append
from .prepare import report_notes
from .quality import Quality
from .run_source import AppendedSource, OpenHere, OpenRun
from .surroundings import appended_surroundings

if TYPE_CHECKING:
    from relex_codec.format.index import Index

MICRO: Final = "micro"


def append(
    file: PathLike,
    checkpoints: Sequence[PathLike],
    *,
    base: PathLike | None = None,
    step: int | None = None,
    output: PathLike | None = None,
    overwrite: bool = False,
    refit: bool = False,
    allow_pickle: bool = False,
    memory: str | int = DEFAULT_MEMORY,
    workers: int | None = None,
    engine: str = "auto",
    address: str | None = None,
    progress: bool = False,
    storage_options: Options = None,
) -> int:
    """Add further steps to a file.

    What is there is copied. Directions and lines stay as they are, and so do the observed steps; the new steps get
    coefficients by projection on the stored directions. In a file with the exact tier they become a new segment, coded
    from a stored step. So it costs what the new steps cost, however many there are already.

    With `refit`, directions and lines are fitted again, with the file's quality: over all steps if the file's were,
    else over the same observed steps. That needs the exact tier, from which the old steps are restored. The old
    checkpoints are never needed. Steps that have other tensors, dtypes or names than those before make it refit.

    Args:
        file: ``.relex`` file, path or fsspec URL; it stays whole until the new one replaces it.
        checkpoints: directories of later steps, such as ``run/global_step_410`` or ``hf://org/run@step_410``, or the
            one of a run. Steps that the file has already are left out, with a note of how many these were; if the file
            has the exact tier, the last of them is compared with what it has.
        base: the base, if it is not where the file says.
        step: the number of the only checkpoint, if its name does not say it.
        output: where to write the new file instead of replacing `file`: ``NAME.relex``.
        overwrite: replace what is at `output`; otherwise an existing file is refused.
        refit: fit directions and lines again.
        allow_pickle: read checkpoints that pickles describe, as `encode` does.
        memory: budget in bytes or as ``4GB``.
        workers: as of `encode`.
        engine: as of `encode`.
        address: as of `encode`.
        progress: show a bar on stderr, or a line a minute where that is no terminal.
        storage_options: for fsspec, for all URLs, or by protocol: ``{"s3": {...}, "hf": {...}}``.

    Returns:
        The size of the new file in bytes.

    Raises:
        InvalidArgument: no step is later than the file's last, `refit` without the exact tier, the output exists or
            cannot be written, or another process appends to the file or has replaced it when the new one is complete.
        CheckpointError: a checkpoint cannot be read, has tensors of other shapes than the file, or other tensors where
            that has no exact tier, or is another one than the file has of its step.
        BaseMismatch: the base is not the one that the file was made from.

    Examples:
        >>> size = relex_codec.append("run.relex", ["ckpts/global_step_50"])
        >>> relex_codec.open("run.relex").steps
        [10, 20, 30, 40, 50]
    """
    budget, choice = parse_memory(memory), EngineChoice(engine, workers, address)
    in_place = output is None or is_same_file(file, output)
    if in_place and overwrite:
        raise InvalidArgument("overwrite is for another output; without one, append replaces the file that it reads")
    if output is None or in_place:
        writer = FileWriter(file, storage_options)  # refuses now what cannot be written
    else:
        condition = condition_of(output, overwrite=overwrite, base=base, storage_options=storage_options)
        writer = FileWriter(output, storage_options, condition)
    found = _find(checkpoints, storage_options, step, allow_pickle)
    if found[-1][0] > STEP_LIMIT:
        raise InvalidArgument(f"step {found[-1][0]} is beyond 2^53")
    with (
        held_for_appending(file) if in_place else nullcontext(),
        RunReader(file, base=base, storage_options=storage_options) as run,
    ):
        if in_place:
            writer.only_replace(run.container.source.version)
        index = run.container.index
        if refit and not index.has_exact:
            raise InvalidArgument(
                f"{run.path} has no exact tier, so its old steps cannot be restored and fitted again: append without "
                "--refit, or encode the whole run again"
            )
        known, new = split(found, index)
        if known:
            _look_at_known(run, known, storage_options)
        further = open_series(new, storage_options, alike=False, names={tensor.name for tensor in index.tensors})
        further.check()
        report_notes(further)
        directories = _directories(index, [path for _, path in new])
        differ = not refit and index.has_exact and not _is_like_the_last(index, further)
        uri = carried_over(index.manifest.base_uri, file, file if output is None else output)
        with single_threaded_blas(), writer:
            if isinstance(run.container.source, PrefetchingSource):
                # old steps are restored and copied: all of the file is read twice, by the piece
                run.container.source.copy_to(writer.scratch())
            source = AppendedSource(run, placed(new), storage_options)
            if refit or differ:
                return _refit(
                    run, further, source, choice, writer, budget, uri, directories, progress, asked=refit
                )  # fmt: skip
            return StepAppender(run, further, writer, budget, source, choice).write(uri, directories, progress)


def _find(
    checkpoints: Sequence[PathLike], storage_options: Options, step: int | None, allow_pickle: bool
) -> list[tuple[int, str]]:
    """Find single checkpoints, or those of the only directory that is given if it is that of a run."""
    for path in checkpoints:
        if is_journal(path, storage_options):
            raise InvalidArgument(f"{without_secrets(path)} is a journal, expected checkpoints: encode all of it again")
    if len(checkpoints) != 1 or step is not None:
        return find_checkpoints(checkpoints, storage_options, step=step, allow_pickle=allow_pickle)
    if PLACEHOLDER in os.fspath(checkpoints[0]):
        return find_run(checkpoints[0], storage_options, allow_pickle=allow_pickle)
    try:
        return find_checkpoints(checkpoints, storage_options, allow_pickle=allow_pickle)
    except CheckpointError as error:
        try:
            return find_run(checkpoints[0], storage_options, allow_pickle=allow_pickle)
        except RelexError:
            name = os.fspath(checkpoints[0]).rstrip("/").rpartition("/")[2]
            if any(step_names([name])):
                raise error from None
            raise


def _look_at_known(run: RunReader, known: list[tuple[int, str]], storage_options: Options) -> None:
    """Compare the last checkpoint of a step that the file has, and say how many there are."""
    step = known[-1][0]
    what = f"step {step} is" if len(known) == 1 else f"{len(known)} steps, {known[0][0]} to {step}, are"
    if run.container.index.has_exact:
        names = {tensor.name for tensor in run.container.index.tensors}
        check_unchanged(run.decoder, step, open_series([known[-1]], storage_options, names=names).checkpoint(0))
        note(f"left out: {what} in {run.path} already; step {step} is the same there")
    else:
        note(f"left out: {what} in {run.path} already; their weights were not compared, as it has no exact tier")


def _refit(
    run: RunReader,
    further: CheckpointSeries,
    source: AppendedSource,
    engine: EngineChoice,
    writer: FileWriter,
    budget: int,
    uri: str | None,
    directories: Sequence[str | None],
    progress: bool,
    *,
    asked: bool,
) -> int:
    """Encode the file's steps and further ones again; return the size of the file."""
    index = run.container.index
    series = AppendedSeries(run.decoder, further)
    _check_base(run)
    observed = index.manifest.observed
    if observed == len(index.steps):
        observed = len(series.steps)
    rank = max((len(tensor.directions) for tensor in index.tensors), default=1) or 1
    plan = plan_append(series, index, observed)
    if not asked:
        note("further steps have other tensors than lines were fitted on: directions and lines are fitted again")
    embed = index.manifest.embedded
    here = OpenHere(OpenRun(series, None, run, further))
    old = run.decoder.exact
    job = RunEncoder(
        plan, source, here, writer, observed, _quality(run), rank, embed, budget, True, old, engine
    )  # fmt: skip
    keys = [tensor.planned.key for tensor in plan.tensors]
    around = appended_surroundings(keys, run, further, job.embed_file, uri, directories, copied=False)
    size = job.write(around, progress)
    report_not_finite(job)
    return size


def _directories(index: Index, paths: Sequence[str]) -> list[str | None]:
    """Return what the directories of further steps are called: as deep in the run's as those that the file has."""
    last = index.manifest.steps[-1].directory or ""
    above = last.removesuffix(path_of_step(last) or last)
    found = (path_of_step(directory_of(path)) for path in paths)
    return [None if name is None else above + name for name in found]


def _is_like_the_last(index: Index, further: CheckpointSeries) -> bool:
    """Tell whether further steps have the tensors that lines were fitted on, and the last step."""
    last = index.layout_of(len(index.steps))
    expected = {tensor.name: (tensor.dtype, tensor.shape) for tensor in index.layout.tensors}
    return (
        last.tensors == index.layout.tensors
        and has_all_targets(index)
        and all(
            {name: (info.dtype, info.shape) for name, info in further.checkpoint(i).tensors.items()} == expected
            for i in range(len(further.steps))
        )
    )


def _check_base(run: RunReader) -> None:
    """Refuse a base that has what the file says that it lacked."""
    if list(run.container.index.layout.shards) == [ADAPTER_WEIGHTS]:
        return
    if run.base_embedded:
        return
    reader, index = run.base_reader(), run.container.index
    for tensor in index.layout_of(1).tensors:
        there = reader.tensors.get(tensor.name)
        if tensor.kind == f.TIED or tensor.in_base or there is None or there.shape != tensor.shape:
            continue
        if compatible(there, TensorInfo(tensor.name, tensor.dtype, tensor.shape)):
            raise BaseMismatch(
                f"base {reader.path} has tensor {quote(tensor.name)}, which the base of {run.path} lacked"
            )


def _quality(run: RunReader) -> Quality:
    """The quality that the file was made with."""
    index = run.container.index
    name = index.manifest.quality
    if name != MICRO:
        return Quality.parse(name)
    return Quality.parse(MICRO, max((int(rank) for rank in index.directions["rank"]), default=0) or None)
