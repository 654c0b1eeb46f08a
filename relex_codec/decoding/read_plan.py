"""What reading some steps takes: which ranges of the file and of its base, in which order, and what for.

A plan is a value. It is made before anything is read, and reading takes its ranges from it, so that both say the same:

    ReadPlan            some steps, tensor by tensor
      TensorPlan        what is wanted of a tensor, window by window
        WindowPlan      a window, pass by pass; a pass serves all steps that are made of the same bytes
          KernelPass    origin and directions, for a kernel, in KernelBatches
          OriginPass    the origin as it is, in OriginPieces
          FramePass     frames and origin, for the exact tier, in FrameBatches

Pure functions on the tables of a file. Two things are looked up on the way, and only for what needs them: where
tensors lie in the base, which must be open for that, and where blobs lie, which the exact tier has to read.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.format import constants as f
from relex_codec.format.index import Index, Part
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.kernels.interface import Window
from relex_codec.kernels.windows import piece_ranges

from .tiers import LINEAR, StepTier

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo
    from relex_codec.exact.tier_reader import ExactTier, Key

BATCH: Final = 64
"""Pieces of a tensor that are read together, and are in memory in packed form at a time."""
BasePlaces = Callable[[], Mapping[str, TensorInfo]]
"""Gives where tensors lie in the base, which it opens if need be."""


class ByteRange(NamedTuple):
    """Bytes `start` to `end` of the file itself (`shard` is None), or of a shard of the base."""

    shard: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class OriginPieces:
    """Whole pieces of a tensor's origin.

    Attributes:
        start, end: elements.
        parts: where they lie in the file, plane by plane of each piece; empty if they are in the base.
        in_base: where they lie in the base; None if they are in the file.
    """

    tensor: TensorRecord
    start: int
    end: int
    parts: Sequence[Part]
    in_base: ByteRange | None

    def ranges(self, index: Index) -> Iterator[ByteRange]:
        """Yield what is read."""
        if self.in_base is not None:
            yield self.in_base
        yield from _chunks(index, self.parts)


@dataclass(frozen=True, slots=True)
class DirectionPieces:
    """What is read of one direction for a batch.

    Attributes:
        number: of its record.
        factors: in the first batch of a window all pieces of its factors; after that they are known.
        remainder: pieces of its codes, plane by plane of each.
    """

    number: int
    factors: Sequence[Part]
    remainder: Sequence[Part]


@dataclass(frozen=True, slots=True)
class KernelBatch:
    """Pieces that a kernel decodes together. The origin is read first, then the directions, all at once."""

    origin: OriginPieces
    directions: Sequence[DirectionPieces]

    def ranges(self, index: Index) -> Iterator[ByteRange]:
        """Yield what is read, in order."""
        yield from self.origin.ranges(index)
        yield from _chunks(index, self.parts())

    def parts(self) -> Iterator[Part]:
        """Yield the pieces of all directions."""
        for direction in self.directions:
            yield from direction.factors
            yield from direction.remainder


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Pieces that are restored from frames together. The blobs are read first, then the origin.

    Attributes:
        parts: the pieces.
        keys: the blobs that they are restored with.
        blobs: where those of them lie that are read now; others are kept since an earlier batch.
    """

    parts: Sequence[PartInfo]
    keys: Sequence[Key]
    blobs: Sequence[ByteRange]
    origin: OriginPieces

    def ranges(self, index: Index) -> Iterator[ByteRange]:
        """Yield what is read, in order."""
        yield from self.blobs
        yield from self.origin.ranges(index)


@dataclass(frozen=True, slots=True)
class KernelPass:
    """A window at all steps that a kernel makes of directions; `steps` are places in the plan's list of steps."""

    steps: Sequence[int]
    batches: Sequence[KernelBatch]


@dataclass(frozen=True, slots=True)
class OriginPass:
    """A window at all steps at which the tensor is its origin."""

    steps: Sequence[int]
    batches: Sequence[OriginPieces]


