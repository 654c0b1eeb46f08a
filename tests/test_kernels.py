"""The kernels give the same bits as each other and as the reference decoder, whatever the bits that go in."""

from __future__ import annotations

import importlib.util
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relex_codec.dtypes import FLOATS, ITEMSIZE, NAN, from_float32, to_float32
from relex_codec.errors import Corrupt
from relex_codec.factors import from_stream
from relex_codec.format import PACKINGS, Packing
from relex_codec.kernels import Term, numpy_cpu, torch_ops
from relex_codec.packing import pack_codes, packed_size, to_planes

Array = npt.NDArray[Any]


def load() -> ModuleType:
    """The reference decoder, which belongs to no package."""
    name = "relex_reference_decoder"
    if name not in sys.modules:
        path = Path(__file__).parent.parent / "spec" / "reference_decoder.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


ref = load()

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

    g: np.float32
    packing: Packing
    remainder: Array
    step: np.float32
    shift: np.float32
    rank: int
    factors: Array

    @classmethod
    def random(cls, rng: np.random.Generator, shape: tuple[int, ...]) -> Drawn:
        """Any direction that a tensor of this shape may have."""
        n = int(np.prod(shape))
        rank = int(rng.integers(0, 4)) if len(shape) > 1 else 0
        packing = PACKINGS[int(rng.integers(0 if rank else 1, len(PACKINGS)))]
        remainder = rng.integers(-packing.zero, packing.zero + 1, n).astype(np.int32)
        if packing.name == "float32":
            remainder = patterns(rng, n, "F32")
        factors = patterns(rng, n // max(1, int(np.prod(shape[-2:]))) * rank * sum(shape[-2:]), "BF16")
        return cls(number(rng), packing, remainder, abs(number(rng)), number(rng), rank, factors)

    def packed(self, lo: int, hi: int) -> npt.NDArray[np.uint8]:
        """A piece of the remainder."""
        if self.packing.name == "none":
            return np.empty(0, np.uint8)
        part = self.remainder[lo:hi]
        return to_planes(part) if self.packing.name == "float32" else pack_codes(part, self.packing)

    def term(self, shape: tuple[int, ...], lo: int, hi: int) -> Term:
        """What a kernel is given."""
        factors = from_stream(self.factors, shape, self.rank) if self.rank else None
        return Term(self.g, factors, self.packing, self.packed(lo, hi), self.step, self.shift)


def by_the_reference(origin: Array, origin_dtype: str, dtype: str, shape: tuple[int, ...], terms: list[Drawn]) -> Array:
    """A whole tensor of one piece."""
    n = int(np.prod(shape))
    named = ref.Named("w", dtype, list(shape), origin_dtype, 0, n)
    x = ref.widen(origin.tobytes(), origin_dtype)
    with np.errstate(all="ignore"):
        for drawn in terms:
            raw = [to_planes(drawn.factors).tobytes(), drawn.packed(0, n).tobytes()]
            file = ref.RelexFile.__new__(ref.RelexFile)
            file.data = b"".join(raw)
            file.chunks = [
                ref.Chunk(at, len(part), len(part), zlib.crc32(part), 0, 0, bytes(2))
                for at, part in zip((0, len(raw[0])), raw, strict=True)
            ]
            file.chunks_of = {ref.DATA[0]: range(2)}
            chunk = 1 if drawn.packing.planes else 0
            direction = ref.Direction(
                0, 0, drawn.step, drawn.shift, drawn.rank, drawn.packing.id, 0, chunk, 0, 0, b"", 0, 0
            )
            for start, stop, p in ref.direction_values(file, direction, named):
                x[start:stop] = x[start:stop] + p * drawn.g
    return np.frombuffer(ref.narrow(x, dtype), f"<u{ITEMSIZE[dtype]}")


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def by_torch(origin: Array, origin_dtype: str, dtype: str, terms: list[Term], start: int) -> Array:
    bits = torch.from_numpy(np.array(origin).view(f"<i{origin.itemsize}")).to(DEVICE)
    result: Array = torch_ops.decode_piece(bits, origin_dtype, dtype, terms, start).cpu().numpy()
    return result.view(f"<u{ITEMSIZE[dtype]}")


def agree(seed: int, shape: tuple[int, ...], origin_dtype: str, dtype: str, count: int) -> None:
    """Check both kernels on the whole tensor and on elements from somewhere on."""
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape))
    origin = patterns(rng, n, origin_dtype)
    terms = [Drawn.random(rng, shape) for _ in range(count)]
    expected = by_the_reference(origin, origin_dtype, dtype, shape, terms)
    lo = int(rng.integers(0, n))
    for start, end in ((0, n), (lo, int(rng.integers(lo, n)) + 1)):
        parts = [drawn.term(shape, start, end) for drawn in terms]
        for kernel in (numpy_cpu.decode_piece, by_torch):
            before = origin.tobytes()
            got = kernel(origin[start:end], origin_dtype, dtype, parts, start)
            assert got.dtype == np.dtype(f"<u{ITEMSIZE[dtype]}") and origin.tobytes() == before
            wrong = np.flatnonzero(got != expected[start:end])
            assert not len(wrong), (
                f"element {start + wrong[0]}: {got[wrong[0]]:#x}, not {expected[start + wrong[0]]:#x}"
            )


