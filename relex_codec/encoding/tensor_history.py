"""The unit of work of encoding: one tensor over all steps, in slices that fit a memory budget.

Every byte of a checkpoint is read once where the tensor's steps fit the budget together, otherwise twice: once for the
Gram matrix, once for the directions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import numpy as np

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, TensorReader
from relex_codec.core.dtypes import F32, ITEMSIZE, Bits, as_dtype, bits_dtype
from relex_codec.core.steps import spell_steps
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import CheckpointError
from relex_codec.format.constants import PIECE

from .fit import F64, Fit, deltas, directions_from_deltas, gram_of

GRAM_BLOCK: Final = 1 << 21
"""Numbers in a float64 block of deltas: 16 MB, so that several of them stay in the cache hierarchy's reach."""
SMALLEST_SLICE: Final = 1 << 12


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a tensor starts from: the base, or the run's own first step."""

    dtype: str
    read: Callable[[int, int], Bits]

    @classmethod
    def in_base(cls, base: TensorReader, info: TensorInfo) -> Origin:
        """The base's tensor."""
        return cls(info.dtype, lambda lo, hi: base.read(info.name, lo, hi))

    @classmethod
    def in_run(cls, run: CheckpointSeries, info: TensorInfo) -> Origin:
        """The run's first checkpoint."""
        return cls(info.dtype, lambda lo, hi: run.checkpoint(0).read(info.name, lo, hi))


Pieces = Callable[[int, Bits, Bits], None]


class Vectors:
    """k directions of one tensor, float32 [k, n]: in memory, or in a scratch file where they exceed a budget."""

    def __init__(self, count: int, size: int, budget: int, directory: str) -> None:
        self._shape = (count, size)
        fits = 4 * count * size <= budget
        self._array = np.empty((count, size if fits else 0), np.float32)
        self._file = None if fits else tempfile.TemporaryFile(dir=directory)

    def write(self, lo: int, values: F32) -> None:
        """Store ``values`` [k, x] as elements lo .. lo + x."""
        if self._file is None:
            self._array[:, lo : lo + values.shape[1]] = values
            return
        for j, row in enumerate(values):
            self._file.seek(4 * (j * self._shape[1] + lo))
            self._file.write(np.ascontiguousarray(row).data)

    def read(self, direction: int, lo: int, hi: int) -> F32:
        """Return elements lo .. hi of one direction."""
        if self._file is None:
            return self._array[direction, lo:hi]
        self._file.seek(4 * (direction * self._shape[1] + lo))
        return np.frombuffer(self._file.read(4 * (hi - lo)), np.float32)

    def __enter__(self) -> Vectors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


