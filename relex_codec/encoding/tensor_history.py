"""One tensor over all steps: read, and gone through twice, for the Gram matrix and for the directions.

Every byte of a checkpoint is read once where the tensor's steps fit the memory that it is given, otherwise twice. While
one piece is computed, the next ones are read, on other threads; what is summed up over pieces is summed in their order.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo
from relex_codec.core.cancellation import check_cancelled
from relex_codec.core.digests import digest
from relex_codec.core.dtypes import F32, Bits, as_dtype, bits_dtype
from relex_codec.core.steps import name_steps, spell_steps
from relex_codec.core.text import quote
from relex_codec.core.threads import ordered_map
from relex_codec.engines.arena import Region
from relex_codec.errors import CheckpointError
from relex_codec.format.constants import PIECE

from .delta_sums import GramSums, directions, magnitude, widened, working_array
from .fit import F64, Fit
from .gathered import Gathered, Summed
from .origin import Origin
from .room import Room

R = TypeVar("R")


class PieceTaker(Protocol):
    """Takes the pieces of a tensor in order, for the exact tier."""

    def add(self, piece: int, origin: Bits, bits: Bits) -> None:
        """Take the next piece: its elements at the origin, in the tensor's dtype, and at all steps, [T, elements]."""

    def end(self) -> int:
        """Return the ``segment`` field of the tensor's record; after the last piece."""


class Vectors:
    """k directions of one tensor, float32 [k, n]: in an array, or in a scratch file.

    Args:
        array: to hold them; none: a scratch file does.
        directory: where that is.
    """

    def __init__(self, count: int, size: int, array: F32 | None, directory: str) -> None:
        self._shape, self._array = (count, size), array
        self._file = tempfile.TemporaryFile(dir=directory) if array is None else None
        self._lock = threading.Lock()

    def part(self, lo: int, hi: int) -> F32:
        """Return an array [k, hi - lo] to be filled with elements lo .. hi, and then given to `write`."""
        if self._array is not None:
            values: F32 = self._array[:, lo:hi]
            return values
        part: F32 = working_array("vectors", (self._shape[0], PIECE), np.float32)[:, : hi - lo]
        return part

    def write(self, lo: int, values: F32) -> None:
        """Store elements from `lo` on: what `part` returned, when it has been filled."""
        if self._file is None:
            return
        with self._lock:
            for j, row in enumerate(values):
                self._file.seek(4 * (j * self._shape[1] + lo))
                self._file.write(np.ascontiguousarray(row).data)

    def read(self, direction: int, lo: int, hi: int) -> F32:
        """Return elements lo .. hi of one direction."""
        if self._array is not None:
            values: F32 = self._array[direction, lo:hi]
            return values
        assert self._file is not None
        with self._lock:
            self._file.seek(4 * (direction * self._shape[1] + lo))
            return np.frombuffer(self._file.read(4 * (hi - lo)), np.float32)

    def __enter__(self) -> Vectors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


@dataclass(slots=True)
class _Piece:
    """What is found out about a piece; `bits` only for a `PieceTaker`."""

    sums: GramSums
    digest: bytes
    norm: float
    moved: bool
    origin: Bits | None = None
    bits: Bits | None = None


