"""What encoding a run would take and leave out, before it is begun: from its plan, and a few units that are done."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from relex_codec.core.left_out import LeftOut
from relex_codec.core.threads import cpu_count
from relex_codec.engines.choice import EngineChoice
from relex_codec.engines.driver import run_units
from relex_codec.format.writer import FileWriter
from relex_codec.storage.leftovers import ScratchDirectory
from relex_codec.storage.urls import PathLike

from .band_units import BandUnit
from .planning import CopyPlan, TensorPlan
from .prepare import Request, prepare

SAMPLE_SECONDS: Final = 20.0
"""How long units are done for the estimate, about."""
SAMPLE_UNITS: Final = 8


@dataclass(frozen=True, slots=True)
class Forecast:
    """What encoding a run would take.

    Attributes:
        steps: of the run.
        lines, held, copies: tensors with a line, those stored step by step or once, and other names of others.
        parameters: of a step.
        units: that the work is cut into.
        bytes_to_read: of checkpoints and base, in all; of large tensors twice.
        bytes_of_run: of weights at all steps.
        size: of the file, estimated.
        processor_seconds: of all work, estimated.
        workers: units at the same time.
        memory: bytes that are used at most.
        sampled: bytes of the units that were done for the estimate.
        left_out: what the file will not have of the run's directory.
    """

    steps: list[int]
    lines: int
    held: int
    copies: int
    parameters: int
    units: int
    bytes_to_read: int
    bytes_of_run: int
    size: int
    processor_seconds: float
    workers: int
    memory: int
    sampled: int
    left_out: list[LeftOut]

    @property
    def seconds(self) -> float:
        """How long it would take, estimated."""
        return self.processor_seconds / self.workers


def forecast(request: Request, output: PathLike) -> Forecast:
    """Plan an encoding, and do some of its units; nothing is written but scratch files.

    Args:
        output: the file that would be written.

    Raises:
        RelexError: what `encode` would refuse.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(ScratchDirectory()).path
        writer = FileWriter(os.path.join(folder, "sample.relex"))
        prepared = prepare(request, output, writer, stack)
        job = prepared.job
        job.engine = EngineChoice("local", request.workers)
        units = job.units()
        sample = sample_of([unit.input_bytes for unit in units])
        began, sampled, written = time.process_time(), 0, 0
        work = job.work([units[i] for i in sample])
        engine = EngineChoice("local", 1).start(work, writer.working_directory())
        with engine:
            until = time.monotonic() + SAMPLE_SECONDS
            for place in sample:
                for done in run_units(engine, [(place, units[place])]):
                    sampled += done.unit.input_bytes
                    written += os.path.getsize(done.path)
                    os.unlink(done.path)
                if time.monotonic() > until:
                    break
        spent = time.process_time() - began
        writer.write(b"\0")  # which is removed with its directory
        plans = [plan for plan in job.plan.tensors if isinstance(plan, TensorPlan)]
        whole = sum(unit.input_bytes for unit in units)
        twice = sum(unit.input_bytes for unit in units if isinstance(unit, BandUnit))
        share = whole / sampled if sampled else 1.0
        steps = len(job.steps)
        return Forecast(
            job.steps, sum(not plan.held for plan in plans), sum(plan.held for plan in plans),
            sum(isinstance(plan, CopyPlan) for plan in job.plan.tensors), sum(plan.info.size for plan in plans),
            len(units), whole + whole // steps + twice, whole,
            int(written * share) + sum(map(len, job.contents.files)), spent * share,
            min(request.workers or cpu_count(), len(units)), job.budget, sampled, prepared.left_out,
        )  # fmt: skip


def sample_of(sizes: Sequence[int], most: int = SAMPLE_UNITS) -> list[int]:
    """Return which units stand for all: those in which equal shares of the bytes have their middle, the smaller first.

    Examples:
        >>> sample_of([5, 0, 5, 80, 10, 20], 2)
        [3]
        >>> sample_of([10, 10, 10, 10], 2)
        [0, 2]
    """
    total, found, below, place = sum(sizes), set[int](), 0, 0
    for number in range(most if total else 0):
        middle = total * (2 * number + 1) / (2 * most)
        while below + sizes[place] < middle and place < len(sizes) - 1:
            below += sizes[place]
            place += 1
        if sizes[place]:
            found.add(place)
    return sorted(found, key=lambda unit: (sizes[unit], unit))
