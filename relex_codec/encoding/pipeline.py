"""The work of encoding a run: its tensors one after another, several at a time; tables.py makes the tables of the file.

What there is to do is planned in planning.py; what happens to one tensor is in unit.py, and in exact/ for its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.core.dtypes import ITEMSIZE, as_dtype
from relex_codec.core.progress import progress_bar
from relex_codec.core.text import quote
from relex_codec.core.threads import cpu_count, ordered_map
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.manifest import Manifest
from relex_codec.format.packed_span import PendingSpan
from relex_codec.format.writer import FileWriter

from .arena import Arena
from .delta_sums import forget_working_arrays
from .layouts import step_entries
from .planning import CopyPlan, RunPlan, TensorPlan
from .quality import Quality
from .surroundings import Surroundings
from .tables import EncodedTensor, tables_of
from .tensor_history import SMALLEST_SLICE, Room, room_for
from .turns import OrderedPieces, Turns
from .unit import TensorTask, Workplace, encode_tensor

if TYPE_CHECKING:
    from relex_codec.exact.tier_writer import SegmentJob, TensorJob

UNIT_MEMORY: Final = 48 << 20
"""Bytes that the search for a quantiser takes, beside what a `Room` has; tensors at a time are bounded by it."""
THREAD_MEMORY: Final = 32 << 20
"""Bytes of the budget for each thread: it needs a tenth, but what threads free is not at once another's to use."""


