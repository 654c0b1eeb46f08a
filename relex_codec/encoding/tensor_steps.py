"""One tensor of the file at every step of the run, whatever the checkpoints call it and have it in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, TensorReader
from relex_codec.core.dtypes import Bits, as_dtype, bits_dtype
from relex_codec.core.threads import IO_THREADS, parallel_map

from .run_plan import PlannedTensor

if TYPE_CHECKING:
    from relex_codec.format.tensor_record import TensorRecord

    from .appended_series import AppendedSeries


class TensorSteps(CheckpointSeries):
    """A run of one planned tensor.

    A step that has it in another dtype of lines gives its values, rounded. One that does not have it gives the bits of
    the step before (at the beginning: of the first one that has it), which cost nothing where steps are stored as
    differences, and which nobody is shown: the layout of the step says that it lacks the tensor.

    Args:
        run: the checkpoints.
        planned: the tensor; not one that is another name of another.
        file: the run as far as a file has it, where steps are appended.
        own: what that file holds of the tensor; None if nothing.
    """

    def __init__(
        self,
        run: CheckpointSeries,
        planned: PlannedTensor,
        file: AppendedSeries | None = None,
        own: TensorRecord | None = None,
    ) -> None:
        self.run, self.steps, self.planned = run, run.steps, planned
        self._table = {planned.key.name: planned.info}
        self._file, self._own = file, own
        values = planned.values
        self._records = (
            [None if name is None else file.record(i, name) for i, name in enumerate(values[: file.old])]
            if file
            else []
        )
        alike = file is None and values[0] is not None and set(planned.at) == {values[0]}
        self._called = values[0] if alike else None
        """What every step calls it, if all have it in its dtype."""

    def as_in_file(self, lo: int, origin: Bits, bits: Bits) -> Bits:
        """Return the bits of a piece as the file has them at the steps that it has, and frames begin from.

        They are others where what a line goes through there is not the tensor itself, but what was in its place.

        Args:
            lo: the first element of the piece.
            origin: the piece at the origin, in the tensor's dtype.
            bits: the piece at all steps, [T, elements], as `read_into` gives it.
        """
        if self._file is None or all(record is self._own for record in self._records if record is not None):
            return bits
        bits = bits.copy()
        if self._own is None:
            bits[: self._file.old] = origin
        else:
            self._file.replay(self._own, lo, bits[: self._file.old])
        return bits

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """Which steps have values of it: bool [T]."""
        return np.array([name is not None for name in self.planned.values])

    def checkpoint(self, index: int) -> TensorReader:
        """Return a checkpoint that has just this tensor."""
        return _AtStep(self, index, self._table)

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill the rows of `out` from element `lo` on; see `CheckpointSeries.read_into`."""
        if self._called is not None:
            self.run.read_into(self._called, lo, out)
            return
        values, old = self.planned.values, min(len(self._records), len(out))
        self._restore(lo, out[:old])
        there = [i for i in range(old, len(out)) if values[i] is not None]
        workers = min(IO_THREADS, len(there))

        def rows(first: int) -> None:
            for i in there[first::workers]:
                self._read_step(i, lo, out[i])

        parallel_map(rows, range(workers), workers)
        for i in range(len(out)):
            if values[i] is None and (i >= old or self._own is None):
                self._fill(i, lo, out)

    def _restore(self, lo: int, out: Bits) -> None:
        """Fill the rows of steps that a file has: each tensor of it that they come from is replayed once."""
        if self._file is None or not len(out):
            return
        records = self._records[: len(out)]
        if self._own is not None:
            self._file.replay(self._own, lo, out)
        others = {record.number: record for record in records if record is not None and record is not self._own}
        for record in others.values():
            rows: Bits = np.empty(out.shape, bits_dtype(record.dtype))
            self._file.replay(record, lo, rows)
            for i, one in enumerate(records):
                if one is record:
                    out[i] = as_dtype(rows[i], record.dtype, self.planned.key.dtype)

    def _fill(self, index: int, lo: int, out: Bits) -> None:
        """Fill the row of a step that lacks the tensor."""
        if index:
            out[index] = out[index - 1]
        else:
            self._read_step(self._nearest(0), lo, out[0])

    def _nearest(self, index: int) -> int:
        """Return the step whose bits stand for those of a step."""
        values = self.planned.values
        before = next((i for i in range(index, -1, -1) if values[i] is not None), None)
        return before if before is not None else next(i for i, name in enumerate(values) if name is not None)

    def _read_step(self, index: int, lo: int, out: Bits) -> None:
        name, dtype = str(self.planned.values[index]), self.planned.key.dtype
        checkpoint = self.run.checkpoint(index)
        have = checkpoint.info(name).dtype
        if have == dtype:
            checkpoint.read_into(name, lo, out)
        else:
            out[:] = as_dtype(checkpoint.read(name, lo, lo + out.size), have, dtype)


class _AtStep(TensorReader):
    """The tensor at one step."""

    def __init__(self, series: TensorSteps, index: int, table: dict[str, TensorInfo]) -> None:
        self._series, self._index = series, series._nearest(index)
        self.path, self.tensors = f"step {series.steps[index]}", table

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out` with the bits of the tensor from element `lo` on; see `TensorReader.read_into`."""
        self.check_range(name, lo, out.size)
        self._series._read_step(self._index, lo, out)
