"""Encoding a run: arguments, memory, which steps; the work itself is in encoding/pipeline.py."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from relex_codec.checkpoints import base_model as base_module
from relex_codec.checkpoints.series import CheckpointSeries, find_run
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.writer import FileWriter
from relex_codec.storage.hub import paths as hub
from relex_codec.storage.urls import Options, PathLike

from .pipeline import RunEncoder
from .quality import Quality

if TYPE_CHECKING:
    from relex_codec.exact.tier_reader import ExactTier
    from relex_codec.exact.tier_writer import SegmentJob

DEFAULT_MEMORY: Final = "4GB"
SMALLEST_MEMORY: Final = 64 * 10**6
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
                 "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}  # fmt: skip


def parse_memory(size: str | int) -> int:
    """Read a memory budget such as ``4GB``, ``512MiB`` or a number of bytes.

    Raises:
        InvalidArgument: not a size, or less than 64 MB.
    """
    text = str(size).strip().upper().removesuffix("B")
    number = text.rstrip("KMGTI ")
    try:
        value = int(float(number) * _UNITS[text[len(number) :].strip()])
    except (KeyError, ValueError, OverflowError):
        raise InvalidArgument(f"memory is {size!r}, expected a size such as 4GB or 512MiB") from None
    if value < SMALLEST_MEMORY:
        raise InvalidArgument(f"memory is {size!r}, expected at least {SMALLEST_MEMORY // 10**6}MB")
    return value


def encode(
    run: PathLike,
    output: PathLike,
    *,
    base: PathLike,
    observe: int | None = None,
    steps: str | None = None,
    quality: str | float = "default",
    factor_rank: int | None = None,
    rank: int = 1,
    exact: bool = False,
    embed_base: bool = False,
    memory: str | int = DEFAULT_MEMORY,
    skip_incomplete: bool = False,
    progress: bool = False,
    storage_options: Options = None,
) -> int:
    """Encode a run of checkpoints into one ``.relex`` file.

    Args:
        run: directory or fsspec URL that holds ``global_step_N/``, ``checkpoint-N/`` and the like; or one with
            ``{step}`` in it, the checkpoint of each step: ``hf://org/run@step_{step}``.
        output: path or fsspec URL of the file; it appears when it is complete.
        base: the model that training started from: directory, ``.safetensors`` file, URL or ``hf://org/name@revision``,
            whose commit the file then refers to.
        observe: fit directions and lines on steps up to this number; later ones still get coefficients. Default: all.
        steps: ``A:B`` or ``A:B:K``, the steps to encode (ends included, every K-th from A).
        quality: ``raw fine default small micro``, or how much the weight error may grow, such as 0.03.
        factor_rank: factor pairs per matrix of quality ``micro`` (default 8).
        rank: number of directions; more than one does not help extrapolation.
        exact: store every step bit for bit as well.
        embed_base: store the base losslessly in the file.
        memory: budget in bytes or as ``4GB``.
        skip_incomplete: leave incomplete checkpoints out instead of refusing them, and missing ones of ``{step}``.
        progress: show a bar on stderr.
        storage_options: for fsspec, for all URLs, or by protocol: ``{"s3": {...}, "hf": {...}}``.

    Returns:
        The size of the file in bytes.

    Raises:
        CheckpointError: the run or the base cannot be read.
        InvalidArgument: an argument cannot be, or the output cannot be written.
    """
    if os.fspath(output).lower().endswith(".safetensors"):
        raise InvalidArgument(f"output is {output}: call it NAME.relex, as loaders take *.safetensors for weights")
    budget, wanted = parse_memory(memory), Quality.parse(quality, factor_rank)
    if not 1 <= rank <= 0xFFFF:
        raise InvalidArgument(f"rank is {rank}, expected at least 1")
    writer = FileWriter(output, storage_options)  # refuses now what cannot be written
    reference = hub.pinned(base, storage_options)
    origin_checkpoint = base_module.resolve(reference, storage_options)
    found = find_run(run, storage_options, steps=steps, skip_incomplete=skip_incomplete, on_skip=_report_skip)
    observed = _observed([step for step, _ in found], observe)
    source = CheckpointSeries(found, storage_options)
    # Work is spread over threads here, block by block: BLAS's own threads spin when another process holds a core, and
    # the same encode took 11 times as long beside one busy process on two cores (RATIONALE.md).
    with threadpool_limits(1, "blas"), writer:
        source.check()
        frames = partial(new_segment, writer, len(source.steps))
        job = RunEncoder(source, origin_checkpoint, writer, observed, wanted, rank, embed_base, budget, exact, frames)
        return job.write(base_module.canonical_uri(reference), progress)


def new_segment(writer: FileWriter, count: int, old: ExactTier | None = None) -> SegmentJob:
    """Begin a segment of `count` steps, after those of `old`."""
    from relex_codec.exact.segment_writer import SegmentWriter  # numba is only needed here
    from relex_codec.exact.tier_writer import SegmentJob

    return SegmentJob(SegmentWriter(writer.scratch(), count), old)


def _report_skip(message: str) -> None:
    tqdm.write(f"left out: {message}", file=sys.stderr)


def _observed(steps: list[int], observe: int | None) -> int:
    if steps[0] < 0 or steps[-1] > f.STEP_LIMIT:
        raise InvalidArgument(f"steps run from {steps[0]} to {steps[-1]}, expected 0 to 2^53")
    if observe is None:
        return len(steps)
    count = sum(step <= observe for step in steps)
    if not count:
        raise InvalidArgument(f"no step up to {observe} to observe: the first is {steps[0]}")
    return count
