"""Decoding tensors of an open file to bits: spans, chunks, kernels (FORMAT.md sections 7 to 9); no torch here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from relex_codec.checkpoints.base_model import BaseReader
from relex_codec.core.digests import digest
from relex_codec.core.dtypes import F32, Bits, Bytes, bits_dtype, from_float32, to_float32
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import Corrupt, InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.factors import Factors, from_stream
from relex_codec.format.index import Part
from relex_codec.format.packing import check_codes, from_planes, packed_size
from relex_codec.format.reader import FileReader
from relex_codec.kernels.dispatch import host_kernel
from relex_codec.kernels.interface import DecodeJob, PackedDirection, Prepare, Window, flat
from relex_codec.kernels.windows import BATCH, copy_window, cut, pieces

from .read_plan import Plans
from .tiers import LINEAR, coefficient

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo
    from relex_codec.exact.tier_reader import ExactTier

Read = tuple[float, str]
"""A step and the tier that it is read from, as `tiers.choose_tier` returns it."""
Allocate = Callable[[int], Bytes]
"""Gives memory for so many bytes, uint8."""


def _empty(size: int) -> Bytes:
    return np.empty(size, np.uint8)


class Scratch:
    """Memory that one job after another uses: touching fresh memory costs as much as decoding into it."""

    def __init__(self) -> None:
        self._parts: list[Bytes] = []
        self._used = 0

    def __call__(self, size: int) -> Bytes:
        """Return memory for `size` bytes."""
        if self._used == len(self._parts):
            self._parts.append(_empty(size))
        elif len(self._parts[self._used]) < size:
            self._parts[self._used] = _empty(size)
        self._used += 1
        return self._parts[self._used - 1][:size]

    def clear(self) -> None:
        """Use all memory anew."""
        self._used = 0


class Decoder:
    """Reads tensors of one file.

    Args:
        base: gives the reader of the base when it is first needed; not called where the file holds what is read.
        use_embedded: read an embedded base from the file; False if the caller gave a base.
        prepare: the kernel, of numpy arrays.
    """

    def __init__(
        self,
        container: FileReader,
        base: Callable[[], BaseReader],
        *,
        use_embedded: bool = True,
        prepare: Prepare = host_kernel,
    ) -> None:
        self.container, self._base, self._use_embedded, self._prepare = container, base, use_embedded, prepare
        self.numbers = {tensor.name: tensor.number for tensor in container.index.tensors}
        self._exact: ExactTier | None = None
        self._lock = threading.Lock()
        self.plans = Plans()
        """What `reading.reading_ahead` has under way of this file."""
        self._spare: list[Scratch] = []

    @contextmanager
    def _scratch(self) -> Iterator[Scratch]:
        """Memory for jobs that nobody else uses meanwhile; as much is kept as threads decode at a time."""
        try:
            scratch = self._spare.pop()
        except IndexError:
            scratch = Scratch()
        try:
            yield scratch
        finally:
            scratch.clear()
            self._spare.append(scratch)

    @property
    def use_embedded(self) -> bool:
        """Whether an embedded base is read from the file."""
        return self._use_embedded

    def base(self) -> BaseReader:
        """Return the reader of the base; errors are those of opening it."""
        return self._base()

    @property
    def exact(self) -> ExactTier:
        """The exact tier, opened when it is first needed; the file must have one."""
        from relex_codec.exact.tier_reader import ExactTier  # numba is only needed here

        with self._lock:
            if self._exact is None:
                self._exact = ExactTier(self.container)
            return self._exact

    def number(self, name: str) -> int:
        """Return the number of a tensor, or raise InvalidArgument."""
        try:
            return self.numbers[name]
        except KeyError:
            raise InvalidArgument(f"{self.container.source.path} has no tensor {quote(name)}") from None

    # -- bits of a tensor at some steps -----------------------------------------------------------------------------

    def read(self, name: str, step: float, tier: str, lo: int = 0, hi: int | None = None) -> Bits:
        """Return the bits of elements lo .. hi of a tensor at a step, one-dimensional and writable.

        Args:
            tier: as `choose_tier` returns it.
        """
        hi = self.container.index.tensors[self.number(name)].size if hi is None else hi
        return self.read_window(name, [(step, tier)], flat(lo, hi))[0].reshape(-1)

    def read_window(self, name: str, reads: Sequence[Read], window: Window) -> list[Bits]:
        """Return the bits of a window of a tensor at each of some steps, [rows, columns], each its own memory.

        Origin and codes are read once for all steps.
        """
        number = self.number(name)
        dtype = bits_dtype(self.container.index.tensors[number].dtype)
        outs: list[Bits] = [np.empty((window.rows, window.columns), dtype) for _ in reads]
        linear = [i for i, read in enumerate(reads) if self.is_linear(number, read[1])]
        if linear:
            g = self.coefficients(number, [reads[i] for i in linear])
            targets = [outs[i] for i in linear]
            with self._scratch() as scratch:
                for job in self.jobs(number, window, scratch):
                    self._prepare([job])([g], [targets])
                    scratch.clear()
        for i, (step, tier) in enumerate(reads):
            if i not in linear:
                self._copy(number, step, tier, window, outs[i])
        return outs

    def is_linear(self, number: int, tier: str) -> bool:
        """Whether a tensor is decoded by a kernel in a tier."""
        return self.container.index.tensors[number].kind == f.MOVING and tier in LINEAR

    def directions(self, number: int) -> range:
        """Numbers of a tensor's directions."""
        return self.container.index.tensors[number].directions

    def coefficients(self, number: int, reads: Sequence[Read]) -> F32:
        """Return g of each direction of a ``moving`` tensor at each of some steps, float32 [S, k]."""
        index = self.container.index
        rows = [(index.directions[d], partial(self._row, d)) for d in self.directions(number)]
        return np.array(
            [[coefficient(record, row, index.steps, *read) for record, row in rows] for read in reads], np.float32
        )

    def _row(self, direction: int) -> npt.NDArray[np.float64]:
        row: npt.NDArray[np.float64] = self.container.coefficients(direction)[0]
        return row

    def _copy(self, number: int, step: float, tier: str, window: Window, out: Bits) -> None:
        """Fill `out` from what needs no arithmetic: origin, frames."""
        framed = tier == "exact" or (tier != "base" and self.container.index.tensors[number].kind == f.FRAMED)
        for start, end in self._batches(number, window):
            if framed:
                self._restore(number, self._at_or_before(step), start, end, window, out)
            else:
                copy_window(window, start, self._convert(self.origin(number, start, end), number), out)

    def _batches(self, number: int, window: Window) -> Iterator[tuple[int, int]]:
        """Yield ranges of elements, of whole pieces, that hold a window; each fits the memory for a batch."""
        size = self.container.index.tensors[number].size
        for low, high in pieces(window):
            for piece in range(low, high, BATCH):
                yield piece * f.PIECE, min(min(piece + BATCH, high) * f.PIECE, size)

    # -- what a kernel is given ------------------------------------------------------------------------------------

    def jobs(self, number: int, window: Window, allocate: Allocate = _empty) -> Iterator[DecodeJob]:
        """Yield jobs that together decode a window of a ``moving`` tensor, a batch of pieces each."""
        factors: list[Factors | None] = []
        for start, end in self._batches(number, window):
            job = self.job(number, window, start, end, factors, allocate)
            factors = [direction.factors for direction in job.directions]
            yield job

    def job(
        self,
        number: int,
        window: Window,
        start: int,
        end: int,
        factors: Sequence[Factors | None] = (),
        allocate: Allocate = _empty,
    ) -> DecodeJob:
        """Read what decoding the elements start .. end of a window takes, which are whole pieces; all of it is checked.

        Args:
            factors: those of the tensor's directions, where they are known.
            allocate: memory for origin and codes.
        """
        tensor = self.container.index.tensors[number]
        origin = self.origin(number, start, end, allocate=allocate)
        directions = self._directions(number, start, end, factors, allocate)
        at = window.row * window.width + window.column - start
        return DecodeJob(
            origin, at, window.width, tensor.origin_dtype, tensor.dtype, directions, cut(window, start, end), start,
            tensor.size,
        )  # fmt: skip

    def _directions(
        self, number: int, start: int, end: int, factors: Sequence[Factors | None], allocate: Allocate
    ) -> list[PackedDirection]:
        index = self.container.index
        tensor = index.tensors[number]
        low, high = start // f.PIECE, -(-end // f.PIECE)
        rows = [index.directions[d] for d in self.directions(number)]
        packings = [f.PACKINGS[int(row["packing"])] for row in rows]
        wanted: list[Part] = []
        uses: list[Callable[[Bytes], None]] = []
        packed: list[Bytes] = []
        streams: list[Bytes | None] = []
        for d, packing in zip(self.directions(number), packings, strict=True):
            of_factors, of_remainder = index.direction_parts(tensor, d)
            of_factors = [] if factors else of_factors
            remainder = of_remainder[low * packing.planes : high * packing.planes]
            streams.append(_empty(sum(part.length for part in of_factors)) if of_factors else None)
            packed.append(allocate(sum(part.length for part in remainder)))
            for parts, memory in ((of_factors, streams[-1]), (remainder, packed[-1])):
                at = 0
                for part in parts:
                    assert memory is not None
                    uses.append(_filling(memory, at))
                    at += part.length
                wanted += parts
        self.container.pieces(wanted, lambda i, raw: uses[i](raw))
        self._check_pieces(number, packings, packed, start, end)
        known = factors or [
            None if stream is None else self._factors(number, int(row["rank"]), stream)
            for row, stream in zip(rows, streams, strict=True)
        ]
        return [
            PackedDirection(pairs, packing, codes, np.float32(row["scale"]), np.float32(row["shift"]))
            for pairs, packing, codes, row in zip(known, packings, packed, rows, strict=True)
        ]

    def _factors(self, number: int, rank: int, stream: Bytes) -> Factors:
        """Factors from the raw bytes of all their pieces."""
        shape = self.container.index.tensors[number].shape
        raw = [stream[at : at + 2 * f.PIECE] for at in range(0, len(stream), 2 * f.PIECE)]
        return from_stream(np.concatenate([from_planes(planes, np.uint16) for planes in raw]), shape, rank)

    def _check_pieces(
        self, number: int, packings: Sequence[f.Packing], packed: Sequence[Bytes], start: int, end: int
    ) -> None:
        """Check the codes of the pieces from `start` to `end`; kernels trust them."""
        work = []
        for packing, codes in zip(packings, packed, strict=True):
            width = packed_size(f.PIECE, packing) * packing.planes
            pieces = range(start // f.PIECE, -(-end // f.PIECE)) if len(codes) else ()
            work += [(piece, packing, codes[i * width : (i + 1) * width]) for i, piece in enumerate(pieces)]
        parallel_map(lambda one: self.check_piece(number, *one), work)

    def check_piece(self, number: int, piece: int, packing: f.Packing, raw: Bytes) -> None:
        """Check the codes of one piece of a tensor; the message names it."""
        tensor = self.container.index.tensors[number]
        try:
            check_codes(raw, min(f.PIECE, tensor.size - piece * f.PIECE), packing)
        except Corrupt as error:
            raise Corrupt(f"{self.container.source.path}: tensor {quote(tensor.name)}: {error}") from None

    # -- origins, frames -----------------------------------------------------------------------------

    def _convert(self, bits: Bits, number: int) -> Bits:
        tensor = self.container.index.tensors[number]
        if tensor.dtype == tensor.origin_dtype:
            return bits
        return from_float32(to_float32(bits, tensor.origin_dtype), tensor.dtype)

    def origin(
        self, number: int, start: int, end: int, *, check: bool = True, allocate: Allocate | None = None
    ) -> Bits:
        """Bits of whole pieces of the origin; checked, unless the caller checks what is made of them."""
        index = self.container.index
        tensor = index.tensors[number]
        dtype = bits_dtype(tensor.origin_dtype)
        out: Bits | None = None if allocate is None else allocate((end - start) * dtype.itemsize).view(dtype)
        if not tensor.origin_held or (tensor.origin == f.IN_BASE and not self._use_embedded):
            return self._base().read(tensor.name, start, end, check=check, out=out)
        bits = self._elements(index.origin_parts(tensor), tensor.origin_dtype, start, end)
        if check:
            self._check_digests(number, bits, start // f.PIECE)
        if out is None:
            return bits
        out[:] = bits
        return out

    def _at_or_before(self, step: float) -> int:
        """Number of the last stored step that is not after `step`, from 1 on; 1 if there is none."""
        return max(1, int(np.searchsorted(self.container.index.steps, step, side="right")))

    def part_origin(self, part: PartInfo, *, check: bool = True) -> Bits:
        """Elements of a part that the origin has, in the tensor's dtype; `check` as in `origin`."""
        start = part.piece * f.PIECE
        return self._convert(self.origin(part.tensor, start, start + part.elements, check=check), part.tensor)

    def _restore(self, number: int, step: int, start: int, end: int, window: Window, out: Bits) -> None:
        """Fill the window `out` from whole pieces at step number `step` of the exact tier, all checked."""
        tier = self.exact
        parts = tier.pieces(number, start // f.PIECE, -(-end // f.PIECE))
        blobs = tier.fetch(tier.blobs_of(parts, step))

        def unchecked(part: PartInfo) -> Bits:
            return self.part_origin(part, check=False)

        def restored(part: PartInfo) -> Bits:
            if not tier.holds(tier.segment_of(step), part.tensor):
                return self.part_origin(part)
            try:
                return tier.restored(part, step, unchecked, blobs)  # its own digest covers the base
            except Corrupt:
                self.part_origin(part)  # a BaseMismatch, if it is the base that is wrong
                raise

        parallel_map(lambda part: copy_window(window, part.piece * f.PIECE, restored(part), out), parts)

    def _elements(self, parts: list[Part], dtype: str, start: int, end: int) -> Bits:
        width = bits_dtype(dtype).itemsize
        raw = self.pieces_of(parts[start // f.PIECE * width : -(-end // f.PIECE) * width], width)
        found = [from_planes(planes, bits_dtype(dtype)) for planes in raw]
        return np.concatenate(found) if found else np.empty(0, bits_dtype(dtype))

    def pieces_of(self, parts: list[Part], planes: int) -> list[Bytes]:
        """Raw bytes of pieces of so many planes each, the planes of a piece one after another."""
        raw = iter(self.container.pieces(parts, lambda _, data: data))
        if planes == 1:
            return list(raw)
        return [np.concatenate([next(raw) for _ in range(planes)]) for _ in range(len(parts) // max(planes, 1))]

    def read_file(self, number: int) -> Iterator[bytes]:
        """Yield the bytes of an embedded file, in bounded memory."""
        parts = self.container.index.file_parts(number)
        for i in range(0, len(parts), BATCH):
            yield from self.container.pieces(parts[i : i + BATCH], lambda _, raw: raw.tobytes())

    def check_stored(self, number: int, start: int, end: int) -> None:
        """Read whole pieces of an origin that the file holds, and check them."""
        tensor = self.container.index.tensors[number]
        parts = self.container.index.origin_parts(tensor)
        self._check_digests(number, self._elements(parts, tensor.origin_dtype, start, end), start // f.PIECE)

    def _check_digests(self, number: int, bits: Bits, first: int) -> None:
        """Check whole pieces of an embedded origin, from piece `first` on; there is no digest of a stored one."""
        index = self.container.index
        tensor = index.tensors[number]
        for i, start in zip(tensor.digests[first:], range(0, len(bits), f.PIECE), strict=False):
            if digest(bits[start : start + f.PIECE]) != index.digests[i].tobytes():
                name = quote(tensor.name)
                raise Corrupt(f"{self.container.source.path}: embedded tensor {name} differs from its digest")


def _filling(memory: Bytes, at: int) -> Callable[[Bytes], None]:
    """Return what writes raw bytes to their place."""

    def fill(raw: Bytes) -> None:
        memory[at : at + len(raw)] = raw

    return fill