@dataclass(slots=True)
class RunEncoder:
    """The work of one encoding.

    Attributes:
        plan: what is encoded.
        observed: how many steps, from the first, are fitted.
        rank: directions per tensor.
        embed: store the base.
        budget: bytes.
        exact: frames hold every tensor that changes, not only those that no line is drawn through.
        new_segment: begins the segment of frames; called when the first tensor needs it.
        not_finite: at which steps tensors had weights that are not finite, by name; known when all are encoded.
    """

    plan: RunPlan
    writer: FileWriter
    observed: int
    quality: Quality
    rank: int
    embed: bool
    budget: int
    exact: bool
    new_segment: Callable[[], SegmentJob]
    not_finite: dict[str, list[int]] = field(default_factory=dict, init=False)
    _segment: SegmentJob | None = field(default=None, init=False)
    _known_changes: dict[int, bool] = field(default_factory=dict, init=False)

    @property
    def steps(self) -> list[int]:
        """The steps of the run."""
        return list(self.plan.run.steps)

    def write(self, around: Surroundings, progress: bool) -> int:
        """Do everything and return the size of the file."""
        tensors = list(self.tensors(progress))
        self.writer.close_chunks()
        layouts = around.layouts
        manifest = Manifest(
            self.observed, self.exact, around.base_uri, self.embed, list(around.base_shards), self.quality.name,
            self.quality.growth, [tensor.entry for tensor in tensors], [file.entry for file in around.files],
            layouts.layouts, layouts.steps[self.observed - 1], step_entries(around.directories, layouts.steps),
            list(around.left_out),
        )  # fmt: skip
        tables = tables_of(tensors, np.array(self.steps, np.int64), manifest)
        return self.writer.finish(tables, self._segment.assemble() if self._segment else None)

    def tensors(self, progress: bool) -> Iterator[EncodedTensor]:
        """Encode every tensor, in the order of the plan."""
        tasks = [self._task(plan) for plan in self.plan.tensors if isinstance(plan, TensorPlan)]
        self._check(tasks)
        size = sum(task.input_bytes for task in tasks)
        with progress_bar("encode", size, enabled=progress) as bar, closing(self._encoded(tasks)) as encoded:
            for plan in self.plan.tensors:
                if isinstance(plan, CopyPlan):
                    yield EncodedTensor(plan.entry, f.TIED, f.IN_BASE, target=plan.target)
                    continue
                tensor = next(encoded)
                self._put(tensor)
                if tensor.not_finite:
                    self.not_finite[plan.info.name] = [self.steps[i] for i in tensor.not_finite]
                yield tensor
                bar.update(self._task(plan).input_bytes)

    def embed_file(self, content: bytes) -> PendingSpan:
        """Store a file that is no weights; returns its span."""
        data = np.frombuffer(content, np.uint8)
        parts = (data[lo : lo + f.PIECE] for lo in range(0, len(data), f.PIECE))
        return self.writer.base.add(parts, len(data), match=True)

    def _task(self, plan: TensorPlan) -> TensorTask:
        return TensorTask(plan, self.observed, self.rank, self.quality, self.embed or not plan.sources)

    def _encoded(self, tasks: list[TensorTask]) -> Generator[EncodedTensor, None, None]:
        """Yield the tensors in order, while the next ones are worked on."""
        processors = cpu_count()
        units = max(1, min(processors, len(tasks), self.budget // 4 // UNIT_MEMORY))
        threads = processors // units if units > 1 else processors + 1  # one reads while the others compute
        threads = max(1, min(threads, self.budget // THREAD_MEMORY // units))
        rooms = [self._room(task, threads, units) for task in tasks]
        arena = Arena(min(self.budget // 8 * 5, sum(room.size for room in rooms)))
        turns = Turns()

        def work(unit: tuple[int, TensorTask, Workplace]) -> EncodedTensor:
            number, task, place = unit
            try:
                frames = self._frames(number, task, turns)
                return encode_tensor(task, place, frames)
            finally:
                turns.end(number)
                arena.give_back(place.region)

        def places() -> Iterator[tuple[int, TensorTask, Workplace]]:
            for number, (task, room) in enumerate(zip(tasks, rooms, strict=True)):
                region = arena.take(room.size)
                yield number, task, Workplace(room, region, self.writer.directory, self.budget)

        try:
            yield from ordered_map(work, places(), units)
        finally:
            forget_working_arrays()

    def _room(self, task: TensorTask, threads: int, units: int) -> Room:
        info, origin = task.info, task.origin.dtype
        if task.plan.held:
            return Room(0, False, False, SMALLEST_SLICE, threads)
        return room_for(info, origin, len(self.steps), self.rank, self.budget, threads, units)

    def _frames(self, turn: int, task: TensorTask, turns: Turns) -> OrderedPieces | None:
        """Return what takes the steps of a tensor to the segment of frames, if that is to hold it."""
        if not (self.exact or (task.plan.held and self._changes(task))):
            return None

        def begin() -> TensorJob:
            if self._segment is None:
                self._segment = self.new_segment()
            return self._segment.tensor(task.plan.number, task.info.name, task.info.dtype)

        return OrderedPieces(turn, turns, begin, task.run.as_in_file)

    def _put(self, tensor: EncodedTensor) -> None:
        """Write the spans of a tensor."""
        if tensor.span is not None:
            self.writer.base.put(tensor.span)
        for direction in tensor.directions:
            self.writer.directions.put(direction.factors)
            self.writer.directions.put(direction.remainder)

    def _check(self, tasks: list[TensorTask]) -> None:
        """Refuse at once what would fail after hours: codes that move without frames, more memory than there is."""

        def need(task: TensorTask) -> int:  # frames take whole pieces of all steps
            return 3 * (len(self.steps) + 1) * ITEMSIZE[task.info.dtype] * min(task.info.size, f.PIECE)

        large = [task for task in tasks if self.exact and need(task) > self.budget]
        for task in tasks:
            if self.exact or not task.plan.held or not (task.plan.codes or need(task) > self.budget):
                continue
            if self._changes(task):
                if task.plan.codes:
                    raise InvalidArgument(_of_codes(task.info, task.plan.codes))
                large.append(task)
        if large:
            widest = max(large, key=need)
            name = quote(widest.info.name)
            what = "the exact tier" if self.exact else f"tensor {name}, which is stored step by step,"
            raise InvalidArgument(
                f"{what} of {len(self.steps)} steps needs {-(-need(widest) // 10**6)} MB, memory is "
                f"{self.budget // 10**6} MB: raise --memory"
            )

    def _changes(self, task: TensorTask) -> bool:
        """Tell whether a tensor ever differs from its origin, rounded to its dtype."""
        number = task.plan.number
        if number not in self._known_changes:
            self._known_changes[number] = self._differs(task)
        return self._known_changes[number]

    def _differs(self, task: TensorTask) -> bool:
        info, origin = task.info, task.origin
        width = len(self.steps) * ITEMSIZE[info.dtype]
        count = min(f.PIECE, max(SMALLEST_SLICE, self.budget // (8 * width)))
        for lo in range(0, info.size, count):
            hi = min(lo + count, info.size)
            start = as_dtype(origin.read(lo, hi), origin.dtype, info.dtype)
            if (task.run.read(info.name, lo, hi) != start).any():
                return True
        return False


def _of_codes(info: TensorInfo, codes: str) -> str:
    """Say why codes and their scales are refused without the exact tier."""
    what = "codes" if codes == info.name else f"belongs to the codes {quote(codes)}"
    return (
        f"tensor {quote(info.name)} ({what}, {info.dtype}) changes: a line through codes, or through scales of codes, "
        "means nothing; keep the run with --exact, or encode weights in BF16, F16 or F32"
    )
