"""The work of encoding a run: one tensor after another, and the tables of the file that result.

What happens to one tensor is in tensor_history.py, fit.py and direction_search.py, and in exact/ for the exact tier.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, TensorReader
from relex_codec.core.digests import DIGEST, digest
from relex_codec.core.dtypes import F32, FLOATS, ITEMSIZE, Bits
from relex_codec.core.filenames import file_allowed
from relex_codec.core.progress import progress_bar
from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.manifest import FileEntry, Manifest, TensorEntry
from relex_codec.format.packing import packed_size, piece_lengths, split_planes
from relex_codec.format.writer import FileWriter, PendingSpan, Tables

from .direction_search import DirectionSearch, Sample, StoredDirection, sample_from_bits, sample_starts
from .fit import F64, Fit, fit_directions
from .full_check import FullCheck
from .low_rank import ReadElements
from .quality import Quality
from .tensor_history import Origin, TensorHistory, Vectors, digests_of, pieces, step_digests

if TYPE_CHECKING:
    from relex_codec.exact.tier_writer import SegmentJob


@dataclass(slots=True)
class _Tensor:
    """What is known of one tensor when it has been encoded."""

    entry: TensorEntry
    kind: int
    origin: int
    span: PendingSpan | None = None
    digests: list[bytes] = field(default_factory=list)
    series: list[PendingSpan] = field(default_factory=list)
    directions: list[tuple[Any, PendingSpan, PendingSpan]] = field(default_factory=list)
    """Record of each direction without its spans, and the spans of its factors and of its remainder."""
    coefficients: list[F64] = field(default_factory=list)
    segment: int = 0
    """The record's field of the exact tier."""


