"""Which bytes a step needs: ranges of the file and of its base, in the order in which `Decoder.read` asks for them.

Pure functions on the tables of a file. Only the exact tier reads a little for its plan: where its blobs lie.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from relex_codec.checkpoints.safetensors import TensorInFile
from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.format import constants as f
from relex_codec.format.index import Index, Part
from relex_codec.kernels.windows import BATCH

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo
    from relex_codec.exact.tier_reader import ExactTier


class Need(NamedTuple):
    """A range that will be read: of the file itself (`shard` is None), or of a shard of the base."""

    shard: int | None
    start: int
    end: int


class Wanted(NamedTuple):
    """What is read together of a tensor at a step.

    Attributes:
        tier: as `tiers.choose_tier` returns it.
        spans: ranges of elements, in order; whole pieces are read that hold them.
    """

    number: int
    step: float
    tier: str
    spans: tuple[tuple[int, int], ...]


def reads_base(index: Index, wanted: Iterable[Wanted], use_embedded: bool) -> bool:
    """Tell whether any of `wanted` needs the base, which then must be open to plan for it."""
    return any(
        not holds_origin(index, one.number, use_embedded) and any(hi > lo for lo, hi in one.spans) for one in wanted
    )


def needs(
    index: Index,
    wanted: Iterable[Wanted],
    *,
    use_embedded: bool,
    base: Mapping[str, TensorInFile],
    exact: Callable[[], ExactTier],
) -> Iterator[Need]:
    """Yield the ranges that decoding `wanted`, one after another, reads.

    Args:
        use_embedded: whether an embedded base is read.
        base: tensors of the base; not used where `reads_base` is False.
        exact: opens the exact tier; called if any of `wanted` is read from it.
    """
    seen: set[Need] = set()
    """Blobs, which are kept after they were read for one tensor."""
    for one in wanted:
        tensor = index.tensors[one.number]
        framed = one.tier == "exact" or (one.tier != "base" and tensor.kind == f.FRAMED)
        moving = tensor.kind == f.MOVING and one.tier in ("line", "track")
        position = max(1, int(np.searchsorted(index.steps, one.step, side="right")))
        first = True
        for start, end in _batches(one.spans, tensor.size):
            if framed:
                opened = exact()
                parts = opened.pieces(one.number, start // f.PIECE, -(-end // f.PIECE))
                blobs = {Need(None, a, b) for a, b in opened.ranges_of(opened.blobs_of(parts, position))} - seen
                seen |= blobs
                yield from sorted(blobs)
            yield from _origin(index, one.number, start, end, use_embedded, base)
            if moving:
                yield from _directions(index, one.number, start, end, first)
            first = False


def replay_needs(
    index: Index, parts: Iterable[PartInfo], *, use_embedded: bool, base: Mapping[str, TensorInFile]
) -> Iterator[Need]:
    """Yield the ranges of the origin that replaying `parts` reads; arguments are those of `needs`."""
    for part in parts:
        start = part.piece * f.PIECE
        yield from _origin(index, part.tensor, start, start + part.elements, use_embedded, base)


def _batches(spans: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    for lo, hi in spans:
        for start in range(lo // f.PIECE * f.PIECE, hi, BATCH * f.PIECE):
            yield start, min(start + BATCH * f.PIECE, -(-hi // f.PIECE) * f.PIECE, size)


def _directions(index: Index, number: int, start: int, end: int, first: bool) -> Iterator[Need]:
    tensor = index.tensors[number]
    parts: list[Part] = []
    for direction in tensor.directions:
        planes = f.PACKINGS[int(index.directions[direction]["packing"])].planes
        factors, remainder = index.direction_parts(tensor, direction)
        parts += (factors if first else []) + _slice(remainder, start, end, planes)
    yield from _chunks(index, parts)


def _origin(
    index: Index, number: int, start: int, end: int, use_embedded: bool, base: Mapping[str, TensorInFile]
) -> Iterator[Need]:
    tensor = index.tensors[number]
    width = ITEMSIZE[tensor.origin_dtype]
    if holds_origin(index, number, use_embedded):
        yield from _chunks(index, _slice(index.origin_parts(tensor), start, end, width))
    elif end > start:
        info = base[tensor.name]
        yield Need(info.shard, info.begin + start * width, info.begin + end * width)


def holds_origin(index: Index, number: int, use_embedded: bool) -> bool:
    """Tell whether the origin of a tensor is read from the file itself."""
    tensor = index.tensors[number]
    return tensor.origin_held and (use_embedded or tensor.origin == f.STORED)


def _slice(parts: list[Part], start: int, end: int, planes: int) -> list[Part]:
    return parts[start // f.PIECE * planes : -(-end // f.PIECE) * planes]


def _chunks(index: Index, parts: Iterable[Part]) -> Iterator[Need]:
    """The chunks of `parts`, each once: that is how they are read."""
    for number in dict.fromkeys(part.chunk for part in parts):
        record = index.chunks[number]
        yield Need(None, int(record["position"]), int(record["position"]) + int(record["stored"]))


class Plans:
    """What is being read ahead, so that nobody plans it again on the way."""

    def __init__(self) -> None:
        self._planned: Counter[Hashable] = Counter()
        self._lock = threading.Lock()

    def cover(self, parts: Iterable[Hashable]) -> bool:
        """Tell whether each of `parts` is planned."""
        with self._lock:
            return all(self._planned[part] for part in parts)

    @contextmanager
    def of(self, parts: Collection[Hashable]) -> Iterator[None]:
        """Count `parts` as planned for the time of the context."""
        with self._lock:
            self._planned.update(parts)
        try:
            yield
        finally:
            with self._lock:
                self._planned.subtract(parts)
                self._planned = +self._planned