class TensorHistory:
    """One float tensor of a run with its origin.

    Args:
        observed: number of steps, from the first, that fits are made on.
        room: what memory there is.
        region: a part of the arena of ``room.size`` bytes.
        pieces: takes each piece while everything is read; whole pieces of all steps are then in memory, and weights may
            be anything.
        wide: compute in float64 throughout, for more than one direction.
    """

    def __init__(
        self,
        run: CheckpointSeries,
        info: TensorInfo,
        origin: Origin,
        observed: int,
        room: Room,
        region: Region,
        pieces: PieceTaker | None = None,
        *,
        wide: bool = False,
    ) -> None:
        self.run, self.info, self.origin, self.observed = run, info, origin, observed
        self.moved = False
        """Whether an observed step differs from the origin in the run's dtype; known after `gram`."""
        self.infinite = np.zeros(len(run.steps), bool)
        """At which steps a delta is not finite; known after `gram`, which refuses such unless it was given `pieces`."""
        self.last = observed - 1
        """The step that `at_last_observed` reads: the last one that fits are made on."""
        self.energies: list[F64] = []
        """Squared norm of the delta of each step in each piece; known after `gram`."""
        self.digests: list[bytes] = []
        """Of the pieces of the origin; known after `gram`."""
        self.norm = 0.0
        """Sum of the magnitudes of the origin; known after `gram`."""
        self._pieces, self._room, self._region, self._wide = pieces, room, region, wide
        self._held: Bits | None = None
        self._origin: Bits | None = None
        if room.held:
            self._held = region.array((len(run.steps), info.size), bits_dtype(info.dtype))
            self._origin = region.array((info.size,), bits_dtype(origin.dtype))

    def gram(self) -> F64:
        """Read everything once and return the Gram matrix of the deltas, float64 [T, T].

        Raises:
            CheckpointError: a weight is not finite where the origin is, or was.
        """
        steps = len(self.run.steps)
        gram = np.zeros((steps, steps))
        for _, found in self._read(0, -(-self.info.size // PIECE)):
            gram += found.sums.matrix()
            self.energies.append(found.sums.squares)
            self.norm += found.norm
            self.infinite |= found.sums.infinite
            self.digests.append(found.digest)
            self.moved = self.moved or found.moved
        if self.infinite.any() and self._pieces is None:
            self._refuse()
        return gram

    def gather(self, first: int, end: int) -> Gathered:
        """Read pieces `first` to `end` once, and return what is found out about each; `self` stays as it is."""
        steps = len(self.run.steps)
        found = Gathered(
            np.zeros((end - first, steps, steps)), np.zeros((end - first, steps)), np.zeros(steps, bool), [],
            np.zeros(end - first), False,
        )  # fmt: skip
        for number, piece in self._read(first, end):
            at = number - first
            found.grams[at], found.squares[at] = piece.sums.matrix(), piece.sums.squares
            found.infinite |= piece.sums.infinite
            found.digests.append(piece.digest)
            found.norms[at] = piece.norm
            found.moved = found.moved or piece.moved
        return found

    def adopt(self, sums: Summed) -> F64:
        """Take what was found out about all pieces in the place of `gram`; returns what that returns.

        Raises:
            CheckpointError: as `gram`.
        """
        self.infinite, self.energies, self.moved = sums.infinite, list(sums.squares), sums.moved
        self.digests, self.norm = sums.digests, sums.norm
        if self.infinite.any() and self._pieces is None:
            self._refuse()
        return sums.gram

    def _read(self, first: int, end: int) -> Iterator[tuple[int, _Piece]]:
        """Read pieces, and give them to the `PieceTaker`; yields number and what is found out about each."""
        starts = range(first * PIECE, min(end * PIECE, self.info.size), PIECE)
        window = 2 if self._pieces else None
        for start, found in zip(starts, self.spread(self._look_at, window, starts), strict=True):
            if self._pieces and found.origin is not None and found.bits is not None:
                origin = as_dtype(found.origin, self.origin.dtype, self.info.dtype)
                self._pieces.add(start // PIECE, origin, found.bits)
            yield start // PIECE, found

    def vectors(self, fit: Fit, directory: str) -> tuple[Vectors, F64]:
        """Read the observed steps again, if they are not held.

        Returns:
            The directions, and the sum of the magnitudes of each.
        """
        count, size = len(fit.weights), self.info.size
        array = self._region.array((count, size), np.float32) if self._room.vectors else None
        vectors = Vectors(count, size, array, directory)
        norms = np.zeros(count)
        for found in self.spread(lambda start: self._directions_of(fit.weights, start, vectors)):
            norms += found
        return vectors, norms

    def at_last_observed(self, lo: int, hi: int) -> Bits:
        """Return the bits of elements lo .. hi at the last observed step."""
        if self._held is not None:
            return self._held[self.last, lo:hi]
        return self.run.checkpoint(self.last).read(self.info.name, lo, hi)

    def at_origin(self, lo: int, hi: int) -> Bits:
        """Return the bits of elements lo .. hi at the origin, in its dtype."""
        return self.origin.read(lo, hi) if self._origin is None else self._origin[lo:hi]

    def at_all_steps(self, lo: int, hi: int) -> Bits:
        """Return the bits of elements lo .. hi at all steps: [T, hi - lo]."""
        return self.run.read(self.info.name, lo, hi) if self._held is None else self._held[:, lo:hi]

    def spread(
        self, function: Callable[[int], R], window: int | None = None, starts: range | None = None
    ) -> Iterator[R]:
        """Yield what `function` returns for the first element of each piece, in order; or of those from `starts`."""
        starts = range(0, self.info.size, PIECE) if starts is None else starts
        return ordered_map(function, starts, min(self._room.threads, len(starts)), window)

    def _look_at(self, start: int) -> _Piece:
        """Read a piece, and sum up what is wanted of it."""
        end = min(start + PIECE, self.info.size)
        origin = self.origin.read(start, end)
        if self._origin is not None:
            self._origin[start:end] = origin
        wide = widened(origin, self.origin.dtype)
        sums = GramSums(len(self.run.steps), self.observed, self._wide)
        moved, kept, bits, at = False, None, self._held, start
        if self._pieces:
            if bits is None:
                bits, at = self.run.read(self.info.name, start, end), 0
            else:
                self.run.read_into(self.info.name, start, bits[:, start:end])
            kept = bits[:, at : at + end - start]
        for lo, hi in self._slices(start, end, whole=kept is not None):
            if kept is None:
                bits, at = self._slice(lo, hi, len(self.run.steps))
            assert bits is not None
            part = slice(lo - start, hi - start)
            sums.add(bits, self.info.dtype, at, wide[part], origin[part], self.origin.dtype)
            moved = moved or self._moved(bits[: self.observed, at : at + hi - lo], origin[part], sums)
        return _Piece(sums, digest(origin), magnitude(wide), moved, *((origin, kept) if kept is not None else ()))

    def _directions_of(self, weights: F64, start: int, vectors: Vectors) -> F64:
        """Compute the directions over a piece; return the sums of their magnitudes."""
        end = min(start + PIECE, self.info.size)
        origin = self.at_origin(start, end)
        wide = widened(origin, self.origin.dtype)
        values = vectors.part(start, end)
        for lo, hi in self._slices(start, end):
            bits, at = self._slice(lo, hi, self.observed, again=True)
            part = slice(lo - start, hi - start)
            if self.infinite[: self.observed].any():  # such steps have no weight, which infinities would not obey
                bits, at = bits[: self.observed, at : at + hi - lo].copy(), 0
                bits[self.infinite[: self.observed]] = as_dtype(origin[part], self.origin.dtype, self.info.dtype)
            directions(
                weights, bits, self.info.dtype, at, wide[part], origin[part], self.origin.dtype, values[:, part],
                wide=self._wide,
            )  # fmt: skip
        vectors.write(start, values)
        return np.array([magnitude(row) for row in values])

    def _slices(self, lo: int, hi: int, *, whole: bool = False) -> Iterator[tuple[int, int]]:
        size = PIECE if whole or self._held is not None else self._room.slice
        for at in range(lo, hi, size):
            check_cancelled()
            yield at, min(at + size, hi)

    def _slice(self, lo: int, hi: int, steps: int, *, again: bool = False) -> tuple[Bits, int]:
        """Return an array of elements lo .. hi at the first steps, and where they begin in it."""
        if self._held is not None:
            if not again:
                self.run.read_into(self.info.name, lo, self._held[:, lo:hi])
            return self._held, lo
        buffer = working_array("slice", (steps, self._room.slice), bits_dtype(self.info.dtype))
        self.run.read_into(self.info.name, lo, buffer[:, : hi - lo])
        return buffer, 0

    def _moved(self, bits: Bits, origin: Bits, sums: GramSums) -> bool:
        if self.info.dtype == self.origin.dtype:
            return sums.moved
        finite = bits[~sums.infinite[: self.observed]]
        return bool((finite != as_dtype(origin, self.origin.dtype, self.info.dtype)).any())

    def _refuse(self) -> None:
        """Refuse deltas that are not finite, where the exact tier does not have the weights."""
        rows = np.flatnonzero(self.infinite)
        steps = self.run.steps
        bad = [steps[int(row)] for row in rows]
        leave = f"leave {'it' if len(bad) == 1 else 'them'} out with --exclude-steps {spell_steps(bad, steps)}, or "
        raise CheckpointError(
            f"tensor {quote(self.info.name)} of {name_steps(bad, steps)} has weights that are not finite; a line "
            f"through them means nothing: {leave if len(bad) < len(steps) else ''}keep the run with --exact"
        )
