"""What is read for some steps: which ranges of the file and of its base, in which order, and what for.

A plan is a value, made before anything is read (planning.py). Reading takes its ranges from it, so both say the same.

    ReadPlan            some steps, tensor by tensor
      TensorPlan        what is wanted of a tensor, window by window
        WindowPlan      a window, pass by pass; a pass serves all steps that are made of the same bytes
          KernelPass    origin and directions, for a kernel, in KernelBatches
          OriginPass    the origin as it is, in OriginPieces
          FramePass     frames and origin, for the exact tier, in FrameBatches
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from relex_codec.format.index import Index, PiecePlace
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.kernels.interface import Window

from .tiers import StepTier

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo
    from relex_codec.exact.tier_reader import Key

BATCH: Final = 64
"""Pieces of a tensor that are read together, and are in memory in packed form at a time."""


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
        places: where they lie in the file, plane by plane of each piece; empty if they are in the base.
        in_base: where they lie in the base, one part after another; empty if they are in the file.
    """

    tensor: TensorRecord
    start: int
    end: int
    places: Sequence[PiecePlace]
    in_base: Sequence[ByteRange]

    def ranges(self, index: Index) -> Iterator[ByteRange]:
        """Yield what is read."""
        yield from self.in_base
        yield from _chunks(index, self.places)


@dataclass(frozen=True, slots=True)
class DirectionPieces:
    """What is read of one direction for a batch.

    Attributes:
        number: of its record.
        factors: in the first batch of a window all pieces of its factors; after that they are known.
        remainder: pieces of its codes, plane by plane of each.
    """

    number: int
    factors: Sequence[PiecePlace]
    remainder: Sequence[PiecePlace]


@dataclass(frozen=True, slots=True)
class KernelBatch:
    """Pieces that a kernel decodes together. The origin is read first, then the directions, all at once."""

    origin: OriginPieces
    directions: Sequence[DirectionPieces]

    def ranges(self, index: Index) -> Iterator[ByteRange]:
        """Yield what is read, in order."""
        yield from self.origin.ranges(index)
        yield from _chunks(index, self.places())

    def places(self) -> Iterator[PiecePlace]:
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
    """A window at all steps that a kernel makes of directions.

    Attributes:
        steps: places in the plan's list of steps, as in the other passes.
        coefficients: where those of the directions lie that are read first; most files bring them with their tables.
    """

    steps: Sequence[int]
    coefficients: Sequence[ByteRange]
    batches: Sequence[KernelBatch]

    def ranges(self, index: Index) -> Iterator[ByteRange]:
        """Yield what is read, in order."""
        yield from self.coefficients
        for batch in self.batches:
            yield from batch.ranges(index)


@dataclass(frozen=True, slots=True)
class OriginPass:
    """A window at all steps at which the tensor is its origin."""

    steps: Sequence[int]
    batches: Sequence[OriginPieces]

    def ranges(self, index: Index) -> Iterator[ByteRange]:
        """Yield what is read, in order."""
        for pieces in self.batches:
            yield from pieces.ranges(index)


@dataclass(frozen=True, slots=True)
class FramePass:
    """A window at all steps at which the tensor is what it is at stored step number `stored`, counted from 1."""

    steps: Sequence[int]
    stored: int
    batches: Sequence[FrameBatch]

    def ranges(self, index: Index) -> Iterator[ByteRange]:
        """Yield what is read, in order."""
        for batch in self.batches:
            yield from batch.ranges(index)


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """How one window of a tensor is read."""

    tensor: TensorRecord
    window: Window
    passes: Sequence[KernelPass | OriginPass | FramePass]


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """How what is wanted of a tensor is read, window by window; nothing is, of a tensor without elements.

    Attributes:
        tensor: that is read; where another name of it was asked for, that has the same dtype and shape.
    """

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
                    yield from one.ranges(index)

    def keys(self) -> set[Hashable]:
        """Return something for each pass that is the same where the same is read."""
        return {
            (window.tensor.number, window.window, self.steps[one.steps[0]])
            for planned in self.tensors
            for window in planned.windows
            for one in window.passes
        }


def _chunks(index: Index, places: Iterable[PiecePlace]) -> Iterator[ByteRange]:
    """Yield the chunks of `places`, each once: that is how they are read."""
    for number in dict.fromkeys(place.chunk for place in places):
        record = index.chunks[number]
        begin = int(record["position"])
        yield ByteRange(None, begin, begin + int(record["stored"]))