SHAPES = st.one_of(
    st.tuples(st.integers(1, 300)),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    st.just(()),
)
DTYPES = st.sampled_from(sorted(FLOATS))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 32), SHAPES, DTYPES, DTYPES, st.integers(0, 4))
@example(0, (1, 1), "BF16", "BF16", 3)
@example(1, (16, 1), "F32", "F16", 2)
def test_kernels_agree(seed: int, shape: tuple[int, ...], origin_dtype: str, dtype: str, count: int) -> None:
    agree(seed, shape, origin_dtype, dtype, count)


@pytest.mark.parametrize("shape", [(20480,), (20481,), (12289,), (8193,), (4097,), (130, 190), (41, 30, 20)])
@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_kernels_agree_on_more_than_a_block(shape: tuple[int, ...], dtype: str) -> None:
    agree(len(shape) + shape[0], shape, dtype, dtype, 6)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PACKINGS[2:]), st.integers(1, 40), st.integers(0, 1 << 32))
def test_kernels_refuse_the_same_codes(packing: Packing, n: int, seed: int) -> None:
    """A good piece with some bytes replaced: all three read the same codes or refuse them."""
    rng = np.random.default_rng(seed)
    raw = pack_codes(rng.integers(-packing.zero, packing.zero + 1, n).astype(np.int32), packing)
    assert len(raw) == packed_size(n, packing) * packing.planes
    raw[rng.random(len(raw)) < 0.1] = rng.integers(0, 256)
    try:
        codes: Array | None = ref.unpack_codes(raw.tobytes(), packing.id, n)
    except ref.Corrupt:
        codes = None
    term = Term(np.float32(1), None, packing, raw, np.float32(1), np.float32(0))
    for kernel in (numpy_cpu.decode_piece, by_torch):
        if codes is None:
            with pytest.raises(Corrupt):
                kernel(np.zeros(n, "<u4"), "F32", "F32", [term], 0)
        else:
            assert np.array_equal(kernel(np.zeros(n, "<u4"), "F32", "F32", [term], 0).view(np.float32), codes)


# ---- Conversions ----


def test_widening_is_exact_for_all_patterns() -> None:
    for dtype in ("BF16", "F16"):
        bits = np.arange(1 << 16, dtype="<u2")
        expected = ref.widen(bits.tobytes(), dtype)
        nan = np.isnan(expected)
        assert np.count_nonzero(nan) == 2 * ((1 << 7) - 1 if dtype == "BF16" else (1 << 10) - 1)
        for got in (
            to_float32(bits, dtype),
            torch_ops._to_float32(torch.from_numpy(bits.view("<i2")).to(DEVICE), dtype).cpu().numpy(),
        ):
            assert got.dtype == np.float32 and np.array_equal(np.isnan(got), nan)
            assert np.array_equal(got[~nan].view(np.uint32), expected[~nan].view(np.uint32))
            for back in (from_float32(got, dtype), by_torch_from(got, dtype)):
                assert np.array_equal(back[~nan], bits[~nan]) and np.all(back[nan] == NAN[dtype])


def by_torch_from(x: Array, dtype: str) -> Array:
    return (
        torch_ops._from_float32(torch.from_numpy(x.copy()).to(DEVICE), dtype).cpu().numpy().view(f"<u{ITEMSIZE[dtype]}")
    )


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_narrowing_is_that_of_the_reference(dtype: str) -> None:
    """Around all numbers of both narrow dtypes and their midpoints, and at random patterns of every exponent."""
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    bits: list[Array] = [high | np.uint32(low) for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    for offset in (-1, 0, 1):  # F16 in f32: 10 bits of mantissa, at the midpoint and beside it
        halves = to_float32(np.arange(1 << 16, dtype="<u2"), "F16").view(np.uint32)
        bits += [halves + np.uint32(0x1000) + np.uint32(offset & 0xFFFFFFFF), halves + np.uint32(offset & 0xFFFFFFFF)]
    rng = np.random.default_rng(5)
    bits += [np.repeat(np.arange(512, dtype=np.uint32) << 23, 64) | rng.integers(0, 1 << 23, 512 * 64, np.uint32)]
    # F16 subnormals: units of 2^-24, and ties between them
    bits += [
        (np.arange(0, 4096, dtype=np.float32) * np.float32(2.0**-26)).view(np.uint32) + np.uint32(i) for i in (0, 1)
    ]
    x = np.concatenate(bits).view(np.float32)
    expected = np.frombuffer(ref.narrow(x, dtype), f"<u{ITEMSIZE[dtype]}")
    before = x.tobytes()
    assert np.array_equal(from_float32(x, dtype), expected) and x.tobytes() == before
    assert np.array_equal(by_torch_from(x, dtype), expected)
