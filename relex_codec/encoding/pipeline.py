"""The work of encoding a run: its tensors one after another, several at a time; tables.py makes the tables of the file.

What happens to one tensor is in unit.py, and in exact/ for its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, TensorReader
from relex_codec.core.dtypes import FLOATS, ITEMSIZE
from relex_codec.core.filenames import file_allowed
from relex_codec.core.progress import progress_bar
from relex_codec.core.text import quote
from relex_codec.core.threads import cpu_count, ordered_map
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.manifest import Manifest, StepEntry
from relex_codec.format.packed_span import PendingSpan
from relex_codec.format.writer import FileWriter

from .arena import Arena
from .delta_sums import forget_working_arrays
from .quality import Quality
from .tables import EncodedTensor, file_entries, plain_layout, tables_of
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
        run: the checkpoints, of old steps too where they are appended to.
        observed: how many steps, from the first, are fitted.
        rank: directions per tensor.
        embed: store the base.
        budget: bytes.
        exact: frames hold every tensor that changes, not only those that no line is drawn through.
        new_segment: begins the segment of frames; called when the first tensor needs it.
    """

    run: CheckpointSeries
    base: TensorReader
    writer: FileWriter
    observed: int
    quality: Quality
    rank: int
    embed: bool
    budget: int
    exact: bool
    new_segment: Callable[[], SegmentJob]
    _segment: SegmentJob | None = field(default=None, init=False)

    def write(self, base_uri: str | None, progress: bool) -> int:
        """Do everything and return the size of the file.

        Args:
            base_uri: where the base is, for the manifest.
        """
        tensors = list(self.tensors(progress))
        names = [name for name in self.base.side_files if file_allowed(name)]
        stored = [
            (name, content, self.embed_file(content) if self.embed else None)
            for name, content in zip(names, self.base.read_files(names), strict=True)
        ]
        self.writer.close_chunks()
        files = file_entries(stored)
        layout = plain_layout(tensors, self.base.shards, self.base.indexed, len(files))
        manifest = Manifest(
            self.observed, self.exact, base_uri, self.embed, list(self.base.shards), self.quality.name,
            self.quality.growth, [tensor.entry for tensor in tensors], files, [layout], 0,
            [StepEntry(None, 0) for _ in self.run.steps],
        )  # fmt: skip
        tables = tables_of(tensors, np.array(self.run.steps, np.int64), manifest)
        return self.writer.finish(tables, self._segment.assemble() if self._segment else None)

    def tensors(self, progress: bool) -> Iterator[EncodedTensor]:
        """Encode every tensor: those of the base in its order, then those that it lacks."""
        infos = {name: self.run.info(name) for name in self.run.names}
        shared = [infos[name] for name in self.base.tensors if name in infos and self._from_base(infos[name])]
        rest = [info for name, info in infos.items() if not self._from_base(info)]
        if not shared:
            first, there = next(iter(infos)), next(iter(self.base.tensors))
            raise InvalidArgument(
                f"run and base {self.base.path} share no tensor: the run begins with {quote(first)}, "
                f"the base with {quote(there)}; is it the model that training started from?"
            )
        self._check_memory(shared + rest)
        tasks = [self._task(info) for info in shared + rest]
        with progress_bar("encode", sum(task.input_bytes for task in tasks), enabled=progress) as bar:
            for task, tensor in zip(tasks, self._encoded(tasks), strict=True):
                self._put(tensor)
                yield tensor
                bar.update(task.input_bytes)

    def _task(self, info: TensorInfo) -> TensorTask:
        in_base = self._from_base(info)
        return TensorTask(
            self.run, self.base, info, in_base, self.observed, self.rank, self.quality, self.embed or not in_base
        )

    def _encoded(self, tasks: list[TensorTask]) -> Iterator[EncodedTensor]:
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
        if info.dtype not in FLOATS:
            return Room(0, False, False, SMALLEST_SLICE, threads)
        return room_for(info, origin, len(self.run.steps), self.rank, self.budget, threads, units)

    def _frames(self, number: int, task: TensorTask, turns: Turns) -> OrderedPieces | None:
        """Return what takes the steps of a tensor to the segment of frames, if that is to hold it."""
        info = task.info
        if not (self.exact or (info.dtype not in FLOATS and self._changes(task))):
            return None

        def begin() -> TensorJob:
            if self._segment is None:
                self._segment = self.new_segment()
            return self._segment.tensor(number, info.name, info.dtype)

        return OrderedPieces(number, turns, begin)

    def _put(self, tensor: EncodedTensor) -> None:
        """Write the spans of a tensor."""
        if tensor.span is not None:
            self.writer.base.put(tensor.span)
        for direction in tensor.directions:
            self.writer.directions.put(direction.factors)
            self.writer.directions.put(direction.remainder)

    def _from_base(self, info: TensorInfo) -> bool:
        there = self.base.tensors.get(info.name)
        if there is None or there.shape != info.shape:
            return False
        return there.dtype == info.dtype or {there.dtype, info.dtype} <= FLOATS

    def _check_memory(self, infos: Iterable[TensorInfo]) -> None:
        """Refuse at once what would exceed the budget after hours: frames take whole pieces of all steps."""

        def need(info: TensorInfo) -> int:
            return 3 * (len(self.run.steps) + 1) * ITEMSIZE[info.dtype] * min(info.size, f.PIECE)

        large = [info for info in infos if need(info) > self.budget]
        framed = [
            info for info in large if self.exact or (info.dtype not in FLOATS and self._changes(self._task(info)))
        ]
        if framed:
            widest = max(framed, key=need)
            what = "the exact tier" if self.exact else f"tensor {quote(widest.name)}, which is stored step by step,"
            raise InvalidArgument(
                f"{what} of {len(self.run.steps)} steps needs {-(-need(widest) // 10**6)} MB, memory is "
                f"{self.budget // 10**6} MB: raise --memory"
            )

    def _changes(self, task: TensorTask) -> bool:
        """Tell whether a tensor of its origin's dtype ever differs from it."""
        info, origin = task.info, task.origin
        width = len(self.run.steps) * ITEMSIZE[info.dtype]
        count = min(f.PIECE, max(SMALLEST_SLICE, self.budget // (8 * width)))
        for lo in range(0, info.size, count):
            hi = min(lo + count, info.size)
            if (self.run.read(info.name, lo, hi) != origin.read(lo, hi)).any():
                return True
        return False

    def embed_file(self, content: bytes) -> PendingSpan:
        """Store a file that is no weights; returns its span."""
        data = np.frombuffer(content, np.uint8)
        parts = (data[lo : lo + f.PIECE] for lo in range(0, len(data), f.PIECE))
        return self.writer.base.add(parts, len(data), match=True)