@dataclass(frozen=True, slots=True)
class FramePass:
    """A window at all steps at which the tensor is what it is at stored step number `stored`, counted from 1."""

    steps: Sequence[int]
    stored: int
    batches: Sequence[FrameBatch]


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """How one window of a tensor is read."""

    tensor: TensorRecord
    window: Window
    passes: Sequence[KernelPass | OriginPass | FramePass]


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """How what is wanted of a tensor is read, window by window; nothing is, of a tensor without elements."""

    tensor: TensorRecord
    windows: Sequence[WindowPlan]


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """How parts of some tensors are read at some steps, one after another."""

    steps: Sequence[StepTier]
    tensors: Sequence[TensorPlan]

    def ranges(self, index: Index) -> Iterator[ByteRange]:
        """Yield what is read, in order; a chunk that two batches share comes twice, as it is read twice."""
        for planned in self.tensors:
            for window in planned.windows:
                for one in window.passes:
                    for batch in one.batches:
                        yield from batch.ranges(index)

    def keys(self) -> set[Hashable]:
        """Return something for each pass that is the same where the same is read."""
        return {
            (window.tensor.number, window.window, self.steps[one.steps[0]])
            for planned in self.tensors
            for window in planned.windows
            for one in window.passes
        }


def plan_reads(
    index: Index,
    wanted: Iterable[tuple[TensorRecord, Sequence[Window]]],
    steps: Sequence[StepTier],
    *,
    base: BasePlaces | None,
    exact: Callable[[], ExactTier],
    whole_windows: bool = False,
) -> ReadPlan:
    """Plan to read windows of tensors at some steps, one after another.

    Args:
        base: called where something is read of the base; None if the file embeds it.
        exact: gives the exact tier; called where something is restored from frames.
        whole_windows: read each window as one batch, for who keeps all of it anyway.

    Raises:
        Exception: what `base` and `exact` raise.
        Corrupt: the blobs of the exact tier do not lie as they must.
    """
    planner = _Planner(index, steps, base, exact, whole_windows)
    return ReadPlan(steps, [planner.tensor(tensor, windows) for tensor, windows in wanted])


def plan_origin(
    index: Index, tensor: TensorRecord, spans: Sequence[tuple[int, int]], base: BasePlaces | None
) -> list[OriginPieces]:
    """Plan to read whole pieces of a tensor's origin: ranges of elements; `base` is that of `plan_reads`."""
    width = ITEMSIZE[tensor.origin_dtype]
    if base is None or tensor.origin == f.STORED:
        parts = index.origin_parts(tensor)
        return [OriginPieces(tensor, *span, _of_pieces(parts, *span, width), None) for span in spans]
    if not spans:
        return []
    info = base()[tensor.name]
    return [
        OriginPieces(tensor, lo, hi, (), ByteRange(info.shard, info.begin + lo * width, info.begin + hi * width))
        for lo, hi in spans
    ]


def is_linear(tensor: TensorRecord, tier: str) -> bool:
    """Whether a kernel makes a tensor of directions in a tier."""
    return tensor.kind == f.MOVING and tier in LINEAR


_KERNEL, _ORIGIN = -1, 0


