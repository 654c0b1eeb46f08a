"""The work of encoding a run: one tensor after another; tables.py makes the tables of the file from what results.

What happens to one tensor is in tensor_history.py, fit.py and direction_search.py, and in exact/ for its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, TensorReader
from relex_codec.core.digests import digest
from relex_codec.core.dtypes import F32, FLOATS, ITEMSIZE, Bits
from relex_codec.core.filenames import file_allowed
from relex_codec.core.progress import progress_bar
from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.manifest import Manifest, StepEntry, TensorEntry, whole_tensor
from relex_codec.format.packing import packed_size, piece_lengths, split_planes
from relex_codec.format.writer import FileWriter, PendingSpan

from .adapter_run import StoredFiles, store_own_files
from .direction_search import DirectionSearch, sample_starts
from .fit import Fit, fit_directions
from .full_check import FullCheck
from .quality import Quality
from .stored_direction import StoredDirection
from .tables import EncodedTensor, direction_record, file_entries, plain_layout, tables_of
from .tensor_history import SMALLEST_SLICE, Origin, TensorHistory, Vectors, pieces
from .weight_error import Sample, sample_from_bits

if TYPE_CHECKING:
    from relex_codec.exact.tier_writer import SegmentJob, TensorJob


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
        stored = self._files()
        self.writer.close_chunks()
        whole = self.run.checkpoint(self.observed - 1) if self._of_adapters else self.base
        layouts = [plain_layout(tensors, whole.shards, whole.indexed, files) for files in stored.layouts]
        manifest = Manifest(
            self.observed, self.exact, base_uri, self.embed, list(self.base.shards), self.quality.name,
            self.quality.growth, [tensor.entry for tensor in tensors], file_entries(stored.files), layouts,
            stored.of_step[self.observed - 1], [StepEntry(None, layout) for layout in stored.of_step],
        )  # fmt: skip
        tables = tables_of(tensors, np.array(self.run.steps, np.int64), manifest)
        return self.writer.finish(tables, self._segment.assemble() if self._segment else None)

    @property
    def _of_adapters(self) -> bool:
        """Whether the run is one of adapters, whose tensors are none of the base."""
        return self.run.checkpoint(len(self.run.steps) - 1).is_adapter

    def _files(self) -> StoredFiles:
        """Store the files that are no weights: those of the base at every step, or an adapter's own."""
        if self._of_adapters:
            return store_own_files(self.run, self.observed, self.exact, self.embed_file)
        names = [name for name in self.base.side_files if file_allowed(name)]
        contents = zip(names, self.base.read_files(names), strict=True)
        files = [(name, content, self.embed_file(content) if self.embed else None) for name, content in contents]
        return StoredFiles(files, [list(range(len(files)))], [0] * len(self.run.steps))

    def _frames(self, number: int, info: TensorInfo) -> TensorJob:
        """Return what takes the steps of a tensor to the segment of frames."""
        if self._segment is None:
            self._segment = self.new_segment()
        return self._segment.tensor(number, info.name, info.dtype)

    def tensors(self, progress: bool) -> Iterator[EncodedTensor]:
        """Encode every tensor: those of the base in its order, then those that it lacks."""
        infos = {name: self.run.info(name) for name in self.run.names}
        shared = [infos[name] for name in self.base.tensors if name in infos and self._from_base(infos[name])]
        rest = [info for name, info in infos.items() if not self._from_base(info)]
        if not shared and not self._of_adapters:
            first, there = next(iter(infos)), next(iter(self.base.tensors))
            raise InvalidArgument(
                f"run and base {self.base.path} share no tensor: the run begins with {quote(first)}, "
                f"the base with {quote(there)}; is it the model that training started from?"
            )
        self._check_memory(shared + rest)
        size = sum(info.size * ITEMSIZE[info.dtype] for info in infos.values()) * len(self.run.steps)
        with progress_bar("encode", size, enabled=progress) as bar:
            for number, info in enumerate(shared + rest):
                yield self._tensor(number, info)
                bar.update(info.size * ITEMSIZE[info.dtype] * len(self.run.steps))

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
        framed = [info for info in large if self.exact or (info.dtype not in FLOATS and self._changes(info))]
        if framed:
            widest = max(framed, key=need)
            what = "the exact tier" if self.exact else f"tensor {quote(widest.name)}, which is stored step by step,"
            raise InvalidArgument(
                f"{what} of {len(self.run.steps)} steps needs {-(-need(widest) // 10**6)} MB, memory is "
                f"{self.budget // 10**6} MB: raise --memory"
            )

    def _origin(self, info: TensorInfo) -> Origin:
        if self._from_base(info):
            return Origin.in_base(self.base, self.base.info(info.name))
        return Origin.in_run(self.run, info)

    def _tensor(self, number: int, info: TensorInfo) -> EncodedTensor:
        there = self.base.tensors.get(info.name)
        in_base = self._from_base(info)
        shard = there.shard if there else max(0, len(self.base.shards) - 1)
        origin = self._origin(info)
        sources = whole_tensor(shard, info.name, info.shape) if in_base else ()
        entry = TensorEntry(info.name, info.dtype, info.shape, origin.dtype, sources)
        tensor = EncodedTensor(entry, f.SAME, f.IN_BASE if in_base else f.STORED, shard)
        if info.dtype in FLOATS:
            self._with_line(tensor, info, origin, self._frames(number, info) if self.exact else None)
        else:
            framed = self.exact or self._changes(info)
            self._without_line(tensor, info, origin, self._frames(number, info) if framed else None)
        return tensor

    def _changes(self, info: TensorInfo) -> bool:
        """Tell whether a tensor of its origin's dtype ever differs from it."""
        origin = self._origin(info)
        width = len(self.run.steps) * ITEMSIZE[info.dtype]
        count = min(f.PIECE, max(SMALLEST_SLICE, self.budget // (4 * width)))
        for lo in range(0, info.size, count):
            hi = min(lo + count, info.size)
            if (self.run.read(info.name, lo, hi) != origin.read(lo, hi)).any():
                return True
        return False

    def _without_line(self, tensor: EncodedTensor, info: TensorInfo, origin: Origin, frames: TensorJob | None) -> None:
        """A tensor that no line is drawn through: it is the same at every step, or in frames."""
        for piece, lo in enumerate(range(0, info.size, f.PIECE)):
            hi = min(lo + f.PIECE, info.size)
            bits = origin.read(lo, hi)
            if tensor.origin == f.IN_BASE:
                tensor.digests.append(digest(bits))
            if frames:
                frames.add(piece, bits, self.run.read(info.name, lo, hi))
        tensor.segment = frames.segment if frames else 0
        if tensor.segment:
            tensor.kind = f.FRAMED
        self._store_origin(tensor, info)

    def _store_origin(self, tensor: EncodedTensor, info: TensorInfo) -> None:
        """Write the origin where the file holds it."""
        in_base = tensor.origin == f.IN_BASE
        if self.embed or not in_base:
            checkpoint = self.base if in_base else self.run.checkpoint(0)
            there = checkpoint.info(info.name)
            planes = (plane for piece in pieces(checkpoint, there) for plane in split_planes(piece))
            tensor.span = self.writer.base.add(planes, there.size * ITEMSIZE[there.dtype])

    def _with_line(self, tensor: EncodedTensor, info: TensorInfo, origin: Origin, frames: TensorJob | None) -> None:
        """A tensor that a line is drawn through, if it moves while it is observed."""
        unit = TensorHistory(self.run, info, origin, self.observed, self.budget, frames.add if frames else None)

        def origin_piece(bits: Bits) -> None:
            if tensor.origin == f.IN_BASE:
                tensor.digests.append(digest(bits))

        gram = unit.gram(origin_piece)
        self._store_origin(tensor, info)
        tensor.segment = frames.segment if frames else 0
        if not unit.finite:
            if tensor.segment:
                tensor.kind = f.FRAMED  # no line goes through it, but the frames have it
            return
        if not unit.moved:
            return  # it did not move while it was observed
        tensor.kind = f.MOVING
        fitted = fit_directions(gram, np.array(self.run.steps, np.int64), self.observed, self.rank)
        starts = sample_starts(unit.energies)
        ends = [min(start + f.PIECE, info.size) for start in starts]
        origins = [origin.read(lo, hi) for lo, hi in zip(starts, ends, strict=True)]
        targets = [unit.at_last_observed(lo, hi) for lo, hi in zip(starts, ends, strict=True)]
        sample = sample_from_bits(starts, origins, origin.dtype, targets, info.dtype)
        with unit.vectors(fitted, self.budget // 4, self.writer.directory) as vectors:
            unit.release()
            whole = None
            if len(starts) < len(unit.energies) and len(fitted.slope) == 1:
                whole = FullCheck(unit, vectors, float(fitted.coefficients[0, self.observed - 1]))
            with np.errstate(over="ignore", invalid="ignore"):  # weights near the largest float32
                self._store_directions(tensor, fitted, vectors, sample, whole)

    def _store_directions(
        self, tensor: EncodedTensor, fitted: Fit, vectors: Vectors, sample: Sample, whole: FullCheck | None
    ) -> None:
        """Quantise and write the directions one after another; each is measured with the others in place."""
        last = fitted.coefficients[:, self.observed - 1]
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

    def embed_file(self, content: bytes) -> PendingSpan:
        """Store a file that is no weights; returns its span."""
        data = np.frombuffer(content, np.uint8)
        parts = (data[lo : lo + f.PIECE] for lo in range(0, len(data), f.PIECE))
        return self.writer.base.add(parts, len(data), match=True)
