"""Planning what is read for some steps: from the tables of a file to a `ReadPlan`.

Pure functions. Two things are looked up on the way, and only for what needs them: where tensors lie in the base, which
must be open for that, and where blobs lie, which the exact tier has to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from relex_codec.checkpoints.base_model import parts_of
from relex_codec.checkpoints.safetensors import TensorInFile
from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.format import constants as f
from relex_codec.format import reader
from relex_codec.format.index import Index, PiecePlace
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.kernels.interface import Window
from relex_codec.kernels.windows import piece_ranges

from .read_plan import (
    BATCH,
    ByteRange,
    DirectionPieces,
    FrameBatch,
    FramePass,
    KernelBatch,
    KernelPass,
    OriginPass,
    OriginPieces,
    ReadPlan,
    TensorPlan,
    WindowPlan,
)
from .tiers import LINEAR, StepTier, check_reach

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo
    from relex_codec.exact.tier_reader import ExactTier, Key

BasePlaces = Callable[[], Mapping[str, TensorInFile]]
"""Gives where tensors lie in the base, which it opens if need be."""


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
        InvalidArgument: a tensor is stored step by step, and a step of a linear tier is none of those.
        Corrupt: the blobs of the exact tier do not lie as they must.
    """
    planner = _Planner(index, steps, base, exact, whole_windows)
    return ReadPlan(steps, [planner.tensor(tensor, windows) for tensor, windows in wanted])


def plan_origin(
    index: Index, tensor: TensorRecord, spans: Sequence[tuple[int, int]], base: BasePlaces | None
) -> list[OriginPieces]:
    """Plan to read whole pieces of a tensor's origin: ranges of elements; `base` is that of `plan_reads`."""
    width = ITEMSIZE[tensor.origin_dtype]
    if base is None or not tensor.in_base:
        places = index.origin_places(tensor)
        return [OriginPieces(tensor, *span, _of_pieces(places, *span, width), ()) for span in spans]
    return [OriginPieces(tensor, lo, hi, (), _in_base(tensor, lo, hi, base())) for lo, hi in spans]


def _in_base(tensor: TensorRecord, lo: int, hi: int, places: Mapping[str, TensorInFile]) -> list[ByteRange]:
    """Return where elements of a tensor's origin lie in the base, one after another."""
    width, found = ITEMSIZE[tensor.origin_dtype], []
    for part in parts_of(tensor.sources, lo, hi):
        info = places[part.name]
        begin = info.begin + part.first * width
        found.append(ByteRange(info.shard, begin, begin + part.elements * width))
    return found


_KERNEL, _ORIGIN = -1, 0
"""What a tensor is made of at a step, beside the numbers of stored steps in the frames: directions, or its origin."""


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

    def tensor(self, asked: TensorRecord, windows: Sequence[Window]) -> TensorPlan:
        """Plan to read some windows of a tensor, or of the one that it is another name of."""
        tensor = self._index.target(asked)
        for step in self._steps:
            check_reach(self._index, asked, step)
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
        if tensor.kind == f.MOVING and step.tier in LINEAR:
            return _KERNEL
        if step.tier == "base" or (step.tier in LINEAR and tensor.kind != f.FRAMED) or not tensor.size:
            return _ORIGIN
        tier = self._exact()  # which checks its tables, also for a tensor that no segment holds
        stored = max(1, int(np.searchsorted(self._index.steps, step.step, side="right")))
        return stored if tier.holds(tier.segment_of(stored), tensor.number) else _ORIGIN

    def _pass(
        self, tensor: TensorRecord, spans: Sequence[tuple[int, int]], source: int, steps: Sequence[int]
    ) -> KernelPass | OriginPass | FramePass:
        blobs = [self._blobs(tensor, source, *span) for span in spans] if source > _ORIGIN else []
        origins = plan_origin(self._index, tensor, spans, self._base)
        if source == _KERNEL:
            return KernelPass(steps, self._coefficients(tensor, steps), list(self._kernel_batches(tensor, origins)))
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

    def _coefficients(self, tensor: TensorRecord, steps: Sequence[int]) -> list[ByteRange]:
        """Where the rows of a tensor lie in a table of coefficients that is too large to come with the index."""
        entry, width = self._index.entries[f.COEFFICIENTS], 8 * len(self._index.steps)
        at_hand = entry.end - entry.begin <= reader.COEFFICIENTS_AT_OPEN
        if at_hand or all(self._steps[i].tier == "line" for i in steps):
            return []
        rows = tensor.directions
        return [ByteRange(None, entry.begin + rows.start * width, entry.begin + rows.stop * width)]

    def _kernel_batches(self, tensor: TensorRecord, origins: Sequence[OriginPieces]) -> Iterator[KernelBatch]:
        records = self._index.directions
        stored = [
            (number, f.PACKINGS[int(records[number]["packing"])].planes, *self._index.direction_places(tensor, number))
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


def _of_pieces(places: Sequence[PiecePlace], start: int, end: int, planes: int) -> Sequence[PiecePlace]:
    """Of the places of a tensor, so many a piece, those of the elements `start` to `end`."""
    return places[start // f.PIECE * planes : -(-end // f.PIECE) * planes]
