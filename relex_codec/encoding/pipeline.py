"""The work of encoding a run: its tensors one after another, several at a time; tables.py makes the tables of the file.

What there is to do is planned in planning.py; what happens to one tensor is in unit.py, and in exact/ for its frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.progress import progress_bar
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.manifest import Manifest
from relex_codec.format.packed_span import PendingSpan
from relex_codec.format.writer import FileWriter, FrameEntries

from .driver import Done, Results, run_units
from .engines.choice import EngineChoice, Work
from .frames import FrameRange
from .layouts import step_entries
from .moving import moves
from .planning import CopyPlan, RunPlan, TensorPlan
from .quality import Quality
from .run_source import OpenHere, RunSource
from .surroundings import Surroundings
from .tables import EncodedTensor, tables_of
from .unit_files import OpenFiles
from .unit_plan import TensorSize, plan_units
from .units import Settings, TensorSpec, TensorsUnit, frames_memory, room_of, task_of

if TYPE_CHECKING:
    from relex_codec.exact.segments import SegmentShape
    from relex_codec.exact.tier_reader import ExactTier


@dataclass(slots=True)
class RunEncoder:
    """The work of one encoding.

    Attributes:
        plan: what is encoded.
        source: the same run, as units find it.
        here: the same for units in this process.
        observed: how many steps, from the first, are fitted.
        rank: directions per tensor.
        embed: store the base.
        budget: bytes.
        exact: frames hold every tensor that changes, not only those that no line is drawn through.
        old: the exact tier of the file that steps are appended to.
        engine: does the units.
        not_finite: at which steps tensors had weights that are not finite, by name; known when all are encoded.
    """

    plan: RunPlan
    source: RunSource
    here: OpenHere
    writer: FileWriter
    observed: int
    quality: Quality
    rank: int
    embed: bool
    budget: int
    exact: bool
    old: ExactTier | None = None
    engine: EngineChoice = field(default_factory=EngineChoice)
    not_finite: dict[str, list[int]] = field(default_factory=dict, init=False)
    _framed: dict[int, bool] = field(default_factory=dict, init=False)
    """Whether the new segment holds a tensor, by its number."""

    @property
    def steps(self) -> list[int]:
        """The steps of the run."""
        return list(self.plan.run.steps)

    def write(self, around: Surroundings, progress: bool) -> int:
        """Do everything and return the size of the file."""
        with closing(OpenFiles()) as files:
            return self._write(around, progress, Results(files))

    def _write(self, around: Surroundings, progress: bool, results: Results) -> int:
        for done in self._run(progress):
            results.add(done)
        tensors = list(self._joined(results))
        self.writer.close_chunks()
        layouts = around.layouts
        manifest = Manifest(
            self.observed, self.exact, around.base_uri, self.embed, list(around.base_shards), self.quality.name,
            self.quality.growth, [tensor.entry for tensor in tensors], [file.entry for file in around.files],
            layouts.layouts, layouts.steps[self.observed - 1], step_entries(around.directories, layouts.steps),
            list(around.left_out),
        )  # fmt: skip
        tables = tables_of(tensors, np.array(self.steps, np.int64), manifest)
        return self.writer.finish(tables, self._frames(results))

    def embed_file(self, content: bytes) -> PendingSpan:
        """Store a file that is no weights; returns its span."""
        data = np.frombuffer(content, np.uint8)
        parts = (data[lo : lo + f.PIECE] for lo in range(0, len(data), f.PIECE))
        return self.writer.base.add(parts, len(data), match=True)

    def units(self, source: RunSource) -> list[TensorsUnit]:
        """Return what is to be done; finds out which tensors move.

        Args:
            source: of the run.
        """
        plans = [plan for plan in self.plan.tensors if isinstance(plan, TensorPlan)]
        self._look_at(plans)
        sizes = [TensorSize(plan.number, plan.info.dtype, plan.info.size, self._framed[plan.number]) for plan in plans]
        shape = self._shape if any(self._framed.values()) else None
        specs = {plan.number: self._spec(plan) for plan in plans}
        found = []
        for planned in plan_units(sizes, len(self.steps), shape.limit if shape else 0):
            frames = FrameRange(shape, planned.groups) if shape is not None else None
            found.append(
                TensorsUnit(
                    source, len(self.steps), self._settings, tuple(specs[number] for number in planned.tensors),
                    frames, tuple(specs[number] for number in planned.extra),
                )
            )  # fmt: skip
        return found

    @property
    def _settings(self) -> Settings:
        return Settings(self.observed, self.rank, self.quality, self.embed)

    @property
    def _shape(self) -> SegmentShape:
        """Where a new segment stands."""
        from relex_codec.exact.segments import SegmentShape  # numba is only needed here

        old = self.old.segments if self.old is not None else []
        return SegmentShape.after(old, len(self.steps) - sum(segment.count for segment in old))

    def _spec(self, plan: TensorPlan) -> TensorSpec:
        before, framed = self._before(plan), self._framed[plan.number]
        segment = before or (self._shape.number + 1 if framed else 0)
        return TensorSpec.of(plan, frames=self.exact or framed, segment=segment, before=before > 0)

    def _before(self, plan: TensorPlan) -> int:
        """Return the first of the earlier segments that has a tensor, 0 for none."""
        found = self.old.container.index.find(*plan.planned.key) if self.old is not None else None
        return found.segment if found is not None else 0

    def _run(self, progress: bool) -> Iterator[Done]:
        """Do all units; yields each that is done."""
        plans = [plan for plan in self.plan.tensors if isinstance(plan, TensorPlan)]
        engine_of = self.engine.of(sum(plan.info.size * ITEMSIZE[plan.info.dtype] for plan in plans) * len(self.steps))
        units = self.units(self.here if engine_of.is_local else self.source)
        tasks = [task_of(plan, self._settings) for plan in plans]
        work = Work(
            self.budget, len(units), lambda threads: max(unit.memory(threads) for unit in units), self.writer.directory,
            lambda place: sum(room_of(task, place).size for task in tasks),
        )  # fmt: skip
        size = sum(unit.input_bytes for unit in units)
        with (
            progress_bar("encode", size, enabled=progress) as bar,
            engine_of.start(work, self.writer.working_directory()) as engine,
        ):
            for done in run_units(engine, units):
                yield done
                bar.update(done.unit.input_bytes)

    def _joined(self, results: Results) -> Iterator[EncodedTensor]:
        """Write the spans of all tensors, in the order of the plan."""
        for plan in self.plan.tensors:
            if isinstance(plan, CopyPlan):
                yield EncodedTensor(plan.entry, f.TIED, f.IN_BASE, target=plan.target)
                continue
            tensor = results.tensor(plan.number, plan.entry)
            if tensor.span is not None:
                self.writer.base.put(tensor.span)
            for direction in tensor.directions:
                self.writer.directions.put(direction.factors)
                self.writer.directions.put(direction.remainder)
            if tensor.not_finite:
                self.not_finite[plan.info.name] = [self.steps[i] for i in tensor.not_finite]
            yield tensor

    def _frames(self, results: Results) -> FrameEntries | None:
        groups = results.groups()
        if not (groups or self.exact or self.old is not None):
            return None
        from relex_codec.exact.tier_writer import assemble  # numba is only needed here

        return assemble(self._shape, groups, self.old)

    def _look_at(self, plans: Sequence[TensorPlan]) -> None:
        """Find out which tensors the segment holds, and refuse at once what would fail after hours.

        That is codes that move without frames, and more memory than there is.
        """
        if self.exact:
            self._check_memory("the exact tier", plans)
        first = self._shape.first if self.old is not None else 0
        wanted = [plan for plan in plans if (self.exact or plan.held) and not self._before(plan)]
        tasks = [task_of(plan, self._settings) for plan in wanted]
        found = parallel_map(lambda task: moves(task, self.budget, first), tasks)
        self._framed = {plan.number: self._before(plan) > 0 for plan in plans}
        self._framed |= {plan.number: moved for plan, moved in zip(wanted, found, strict=True)}
        if self.exact:
            return
        for plan in wanted:
            if plan.codes and self._framed[plan.number]:
                raise InvalidArgument(_of_codes(plan.info, plan.codes))
        self._check_memory("", [plan for plan in wanted if self._framed[plan.number]])

    def _check_memory(self, what: str, plans: Sequence[TensorPlan]) -> None:
        def need(plan: TensorPlan) -> int:
            return frames_memory(plan.info.dtype, plan.info.size, len(self.steps))

        widest = max(plans, key=need, default=None)
        if widest is not None and need(widest) > self.budget:
            what = what or f"tensor {quote(widest.info.name)}, which is stored step by step,"
            raise InvalidArgument(
                f"{what} of {len(self.steps)} steps needs {-(-need(widest) // 10**6)} MB, memory is "
                f"{self.budget // 10**6} MB: raise --memory"
            )


def _of_codes(info: TensorInfo, codes: str) -> str:
    """Say why codes and their scales are refused without the exact tier."""
    what = "codes" if codes == info.name else f"belongs to the codes {quote(codes)}"
    return (
        f"tensor {quote(info.name)} ({what}, {info.dtype}) changes: a line through codes, or through scales of codes, "
        "means nothing; keep the run with --exact, or encode weights in BF16, F16 or F32"
    )
