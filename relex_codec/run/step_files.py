"""The files that decoding writes of a step, listed and read in ranges without writing them.

Names and sizes are those of the step's layout, and known without decoding: headers follow from the manifest.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.filenames import INDEX
from relex_codec.core.forks import new_lock
from relex_codec.decoding.tiers import StepTier
from relex_codec.format.constants import PIECE
from relex_codec.format.step_layout import StepLayout
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.kernels.interface import flat

from .export import Shard, index_file, nbytes, shards_of
from .run_reader import RunReader


class TensorBytes(NamedTuple):
    """Bytes of a shard that lie together: of its header if `tensor` is None, or of a tensor; counted from its start."""

    tensor: TensorRecord | None
    start: int
    end: int


class ShardLayout:
    """Where what lies in a file of weights: its header, then the tensors one after another."""

    def __init__(self, shard: Shard) -> None:
        self.head, self.size = shard.head, shard.size
        self._tensors: list[TensorRecord | None] = [None, *shard.tensors]
        self._begins = list(accumulate((nbytes(t) for t in shard.tensors), initial=len(shard.head)))
        self._begins.insert(0, 0)  # of the header; the last one is the end of the file

    def parts(self, start: int, end: int) -> Iterator[TensorBytes]:
        """Yield what bytes `start` to `end` of the file consist of, in order."""
        for at in range(max(0, bisect_right(self._begins, start) - 1), len(self._tensors)):
            begin, stop = self._begins[at], self._begins[at + 1]
            if begin >= end:
                return
            low, high = max(start, begin), min(end, stop)
            if low < high:
                yield TensorBytes(self._tensors[at], low - begin, high - begin)

    def widened(self, start: int, end: int) -> tuple[int, int]:
        """Return the bytes that decoding `start` to `end` yields anyway: the header, and whole pieces of tensors."""
        if start >= end:
            return start, end
        return self._bounds(start)[0], self._bounds(end - 1)[1]

    def _bounds(self, position: int) -> tuple[int, int]:
        """Begin and end of the header or piece that a byte is in."""
        at = bisect_right(self._begins, position) - 1  # the last of several: empty tensors have no byte
        begin, stop, tensor = self._begins[at], self._begins[at + 1], self._tensors[at]
        if tensor is None:
            return begin, stop
        piece = PIECE * ITEMSIZE[tensor.dtype]
        low = begin + (position - begin) // piece * piece
        return low, min(low + piece, stop)


class LayoutFiles:
    """The files of the steps of one layout; methods may be called from several threads.

    Files that are no weights and only in the base are looked for when one of them is asked for, not before.
    """

    def __init__(self, reader: RunReader, layout: StepLayout) -> None:
        self._reader = reader
        shards = shards_of(layout)
        self.shards = {shard.name: ShardLayout(shard) for shard in shards}
        self._index = index_file(shards) if layout.indexed else None
        self._sides = reader.side_files(layout)
        self._side_sizes: dict[str, int] | None = None
        self._lock = new_lock()

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file by name.

        Raises:
            CheckpointError, InvalidArgument, BaseMismatch: the base is needed for that and cannot be used.
        """
        weights = {name: layout.size for name, layout in self.shards.items()}
        index = {} if self._index is None else {INDEX: len(self._index)}
        return weights | index | self.side_sizes()

    def size(self, name: str) -> int | None:
        """Return the bytes of one file, or None if there is none of that name; errors are those of `sizes`."""
        if name in self.shards:
            return self.shards[name].size
        if name == INDEX and self._index is not None:
            return len(self._index)
        with self._lock:
            known = self._side_sizes
        return self._sides.size(name) if known is None else known.get(name)

    def side_sizes(self) -> dict[str, int]:
        """Return the bytes of each file that is no weights and no index; errors are those of `sizes`."""
        with self._lock:
            if self._side_sizes is None:
                self._side_sizes = self._sides.sizes()
            return self._side_sizes

    def stream(self, name: str, step: StepTier, start: int = 0, end: int | None = None) -> Iterator[bytes | memoryview]:
        """Yield bytes `start` to `end` of a file that exists, tensor by tensor."""
        if name not in self.shards:
            if name == INDEX and self._index is not None:
                yield self._index[start:end]
            else:
                yield from self._sides.stream(name, start, end)
            return
        layout = self.shards[name]
        parts = list(layout.parts(start, layout.size if end is None else end))
        decoder = self._reader.decoder
        spans = [
            (t, [flat(low // ITEMSIZE[t.dtype], -(-high // ITEMSIZE[t.dtype]))])
            for t, low, high in parts
            if t is not None
        ]
        plan = decoder.plan(spans, [step])
        with decoder.fetcher.ahead(plan):
            planned = (window for tensor in plan.tensors for window in tensor.windows)
            for tensor, low, high in parts:
                if tensor is None:
                    yield layout.head[low:high]
                    continue
                (bits,) = decoder.decode_window(next(planned), plan.steps)
                begin = low // ITEMSIZE[tensor.dtype] * ITEMSIZE[tensor.dtype]
                yield bits.reshape(-1).view(np.uint8).data[low - begin : high - begin]

    def other(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes of a file that exists and is no weights."""
        if name == INDEX and self._index is not None:
            return self._index[start:end]
        return self._sides.read(name, start, end)


class StepFiles:
    """The files of the steps of an open run; methods may be called from several threads."""

    def __init__(self, reader: RunReader) -> None:
        self.reader = reader
        self._layouts: dict[StepLayout, LayoutFiles] = {}
        self._lock = new_lock()

    def at(self, step: float, tier: str) -> LayoutFiles:
        """Return the files that there are at a step.

        Args:
            tier: as `Run.tensor`.
        """
        layout = self.reader.layout(step, tier)
        with self._lock:
            if layout not in self._layouts:
                self._layouts[layout] = LayoutFiles(self.reader, layout)
            return self._layouts[layout]

    def read(self, name: str, step: float, tier: str, start: int, end: int) -> bytes:
        """Return bytes `start` to `end` of a file that exists; only pieces of tensors that these touch are decoded."""
        if name not in self.at(step, tier).shards:
            return self.other(name, step, tier, start, end)
        out = io.BytesIO()  # which hands its buffer over without a copy
        for data in self.stream(name, step, tier, start, end):
            out.write(data)
        return out.getvalue()

    def stream(
        self, name: str, step: float, tier: str, start: int = 0, end: int | None = None
    ) -> Iterator[bytes | memoryview]:
        """Yield bytes `start` to `end` of a file that exists, tensor by tensor."""
        chosen = StepTier(float(step), self.reader.tier(step, tier))
        yield from self.at(step, tier).stream(name, chosen, start, end)

    def other(self, name: str, step: float, tier: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes of a file that exists and is no weights."""
        return self.at(step, tier).other(name, start, end)
