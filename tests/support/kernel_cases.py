"""Jobs for the kernels, drawn at random, with the bits that the reference decoder's own functions give for them."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from relex_codec.core.dtypes import FLOATS, ITEMSIZE
from relex_codec.format.constants import BLOCK, BYTE, NIBBLE, NONE, PACKINGS, PIECE, TERNARY, Packing
from relex_codec.format.factors import Factors, from_stream
from relex_codec.format.packing import pack_codes, to_planes
from relex_codec.kernels.interface import DecodeJob, PackedDirection, Window, flat

from .specification import ref

Array = npt.NDArray[Any]


SPECIAL = {
    "BF16": "0000 8000 0001 8001 007f 0080 3f80 bf80 7f7f ff7f 7f80 ff80 7fc0 ff81 7f81",
    "F16": "0000 8000 0001 8001 03ff 0400 3c00 bc00 7bff fbff 7c00 fc00 7e00 fc01 7c01",
    "F32": "00000000 80000000 00000001 80000001 007fffff 00800000 3f800000 bf800000 7f7fffff ff7fffff 7f800000 ff800000"
    " 7fc00000 ff800001 7f800001 477ff000 33000000 33000001 3f808000 3f818000",
}


def patterns(rng: np.random.Generator, n: int, dtype: str) -> Array:
    """n elements: special values, any bits, and numbers around 1."""
    width = ITEMSIZE[dtype]
    anything = rng.integers(0, 1 << 8 * width, n, dtype=f"u{width}")
    special = rng.choice(np.array([int(word, 16) for word in SPECIAL[dtype].split()], f"u{width}"), n)
    usual = np.frombuffer(ref.narrow(rng.standard_normal(n).astype(np.float32), dtype), f"<u{width}")
    result: Array = np.choose(rng.integers(0, 4, n), [special, anything, usual, usual]).astype(f"<u{width}")
    return result


def number(rng: np.random.Generator) -> np.float32:
    """A finite f32."""
    while True:
        value = patterns(rng, 1, "F32").view(np.float32)[0]
        if np.isfinite(value):
            return np.float32(value)


@dataclass
class Drawn:
    """A direction of a whole tensor."""

    packing: Packing
    remainder: Array
    scale: np.float32
    shift: np.float32
    rank: int
    factors: Array

    @classmethod
    def random(
        cls, rng: np.random.Generator, shape: tuple[int, ...], packing: Packing | None = None, rank: int | None = None
    ) -> Drawn:
        """A direction that a tensor of this shape may have: any, or with packing and rank as given."""
        n = int(np.prod(shape))
        if rank is None:
            rank = int(rng.integers(0, 4)) if len(shape) > 1 else 0
        if packing is None or (packing is NONE and rank == 0):
            packing = PACKINGS[int(rng.integers(0 if rank else 1, len(PACKINGS)))]
        remainder = rng.integers(-packing.zero, packing.zero + 1, n).astype(np.int32)
        if packing.name == "float32":
            remainder = patterns(rng, n, "F32")
        factors = patterns(rng, n // max(1, int(np.prod(shape[-2:]))) * rank * sum(shape[-2:]), "BF16")
        return cls(packing, remainder, abs(number(rng)), number(rng), rank, factors)

    def pieces(self, start: int = 0, stop: int | None = None) -> list[npt.NDArray[np.uint8]]:
        """The raw pieces of the remainder between two elements, the first a multiple of ``PIECE``."""
        if self.packing is NONE:
            return []
        stop = len(self.remainder) if stop is None else stop
        parts = [self.remainder[lo : lo + PIECE] for lo in range(start, stop, PIECE)]
        return [to_planes(x) if self.packing.name == "float32" else pack_codes(x, self.packing) for x in parts]

    def direction(self, shape: tuple[int, ...], start: int, stop: int) -> PackedDirection:
        """What a kernel is given."""
        factors = from_stream(self.factors, shape, self.rank) if self.rank else None
        packed = np.concatenate([np.empty(0, np.uint8), *self.pieces(start, stop)])
        return PackedDirection(factors, self.packing, packed, self.scale, self.shift)


def by_the_reference(
    origin: Array, origin_dtype: str, dtype: str, shape: tuple[int, ...], terms: Sequence[Drawn], g: Array
) -> Array:
    """The bits of a whole tensor at a step whose coefficients are `g`."""
    n = int(np.prod(shape))
    named = ref.Named("w", dtype, list(shape), origin_dtype, 0, n)
    x = ref.widen(origin.tobytes(), origin_dtype)
    with np.errstate(all="ignore"):
        for drawn, multiplier in zip(terms, g, strict=True):
            factors = [drawn.factors[i : i + PIECE] for i in range(0, len(drawn.factors), PIECE)]
            raw = [b"".join(to_planes(part).tobytes() for part in factors)]
            raw += [piece.tobytes() for piece in drawn.pieces()]  # a chunk each
            places = np.cumsum([0, *map(len, raw)])
            file = ref.RelexFile.__new__(ref.RelexFile)
            file.data = b"".join(raw)
            file.chunks = [
                ref.Chunk(int(at), len(part), len(part), zlib.crc32(part), 0, 0, bytes(2))
                for at, part in zip(places, raw, strict=False)
            ]
            file.chunks_of = {ref.DATA[0]: range(len(raw))}
            chunk = 1 if drawn.packing.planes else 0
            direction = ref.Direction(
                0, 0, drawn.scale, drawn.shift, drawn.rank, drawn.packing.id, 0, chunk, 0, 0, b"", 0, 0
            )
            for start, stop, p in ref.direction_values(file, direction, named):
                x[start:stop] = x[start:stop] + p * multiplier
    return np.frombuffer(ref.narrow(x, dtype), f"<u{ITEMSIZE[dtype]}")


# ---- Windows and targets ----


@dataclass
class Target:
    """Memory with a target in it: element (i, j) is ``memory[at + i * strides[0] + j * strides[1]]``."""

    memory: Array
    at: int
    strides: tuple[int, int]
    expected: Array
    """What the memory holds afterwards."""


@dataclass
class Case:
    """A job with arrays of numpy, its coefficients float32 [S, k], and S targets."""

    job: DecodeJob
    coefficients: npt.NDArray[np.float32]
    targets: list[Target]


LAYOUTS = ("contiguous", "rows apart", "columns apart", "transposed")


def random_window(rng: np.random.Generator, shape: tuple[int, ...]) -> Window:
    """A part of a tensor: elements from .. to, rows, columns, or a rectangle that is cut off at two elements."""
    n = int(np.prod(shape))
    lo, hi = sorted(int(i) for i in rng.integers(0, n + 1, 2))
    kind = int(rng.integers(0, 5))
    if kind == 0:
        return flat(0, n)
    if kind == 1:
        return flat(lo, hi)
    # A matrix of the last dimension's length, or of a row for each of the first dimension's.
    widths = [shape[-1], n // shape[0]] if shape else [1]
    width = int(rng.choice(widths))
    rows = sorted(int(i) for i in rng.integers(0, n // width + 1, 2))
    columns = sorted(int(i) for i in rng.integers(0, width + 1, 2)) if kind > 2 else [0, width]
    if kind < 4:
        lo, hi = 0, n
    return Window(width, rows[0], rows[1] - rows[0], columns[0], columns[1] - columns[0], lo, hi)


def elements_of(window: Window) -> tuple[Array, Array]:
    """Return the tensor's element for each of the window's, and whether it is decoded: both [rows, columns]."""
    rows = window.row + np.arange(window.rows, dtype=np.int64)
    e = rows[:, None] * window.width + window.column + np.arange(window.columns, dtype=np.int64)
    return e, (e >= window.lo) & (e < window.hi)


def make_target(rng: np.random.Generator, window: Window, layout: str, dtype: str, bits: Array, pad: int) -> Target:
    """Memory of random bits with a target in it, which is `pad` elements from its start."""
    rows, columns = window.rows, window.columns
    strides = {
        "contiguous": (columns, 1),
        "rows apart": (columns + int(rng.integers(0, 9)), 1),
        "columns apart": (3 * columns + 1, 3),
        "transposed": (1, rows),
    }[layout]
    size = pad + (rows - 1) * strides[0] + (columns - 1) * strides[1] + 4 if rows and columns else pad + 4
    memory = rng.integers(0, 1 << 8 * ITEMSIZE[dtype], size, dtype=f"u{ITEMSIZE[dtype]}")
    e, decoded = elements_of(window)
    places = pad + np.arange(rows)[:, None] * strides[0] + np.arange(columns) * strides[1]
    expected = memory.copy()
    expected[places[decoded]] = bits[e[decoded]]
    return Target(memory, pad, strides, expected)


def make(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    origin_dtype: str,
    dtype: str,
    terms: Sequence[Drawn],
    *,
    steps: int = 1,
    window: Window | None = None,
    layout: str | None = None,
    aligned: bool = False,
    origin: Array | None = None,
) -> Case:
    """A job on a tensor with these directions; window, layout of the targets and origin random unless given.

    With `aligned` all arrays begin where memory that was just allocated does.
    """
    n = int(np.prod(shape))
    origin = patterns(rng, n, origin_dtype) if origin is None else origin
    window = random_window(rng, shape) if window is None else window
    start = window.row * window.width + window.column
    end = start + (window.rows - 1) * window.width + window.columns
    first = start // PIECE * PIECE if rng.integers(0, 2) else 0
    stop = n if rng.integers(0, 2) else min(n, -(-max(end, first) // PIECE) * PIECE)
    pad = 0 if aligned else int(rng.integers(0, 4))
    kind = int(rng.integers(0, 3))
    if kind == 0 or aligned:  # the whole tensor
        held, at, pitch = origin, start, window.width
    elif kind == 1:  # from somewhere on
        held, at, pitch = origin[first:], start - first, window.width
    else:  # the window alone
        e, decoded = elements_of(window)
        held, at, pitch = np.where(decoded, origin[np.minimum(e, n - 1)], 0).ravel().astype(origin.dtype), 0, 0
        pitch = window.columns
    held = np.concatenate([np.zeros(pad, origin.dtype), held])
    g = np.array([[number(rng) for _ in terms] for _ in range(steps)], np.float32).reshape(steps, len(terms))
    directions = [drawn.direction(shape, first, stop) for drawn in terms]
    job = DecodeJob(held, at + pad, pitch, origin_dtype, dtype, directions, window, first, n)
    targets = []
    for of_step in g:
        bits = by_the_reference(origin, origin_dtype, dtype, shape, terms, of_step)
        chosen = str(rng.choice(LAYOUTS)) if layout is None else layout
        targets.append(make_target(rng, window, chosen, dtype, bits, 0 if aligned else int(rng.integers(0, 4))))
    return Case(job, g, targets)


def random_case(seed: int, shape: tuple[int, ...], origin_dtype: str, dtype: str, directions: int, steps: int) -> Case:
    """A case in which all else is random."""
    rng = np.random.default_rng(seed)
    terms = [Drawn.random(rng, shape) for _ in range(directions)]
    return make(rng, shape, origin_dtype, dtype, terms, steps=steps)


def block_ends(packing: Packing) -> list[Case]:
    """One-dimensional tensors that end at, before and after the end of a block of codes, and longer ones."""
    rng = np.random.default_rng(packing.id)
    span = BLOCK * max(packing.per_byte, 1)
    found = []
    for n in (span - 1, span, span + 1, 2 * span + packing.per_byte + 1):
        terms = [Drawn.random(rng, (n,), packing)]
        for aligned, window in ((True, flat(0, n)), (False, flat(n // 3, n - 2))):
            layout = "contiguous" if aligned else None
            found.append(make(rng, (n,), "BF16", "BF16", terms, window=window, layout=layout, aligned=aligned))
    return found


def several_pieces(packing: Packing, rank: int, shape: tuple[int, ...]) -> Case:
    """A whole tensor, all of which is aligned, in two steps."""
    rng = np.random.default_rng(packing.id)
    n = int(np.prod(shape))
    terms = [Drawn.random(rng, shape, packing, rank)]
    return make(rng, shape, "BF16", "BF16", terms, window=flat(0, n), layout="contiguous", aligned=True)


def far(case: Case, before: int) -> Case:
    """The same elements at the end of a tensor that has so many more before: whole pieces and rows.

    Of those nothing but the rows' factors is there. The tensor is one matrix, or flat.
    """
    job = case.job
    window = job.window
    assert before % PIECE == 0
    if window == flat(window.lo, window.hi):
        window = flat(window.lo + before, window.hi + before)
    else:
        assert before % window.width == 0
        rows = before // window.width
        window = window._replace(row=window.row + rows, lo=window.lo + before, hi=window.hi + before)

    def longer(direction: PackedDirection) -> PackedDirection:
        if direction.factors is None:
            return direction
        a = direction.factors.a
        missing = np.zeros((1, a.shape[1], before // direction.factors.b.shape[2]), np.float32)
        return dataclasses.replace(direction, factors=Factors(np.concatenate([missing, a], 2), direction.factors.b))

    directions = [longer(direction) for direction in job.directions]
    size, first = job.size + before, job.first + before
    job = dataclasses.replace(job, window=window, directions=directions, first=first, size=size)
    return dataclasses.replace(case, job=job)


def far_cases() -> list[Case]:
    """Rows, columns and elements beyond the 2^31st of a tensor."""
    rng = np.random.default_rng(31)
    shape, n = (16, 2048), 16 * 2048
    found = []
    for packing, rank in ((NIBBLE, 0), (TERNARY, 2), (NONE, 3)):
        for window in (
            Window(2048, 0, 16, 0, 2048, 0, n),
            Window(2048, 5, 9, 0, 2048, 5 * 2048 + 7, n),
            Window(2048, 3, 13, 100, 77, 0, n),
        ):
            terms = [Drawn.random(rng, shape, packing, rank)]
            case = make(rng, shape, "BF16", "BF16", terms, window=window)
            found.append(far(case, ((1 << 21) - 128) * 2048))
    for layout in ("contiguous", "columns apart"):
        terms = [Drawn.random(rng, (9000,), NIBBLE)]
        case = make(rng, (9000,), "BF16", "BF16", terms, window=flat(9, 8990), layout=layout)
        found.append(far(case, 1 << 32))
    return found


def converted(origin: Array, origin_dtype: str, dtype: str) -> Case:
    """A job whose weights are those of the origin, converted, but that -0 becomes +0."""
    n = len(origin)
    terms = [Drawn(BYTE, np.zeros(n, np.int32), np.float32(1), np.float32(0), 0, np.empty(0, "<u2"))]
    rng = np.random.default_rng(0)
    window = flat(0, n)
    return make(rng, (n,), origin_dtype, dtype, terms, window=window, layout="contiguous", aligned=True, origin=origin)


def to_be_rounded() -> Array:
    """float32 bits around all numbers of both narrow dtypes and their midpoints, and random ones of every exponent."""
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    bits: list[Array] = [high | np.uint32(low) for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    with np.errstate(all="ignore"):
        halves = np.arange(1 << 16, dtype="<u2").view(np.float16).astype(np.float32).view(np.uint32)
    for offset in (-1, 0, 1):  # F16 in f32: 10 bits of mantissa, at the midpoint and beside it
        bits += [halves + np.uint32(0x1000) + np.uint32(offset & 0xFFFFFFFF), halves + np.uint32(offset & 0xFFFFFFFF)]
    rng = np.random.default_rng(5)
    bits += [np.repeat(np.arange(512, dtype=np.uint32) << 23, 64) | rng.integers(0, 1 << 23, 512 * 64, np.uint32)]
    # F16 subnormals: units of 2^-24, and ties between them
    small = (np.arange(0, 4096, dtype=np.float32) * np.float32(2.0**-26)).view(np.uint32)
    return np.concatenate([*bits, small, small + np.uint32(1)])


SHAPES = st.one_of(
    st.tuples(st.integers(1, 300)),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    st.just(()),
)
DTYPES = st.sampled_from(sorted(FLOATS))


@st.composite
def several_cases(draw: Any, most: int) -> list[Case]:
    """Small cases that may be decoded in one call: at most so many, of as many steps."""
    steps = draw(st.integers(1, 3))
    one = st.builds(random_case, st.integers(0, 1 << 32), SHAPES, DTYPES, DTYPES, st.integers(1, 3), st.just(steps))
    found: list[Case] = draw(st.lists(one, min_size=1, max_size=most))
    return found
