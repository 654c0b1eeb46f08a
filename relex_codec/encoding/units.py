"""The units of an encoding: what each does is in unit.py, here is how it is described and what it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from relex_codec.core.dtypes import ITEMSIZE, as_dtype
from relex_codec.engines.arena import bytes_of
from relex_codec.engines.protocol import Place
from relex_codec.engines.unit_files import UnitWriter
from relex_codec.format import constants as f
from relex_codec.format.manifest import BaseRange

from .delta_sums import forget_working_arrays
from .frames import FrameCoder, FrameRange, TensorFrames, coder_of
from .origin import Origin
from .planning import TensorPlan
from .quality import Quality
from .room import SMALLEST_SLICE, Room, room_for
from .run_plan import PlannedTensor
from .run_source import OpenRun, RunSource, opened
from .tensor_steps import TensorSteps
from .unit import TensorTask, Workplace, encode_tensor
from .unit_results import put_groups, put_tensor

if TYPE_CHECKING:
    from .appended_series import AppendedSeries

UNIT_MEMORY: Final = 48 << 20
"""Bytes that the search for a quantiser takes, beside what a `Room` has; tensors at a time are bounded by it."""
THREAD_MEMORY: Final = 32 << 20
"""Bytes of the budget for each thread: it needs a tenth, but what threads free is not at once another's to use."""


@dataclass(frozen=True)
class Settings:
    """What was asked for, of all tensors; see `pipeline.RunEncoder`."""

    observed: int
    rank: int
    quality: Quality
    embed: bool


@dataclass(frozen=True)
class TensorSpec:
    """A `planning.TensorPlan` without what is open, and how the tensor is framed.

    Attributes:
        record: number of the tensor of a file that it starts from, where a file is appended to.
        frames: whether the exact tier looks at it.
        segment: the ``segment`` field of its record.
        before: whether earlier segments have it.
    """

    number: int
    planned: PlannedTensor
    sources: tuple[BaseRange, ...]
    held: bool
    codes: str | None
    record: int | None
    frames: bool
    segment: int
    before: bool

    @classmethod
    def of(cls, plan: TensorPlan, *, frames: bool, segment: int, before: bool) -> TensorSpec:
        """Return that of a plan."""
        return cls(
            plan.number, plan.planned, plan.sources, plan.held, plan.codes, plan.record, frames, segment, before
        )  # fmt: skip

    def plan(self, run: OpenRun) -> TensorPlan:
        """Return the plan again, of a run that is open."""
        key = self.planned.key
        if run.file is None:
            series = TensorSteps(run.series, self.planned)
            if self.sources:
                assert run.base is not None
                origin = Origin.in_base(run.base, self.sources)
            else:
                origin = Origin.in_run(series, key.name)
        else:
            index = run.file.container.index
            appended: AppendedSeries = run.series  # type: ignore[assignment]
            series = TensorSteps(run.series, self.planned, appended, index.find(key.name, key.dtype))
            if self.record is None:
                origin = Origin.in_run(series, key.name)
            else:
                origin = appended.origin(index.tensors[self.record])
        return TensorPlan(
            self.number, self.planned, series, origin, self.sources, self.held, self.codes, self.record
        )  # fmt: skip

    def task(self, run: OpenRun, settings: Settings) -> TensorTask:
        """Return what is to be done for it."""
        return task_of(self.plan(run), settings)


def task_of(plan: TensorPlan, settings: Settings) -> TensorTask:
    """Return what is to be done for a tensor."""
    stored = settings.embed or not plan.sources
    return TensorTask(plan, settings.observed, settings.rank, settings.quality, stored)


def frames_memory(dtype: str, elements: int, steps: int) -> int:
    """Return how many bytes the frames of a tensor take: whole pieces of all steps."""
    return 3 * (steps + 1) * ITEMSIZE[dtype] * min(elements, f.PIECE)


def room_of(task: TensorTask, place: Place, *, in_bands: bool = False) -> Room:
    """Return the memory that a tensor is worked on with.

    Args:
        in_bands: whether it is read in bands, so that nothing of it is held.
    """
    if task.plan.held:
        return Room(0, False, False, SMALLEST_SLICE, place.threads)
    steps = len(task.run.steps)
    room = room_for(task.info, task.origin.dtype, steps, task.rank, place.budget, place.threads, place.units)
    if not in_bands:
        return room
    vectors = bytes_of((min(task.rank, steps), task.info.size), np.float32)
    fits = vectors <= place.budget // 2
    return replace(room, held=False, vectors=fits, size=vectors if fits else 0)