class _Planner:
    """Plans window after window; arguments are those of `plan_reads`."""

    def __init__(
        self,
        index: Index,
        steps: Sequence[StepTier],
        base: BasePlaces | None,
        exact: Callable[[], ExactTier],
        whole_windows: bool,
    ) -> None:
        self._index, self._steps, self._base, self._exact = index, steps, base, exact
        self._whole_windows = whole_windows
        self._asked: set[Key] = set()
        """Blobs that an earlier batch reads, and which are kept."""

    def tensor(self, tensor: TensorRecord, windows: Sequence[Window]) -> TensorPlan:
        """Plan to read some windows of a tensor."""
        made: dict[int, list[int]] = {}
        for i, step in enumerate(self._steps if windows else ()):
            made.setdefault(self._source(tensor, step), []).append(i)
        found = []
        for window in windows:
            spans = list(self._spans(tensor, window))
            passes = [self._pass(tensor, spans, source, made[source]) for source in sorted(made)]
            found.append(WindowPlan(tensor, window, passes))
        return TensorPlan(tensor, found)

    def _source(self, tensor: TensorRecord, step: StepTier) -> int:
        """What a tensor is made of at a step: `_KERNEL`, `_ORIGIN`, or the number of a stored step in the frames."""
        if is_linear(tensor, step.tier):
            return _KERNEL
        if step.tier == "base" or (step.tier in LINEAR and tensor.kind != f.FRAMED) or not tensor.segment:
            return _ORIGIN
        stored = max(1, int(np.searchsorted(self._index.steps, step.step, side="right")))
        tier = self._exact()
        return stored if tier.holds(tier.segment_of(stored), tensor.number) else _ORIGIN

    def _pass(
        self, tensor: TensorRecord, spans: Sequence[tuple[int, int]], source: int, steps: Sequence[int]
    ) -> KernelPass | OriginPass | FramePass:
        blobs = [self._blobs(tensor, source, *span) for span in spans] if source > _ORIGIN else []
        origins = plan_origin(self._index, tensor, spans, self._base)
        if source == _KERNEL:
            return KernelPass(steps, list(self._kernel_batches(tensor, origins)))
        if source == _ORIGIN:
            return OriginPass(steps, origins)
        batches = [FrameBatch(*found, origin) for found, origin in zip(blobs, origins, strict=True)]
        return FramePass(steps, source, batches)

    def _spans(self, tensor: TensorRecord, window: Window) -> Iterator[tuple[int, int]]:
        """Yield the elements of each batch: whole pieces."""
        runs = list(piece_ranges(window))
        if self._whole_windows and runs:
            runs, most = [(runs[0][0], runs[-1][1])], runs[-1][1]
        else:
            most = BATCH
        for low, high in runs:
            for piece in range(low, high, most):
                yield piece * f.PIECE, min(min(piece + most, high) * f.PIECE, tensor.size)

    def _kernel_batches(self, tensor: TensorRecord, origins: Sequence[OriginPieces]) -> Iterator[KernelBatch]:
        records = self._index.directions
        stored = [
            (number, f.PACKINGS[int(records[number]["packing"])].planes, *self._index.direction_parts(tensor, number))
            for number in tensor.directions
        ]
        for i, origin in enumerate(origins):
            pieces = [
                DirectionPieces(
                    number, () if i else factors, _of_pieces(remainder, origin.start, origin.end, planes)
                )
                for number, planes, factors, remainder in stored
            ]  # fmt: skip
            yield KernelBatch(origin, pieces)

    def _blobs(
        self, tensor: TensorRecord, stored: int, start: int, end: int
    ) -> tuple[list[PartInfo], list[Key], list[ByteRange]]:
        """Pieces of a tensor, the blobs that they are restored with, and where those lie that are read for them."""
        tier = self._exact()
        parts = tier.pieces(tensor.number, start // f.PIECE, -(-end // f.PIECE))
        keys = tier.blobs_of(parts, stored)
        missing = [key for key in keys if key not in self._asked]
        self._asked.update(missing)
        return parts, keys, [ByteRange(None, *at) for at in sorted(tier.ranges_of(missing))]


def _of_pieces(parts: Sequence[Part], start: int, end: int, planes: int) -> Sequence[Part]:
    """Of the parts of a tensor, so many a piece, those of the elements `start` to `end`."""
    return parts[start // f.PIECE * planes : -(-end // f.PIECE) * planes]


def _chunks(index: Index, parts: Iterable[Part]) -> Iterator[ByteRange]:
    """Yield the chunks of `parts`, each once: that is how they are read."""
    for number in dict.fromkeys(part.chunk for part in parts):
        record = index.chunks[number]
        begin = int(record["position"])
        yield ByteRange(None, begin, begin + int(record["stored"]))
