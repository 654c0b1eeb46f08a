"""Decoding tensors of an open file to bits: spans, chunks, kernels (FORMAT.md sections 7 to 9); no torch on the CPU."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from . import format as f
from .base import BaseReader, digest
from .container import Container
from .dtypes import Bits, bits_dtype, from_float32, to_float32
from .errors import Corrupt, InvalidArgument
from .factors import from_stream
from .header import quote
from .index import Part
from .kernels import Factors, Term
from .kernels.numpy_cpu import decode_piece
from .packing import Bytes, from_planes
from .parallel import in_parallel

if TYPE_CHECKING:
    from .exact.layout import PartInfo
    from .exact.tier import ExactTier

BATCH: Final = 64
"""Pieces that are in memory in packed form at a time."""
TIERS: Final = ("auto", "line", "track", "exact")
Kernel = Callable[[Bits, str, str, list[Term], int], Bits]
"""Decodes a piece: (origin bits, origin dtype, dtype, terms, start) -> bits."""


def choose_tier(container: Container, step: float, tier: str) -> str:
    """Return what a step is read from: ``base``, ``line``, ``track`` or ``exact`` (FORMAT.md sections 8 and 13).

    Raises:
        InvalidArgument: an unknown tier, a step that is no number, or one that the tier does not have.
    """
    steps = container.index.steps
    if tier not in TIERS:
        raise InvalidArgument(f"tier is {tier!r}, expected one of {', '.join(TIERS)}")
    if not math.isfinite(step):
        raise InvalidArgument(f"step is {step}, expected a finite number")
    stored = container.index.has_exact and step in steps
    if tier == "exact" and not stored:
        if not container.index.has_exact:
            raise InvalidArgument(f"{container.source.path} has no tier 'exact': it was encoded without --exact")
        nearest = int(steps[np.argmin(np.abs(steps - step))])
        raise InvalidArgument(f"tier 'exact' has the stored steps only, not {step:g}; the nearest is {nearest}")
    if tier == "auto" and stored and step != 0:
        return "exact"
    if tier == "auto":
        observed = int(steps[0]) <= step <= int(steps[container.index.manifest.observed - 1])
        return "base" if step == 0 else "track" if observed else "line"
    if tier == "track" and not int(steps[0]) <= step <= int(steps[-1]):
        raise InvalidArgument(f"tier 'track' reaches from step {steps[0]} to {steps[-1]}, not {step:g}; 'line' does")
    return tier


def coefficient(container: Container, direction: int, step: float, tier: str) -> np.float32:
    """Return g of one direction at a step, from `tier` ``line`` or ``track``.

    Raises:
        InvalidArgument: it exceeds float32.
    """
    record = container.index.directions[direction]
    steps = container.index.steps
    with np.errstate(over="ignore"):
        if tier == "line":
            c = np.float64(record["slope"]) * np.float64(step) + np.float64(record["intercept"])
        else:
            row = container.coefficients(direction)[0]
            after = int(np.searchsorted(steps, step))
            if steps[after] == step:
                c = row[after]
            else:
                low, high = np.float64(steps[after - 1]), np.float64(steps[after])
                c = row[after - 1] + (row[after] - row[after - 1]) * ((np.float64(step) - low) / (high - low))
        g = np.float32(c)
    if not np.isfinite(g):
        raise InvalidArgument(f"step {step:g} is too far out: a coefficient there exceeds float32")
    return g


class Decoder:
    """Reads tensors of one file.

    Args:
        base: gives the reader of the base when it is first needed; not called where the file holds what is read.
        use_embedded: read an embedded base from the file; False if the caller gave a base.
        kernel: decodes pieces.
    """

    def __init__(
        self,
        container: Container,
        base: Callable[[], BaseReader],
        *,
        use_embedded: bool = True,
        kernel: Kernel = decode_piece,
    ) -> None:
        self.container, self._base, self._use_embedded, self._kernel = container, base, use_embedded, kernel
        self.numbers = {tensor.name: i for i, tensor in enumerate(container.index.manifest.tensors)}
        self._exact: ExactTier | None = None
        self._lock = threading.Lock()

    @property
    def use_embedded(self) -> bool:
        """Whether an embedded base is read from the file."""
        return self._use_embedded

    @property
    def exact(self) -> ExactTier:
        """The exact tier, opened when it is first needed; the file must have one."""
        from .exact.tier import ExactTier  # numba is only needed here

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

    def read(self, name: str, step: float, tier: str, lo: int = 0, hi: int | None = None) -> Bits:
        """Return the bits of elements lo .. hi of a tensor at a step, one-dimensional and writable.

        Args:
            tier: as `choose_tier` returns it.
        """
        index = self.container.index
        number = self.number(name)
        record, tensor = index.tensors[number], index.manifest.tensors[number]
        hi = tensor.size if hi is None else hi
        out: Bits = np.empty(hi - lo, bits_dtype(tensor.dtype))
        terms: list[tuple[np.float32, int]] = []
        if record["kind"] == f.MOVING and tier in ("line", "track"):
            first = int(record["first"])
            directions = range(first, first + int(record["directions"]))
            terms = [(coefficient(self.container, d, step, tier), d) for d in directions]
        factors: list[Factors | None] = []
        has_origin = record["origin"] != f.NO_ORIGIN
        series = record["kind"] == f.EXACT_SERIES and not (tier == "base" and has_origin)
        for start in range(lo // f.PIECE * f.PIECE, hi, BATCH * f.PIECE):
            end = min(start + BATCH * f.PIECE, -(-hi // f.PIECE) * f.PIECE, tensor.size)
            if tier == "exact" or (series and index.has_exact):
                self._restore(number, self._at_or_before(step), start, end, lo, out)
                continue
            if series:
                found = self._series(number, step, start, end)
            elif terms:
                found, factors = self._moving(number, terms, factors, start, end)
            else:
                found = self._convert(self.origin(number, start, end), number)
            a, b = max(start, lo), min(end, hi)
            out[a - lo : b - lo] = found[a - start : b - start]
        return out

    def _convert(self, bits: Bits, number: int) -> Bits:
        tensor = self.container.index.manifest.tensors[number]
        if tensor.dtype == tensor.origin_dtype:
            return bits
        return from_float32(to_float32(bits, tensor.origin_dtype), tensor.dtype)

    def origin(self, number: int, start: int, end: int, *, check: bool = True) -> Bits:
        """Bits of whole pieces of the origin; checked, unless the caller checks what is made of them."""
        index = self.container.index
        tensor = index.manifest.tensors[number]
        if index.holds_origin(number) and (self._use_embedded or index.tensors[number]["origin"] == f.STORED):
            bits = self._elements(index.origin_parts(number), tensor.origin_dtype, start, end)
            if check:
                self._check_digests(number, bits, start // f.PIECE)
            return bits
        return self._base().read(tensor.name, start, end, check=check)

    def _at_or_before(self, step: float) -> int:
        """Number of the last stored step that is not after `step`, from 1 on; 1 if there is none."""
        return max(1, int(np.searchsorted(self.container.index.steps, step, side="right")))

    def part_origin(self, part: PartInfo, *, check: bool = True) -> Bits:
        """Elements of a part that the origin has, in the tensor's dtype; `check` as in `origin`."""
        start = part.piece * f.PIECE
        return self._convert(self.origin(part.tensor, start, start + part.elements, check=check), part.tensor)

    def _restore(self, number: int, step: int, start: int, end: int, lo: int, out: Bits) -> None:
        """Fill `out`, elements from `lo` on, from whole pieces at step number `step` of the exact tier, all checked."""
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

        def fill(part: PartInfo) -> None:
            begin = part.piece * f.PIECE
            a, b = max(begin, lo), min(begin + part.elements, lo + len(out))
            out[a - lo : b - lo] = restored(part)[a - begin : b - begin]

        in_parallel(fill, parts)

    def _series(self, number: int, step: float, start: int, end: int) -> Bits:
        index = self.container.index
        parts = index.series_parts(number, self._at_or_before(step) - 1)
        return self._elements(parts, index.manifest.tensors[number].dtype, start, end)

    def _elements(self, parts: list[Part], dtype: str, start: int, end: int) -> Bits:
        width = bits_dtype(dtype).itemsize
        raw = self._pieces(parts[start // f.PIECE * width : -(-end // f.PIECE) * width], width)
        found = [from_planes(planes, bits_dtype(dtype)) for planes in raw]
        return np.concatenate(found) if found else np.empty(0, bits_dtype(dtype))

    def _pieces(self, parts: list[Part], planes: int) -> list[Bytes]:
        """Raw bytes of pieces of so many planes each, the planes of a piece one after another."""
        return self._several([(parts, planes)])[0]

    def _several(self, wanted: list[tuple[list[Part], int]]) -> list[list[Bytes]]:
        """`_pieces` of several lists of parts, all of them in one read."""
        raw = iter(self.container.pieces([part for parts, _ in wanted for part in parts], lambda _, data: data))

        def piece(planes: int) -> Bytes:
            return next(raw) if planes == 1 else np.concatenate([next(raw) for _ in range(planes)])

        return [[piece(planes) for _ in range(len(parts) // max(planes, 1))] for parts, planes in wanted]

    def _factors(self, number: int, direction: int, pieces: list[Bytes]) -> Factors | None:
        """Factors from the raw bytes of their pieces."""
        index = self.container.index
        if not pieces:
            return None
        bits = np.concatenate([from_planes(planes, np.uint16) for planes in pieces])
        rank = int(index.directions[direction]["rank"])
        return from_stream(bits, index.manifest.tensors[number].shape, rank)

    def _moving(
        self, number: int, terms: list[tuple[np.float32, int]], factors: list[Factors | None], start: int, end: int
    ) -> tuple[Bits, list[Factors | None]]:
        """Decode whole pieces; `factors` are those of the tensor, or empty: then they are read along and returned."""
        index = self.container.index
        tensor = index.manifest.tensors[number]
        origin = self.origin(number, start, end)
        low, high = start // f.PIECE, -(-end // f.PIECE)
        wanted: list[tuple[list[Part], int]] = []
        for _, direction in terms:
            planes = f.PACKINGS[int(index.directions[direction]["packing"])].planes
            of_factors, of_remainder = index.direction_parts(tensor, direction)
            wanted += [([] if factors else of_factors, 2), (of_remainder[low * planes : high * planes], planes)]
        found = self._several(wanted)
        if not factors:
            factors = [self._factors(number, d, found[2 * j]) for j, (_, d) in enumerate(terms)]
        packed = [found[2 * j + 1] or [np.empty(0, np.uint8)] * (high - low) for j in range(len(terms))]

        def one(i: int) -> Bits:
            pieces = [self._term(*term, factors[j], packed[j][i]) for j, term in enumerate(terms)]
            at = i * f.PIECE
            bits = origin[at : at + f.PIECE]
            try:
                return self._kernel(bits, tensor.origin_dtype, tensor.dtype, pieces, start + at)
            except Corrupt as error:
                raise Corrupt(f"{self.container.source.path}: tensor {quote(tensor.name)}: {error}") from None

        return np.concatenate(in_parallel(one, range(high - low))), factors

    def _term(self, g: np.float32, direction: int, factors: Factors | None, packed: Bytes) -> Term:
        record = self.container.index.directions[direction]
        packing = f.PACKINGS[int(record["packing"])]
        return Term(g, factors, packing, packed, np.float32(record["step"]), np.float32(record["shift"]))

    def read_file(self, number: int) -> Iterator[bytes]:
        """Yield the bytes of an embedded file, in bounded memory."""
        parts = self.container.index.file_parts(number)
        for i in range(0, len(parts), BATCH):
            yield from self.container.pieces(parts[i : i + BATCH], lambda _, raw: raw.tobytes())

    def check_all(self) -> None:
        """Read every chunk, decode every code, check the digests of an embedded base.

        Raises:
            Corrupt: a checksum, frame, code or digest is wrong.
        """
        index = self.container.index
        for entry in index.entries.values():
            if entry.name not in f.ENTRIES and entry.name not in f.EXACT_ENTRIES:
                self.container.check_entry(entry)
        for direction in range(len(index.directions)):
            self.container.coefficients(direction)
        for number, record in enumerate(index.tensors):
            if record["kind"] == f.MOVING:
                for d in range(int(record["first"]), int(record["first"]) + int(record["directions"])):
                    self._check_direction(number, d)
            elif record["kind"] == f.EXACT_SERIES and not index.has_exact:
                for parts in index.distinct_series(number):
                    for i in range(0, len(parts), BATCH):
                        self.container.pieces(parts[i : i + BATCH], lambda _, raw: len(raw))
            if index.holds_origin(number):
                self._check_origin(number)
        for i in range(len(index.manifest.files)):
            for part in index.file_parts(i):
                self.container.pieces([part], lambda _, raw: len(raw))
        if index.has_exact:
            for keys in self.exact.all_blobs():
                for i in range(0, len(keys), BATCH):
                    self.exact.fetch(keys[i : i + BATCH])

    def _check_direction(self, number: int, direction: int) -> None:
        tensor = self.container.index.manifest.tensors[number]
        factors, parts = self.container.index.direction_parts(tensor, direction)
        planes = f.PACKINGS[int(self.container.index.directions[direction]["packing"])].planes
        zeros = np.zeros(f.PIECE, np.uint16)

        def codes(work: tuple[int, Bytes]) -> None:
            number, raw = work
            origin = zeros[: min(f.PIECE, tensor.size - number * f.PIECE)]
            decode_piece(origin, "BF16", "BF16", [self._term(np.float32(0), direction, None, raw)], 0)

        try:
            for i in range(0, len(factors), BATCH):
                self.container.pieces(factors[i : i + BATCH], lambda _, raw: len(raw))
            for i in range(0, len(parts), BATCH * planes or 1):
                raw = self._pieces(parts[i : i + BATCH * planes], planes)
                in_parallel(codes, enumerate(raw, i // planes))
        except Corrupt as error:
            raise Corrupt(f"tensor {quote(tensor.name)}: {error}") from None

    def _check_origin(self, number: int) -> None:
        size = self.container.index.manifest.tensors[number].size
        parts = self.container.index.origin_parts(number)
        dtype = self.container.index.manifest.tensors[number].origin_dtype
        for start in range(0, size, BATCH * f.PIECE):
            bits = self._elements(parts, dtype, start, min(start + BATCH * f.PIECE, size))
            self._check_digests(number, bits, start // f.PIECE)

    def _check_digests(self, number: int, bits: Bits, first: int) -> None:
        """Check whole pieces of an embedded origin, from piece `first` on; there is no digest of a stored one."""
        index = self.container.index
        record = index.tensors[number]
        if record["origin"] != f.IN_BASE:
            return
        for i, start in enumerate(range(0, len(bits), f.PIECE), int(record["digest"]) + first):
            if digest(bits[start : start + f.PIECE]) != index.digests[i].tobytes():
                name = quote(index.manifest.tensors[number].name)
                raise Corrupt(f"{self.container.source.path}: embedded tensor {name} differs from its digest")
