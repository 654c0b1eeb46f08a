"""Encoding a run: arguments, and what is written; what comes before is in prepare.py, the work in pipeline.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from relex_codec.core.progress import note
from relex_codec.core.sizes import DEFAULT_MEMORY
from relex_codec.engines.places import everywhere
from relex_codec.errors import InvalidArgument
from relex_codec.format.writer import FileWriter
from relex_codec.storage.urls import Options, PathLike

from .output import condition_of
from .parts import Shard, write_part
from .pipeline import RunEncoder
from .planning import TensorPlan
from .prepare import Request, prepare
from .usable_steps import left_out_of_fits
from .work_dir import WorkDirectory


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

    For each tensor the file holds a direction and a line: the first right singular vector of the changes since the
    base, and least squares through how far each step lies along it (RELEX, arXiv 2605.21468).

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
        rename: rules ``OLD=NEW`` for tensors that run and base call differently, beyond the prefixes that are known:
            OLD in a name of the one, at its beginning or after a dot, is NEW in the other.
        quality: ``raw fine default small micro``, or how much the weight error may grow, such as 0.03.
        factor_rank: factor pairs per matrix of quality ``micro`` (default 8).
        rank: number of directions; more than one does not help extrapolation.
        exact: store every step bit for bit as well, whatever tensors and files it has. Without, all steps must have
            the same tensors, apart from copies of tied weights.
        embed_base: store the base losslessly in the file. A pickled base (``pytorch_model.bin``) must be embedded, and
            needs `allow_pickle`.
        base_uri: what the file says about where its base is; empty: nothing. Default: the URL of `base`, which is
            ``hf://org/name@commit`` in the cache of the Hub, or its path from the directory of the file.
        memory: budget in bytes or as ``4GB``.
        skip_incomplete: leave out incomplete checkpoints, and with ``{step}`` missing ones, instead of refusing them.
        allow_any_base: take the base although the run does not seem to begin at it: the first step is more than ten
            times farther away than the distances between steps explain.
        allow_new_tensors: encode a run most of which is in tensors that the base does not have.
        allow_pickle: read checkpoints too that pickles describe: directories of torch.distributed.checkpoint, FSDP's
            ``model_world_size_W_rank_R.pt``, ``pytorch_model.bin``. Pickles can run code in what loads them; here they
            are parsed by a list of what is allowed, and nothing in them is run.
        overwrite: replace what is at `output`; otherwise an existing file is refused.
        workers: how many tensors are worked on at the same time; default: one for each processor.
        engine: where the work is done: ``local``, on threads of this process; ``processes``, in processes of this
            machine, each with its part of `memory`; ``ray``, on a cluster of Ray, where `memory` is for each tensor or
            group of small ones; ``auto``: processes for five workers and more on runs of some gigabytes. The file is
            the same.
        address: of the Ray cluster, as `ray.init` takes it; ``local``: a new cluster on this machine, which ends with
            the call. Default: the one that this process is connected to or runs beside, or a new one.
        work_dir: directory or URL that keeps finished work, so that the same call continues after a kill. One that was
            begun with another run or other arguments is refused. It is removed when the file is complete.
        keep_work_dir: leave `work_dir` there.
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

    Examples:
        >>> size = relex_codec.encode("ckpts/", "new.relex", base="base/", steps="10:40", exact=True)
        >>> relex_codec.open("new.relex").steps
        [10, 20, 30, 40]
    """
    if keep_work_dir and work_dir is None:
        raise InvalidArgument("there is no work directory to keep: give one")
    request = Request(
        run, base, observe, steps, exclude_steps, rename, quality, factor_rank, rank, exact, embed_base, base_uri,
        memory, skip_incomplete, allow_any_base, allow_new_tensors, allow_pickle, workers, engine, address,
        storage_options,
    )  # fmt: skip
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
    with ExitStack() as last, ExitStack() as stack:
        found = prepare(request, output, writer, stack)
        job, identity, work = found.job, None, None
        if work_dir is not None or part is not None:
            identity = found.identity()
        if work_dir is not None and identity is not None:
            mine = identity if part is None else identity.with_option("--shard", f"{part.number}/{part.count}")
            # left last, when the file is there: until then a kill loses nothing
            work = last.enter_context(WorkDirectory(work_dir, mine, storage_options, keep=keep_work_dir))
        if part is not None and identity is not None:
            units = job.units()
            done = list(job.run(units, progress, work, part))
            outline, keys = job.outline(found.around), [unit.key for unit in units]
            base_place = everywhere(found.reference)
            return write_part(writer, outline, identity, base_place, base_uri is not None, part, keys, done)
        size = job.write(found.around, progress, work)
        report_not_finite(job)
        return size


def report_not_finite(job: RunEncoder) -> None:
    """Say on stderr which tensors had weights that are not finite, and were fitted without those steps."""
    lines = sum(isinstance(tensor, TensorPlan) and not tensor.held for tensor in job.plan.tensors)
    for line in left_out_of_fits(job.not_finite, job.steps, lines):
        note(line)