class TensorHistory:
    """One float tensor of a run with its origin.

    Args:
        observed: number of steps, from the first, that fits are made on.
        budget: bytes that the unit may use.
        pieces: called with (number, origin, bits [T, elements]) of each piece while everything is read, the origin in
            the tensor's dtype; whole pieces of all steps are then in memory, and weights may be anything.
    """

    def __init__(
        self,
        run: CheckpointSeries,
        info: TensorInfo,
        origin: Origin,
        observed: int,
        budget: int,
        pieces: Pieces | None = None,
    ) -> None:
        self.run, self.info, self.origin, self.observed = run, info, origin, observed
        steps, width = len(run.steps), ITEMSIZE[info.dtype]
        self.moved = False
        """Whether an observed step differs from the origin in the run's dtype; known after `gram`."""
        self.finite = True
        """Whether all deltas are finite; known after `gram`, which refuses others unless it was given `pieces`."""
        self._pieces = pieces
        self.energies: list[float] = []
        """Squared norm of the last observed delta in each piece; known after `gram`."""
        self._held: Bits | None = None
        if steps * info.size * width <= budget // 2:
            self._held = np.empty((steps, info.size), bits_dtype(info.dtype))
        # bits, float32 deltas and their operands, of all steps, in a quarter of the budget
        self._slice = min(PIECE, max(SMALLEST_SLICE, budget // 4 // (steps * (width + 12)), 1))

    def gram(self, origin_piece: Callable[[Bits], None]) -> F64:
        """Read everything once and return the Gram matrix of the deltas, float64 [T, T].

        Args:
            origin_piece: called with each piece of the origin's bits, in order.

        Raises:
            CheckpointError: a weight is not finite where the origin is, or was.
        """
        steps = len(self.run.steps)
        gram = np.zeros((steps, steps))
        for start, origin in self._origin_pieces():
            origin_piece(origin)
            self.energies.append(0.0)
            piece = self._fill(start, start + len(origin)) if self._pieces else None
            if self._pieces and piece is not None:
                self._pieces(start // PIECE, as_dtype(origin, self.origin.dtype, self.info.dtype), piece)
            for lo, hi in self._slices(start, start + len(origin)):
                bits = self._fill(lo, hi) if piece is None else piece[:, lo - start : hi - start]
                delta = self._delta(bits, origin[lo - start : hi - start])
                delta = self._finite(delta)
                last = delta[self.observed - 1].astype(np.float64)
                self.energies[-1] += float(last @ last)
                self.moved = self.moved or self._moved(bits, origin[lo - start : hi - start], delta)
                for part in parallel_map(gram_of, np.array_split(delta, -(-delta.size // GRAM_BLOCK), axis=1)):
                    gram += part
        return gram

    def vectors(self, fit: Fit, budget: int, directory: str) -> Vectors:
        """Read the observed steps again, if they are not held, and return the directions."""
        vectors = Vectors(len(fit.weights), self.info.size, budget, directory)
        for start, origin in self._origin_pieces():
            for lo, hi in self._slices(start, start + len(origin)):
                bits = self._held[: self.observed, lo:hi] if self._held is not None else self._read_observed(lo, hi)
                delta = self._delta(bits, origin[lo - start : hi - start])
                vectors.write(lo, directions_from_deltas(fit.weights, delta))
        return vectors

    def at_last_observed(self, lo: int, hi: int) -> Bits:
        """Return the bits of elements lo .. hi at the last observed step."""
        if self._held is not None:
            return self._held[self.observed - 1, lo:hi]
        return self.run.checkpoint(self.observed - 1).read(self.info.name, lo, hi)

    def release(self) -> None:
        """Free the held steps."""
        self._held = None

    def _origin_pieces(self) -> Iterator[tuple[int, Bits]]:
        for start in range(0, self.info.size, PIECE):
            yield start, self.origin.read(start, min(start + PIECE, self.info.size))

    def _slices(self, lo: int, hi: int) -> Iterator[tuple[int, int]]:
        for at in range(lo, hi, self._slice):
            yield at, min(at + self._slice, hi)

    def _fill(self, lo: int, hi: int) -> Bits:
        if self._held is None:
            return self.run.read(self.info.name, lo, hi)
        self.run.read_into(self.info.name, lo, self._held[:, lo:hi])
        return self._held[:, lo:hi]

    def _read_observed(self, lo: int, hi: int) -> Bits:
        out: Bits = np.empty((self.observed, hi - lo), bits_dtype(self.info.dtype))
        self.run.read_into(self.info.name, lo, out)
        return out

    def _delta(self, bits: Bits, origin: Bits) -> F32:
        return deltas(bits, self.info.dtype, origin, self.origin.dtype)

    def _moved(self, bits: Bits, origin: Bits, delta: F32) -> bool:
        if self.info.dtype == self.origin.dtype:
            return bool(delta[: self.observed].any())
        rounded = as_dtype(origin, self.origin.dtype, self.info.dtype)
        return bool((bits[: self.observed] != rounded).any())

    def _finite(self, delta: F32) -> F32:
        """Return finite deltas as they are; others are refused, or 0 where the exact tier has the weights."""
        if np.isfinite(delta).all():
            return delta
        if self._pieces is not None:
            self.finite = False
            return np.where(np.isfinite(delta), delta, np.float32(0))
        rows = np.flatnonzero(~np.isfinite(delta).all(axis=1))
        bad = spell_steps([self.run.steps[int(row)] for row in rows], self.run.steps)
        leave = f"leave {'it' if len(rows) == 1 else 'them'} out with --exclude-steps {bad}, or "
        raise CheckpointError(
            f"tensor {quote(self.info.name)} of step {bad} has weights that are not finite; a line through them means "
            f"nothing: {leave if len(rows) < len(self.run.steps) else ''}keep the run with --exact"
        )


def pieces(checkpoint: TensorReader, info: TensorInfo) -> Iterator[Bits]:
    """Yield a tensor's bits piece by piece."""
    for lo in range(0, info.size, PIECE):
        yield checkpoint.read(info.name, lo, min(lo + PIECE, info.size))
