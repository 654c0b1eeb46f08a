"""The unit of work of encoding: one tensor over all steps.

`encode_tensor` is a function of a `TensorTask`: it gives the same whatever memory and threads there are for it. It
writes nothing: what it returns holds all that the file will say of the tensor, compressed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.core.digests import digest
from relex_codec.core.dtypes import F32, ITEMSIZE, as_dtype, to_float32
from relex_codec.engines.arena import Region
from relex_codec.format import constants as f
from relex_codec.format.packed_span import PackedSpan, pack
from relex_codec.format.packing import packed_size, piece_lengths, split_planes

from .delta_sums import FEW
from .direction_search import DirectionSearch, sample_starts
from .excerpt import LIMIT
from .fit import F64
from .full_check import FullCheck
from .gathered import Summed
from .origin import Origin
from .planning import TensorPlan
from .quality import Quality
from .room import Room
from .step_errors import squared_errors
from .stored_direction import StoredDirection
from .tables import EncodedDirection, EncodedTensor, direction_record
from .tensor_history import PieceTaker, TensorHistory, Vectors
from .tensor_steps import TensorSteps
from .usable_steps import fit_usable, last_usable
from .weight_error import ReadPieces, Sample

SPAN_SHARE: Final = 64
"""Part of the budget that the compressed bytes of a span take before they are in a scratch file."""


@dataclass(frozen=True, slots=True)
class TensorTask:
    """A tensor to be encoded, and all that the result depends on.

    Attributes:
        plan: which tensor, and what it starts from.
        observed: how many steps, from the first, are fitted.
        rank: most directions.
        quality: of the directions.
        store_origin: whether the file holds what the tensor starts from.
    """

    plan: TensorPlan
    observed: int
    rank: int
    quality: Quality
    store_origin: bool

    @property
    def run(self) -> TensorSteps:
        """The tensor at every step."""
        return self.plan.series

    @property
    def info(self) -> TensorInfo:
        """Its name, dtype and shape."""
        return self.plan.info

    @property
    def origin(self) -> Origin:
        """Where it starts from."""
        return self.plan.origin

    @property
    def in_base(self) -> bool:
        """Whether that is in the base."""
        return bool(self.plan.sources)

    @property
    def wide(self) -> bool:
        """Whether everything is computed in float64; see delta_sums.py."""
        return self.rank > 1 or self.info.size * len(self.run.steps) <= FEW

    @property
    def input_bytes(self) -> int:
        """Bytes of the tensor at all steps."""
        return self.info.size * ITEMSIZE[self.info.dtype] * len(self.run.steps)


@dataclass(frozen=True, slots=True)
class Workplace:
    """What a tensor is encoded with; nothing of it changes the result.

    Attributes:
        room: what memory there is.
        region: a part of the arena for it.
        directory: where scratch files are.
        budget: bytes of all work.
    """

    room: Room
    region: Region
    directory: str
    budget: int


def encode_tensor(
    task: TensorTask,
    place: Workplace,
    frames: PieceTaker | None = None,
    gathered: Summed | None = None,
) -> EncodedTensor:
    """Encode one tensor.

    Args:
        frames: takes it to the exact tier, if that holds it.
        gathered: what was found out when it was read band by band; its pieces have then gone to the exact tier.

    Raises:
        CheckpointError: it cannot be read, or has weights that are not finite and no frames.
    """
    tensor = EncodedTensor(task.plan.entry, f.SAME, f.IN_BASE if task.in_base else f.STORED)
    if task.plan.held:
        _without_line(tensor, task, frames)
    else:
        _with_line(tensor, task, place, frames, gathered)
    if task.store_origin:
        tensor.span = _stored_origin(task, place)
    return tensor


def _without_line(tensor: EncodedTensor, task: TensorTask, frames: PieceTaker | None) -> None:
    """A tensor that no line is drawn through: it is the same at every step, or in frames."""
    info, origin = task.info, task.origin
    for piece, lo in enumerate(range(0, info.size, f.PIECE)):
        hi = min(lo + f.PIECE, info.size)
        bits = origin.read(lo, hi)
        if task.in_base:
            tensor.digests.append(digest(bits))
        if frames:
            frames.add(piece, as_dtype(bits, origin.dtype, info.dtype), task.run.read(info.name, lo, hi))
    tensor.segment = frames.end() if frames else 0
    if tensor.segment:
        tensor.kind = f.FRAMED


def _stored_origin(task: TensorTask, place: Workplace) -> PackedSpan:
    planes = (plane for piece in task.origin.pieces(task.info.size) for plane in split_planes(piece))
    size = task.info.size * ITEMSIZE[task.origin.dtype]
    return pack(planes, size, directory=place.directory, in_memory=place.budget // SPAN_SHARE)


def history_of(task: TensorTask, place: Workplace, frames: PieceTaker | None) -> TensorHistory:
    """Return what reads the tensor at all steps."""
    return TensorHistory(
        task.run, task.info, task.origin, task.observed, place.room, place.region, frames, wide=task.wide
    )  # fmt: skip


def _with_line(
    tensor: EncodedTensor,
    task: TensorTask,
    place: Workplace,
    frames: PieceTaker | None,
    gathered: Summed | None,
) -> None:
    """A tensor that a line is drawn through, if it moves while it is observed."""
    unit = history_of(task, place, frames)
    gram = unit.gram() if gathered is None else unit.adopt(gathered)
    if task.in_base:
        tensor.digests = unit.digests
    tensor.norm = unit.norm if math.isfinite(unit.norm) else math.nan
    tensor.segment = frames.end() if frames else 0
    usable = task.run.usable & ~unit.infinite
    tensor.not_finite = np.flatnonzero(unit.infinite & task.run.usable).tolist()
    last = last_usable(usable, task.observed)
    if last is None:
        if tensor.segment:
            tensor.kind = f.FRAMED  # no line goes through it, but the frames have it
        return
    if not unit.moved or not np.diagonal(gram)[: task.observed][usable[: task.observed]].any():
        return  # it did not move while it was observed
    unit.last = last
    tensor.kind = f.MOVING
    fitted = fit_usable(gram, np.array(task.run.steps, np.int64), task.observed, task.rank, usable)
    starts = sample_starts([float(squares[last]) for squares in unit.energies])
    vectors, norms = unit.vectors(fitted, place.directory)
    with vectors:
        whole = None
        if task.info.size > LIMIT and len(fitted.slope) == 1:
            whole = FullCheck(unit, vectors, float(fitted.coefficients[0, last]))
        with np.errstate(over="ignore", invalid="ignore"):  # weights near the largest float32
            sample = _sampled(unit, starts, read_again=whole is not None)
            stored = _search(task, fitted.coefficients[:, last], vectors, sample, whole)
            tensor.squares = np.diagonal(gram).copy()
            tensor.misses = squared_errors(unit, vectors, stored, fitted, tensor.squares)
            tensor.misses[:, ~usable] = np.nan  # there is nothing to be near to
        for j, one in enumerate(stored):
            factors, remainder = _packed(task, place, vectors, j, one)
            record = direction_record(fitted, j, one)
            direction = EncodedDirection(record, factors, remainder, fitted.coefficients[j], float(norms[j]))
            tensor.directions.append(direction)


def _sampled(unit: TensorHistory, starts: list[int], *, read_again: bool) -> Sample:
    """Return the pieces that begin at `starts`, read now or whenever something of them is wanted."""
    info = unit.info
    spans = [(start, min(start + f.PIECE, info.size)) for start in starts]
    origins = ReadPieces(spans, lambda lo, hi: to_float32(unit.at_origin(lo, hi), unit.origin.dtype))
    targets = ReadPieces(spans, lambda lo, hi: to_float32(unit.at_last_observed(lo, hi), info.dtype))
    if read_again:
        return Sample(starts, origins, targets, info.dtype)
    return Sample(starts, list(origins), list(targets), info.dtype)


def _search(
    task: TensorTask, last: F64, vectors: Vectors, sample: Sample, whole: FullCheck | None
) -> list[StoredDirection]:
    """Choose how the directions are stored, one after another; each is measured with the others in place.

    Args:
        last: their coefficients where they are measured, at the last step that they are fitted on.
    """
    count = len(last)

    def product(j: int, stored: StoredDirection | None) -> list[F32]:
        values = [vectors.read(j, lo, lo + len(t)) for lo, t in zip(sample.starts, sample.targets, strict=True)]
        if stored is not None:
            values = [stored.decoded(v, lo) for v, lo in zip(values, sample.starts, strict=True)]
        return [v * np.float32(last[j]) for v in values]

    others = ReadPieces(sample.spans, lambda lo, hi: np.zeros(hi - lo, np.float32))
    if count == 1:
        search = DirectionSearch(
            lambda lo, hi: vectors.read(0, lo, hi), task.info.shape, sample, others, float(last[0]), task.quality
        )
        return [search.run(whole)]
    products = [product(j, None) for j in range(count)]
    unquantised = sample.error([np.sum(parts, axis=0, dtype=np.float32) for parts in zip(*products, strict=True)])
    found: list[StoredDirection] = []
    for j in range(count):
        rest = [parts for i, parts in enumerate(products) if i != j]
        summed: list[F32] = [np.sum(parts, axis=0, dtype=np.float32) for parts in zip(*rest, strict=True)]

        def of_this(lo: int, hi: int, j: int = j) -> F32:
            return vectors.read(j, lo, hi)

        share = (j + 1) / count
        search = DirectionSearch(
            of_this, task.info.shape, sample, summed, float(last[j]), task.quality, share, unquantised
        )
        found.append(search.run(whole))
        products[j] = product(j, found[-1])
    return found


def _packed(
    task: TensorTask, place: Workplace, vectors: Vectors, j: int, stored: StoredDirection
) -> tuple[PackedSpan, PackedSpan]:
    """Compress a direction: its factors and its remainder."""
    factors, packing, size = stored.factor_pieces(), stored.packing, task.info.size
    raw = packing.planes * sum(packed_size(n, packing) for n in piece_lengths(size))

    def read(lo: int, hi: int) -> F32:
        return vectors.read(j, lo, hi)

    return (
        pack(factors, sum(map(len, factors))),
        pack(
            stored.remainder_pieces(read, size), raw, packing.name if packing.per_byte else "planes",
            directory=place.directory, in_memory=place.budget // SPAN_SHARE,
        ),
    )  # fmt: skip