@contextmanager
def workplace(task: TensorTask, place: Place, room: Room | None = None) -> Iterator[Workplace]:
    """Hold the memory for a tensor, after waiting for it."""
    room = room_of(task, place) if room is None else room
    region = place.arena.take(room.size)
    try:
        yield Workplace(room, region, place.directory, place.budget // place.units)
    finally:
        place.arena.give_back(region)


@dataclass(frozen=True)
class TensorsUnit:
    """Some tensors over all steps, one after another, and the groups of frames that begin with them.

    Attributes:
        source: of the run.
        steps: how many it has.
        settings: of the encoding.
        tensors: in the order of the file.
        frames: the groups; None: none.
        extra: further tensors, parts of which are in the last group.
    """

    source: RunSource
    steps: int
    settings: Settings
    tensors: tuple[TensorSpec, ...]
    frames: FrameRange | None = None
    extra: tuple[TensorSpec, ...] = ()

    needs: tuple[str, ...] = ()

    @property
    def job(self) -> str:
        """Units of one job are done by the same machine."""
        return self.key

    @property
    def key(self) -> str:
        """Numbers of the first tensor and of the last one."""
        return f"tensors-{self.tensors[0].number:06}-{self.tensors[-1].number:06}"

    @property
    def input_bytes(self) -> int:
        """Bytes of the tensors at all steps."""
        return sum(size_of(spec) for spec in self.tensors) * self.steps

    def memory(self, threads: int) -> int:
        """Return how many bytes of memory it needs at least."""
        framed = [spec.planned.info for spec in (*self.tensors, *self.extra) if spec.frames]
        frames = max((frames_memory(info.dtype, info.size, self.steps) for info in framed), default=0)
        return UNIT_MEMORY + threads * THREAD_MEMORY + frames

    def run(self, place: Place, out: UnitWriter) -> None:
        """Encode the tensors; the result has a row for each, and one for each group."""
        run = opened(self.source)
        rows = []
        with ExitStack() as stack:
            stack.callback(forget_working_arrays)
            coder = coder_of(self.frames, place.directory, stack, out)
            for spec in self.tensors:
                task = spec.task(run, self.settings)
                frames = frames_of(spec, task, coder, self.frames) if spec.frames else None
                with workplace(task, place) as where:
                    rows.append({"number": spec.number, **put_tensor(out, encode_tensor(task, where, frames))})
            forget_working_arrays()
            if coder is not None:
                read_missing(coder, [(spec, spec.task(run, self.settings)) for spec in self.extra])
            out.document["tensors"] = rows
            out.document["groups"] = put_groups(out, coder.groups if coder is not None else [])


def size_of(spec: TensorSpec) -> int:
    """Return the bytes of a tensor at one step."""
    info = spec.planned.info
    return info.size * ITEMSIZE[info.dtype]


def frames_of(spec: TensorSpec, task: TensorTask, coder: FrameCoder | None, wanted: FrameRange | None) -> TensorFrames:
    shape = wanted.shape if wanted is not None else None
    return TensorFrames(coder, shape, spec.number, task.info.name, spec.segment, spec.before, task.run.as_in_file)


def read_missing(coder: FrameCoder, extra: Sequence[tuple[TensorSpec, TensorTask]]) -> None:
    """Read the parts that are still missing in the last group, which are those of other tensors."""
    by_number = {spec.number: (spec, task) for spec, task in extra}
    for part in coder.missing:
        spec, task = by_number[part.tensor]
        frames = TensorFrames(
            coder, coder.shape, part.tensor, task.info.name, spec.segment, spec.before, task.run.as_in_file
        )
        lo = part.piece * f.PIECE
        hi = lo + part.elements
        origin = as_dtype(task.origin.read(lo, hi), task.origin.dtype, task.info.dtype)
        frames.add(part.piece, origin, task.run.read(task.info.name, lo, hi))
