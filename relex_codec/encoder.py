"""Encoding a run: orchestration only. What happens to one tensor is in unit.py, subspace.py and direction.py."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from . import base as base_module
from . import format as f
from .checkpoint import Checkpoint, TensorInfo
from .checkpoints import Run, find_run
from .direction import Sample, Search, Stored, as_sample, sample_starts
from .dtypes import F32, FLOATS, ITEMSIZE, Bits
from .errors import InvalidArgument
from .factors import ReadElements
from .header import quote
from .manifest import FileEntry, Manifest, TensorEntry, file_allowed
from .packing import packed_size, piece_lengths, split_planes
from .paths import Options, PathLike
from .quality import Quality
from .subspace import F64, Fit, fit
from .unit import Origin, Unit, Vectors, digests_of, pieces, step_digests
from .whole import Whole
from .writer import PendingSpan, Tables, Writer

if TYPE_CHECKING:
    from .exact.assemble import SegmentJob
    from .exact.tier import ExactTier

DEFAULT_MEMORY: Final = "4GB"
SMALLEST_MEMORY: Final = 64 * 10**6
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
                 "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}  # fmt: skip


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
        run: directory or fsspec URL that holds ``global_step_N/``, ``checkpoint-N/`` and the like.
        output: local path of the file; it appears when it is complete.
        base: the model that training started from: directory, ``.safetensors`` file, URL or ``hf://org/name@commit``.
        observe: fit directions and lines on steps up to this number; later ones still get coefficients. Default: all.
        steps: ``A:B`` or ``A:B:K``, the steps to encode (ends included, every K-th from A).
        quality: ``raw fine default small micro``, or how much the weight error may grow, such as 0.03.
        factor_rank: factor pairs per matrix of quality ``micro`` (default 8).
        rank: number of directions; more than one does not help extrapolation.
        exact: store every step bit for bit as well.
        embed_base: store the base losslessly in the file.
        memory: budget in bytes or as ``4GB``.
        skip_incomplete: leave incomplete checkpoints out instead of refusing them.
        progress: show a bar on stderr.
        storage_options: for fsspec.

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
    origin_checkpoint = base_module.resolve(base, storage_options)
    found = find_run(run, storage_options, steps=steps, skip_incomplete=skip_incomplete, on_skip=_report_skip)
    observed = _observed([step for step, _ in found], observe)
    source = Run(found, storage_options)
    # Work is spread over threads here, block by block: BLAS's own threads spin when another process holds a core, and
    # the same encode took 11 times as long beside one busy process on two cores (RATIONALE.md).
    with threadpool_limits(1, "blas"), Writer(output) as writer:
        source.check()
        segment = new_segment(writer, source, budget) if exact else None
        job = Job(source, origin_checkpoint, writer, observed, wanted, rank, embed_base, budget, segment)
        tensors = list(job.tensors(progress))
        files = (
            [(name, job.embed_file(name)) for name in origin_checkpoint.side_files if file_allowed(name)]
            if embed_base
            else []
        )
        writer.close_chunks()
        manifest = Manifest(
            observed, base_module.canonical_uri(base), embed_base, wanted.name, wanted.growth,
            [tensor.entry for tensor in tensors], origin_checkpoint.shards, origin_checkpoint.indexed,
            [FileEntry(name, length, *span.resolved()) for name, (length, span) in files],
        )  # fmt: skip
        assembly = segment.assemble() if segment else None
        return writer.finish(_tables(tensors, np.array(source.steps, np.int64), manifest), assembly)


def new_segment(writer: Writer, run: Run, budget: int, old: ExactTier | None = None) -> SegmentJob:
    """Begin a segment of the exact tier with the steps of `run` that `old` does not have.

    Raises:
        InvalidArgument: the budget does not hold a piece over all steps.
    """
    from .exact.assemble import SegmentJob
    from .exact.writer import SegmentWriter

    widest = max((ITEMSIZE[run.info(name).dtype] * min(run.info(name).size, f.PIECE) for name in run.names), default=0)
    need = 3 * (len(run.steps) + 1) * widest
    if need > budget:
        raise InvalidArgument(
            f"the exact tier of {len(run.steps)} steps needs {-(-need // 10**6)} MB, memory is {budget // 10**6} MB: "
            "raise --memory"
        )
    held = {}
    count = len(run.steps)
    if old is not None:
        index = old.container.index
        held = {t.name: int(r["segment"]) for t, r in zip(index.manifest.tensors, index.tensors, strict=True)}
        count -= len(index.steps)
    return SegmentJob(SegmentWriter(writer.scratch(), count), old, held)


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


@dataclass(slots=True)
class Job:
    """The work of one encoding."""

    run: Run
    base: Checkpoint
    writer: Writer
    observed: int
    quality: Quality
    rank: int
    embed: bool
    budget: int
    segment: SegmentJob | None = None

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
        with tqdm(total=size, unit="B", unit_scale=True, desc="encode", disable=None if progress else True) as bar:
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
        for number, digest in enumerate(per_step):
            if number and digest == per_step[number - 1]:
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
                tensor.digests.append(base_module.digest(bits))
            job.add(piece, bits, self.run.read(info.name, lo, hi))
        tensor.segment = job.segment
        if tensor.segment:
            tensor.kind = f.EXACT_SERIES
        if self.embed or not in_base:
            tensor.span = self._store_origin(info, checkpoint)
        return tensor

    def _equals_base(self, info: TensorInfo, digests: list[bytes]) -> bool:
        return digests_of(self.run.checkpoint(0), info) == digests

    def _store_origin(self, info: TensorInfo, checkpoint: Checkpoint) -> PendingSpan:
        there = checkpoint.info(info.name)
        planes = (plane for piece in pieces(checkpoint, there) for plane in split_planes(piece))
        return self.writer.base.add(planes, there.size * ITEMSIZE[there.dtype])

    def _moving(self, info: TensorInfo, entry: TensorEntry, origin: Origin, in_base: bool) -> _Tensor:
        tensor = _Tensor(entry, f.SAME, f.IN_BASE if in_base else f.STORED)
        job = self.segment.tensor(info.name, info.dtype) if self.segment else None
        unit = Unit(self.run, info, origin, self.observed, self.budget, job.add if job else None)

        def origin_piece(bits: Bits) -> None:
            if in_base:
                tensor.digests.append(base_module.digest(bits))

        gram = unit.gram(origin_piece)
        if self.embed or not in_base:
            tensor.span = self._store_origin(info, self.base if in_base else self.run.checkpoint(0))
        if job:
            tensor.segment = job.segment
        if not unit.finite:
            tensor.kind = f.EXACT_SERIES  # no line goes through it, but the exact tier has it
            return tensor
        if not unit.moved:
            return tensor  # it did not move while it was observed
        tensor.kind = f.MOVING
        fitted = fit(gram, np.array(self.run.steps, np.int64), self.observed, self.rank)
        starts = sample_starts(unit.energies)
        ends = [min(start + f.PIECE, info.size) for start in starts]
        origins = [origin.read(lo, hi) for lo, hi in zip(starts, ends, strict=True)]
        targets = [unit.at_last_observed(lo, hi) for lo, hi in zip(starts, ends, strict=True)]
        sample = as_sample(starts, origins, origin.dtype, targets, info.dtype)
        with unit.vectors(fitted, self.budget // 4, self.writer.directory) as vectors:
            unit.release()
            whole = Whole(unit, vectors) if len(starts) < len(unit.energies) and len(fitted.slope) == 1 else None
            self._store_directions(tensor, fitted, vectors, sample, whole)
        return tensor

    def _store_directions(
        self, tensor: _Tensor, fitted: Fit, vectors: Vectors, sample: Sample, whole: Whole | None
    ) -> None:
        """Quantise and write the directions one after another; each is measured with the others in place."""
        last = fitted.coefficients[:, self.observed - 1]
        count, size = len(last), tensor.entry.size

        def product(j: int, stored: Stored | None) -> list[F32]:
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

            def search(share: float, j: int = j, read: ReadElements = read, others: list[F32] = others) -> Stored:
                g, shape = float(last[j]), tensor.entry.shape
                return Search(read, shape, sample, others, g, self.quality, share, unquantised).run()

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

    def embed_file(self, name: str) -> tuple[int, PendingSpan]:
        """Store one of the base's other files; returns its length and span."""
        data = np.frombuffer(self.base.read_file(name), np.uint8)
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
        digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, base_module.DIGEST),
        coefficients=np.array(coefficients, np.float64).reshape(-1, len(steps)),
    )


def _direction_record(fitted: Fit, j: int, stored: Stored) -> Any:
    """The record of a direction, but for its spans, which are known when all chunks are written."""
    record = np.zeros(1, f.DIRECTION_RECORD)
    row = record[0]
    row["slope"], row["intercept"] = fitted.slope[j], fitted.intercept[j]
    row["step"], row["shift"] = stored.step, stored.shift
    row["rank"], row["packing"] = stored.rank, stored.packing.id
    row["coefficients_crc"] = zlib.crc32(fitted.coefficients[j].astype("<f8").tobytes())
    row["explained"], row["r2"] = fitted.explained[j], fitted.r2[j]
    row["error_line"], row["error_stored"] = stored.error_line, stored.error_stored
    return record
