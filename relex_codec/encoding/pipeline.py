"""The work of encoding a run: one tensor after another; tables.py makes the tables of the file from what results.

What there is to do is planned in planning.py; what happens to one tensor is in tensor_history.py, fit.py and
direction_search.py, and in exact/ for its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from relex_codec.core.digests import digest
from relex_codec.core.dtypes import F32, ITEMSIZE, Bits
from relex_codec.core.progress import progress_bar
from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.manifest import Manifest
from relex_codec.format.packing import packed_size, piece_lengths, split_planes
from relex_codec.format.writer import FileWriter, PendingSpan

from .direction_search import DirectionSearch, sample_starts
from .fit import Fit
from .full_check import FullCheck
from .layouts import step_entries
from .origin import as_dtype
from .planning import CopyTask, RunPlan, TensorTask
from .quality import Quality
from .stored_direction import StoredDirection
from .surroundings import Surroundings
from .tables import EncodedTensor, direction_record, tables_of
from .tensor_history import SMALLEST_SLICE, TensorHistory, Vectors
from .usable_steps import fit_usable, last_usable
from .weight_error import Sample, sample_from_bits

if TYPE_CHECKING:
    from relex_codec.exact.tier_writer import SegmentJob, TensorJob


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
        tasks = self.plan.tasks
        self._check(task for task in tasks if isinstance(task, TensorTask))
        size = sum(task.input_bytes for task in tasks if isinstance(task, TensorTask))
        with progress_bar("encode", size, enabled=progress) as bar:
            for number, task in enumerate(tasks):
                if isinstance(task, CopyTask):
                    yield EncodedTensor(task.entry, f.TIED, f.IN_BASE, target=task.target)
                    continue
                yield self._tensor(number, task)
                bar.update(task.input_bytes)

    def embed_file(self, content: bytes) -> PendingSpan:
        """Store a file that is no weights; returns its span."""
        data = np.frombuffer(content, np.uint8)
        parts = (data[lo : lo + f.PIECE] for lo in range(0, len(data), f.PIECE))
        return self.writer.base.add(parts, len(data), match=True)

    def _check(self, tasks: Iterator[TensorTask]) -> None:
        """Refuse at once what would fail after hours: codes that move without frames, more memory than there is."""
        framed: list[TensorTask] = []
        for task in tasks:
            changes = self.exact or (
                task.held
                and (task.codes or self._need(task) > self.budget)
                and _changes(task, len(self.steps), self.budget)
            )
            if changes and not self.exact and task.codes:
                what = "codes" if task.codes == task.info.name else f"belongs to the codes {quote(task.codes)}"
                raise InvalidArgument(
                    f"tensor {quote(task.info.name)} ({what}, {task.info.dtype}) changes: a line through codes, or "
                    "through scales of codes, means nothing; keep the run with --exact, or encode weights in BF16, F16 "
                    "or F32"
                )
            if changes:
                framed.append(task)
        widest = max(framed, key=self._need, default=None)
        if widest is not None and self._need(widest) > self.budget:
            what = (
                "the exact tier" if self.exact else f"tensor {quote(widest.info.name)}, which is stored step by step,"
            )
            raise InvalidArgument(
                f"{what} of {len(self.steps)} steps needs {-(-self._need(widest) // 10**6)} MB, memory is "
                f"{self.budget // 10**6} MB: raise --memory"
            )

    def _need(self, task: TensorTask) -> int:
        """Bytes that frames take: whole pieces of all steps."""
        return 3 * (len(self.steps) + 1) * ITEMSIZE[task.info.dtype] * min(task.info.size, f.PIECE)

    def _frames(self, number: int, task: TensorTask) -> PieceTaker:
        """Return what takes the steps of a tensor to the segment of frames."""
        if self._segment is None:
            self._segment = self.new_segment()
        key = task.planned.key
        return PieceTaker(self._segment.tensor(number, key.name, key.dtype), task, self._segment.first)

    def _tensor(self, number: int, task: TensorTask) -> EncodedTensor:
        tensor = EncodedTensor(task.entry, f.SAME, f.IN_BASE if task.sources else f.STORED)
        if task.held:
            framed = self.exact or _changes(task, len(self.steps), self.budget)
            self._without_line(tensor, task, self._frames(number, task) if framed else None)
        else:
            self._with_line(tensor, task, self._frames(number, task) if self.exact else None)
        return tensor

    def _without_line(self, tensor: EncodedTensor, task: TensorTask, frames: PieceTaker | None) -> None:
        """A tensor that no line is drawn through: it is the same at every step, or in frames."""
        info, origin = task.info, task.origin
        for piece, lo in enumerate(range(0, info.size, f.PIECE)):
            hi = min(lo + f.PIECE, info.size)
            bits = origin.read(lo, hi)
            if tensor.origin == f.IN_BASE:
                tensor.digests.append(digest(bits))
            if frames:
                frames.add(piece, as_dtype(bits, origin.dtype, info.dtype), task.series.read(info.name, lo, hi))
        tensor.segment = frames.segment if frames else 0
        if tensor.segment:
            tensor.kind = f.FRAMED
        self._store_origin(tensor, task)

    def _store_origin(self, tensor: EncodedTensor, task: TensorTask) -> None:
        """Write the origin where the file holds it."""
        if self.embed or tensor.origin != f.IN_BASE:
            planes = (plane for piece in task.origin.pieces(task.info.size) for plane in split_planes(piece))
            tensor.span = self.writer.base.add(planes, task.info.size * ITEMSIZE[task.origin.dtype])

    def _with_line(self, tensor: EncodedTensor, task: TensorTask, frames: PieceTaker | None) -> None:
        """A tensor that a line is drawn through, if it moves while it is observed."""
        info, origin, steps = task.info, task.origin, np.array(self.steps, np.int64)
        unit = TensorHistory(task.series, info, origin, self.observed, self.budget, frames.add if frames else None)

        def origin_piece(bits: Bits) -> None:
            if tensor.origin == f.IN_BASE:
                tensor.digests.append(digest(bits))

        gram = unit.gram(origin_piece)
        self._store_origin(tensor, task)
        tensor.segment = frames.segment if frames else 0
        usable = task.series.usable & ~unit.infinite
        bad = np.flatnonzero(unit.infinite & task.series.usable)
        if len(bad):
            self.not_finite[info.name] = [self.steps[i] for i in bad]
        last = last_usable(usable, self.observed)
        if last is None:
            if tensor.segment:
                tensor.kind = f.FRAMED  # no line goes through it, but the frames have it
            return
        if not unit.moved or not np.diag(gram)[: self.observed][usable[: self.observed]].any():
            return  # it did not move while it was observed
        unit.last = last
        tensor.kind = f.MOVING
        fitted = fit_usable(gram, steps, self.observed, self.rank, usable)
        starts = sample_starts([float(energies[last]) for energies in unit.energies])
        ends = [min(start + f.PIECE, info.size) for start in starts]
        origins = [origin.read(lo, hi) for lo, hi in zip(starts, ends, strict=True)]
        targets = [unit.at_last_observed(lo, hi) for lo, hi in zip(starts, ends, strict=True)]
        sample = sample_from_bits(starts, origins, origin.dtype, targets, info.dtype)
        with unit.vectors(fitted, self.budget // 4, self.writer.directory) as vectors:
            unit.release()
            whole = None
            if len(starts) < len(unit.energies) and len(fitted.slope) == 1:
                whole = FullCheck(unit, vectors, float(fitted.coefficients[0, last]))
            with np.errstate(over="ignore", invalid="ignore"):  # weights near the largest float32
                self._store_directions(tensor, fitted, last, vectors, sample, whole)

    def _store_directions(
        self,
        tensor: EncodedTensor,
        fitted: Fit,
        measured: int,
        vectors: Vectors,
        sample: Sample,
        whole: FullCheck | None,
    ) -> None:
        """Quantise and write the directions one after another; each is measured with the others in place.

        Args:
            measured: the number of the step at which that is.
        """
        last = fitted.coefficients[:, measured]
        count, size = len(last), tensor.entry.size

        def product(j: int, stored: StoredDirection | None) -> list[F32]:
            values = [vectors.read(j, lo, lo + len(t)) for lo, t in zip(sample.starts, sample.targets, strict=True)]
            if stored is not None:
                values = [stored.decoded(v, lo) for v, lo in zip(values, sample.starts, strict=True)]
            return [v * np.float32(last[j]) for v in values]

        products = [product(j, None) for j in range(count)]
        unquantised = sample.error([np.sum(parts, axis=0, dtype=np.float32) for parts in zip(*products, strict=True)])
        for j in range(count):
            others = [np.zeros(len(t), np.float32) for t in sample.targets]
            for i in range(count):
                if i != j:
                    others = [a + b for a, b in zip(others, products[i], strict=True)]

            def read(lo: int, hi: int, j: int = j) -> F32:
                return vectors.read(j, lo, hi)

            g, shape = float(last[j]), tensor.entry.shape
            search = DirectionSearch(read, shape, sample, others, g, self.quality, (j + 1) / count, unquantised)
            stored = search.run(whole)
            factors, packing = stored.factor_pieces(), stored.packing
            raw = packing.planes * sum(packed_size(n, packing) for n in piece_lengths(size))
            add = self.writer.directions.add
            spans = (
                add(factors, sum(map(len, factors))),
                add(stored.remainder_pieces(read, size), raw, packing.name if packing.per_byte else "planes"),
            )
            tensor.directions.append((direction_record(fitted, j, stored), *spans))
            tensor.coefficients.append(fitted.coefficients[j])
            if count > 1:
                products[j] = product(j, stored)


class PieceTaker:
    """Takes the pieces of a tensor to the segment of frames; as the file has them, at steps that it has already.

    Args:
        old: how many steps that are.
    """

    def __init__(self, job: TensorJob, task: TensorTask, old: int) -> None:
        self._job, self._series, self._old = job, task.series, old if task.series.differs_in_file else 0

    def add(self, piece: int, origin: Bits, bits: Bits) -> None:
        """Take the next piece: its elements at the origin, in the tensor's dtype, and at all steps, [T, elements]."""
        if self._old:
            bits = bits.copy()
            if not self._series.in_file(piece * f.PIECE, bits[: self._old]):
                bits[: self._old] = origin
        self._job.add(piece, origin, bits)

    @property
    def segment(self) -> int:
        """The ``segment`` field of the tensor's record; after the last piece."""
        return self._job.segment


def _changes(task: TensorTask, steps: int, budget: int) -> bool:
    """Tell whether a tensor ever differs from its origin, which is rounded to its dtype."""
    info, origin = task.info, task.origin
    width = steps * ITEMSIZE[info.dtype]
    count = min(f.PIECE, max(SMALLEST_SLICE, budget // (4 * width)))
    for lo in range(0, info.size, count):
        hi = min(lo + count, info.size)
        start = as_dtype(origin.read(lo, hi), origin.dtype, info.dtype)
        if (task.series.read(info.name, lo, hi) != start).any():
            return True
    return False
