"""The work of encoding a run: its tensors one after another, several at a time; tables.py makes the tables of the file.

What there is to do is planned in planning.py; what happens to one tensor is in unit.py, and in exact/ for its frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.progress import progress_bar
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.engines.choice import EngineChoice, Work
from relex_codec.engines.driver import Done, run_units
from relex_codec.engines.unit_files import OpenFiles
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.manifest import Manifest
from relex_codec.format.packed_span import PendingSpan
from relex_codec.format.writer import FileWriter

from .band_units import BandUnit, FinishUnit
from .frames import FrameRange
from .joining import Contents, Outline
from .moving import moves
from .parts import Shard
from .planning import CopyPlan, RunPlan, TensorPlan
from .quality import Quality
from .results import Results
from .run_source import OpenHere, RunSource
from .surroundings import Surroundings
from .unit_plan import TensorSize, plan_units, shard_of
from .units import Settings, TensorSpec, TensorsUnit, frames_memory, room_of, task_of
from .work_dir import WorkDirectory

if TYPE_CHECKING:
    from relex_codec.exact.segments import SegmentShape
    from relex_codec.exact.tier_reader import ExactTier


EncodingUnit = TensorsUnit | BandUnit | FinishUnit


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
    contents: Contents = field(default_factory=Contents, init=False)
    _framed: dict[int, bool] = field(default_factory=dict, init=False)
    """Whether the new segment holds a tensor, by its number."""

    @property
    def steps(self) -> list[int]:
        """The steps of the run."""
        return list(self.plan.run.steps)

    def write(self, around: Surroundings, progress: bool, work: WorkDirectory | None = None) -> int:
        """Do everything and return the size of the file."""
        with closing(OpenFiles()) as files:
            results = Results(files)
            for done in self.run(self.units(), progress, work):
                results.add(done)
            joined = self.outline(around).write(results, self.writer, self.old)
        self.not_finite = {name: [self.steps[i] for i in found] for name, found in joined.not_finite.items()}
        return joined.size

    def outline(self, around: Surroundings) -> Outline:
        """Return what the file says beside what its units find out; after `units`."""
        tensors = self.plan.tensors
        manifest = Manifest(
            self.observed, self.exact, None, self.embed, [], self.quality.name, self.quality.growth,
            [plan.entry for plan in tensors], [], [], 0, [],
        )  # fmt: skip
        targets = [plan.target if isinstance(plan, CopyPlan) else None for plan in tensors]
        framed = self.exact or self.old is not None or any(self._framed.values())
        shape = self._shape if framed else None
        return Outline.of(manifest, around, self.steps, targets, self.contents, shape)

    def embed_file(self, content: bytes) -> PendingSpan:
        """Store a file that is no weights; returns what stands for its span."""
        return self.contents.store(content)

    def units(self) -> list[EncodingUnit]:
        """Return what is to be done; finds out which tensors move."""
        plans = self._plans
        self._look_at(plans)
        sizes = [
            TensorSize(plan.number, plan.info.dtype, plan.info.size, self._framed[plan.number], not plan.held)
            for plan in plans
        ]
        shape = self._shape if any(self._framed.values()) else None
        specs = {plan.number: self._spec(plan) for plan in plans}
        source = self.here if self._engine.is_local else self.source
        fixed = source, len(self.steps), self._settings
        found: list[EncodingUnit] = []
        bands: list[str] = []
        for planned in plan_units(sizes, len(self.steps), shape.limit if shape else 0, bands=True):
            frames = FrameRange(shape, planned.groups) if shape is not None else None
            extra = tuple(specs[number] for number in planned.extra)
            first = specs[planned.tensors[0]]
            if planned.band is None:
                found.append(TensorsUnit(*fixed, tuple(specs[one] for one in planned.tensors), frames, extra))
                continue
            found.append(BandUnit(*fixed, first, *planned.band, frames, extra))
            bands.append(found[-1].key)
            if planned.band[1] * f.PIECE >= first.planned.info.size:
                found.append(FinishUnit(*fixed, first, tuple(bands)))
                bands = []
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

    @property
    def _engine(self) -> EngineChoice:
        """The engine that does the units."""
        return self.engine.of(sum(_bytes(plan) for plan in self._plans) * len(self.steps))

    @property
    def _plans(self) -> list[TensorPlan]:
        return [plan for plan in self.plan.tensors if isinstance(plan, TensorPlan)]

    def run(
        self,
        units: Sequence[EncodingUnit],
        progress: bool,
        work: WorkDirectory | None = None,
        shard: Shard | None = None,
    ) -> Iterator[Done]:
        """Do units; yields each that is done.

        Args:
            units: all of them.
            work: keeps results, and has some.
            shard: which of the units are done; None: all.
        """
        numbered = list(enumerate(units))
        if shard is not None:
            mine = jobs_of(units, shard)
            numbered = [(number, unit) for number, unit in numbered if unit.job in mine]
        kept = work.kept([unit.key for _, unit in numbered]) if work is not None else {}
        directory = work.path if work is not None else self.writer.working_directory()
        size = sum(unit.input_bytes for _, unit in numbered)
        with progress_bar("encode", size, enabled=progress) as bar:
            for number, unit in numbered:
                if unit.key in kept:
                    yield Done(number, unit, kept[unit.key])
                    bar.update(unit.input_bytes)
            rest = [(number, unit) for number, unit in numbered if unit.key not in kept]
            if not rest:
                return
            with self._engine.start(self.work([unit for _, unit in rest]), directory) as engine:
                for done in run_units(engine, rest, kept):
                    if work is not None:
                        work.add(done.path)
                    yield done
                    bar.update(done.unit.input_bytes)

    def work(self, units: Sequence[EncodingUnit]) -> Work:
        """Return what an engine has to know of units."""
        tasks = [task_of(plan, self._settings) for plan in self._plans]
        return Work(
            self.budget, len(units), lambda threads: max(unit.memory(threads) for unit in units), self.writer.directory,
            lambda place: sum(room_of(task, place).size for task in tasks),
        )  # fmt: skip

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


def jobs_of(units: Sequence[EncodingUnit], shard: Shard) -> set[str]:
    """Return the jobs of one part of the work."""
    sizes: dict[str, int] = {}
    for unit in units:
        sizes[unit.job] = sizes.get(unit.job, 0) + unit.input_bytes
    jobs = list(sizes)
    return {jobs[place] for place in shard_of(list(sizes.values()), shard.number, shard.count)}


def _bytes(plan: TensorPlan) -> int:
    """Return the bytes of a tensor at one step."""
    return plan.info.size * ITEMSIZE[plan.info.dtype]


def _of_codes(info: TensorInfo, codes: str) -> str:
    """Say why codes and their scales are refused without the exact tier."""
    what = "codes" if codes == info.name else f"belongs to the codes {quote(codes)}"
    return (
        f"tensor {quote(info.name)} ({what}, {info.dtype}) changes: a line through codes, or through scales of codes, "
        "means nothing; keep the run with --exact, or encode weights in BF16, F16 or F32"
    )
