"""A journal as a run of checkpoints: one tensor over all steps in one pass, or one step by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.checkpoints.base_model import BaseReader
from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, TensorReader
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint
from relex_codec.core.dtypes import Bits, as_dtype, bits_dtype
from relex_codec.errors import CheckpointError

from .blobs import Differences
from .difference import apply_difference
from .format import CHUNK
from .reader import Generation, Journal, Place


class _Target(NamedTuple):
    """What of a part is asked for.

    Attributes:
        lo, hi: elements of its box.
        places: where they are in a row; a slice where they follow each other.
    """

    place: Place
    lo: int
    hi: int
    places: slice | npt.NDArray[np.int64]

    @classmethod
    def of(cls, place: Place, lo: int, hi: int) -> _Target | None:
        """What a part has of elements `lo` to `hi` of the tensor, None: nothing."""
        box = place.part.box
        first, last = (lo, hi) if box.is_whole else box.range_of(lo, hi)
        if first >= last:
            return None
        if box.is_contiguous:
            begin = (first if box.is_whole else box.place(first)) - lo
            return cls(place, first, last, slice(begin, begin + last - first))
        return cls(place, first, last, box.places(first, last) - lo)


class JournalSeries(CheckpointSeries):
    """The steps of a journal, or some of them.

    Args:
        journal: opened.
        base: what was opened as its base; whatever is read of it is checked against the journal's digests.
        steps: numbers of steps, increasing; all of them are in the journal.

    Attributes:
        tensors: of each step, laid out in files as the base is: what it lacks is in the last one.
        shards, indexed: as of the base.

    Raises:
        BaseMismatch: the base has not the tensors that the journal begins with.
        CheckpointError: there are no steps.
    """

    def __init__(self, journal: Journal, base: SafetensorsCheckpoint, steps: Sequence[int] | None = None) -> None:
        numbers = {recorded.step: index for index, recorded in enumerate(journal.steps)}
        self.steps = list(numbers) if steps is None else list(steps)
        if not self.steps:
            raise CheckpointError(f"journal {journal.path} has no committed step yet; record one first")
        self.journal = journal
        self._indexes = [numbers[step] for step in self.steps]
        self._base = BaseReader(base, journal.expected)
        self._base_dtypes = {tensor.name: tensor.dtype for tensor in journal.expected}
        self.shards, self.indexed = base.shards, base.indexed
        last = len(base.shards) - 1
        self.tensors = {
            name: replace(info, shard=base.tensors[name].shard if name in base.tensors else last)
            for name, info in journal.tensors.items()
        }

    def checkpoint(self, index: int) -> JournalStep:
        """Return the checkpoint of ``steps[index]``."""
        return JournalStep(self, self.steps[index], self._indexes[index])

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill the rows of `out`; see `CheckpointSeries.read_into`. Each difference is read once."""
        self.checkpoint(0).check_range(name, lo, out.shape[1])
        if out.size:
            self.replay(name, lo, zip(self._indexes, out, strict=False))

    def replay(self, name: str, lo: int, rows: Iterable[tuple[int, Bits]]) -> None:
        """Fill rows with elements of a tensor from `lo` on, each at a step of the journal.

        Args:
            name: of a tensor that has them.
            rows: index of the step in `Journal.steps`, increasing, and what to fill.
        """
        info = self.journal.tensors[name]
        now: Bits | None = None
        done = 0
        with ExitStack() as stack:
            changes: _Changes | None = None
            for index, row in rows:
                row[:] = self._origin(info, lo, row.size) if now is None else now
                for recorded in self.journal.steps[done : index + 1]:
                    if changes is None or changes.generation is not recorded.generation:
                        changes = stack.enter_context(_Changes(recorded.generation, name, lo, row.size))
                    changes.apply(recorded.number, row)
                done, now = index + 1, row

    def _origin(self, info: TensorInfo, lo: int, count: int) -> Bits:
        have = self._base_dtypes.get(info.name)
        if have is None:
            return np.zeros(count, bits_dtype(info.dtype))
        bits = self._base.read(info.name, lo, lo + count)
        return as_dtype(bits, have, info.dtype)


class _Changes(Differences):
    """The differences of some elements of a tensor in a generation."""

    def __init__(self, generation: Generation, name: str, lo: int, count: int) -> None:
        super().__init__(generation)
        found = (_Target.of(place, lo, lo + count) for place in self.generation.places[name])
        self._targets = [target for target in found if target is not None]

    def apply(self, number: int, row: Bits) -> None:
        """Change elements as they are before a step of the generation to what they are at it."""
        for target in self._targets:
            part = row[target.places]  # a view, or a copy
            self._apply_part(target, number, part)
            if not isinstance(target.places, slice):
                row[target.places] = part

    def _apply_part(self, target: _Target, number: int, part: Bits) -> None:
        box, dtype = target.place.part.box, target.place.part.dtype
        for chunk, blob in self.blobs(target.place, number, target.lo // CHUNK, -(-target.hi // CHUNK)):
            begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, box.elements)
            lo, hi = max(target.lo, begin), min(target.hi, end)
            apply_difference(blob, part[lo - target.lo : hi - target.lo], lo - begin, end - begin, dtype)


class JournalStep(TensorReader):
    """A step of a journal: the base, and all differences up to it."""

    def __init__(self, series: JournalSeries, step: int, index: int) -> None:
        self._series, self._index = series, index
        self.path = f"step {step} of {series.journal.path}"
        self.tensors, self.shards, self.indexed = series.tensors, series.shards, series.indexed

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out` with the bits of a tensor from element `lo` on; see `TensorReader.read_into`."""
        self.check_range(name, lo, out.size)
        if out.size:
            self._series.replay(name, lo, [(self._index, out)])
