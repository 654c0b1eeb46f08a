"""The weights of stored steps beside those of checkpoints, bit for bit, in this process or on an engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint
from relex_codec.checkpoints.series import open_series
from relex_codec.core.dtypes import ITEMSIZE, Bits, bits_dtype
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.engines.choice import EngineChoice
from relex_codec.format import constants as f
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.storage.prefetch import PlannedRange, ranges_to_fetch
from relex_codec.storage.source import Source
from relex_codec.storage.urls import Options

from .comparison import Difference
from .export import nbytes
from .replay_units import replayed_by_units
from .run_reader import RunReader

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo

V = TypeVar("V")
Numbered = Mapping[int, tuple[int, TensorReader]]
"""Step and checkpoint, by the number of the stored step."""


@dataclass(frozen=True)
class CompareTask:
    """Comparing some steps, in a form that another process can begin.

    Attributes:
        file: opened; its copy in another process opens it there.
        numbers: of the stored steps.
        found: steps and paths of their checkpoints.
        storage_options: for these.
    """

    file: RunReader
    numbers: tuple[int, ...]
    found: tuple[tuple[int, str], ...]
    storage_options: Options = None

    def begin(self) -> ComparedWeights:
        """Open the checkpoints, those of them that can be compared."""
        return ComparedWeights(self.file.decoder, self.open())

    def open(self) -> Numbered:
        """Open the checkpoints."""
        if not self.found:
            return {}
        names = {tensor.name for tensor in self.file.container.index.tensors}
        series = open_series(self.found, self.storage_options, alike=False, names=names)
        readers = parallel_map(series.checkpoint, range(len(self.found)), IO_THREADS)
        steps = [step for step, _ in self.found]
        return dict(zip(self.numbers, zip(steps, readers, strict=True), strict=True))


class ComparedWeights:
    """Compares the weights of some steps.

    Args:
        numbers: step and checkpoint, by the number of the stored step.
    """

    def __init__(self, decoder: TensorDecoder, numbers: Numbered) -> None:
        self.decoder, self.numbers = decoder, numbers
        self._index = decoder.container.index
        self._lock, self._local = threading.Lock(), threading.local()
        self._found: list[Difference] = []
        self._differ: dict[tuple[int, int], int] = {}
        """Elements that differ, by step number and tensor."""
        self._comparable = {number: self._check_tensors(number) for number in numbers}
        """At each step, tensors that both have, by the number of the tensor that they are restored from."""
        self.bytes = sum(
            nbytes(tensor) for by_target in self._comparable.values() for same in by_target.values() for tensor in same
        )

    def compare(self, task: CompareTask, choice: EngineChoice, on_bytes: Callable[[int], Any]) -> None:
        """Replay all steps, and read the checkpoints beside them.

        Args:
            task: the same in another process.
            choice: where.
            on_bytes: called with how many bytes have been compared since the last call, by one thread at a time.
        """
        from relex_codec.exact.replay import replay_all  # numba is only needed here

        if not self.numbers:
            return
        targets = {target for by_target in self._comparable.values() for target in by_target}
        if not choice.is_local:
            for told in replayed_by_units(choice, task, self.decoder, len(self.numbers), targets):
                for number, tensor, count in told["differ"]:
                    self._count(number, tensor, count)
                on_bytes(told["bytes"])
            return

        def use(parts: Sequence[PartInfo], number: int, found: Sequence[Bits]) -> None:
            compared = self.use(parts, number, found)
            with self._lock:
                on_bytes(compared)

        replay_all(
            self.decoder.exact, self.numbers, self.decoder.part_origin, use, tensors=targets, plan=self.planned(),
            threads=choice.workers,
        )  # fmt: skip

    def planned(self) -> Callable[[Sequence[PartInfo]], list[PlannedRange]]:
        """Return what tells, of parts one after another, what replaying and comparing them reads."""
        stored = self.decoder.fetcher.replay_plan(self.decoder.exact, self.numbers)
        return lambda parts: [*stored(parts), *ranges_to_fetch(self._ranges(parts))]

    def told(self) -> dict[str, Any]:
        """Return what differed since the last call: for each step number and tensor, how many elements."""
        with self._lock:
            found, self._differ = self._differ, {}
        return {"differ": [[number, tensor, count] for (number, tensor), count in found.items()]}

    def differences(self) -> list[Difference]:
        """Return what differs, after `compare`."""
        counted = [
            Difference(
                self.numbers[number][0],
                self._index.tensors[tensor].name,
                f"has {count:,} of {self._index.tensors[tensor].size:,} elements with other bits",
            )
            for (number, tensor), count in self._differ.items()
        ]
        return [*self._found, *counted]

    def _check_tensors(self, number: int) -> dict[int, list[TensorRecord]]:
        """Note tensors that only one side has, or that are of other kinds; return the others."""
        step, reader = self.numbers[number]
        layout = self._index.layout_of(number)
        self._found += [
            Difference(step, name, "is in the run, not in the file") for name in reader.tensors if name not in layout
        ]
        comparable: dict[int, list[TensorRecord]] = {}
        for tensor in layout.tensors:
            info = reader.tensors.get(tensor.name)
            if info is None:
                self._found.append(Difference(step, tensor.name, "is in the file, not in the run"))
            elif (info.dtype, info.shape) != (tensor.dtype, tuple(tensor.shape)):
                kinds = f"{info.dtype} {list(info.shape)} in the run, {tensor.dtype} {list(tensor.shape)} in the file"
                self._found.append(Difference(step, tensor.name, f"is {kinds}"))
            else:
                comparable.setdefault(self._index.target(tensor).number, []).append(tensor)
        return comparable

    def use(self, parts: Sequence[PartInfo], number: int, found: Sequence[Bits]) -> int:
        """Compare parts of the step that is replayed, and return how many bytes; called from several threads."""
        reader = self.numbers[number][1]
        compared = 0
        for target, lo, pieces in _stretches(parts, found):
            for tensor in self._comparable[number].get(target, ()):
                size = sum(piece.size for piece in pieces)
                there = self._buffer(size * ITEMSIZE[tensor.dtype]).view(bits_dtype(tensor.dtype))
                reader.read_into(tensor.name, lo, there)
                compared += there.nbytes
                at = 0
                for piece in pieces:
                    if not np.array_equal(there[at : at + piece.size], piece):
                        self._count(number, tensor.number, int(np.count_nonzero(there[at : at + piece.size] != piece)))
                    at += piece.size
        return compared

    def _count(self, number: int, tensor: int, count: int) -> None:
        with self._lock:
            key = number, tensor
            self._differ[key] = self._differ.get(key, 0) + count

    def _buffer(self, size: int) -> Any:
        """Memory of this thread, which is used again: a fresh array costs more than reading into it."""
        if getattr(self._local, "memory", None) is None or self._local.memory.size < size:
            self._local.memory = np.empty(size, np.uint8)
        return self._local.memory[:size]

    def _ranges(self, parts: Sequence[PartInfo]) -> Iterator[tuple[Source, int, int]]:
        """Yield what `use` will read of checkpoints whose tensors lie each in one piece, in its order."""
        stretches = list(_stretches(parts, [part.elements for part in parts]))
        for number, (_, reader) in self.numbers.items():
            if not isinstance(reader, SafetensorsCheckpoint):
                continue
            for target, lo, sizes in stretches:
                for tensor in self._comparable[number].get(target, ()):
                    yield reader.place_of(tensor.name, lo, sum(sizes))


def _stretches(parts: Sequence[PartInfo], values: Sequence[V]) -> Iterator[tuple[int, int, list[V]]]:
    """Put parts together that follow each other in a tensor: its number, first element, and a value for each part."""
    at = 0
    while at < len(parts):
        end, (tensor, piece, *_) = at + 1, parts[at]
        while end < len(parts) and parts[end][:2] == (tensor, piece + end - at):
            end += 1
        yield tensor, piece * f.PIECE, list(values[at:end])
        at = end