@dataclass(slots=True)
class RunEncoder:
    """The work of one encoding.

    Attributes:
        run: the checkpoints, of old steps too where they are appended to.
        observed: how many steps, from the first, are fitted.
        rank: directions per tensor.
        embed: store the base.
        budget: bytes.
        segment: of the exact tier, if there is one.
    """

    run: CheckpointSeries
    base: TensorReader
    writer: FileWriter
    observed: int
    quality: Quality
    rank: int
    embed: bool
    budget: int
    segment: SegmentJob | None = None

    def write(self, base_uri: str | None, progress: bool) -> int:
        """Do everything and return the size of the file.

        Args:
            base_uri: where the base is, for the manifest.
        """
        tensors = list(self.tensors(progress))
        names = [name for name in self.base.side_files if file_allowed(name)] if self.embed else []
        files = [(name, self.embed_file(data)) for name, data in zip(names, self.base.read_files(names), strict=True)]
        self.writer.close_chunks()
        manifest = Manifest(
            self.observed, base_uri, self.embed, self.quality.name, self.quality.growth,
            [tensor.entry for tensor in tensors], list(self.base.shards), self.base.indexed,
            [FileEntry(name, length, *span.resolved()) for name, (length, span) in files],
        )  # fmt: skip
        tables = _tables(tensors, np.array(self.run.steps, np.int64), manifest)
        return self.writer.finish(tables, self.segment.assemble() if self.segment else None)

    def tensors(self, progress: bool) -> Iterator[_Tensor]:
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
        size = sum(info.size * ITEMSIZE[info.dtype] for info in infos.values()) * len(self.run.steps)
        with progress_bar("encode", size, enabled=progress) as bar:
            for info in shared + rest:
                yield self._tensor(info)
                bar.update(info.size * ITEMSIZE[info.dtype] * len(self.run.steps))

    def _from_base(self, info: TensorInfo) -> bool:
        there = self.base.tensors.get(info.name)
        if there is None or there.shape != info.shape:
            return False
        return there.dtype == info.dtype or {there.dtype, info.dtype} <= FLOATS

    def _tensor(self, info: TensorInfo) -> _Tensor:
        there = self.base.tensors.get(info.name)
        in_base = self._from_base(info)
        shard = there.shard if there else len(self.base.shards) - 1
        origin_dtype = there.dtype if there and in_base else info.dtype
        entry = TensorEntry(info.name, info.dtype, info.shape, origin_dtype, shard)
        if info.dtype not in FLOATS:
            return self._exact(info, entry, in_base)
        origin = Origin.in_base(self.base, there) if there and in_base else Origin.in_run(self.run, info)
        return self._moving(info, entry, origin, in_base)

    def _exact(self, info: TensorInfo, entry: TensorEntry, in_base: bool) -> _Tensor:
        """A tensor that no line is drawn through: the same at every step, or stored step by step."""
        if self.segment is not None:
            return self._framed(info, entry, in_base, self.segment)
        digests = digests_of(self.base, self.base.info(info.name)) if in_base else []
        per_step = step_digests(self.run, info)
        if len(set(per_step)) == 1 and (not in_base or self._equals_base(info, digests)):
            tensor = _Tensor(entry, f.SAME, f.IN_BASE if in_base else f.STORED, digests=digests)
            if self.embed or not in_base:
                tensor.span = self._store_origin(info, self.base if in_base else self.run.checkpoint(0))
            return tensor
        tensor = _Tensor(entry, f.EXACT_SERIES, f.IN_BASE if in_base else f.NO_ORIGIN, digests=digests)
        if self.embed and in_base:
            tensor.span = self._store_origin(info, self.base)
        for number, hashed in enumerate(per_step):
            if number and hashed == per_step[number - 1]:
                tensor.series.append(tensor.series[-1])
                continue
            planes = (plane for piece in pieces(self.run.checkpoint(number), info) for plane in split_planes(piece))
            tensor.series.append(self.writer.exact.add(planes, info.size * ITEMSIZE[info.dtype], match=True))
        return tensor

    def _framed(self, info: TensorInfo, entry: TensorEntry, in_base: bool, segment: SegmentJob) -> _Tensor:
        """The same where the exact tier takes it."""
        checkpoint = self.base if in_base else self.run.checkpoint(0)
        origin = Origin.in_base(self.base, info) if in_base else Origin.in_run(self.run, info)
        tensor = _Tensor(entry, f.SAME, f.IN_BASE if in_base else f.STORED)
        job = segment.tensor(info.name, info.dtype)
        for piece, lo in enumerate(range(0, info.size, f.PIECE)):
            hi = min(lo + f.PIECE, info.size)
            bits = origin.read(lo, hi)
            if in_base:
                tensor.digests.append(digest(bits))
            job.add(piece, bits, self.run.read(info.name, lo, hi))
        tensor.segment = job.segment
        if tensor.segment:
            tensor.kind = f.EXACT_SERIES
        if self.embed or not in_base:
            tensor.span = self._store_origin(info, checkpoint)
        return tensor

    def _equals_base(self, info: TensorInfo, digests: list[bytes]) -> bool:
        return digests_of(self.run.checkpoint(0), info) == digests

    def _store_origin(self, info: TensorInfo, checkpoint: TensorReader) -> PendingSpan:
        there = checkpoint.info(info.name)
        planes = (plane for piece in pieces(checkpoint, there) for plane in split_planes(piece))
        return self.writer.base.add(planes, there.size * ITEMSIZE[there.dtype])

    def _moving(self, info: TensorInfo, entry: TensorEntry, origin: Origin, in_base: bool) -> _Tensor:
        tensor = _Tensor(entry, f.SAME, f.IN_BASE if in_base else f.STORED)
        job = self.segment.tensor(info.name, info.dtype) if self.segment else None
        unit = TensorHistory(self.run, info, origin, self.observed, self.budget, job.add if job else None)

        def origin_piece(bits: Bits) -> None:
            if in_base:
                tensor.digests.append(digest(bits))

        gram = unit.gram(origin_piece)
        if self.embed or not in_base:
            tensor.span = self._store_origin(info, self.base if in_base else self.run.checkpoint(0))
        if job:
            tensor.segment = job.segment
        if not unit.finite:
            if tensor.segment:
                tensor.kind = f.EXACT_SERIES  # no line goes through it, but the exact tier has it
            return tensor
        if not unit.moved:
            return tensor  # it did not move while it was observed
        tensor.kind = f.MOVING
        fitted = fit_directions(gram, np.array(self.run.steps, np.int64), self.observed, self.rank)
        starts = sample_starts(unit.energies)
        ends = [min(start + f.PIECE, info.size) for start in starts]
        origins = [origin.read(lo, hi) for lo, hi in zip(starts, ends, strict=True)]
        targets = [unit.at_last_observed(lo, hi) for lo, hi in zip(starts, ends, strict=True)]
        sample = sample_from_bits(starts, origins, origin.dtype, targets, info.dtype)
        with unit.vectors(fitted, self.budget // 4, self.writer.directory) as vectors:
            unit.release()
            whole = FullCheck(unit, vectors) if len(starts) < len(unit.energies) and len(fitted.slope) == 1 else None
            with np.errstate(over="ignore", invalid="ignore"):  # weights near the largest float32
                self._store_directions(tensor, fitted, vectors, sample, whole)
        return tensor

    def _store_directions(
        self, tensor: _Tensor, fitted: Fit, vectors: Vectors, sample: Sample, whole: FullCheck | None
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

            def search(
                share: float, j: int = j, read: ReadElements = read, others: list[F32] = others
            ) -> StoredDirection:
                g, shape = float(last[j]), tensor.entry.shape
                return DirectionSearch(read, shape, sample, others, g, self.quality, share, unquantised).run()

            stored = search((j + 1) / count) if whole is None else whole.hold(search, self.quality, float(last[j]))
            factors, packing = stored.factor_pieces(), stored.packing
            raw = packing.planes * sum(packed_size(n, packing) for n in piece_lengths(size))
            add = self.writer.directions.add
            spans = (
                add(factors, sum(map(len, factors))),
                add(stored.remainder_pieces(read, size), raw, packing.name if packing.per_byte else "planes"),
            )
            tensor.directions.append((_direction_record(fitted, j, stored), *spans))
            tensor.coefficients.append(fitted.coefficients[j])
            if count > 1:
                products[j] = product(j, stored)

    def embed_file(self, content: bytes) -> tuple[int, PendingSpan]:
        """Store one of the base's other files; returns its length and span."""
        data = np.frombuffer(content, np.uint8)
        parts = (data[lo : lo + f.PIECE] for lo in range(0, len(data), f.PIECE))
        return len(data), self.writer.base.add(parts, len(data), match=True)


def _tables(tensors: list[_Tensor], steps: Any, manifest: Manifest) -> Tables:
    records = np.zeros(len(tensors), f.TENSOR_RECORD)
    rows: list[Any] = []
    series: list[tuple[int, int]] = []
    digests: list[bytes] = []
    coefficients: list[Any] = []
    for record, tensor in zip(records, tensors, strict=True):
        record["kind"], record["origin"], record["directions"] = tensor.kind, tensor.origin, len(tensor.directions)
        record["first"] = {f.MOVING: len(rows), f.EXACT_SERIES: len(series)}.get(tensor.kind, 0)
        record["segment"] = tensor.segment
        record["digest"] = len(digests) if tensor.origin == f.IN_BASE else 0
        if tensor.span is not None:
            record["chunk"], record["offset"] = tensor.span.resolved()
        digests.extend(tensor.digests)
        series.extend(span.resolved() for span in tensor.series)
        for row, factors, remainder in tensor.directions:
            row["factor_chunk"], row["factor_offset"] = factors.resolved()
            row["chunk"], row["offset"] = remainder.resolved()
            rows.append(row)
        coefficients.extend(tensor.coefficients)
    return Tables(
        steps=steps,
        manifest=manifest,
        tensors=records,
        directions=np.concatenate(rows) if rows else np.zeros(0, f.DIRECTION_RECORD),
        series=np.array(series, f.SPAN_RECORD),
        digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST),
        coefficients=np.array(coefficients, np.float64).reshape(-1, len(steps)),
    )


def _direction_record(fitted: Fit, j: int, stored: StoredDirection) -> Any:
    """The record of a direction, but for its spans, which are known when all chunks are written."""
    record = np.zeros(1, f.DIRECTION_RECORD)
    row = record[0]
    row["slope"], row["intercept"] = fitted.slope[j], fitted.intercept[j]
    row["step"], row["shift"] = stored.scale, stored.shift
    row["rank"], row["packing"] = stored.rank, stored.packing.id
    row["coefficients_crc"] = zlib.crc32(fitted.coefficients[j].astype("<f8").tobytes())
    row["explained"], row["r2"] = fitted.explained[j], fitted.r2[j]
    row["error_line"], row["error_stored"] = stored.error_line, stored.error_stored
    return record
