"""Units of spec/reference_decoder.py, and small files made by hand here after FORMAT.md, good and broken."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from generate import exact_streams as enc
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_codec.errors import Corrupt
from relex_codec.exact import frequency_tables, ordered_words, piece_coder
from relex_codec.exact.bisection import Interval, frame_order
from support.specification import VECTORS, ref

pytestmark = pytest.mark.filterwarnings("error")


# ---- Arithmetic ----


def random_floats() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Bit patterns at large, around each representable BF16 and F16 value, at their midpoints, and special ones."""
    rng = np.random.default_rng(1)
    patterns = np.arange(65536, dtype=np.uint32)
    near_bf16 = [(patterns << 16) + np.uint32(low) for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]
    halves = patterns[(patterns & 0x7C00) != 0x7C00].astype(np.uint16).view(np.float16).astype(np.float64)
    midpoints = (halves[:-1] + halves[1:]) / 2
    near_f16 = [midpoints.astype(np.float32).view(np.uint32) + np.uint32(i) for i in (0, 1)]
    near_f16 += [np.nextafter(midpoints.astype(np.float32), np.float32(0)).view(np.uint32)]
    exponents = np.repeat(np.arange(512, dtype=np.uint32) << 23, 64) | rng.integers(0, 1 << 23, 512 * 64, np.uint32)
    anything = rng.integers(0, 1 << 32, 1 << 17, np.uint32)
    bits = np.concatenate([*near_bf16, *near_f16, exponents, anything])
    result: np.ndarray[Any, np.dtype[np.float32]] = bits.view(np.float32)
    return result


def test_widen_is_exact() -> None:
    raw = np.arange(65536, dtype="<u2")
    bf16 = ref.widen(raw.tobytes(), "BF16").view(np.uint32)
    assert np.array_equal(bf16, raw.astype(np.uint32) << 16)
    f16, expected = ref.widen(raw.tobytes(), "F16"), raw.view("<f2").astype(np.float32)
    nan = np.isnan(expected)
    assert f16.dtype == np.float32 and np.array_equal(np.isnan(f16), nan)
    assert np.array_equal(f16.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])
    f32 = random_floats()
    assert np.array_equal(ref.widen(f32.tobytes(), "F32").view(np.uint32), f32.view(np.uint32))


def test_narrow_to_f16_equals_numpy() -> None:
    x = random_floats()
    with np.errstate(all="ignore"):
        expected = x.astype(np.float16).view(np.uint16)
    got = np.frombuffer(ref.narrow(x, "F16"), "<u2")
    nan = np.isnan(x)
    assert np.array_equal(got[~nan], expected[~nan])
    assert np.all(got[nan] == 0x7E00)


def test_narrow_to_bf16_takes_the_nearer_neighbour() -> None:
    x = random_floats()
    got = np.frombuffer(ref.narrow(x, "BF16"), "<u2").astype(np.uint32)
    nan = np.isnan(x)
    assert np.all(got[nan] == 0x7FC0)
    infinite = np.isinf(x)
    assert np.array_equal(got[infinite] << 16, x[infinite].view(np.uint32))
    finite = x[~nan & ~infinite]
    below = finite.view(np.uint32) >> 16
    above = below + 1
    widened = np.abs(finite.astype(np.float64))

    def magnitude(bits: Any) -> Any:
        """The value of a BF16 magnitude, the infinity standing for 2^128."""
        bits = bits & 0x7FFF
        return np.where(bits == 0x7F80, 2.0**128, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64))

    to_below, to_above = widened - magnitude(below), magnitude(above) - widened
    up = (to_above < to_below) | ((to_above == to_below) & (above % 2 == 0))
    assert np.array_equal(got[~nan & ~infinite], np.where(up, above, below))


@pytest.mark.parametrize(
    ("bits", "bf16", "f16"),
    [
        (0x00000000, 0x0000, 0x0000),
        (0x80000000, 0x8000, 0x8000),
        (0x3F808000, 0x3F80, 0x3C04),  # a tie, to even below
        (0x3F818000, 0x3F82, 0x3C0C),  # a tie, to even above
        (0x3F808001, 0x3F81, 0x3C04),
        (0x7F7FFFFF, 0x7F80, 0x7C00),  # beyond the largest finite value
        (0xFF7F8000, 0xFF80, 0xFC00),
        (0x477FEFFF, 0x4780, 0x7BFF),  # just below 65520
        (0x477FF000, 0x4780, 0x7C00),  # 65520
        (0x00008000, 0x0000, 0x0000),  # a tie between subnormals
        (0x00018000, 0x0002, 0x0000),
        (0x33000000, 0x3300, 0x0000),  # 2^-25, a tie with 0
        (0x33000001, 0x3300, 0x0001),
        (0x387FFFFF, 0x3880, 0x0400),  # a subnormal F16 that becomes normal
        (0x7F800000, 0x7F80, 0x7C00),
        (0xFF800001, 0x7FC0, 0x7E00),
        (0x7FFFFFFF, 0x7FC0, 0x7E00),
        (0xFFFFFFFF, 0x7FC0, 0x7E00),
    ],
)
def test_narrow_known_patterns(bits: int, bf16: int, f16: int) -> None:
    x = np.array([bits], np.uint32).view(np.float32)
    assert struct.unpack("<H", ref.narrow(x, "BF16")) == (bf16,)
    assert struct.unpack("<H", ref.narrow(x, "F16")) == (f16,)
    expected = 0x7FC00000 if math.isnan(float(x[0])) else bits
    assert struct.unpack("<I", ref.narrow(x, "F32")) == (expected,)


def test_coefficients() -> None:
    assert ref.line(0.1, 0.2, 3.0) == float(np.float64(0.1) * np.float64(3.0) + np.float64(0.2))
    assert ref.line(0.1, 0.2, 3.0) == 0.1 * 3.0 + 0.2
    steps, c = [0, 10, 13], (1.0, 0.1, -0.7)
    assert [ref.track(steps, c, float(t)) for t in steps] == list(c)
    fraction = np.float64(11.0 - 10.0) / np.float64(13.0 - 10.0)
    assert ref.track(steps, c, 11.0) == float(np.float64(0.1) + np.float64(-0.7 - 0.1) * fraction)
    assert ref.track([5], (0.25,), 5.0) == 0.25


def test_to_g_rounds_once_and_refuses_what_is_not_finite() -> None:
    rng = np.random.default_rng(2)
    for c in (rng.integers(0, 1 << 63, 2000) & 0x47FFFFFFFFFFFFFF).view(np.float64):
        if abs(c) < 3.4e38:
            assert struct.pack("<f", ref.to_g(float(c))) == struct.pack("<f", float(c))
    assert float(ref.to_g(1e-45)) == 2.0**-149
    assert math.copysign(1.0, float(ref.to_g(-1e-60))) == -1.0
    for c in (math.inf, -math.inf, math.nan, 3.5e38, -1e300):
        with pytest.raises(ref.InvalidArgument):
            ref.to_g(c)


# ---- Pieces ----


def test_crc_is_that_of_png() -> None:
    assert zlib.crc32(b"123456789") == 0xCBF43926 and zlib.crc32(b"") == 0


def test_planes() -> None:
    assert ref.from_planes(bytes([1, 2, 3, 11, 12, 13]), 2) == bytes([1, 11, 2, 12, 3, 13])
    assert ref.from_planes(b"abc", 1) == b"abc"
    values = np.arange(1000, dtype="<u8") * 0x0123456789AB
    lanes = b"".join(bytes(value.tobytes()[i] for value in values) for i in range(8))
    assert ref.from_planes(lanes, 8) == values.tobytes()


def pack(codes: list[int], packing: int) -> bytes:
    """Blocks of section 7, in plain Python."""
    if packing == 6:
        digits = [q + 32767 for q in codes]
        return bytes(d & 255 for d in digits) + bytes(d >> 8 for d in digits)
    k, radix, z = {2: (5, 3, 1), 3: (3, 5, 2), 4: (2, 16, 7), 5: (1, 256, 127)}[packing]
    out = bytearray()
    for start in range(0, len(codes), 4096 * k):
        digits = [q + z for q in codes[start : start + 4096 * k]]
        p = math.ceil(len(digits) / k)
        digits += [z] * (p * k - len(digits))
        out += bytes(sum(radix**j * digits[j * p + i] for j in range(k)) for i in range(p))
    return bytes(out)


@pytest.mark.parametrize("packing", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("e", [1, 2, 4, 5, 6, 4096, 20481, 40963])
def test_codes_come_back(packing: int, e: int) -> None:
    z = {2: 1, 3: 2, 4: 7, 5: 127, 6: 32767}[packing]
    codes = np.random.default_rng(e).integers(-z, z, e, endpoint=True)
    codes[0], codes[-1] = -z, z
    raw = pack(codes.tolist(), packing)
    assert len(raw) == sum(ref.remainder_lengths(packing, e))
    assert np.array_equal(ref.unpack_codes(raw, packing, e), codes)


def test_a_full_piece_has_the_stated_length() -> None:
    assert list(ref.remainder_lengths(2, (1 << 18) + 1)) == [12 * 4096 + 3277, 1]
    assert list(ref.remainder_lengths(4, 1 << 18)) == [1 << 17]
    assert list(ref.remainder_lengths(1, 3)) == [3] * 4 and list(ref.remainder_lengths(6, 3)) == [3] * 2
    assert list(ref.remainder_lengths(0, 3)) == []


@pytest.mark.parametrize(
    ("packing", "e", "raw"),
    [
        (2, 5, [243]),  # R^K
        (3, 3, [125]),
        (4, 2, [0xF7]),  # digit 15
        (5, 1, [255]),
        (6, 1, [255, 255]),
        (2, 4, [2 * 81 + 1 + 3 + 9 + 27]),  # the digit beyond the last element is not z
        (4, 1, [0x87]),
    ],
)
def test_bad_digits(packing: int, e: int, raw: list[int]) -> None:
    with pytest.raises(ref.Corrupt):
        ref.unpack_codes(bytes(raw), packing, e)


# ---- JSON and safetensors ----

GOOD = '{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        " " + GOOD,
        GOOD + "\n",
        GOOD[:-1],
        "[1]",
        '{"a":NaN}',
        '{"a":-Infinity}',
        '{"a":1e999}',
        '{"a":-0}',
        '{"a":-1}',
        '{"a":' + "9" * 400 + "}",
        '{"a":01}',
        "\ufeff" + GOOD,
        GOOD + " \n",
        '{"a":' + "9" * 5000 + "}",
        '{"a":1,"a":1}',
        '{"a":[{"b":1,"b":2}]}',
        '{"a":"\\ud800"}',
        '{"\\udc00":1}',
        '{"a":"\x01"}',
        '{"a":' + "[" * 200000 + "]" * 200000 + "}",
        '{"a":' * 100000 + "1" + "}" * 100000,
    ],
)
def test_bad_json(text: str) -> None:
    with pytest.raises(ref.Corrupt):
        ref.parse_json(text.encode())


def test_json_that_is_not_utf8_and_good_json() -> None:
    with pytest.raises(ref.Corrupt):
        ref.parse_json(b'{"a":"\xff"}')
    assert ref.parse_json('{"a":"\\ud83d\\ude00\u00e9\\u0000"}  '.encode()) == {"a": "\U0001f600\u00e9\0"}
    metadata, entries = ref.parse_header(GOOD.encode())
    start = 8 + len(GOOD)
    assert metadata == {"k": "v"} and entries == {"a": ("F32", [2], start, start + 8)}


@pytest.mark.parametrize(
    "header",
    [
        {"__metadata__": {"k": 1}},
        {"__metadata__": []},
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}},
        {"a": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [0, 1 << 48], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [1 << 24, 1 << 24, 0], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 7]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [False, True]}},
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}},
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "U8", "shape": [2], "data_offsets": [7, 9]},
        },
        {
            "b": {"dtype": "U8", "shape": [2], "data_offsets": [8, 10]},
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        },
    ],
)
def test_bad_headers(header: dict[str, Any]) -> None:
    with pytest.raises(ref.Corrupt):
        ref.parse_header(json.dumps(header).encode())


def test_a_base_may_list_its_tensors_in_any_order() -> None:
    header = {
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [8, 10]},
        "empty": {"dtype": "U8", "shape": [0], "data_offsets": [8, 8]},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    raw = json.dumps(header).encode()
    _, entries = ref.parse_header(raw, any_order=True)
    assert [(name, entry.start - 8 - len(raw)) for name, entry in entries.items()] == [("a", 0), ("empty", 8), ("b", 8)]


def test_base_file(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    whole = struct.pack("<Q", len(GOOD)) + GOOD.encode() + bytes(range(8))
    path.write_bytes(whole)
    base = ref.read_safetensors(path)
    assert base("a") == ("F32", [2], bytes(range(8)))
    with pytest.raises(ref.BaseMismatch):
        base("b")
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(ref.Truncated):
            ref.read_safetensors(path)
    for bad in (whole + b"\0", b"\xff" * 8 + whole[8:]):
        path.write_bytes(bad)
        with pytest.raises(ref.Corrupt):
            ref.read_safetensors(path)


# ---- A file made by hand ----

W0 = np.array([1.0, -2.0, 0.5, 3.0, 0.0, -1.0], np.float32)  # the origin of "w", BF16 [2, 3]
CODES = [1, 0, -1, 1, 1, -1]
FACTORS = ([2.0, -1.0], [0.5, 1.0, 0.25])
STEP, SHIFT, SLOPE, INTERCEPT, ROW = 0.5, 0.125, 0.25, 1.0, (1.5, 3.0)


def bf16(values: Any) -> bytes:
    """BF16 values that need no rounding."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()


def to_planes(raw: bytes, width: int) -> bytes:
    """Lowest bytes first, then the next ones."""
    return b"".join(raw[i::width] for i in range(width))


def filled(raw: bytes, fill: int) -> bytes:
    """A chunk of codec 2, in plain Python."""
    flags = bytearray(-(-len(raw) // 8))
    for i, byte in enumerate(raw):
        flags[i // 8] |= (byte != fill) << (i % 8)
    frame = zstandard.compress(bytes(flags))
    different = bytes(byte for byte in raw if byte != fill)
    return struct.pack("<I", len(frame)) + frame + (zstandard.compress(different) if different else b"")


class Builder:
    """A file with a `moving` tensor, a `same` and a `series`; change its parts, then build."""

    def __init__(self, embedded: bool = False) -> None:
        """The parts of a good file."""
        self.metadata = {"format": "relex", "relex_version": "1", "producer": "x", "reader": "0.1", "requires": ""}
        self.version, self.steps = 1, [10, 20]
        self.manifest: dict[str, Any] = {
            "observed": 2,
            "base": {"uri": None, "embedded": embedded},
            "quality": {"name": "default", "growth": 0.05},
            "tensors": [
                ["w", "BF16", [2, 3], "BF16", 0],
                ["same", "I64", [2], "I64", 0],
                ["series", "U8", [3], "U8", 0],
            ],
            "shards": ["model.safetensors"],
            "indexed": False,
            "files": [["config.json", 2, 2, 28]] if embedded else [],
        }
        self.integers = struct.pack("<2q", 7, -7)
        self.tensors: list[tuple[Any, ...]] = [
            (1, 0, 1, 0, 0, 2 * embedded, 0, bytes(12)),
            (0, 0, 0, 0, 1, 2 * embedded, 12 * embedded, bytes(12)),
            (2, 2, 0, 0, 0, 0, 0, bytes(12)),
        ]
        crc = zlib.crc32(struct.pack("<2d", *ROW))
        self.directions: list[tuple[Any, ...]] = [(SLOPE, INTERCEPT, STEP, SHIFT, 1, 2, 0, 0, 10, crc, bytes(16), 0, 0)]
        self.row = ROW
        self.series = [(1, 0), (1, 3)]
        self.digests = [hashlib.sha256(raw).digest()[:16] for raw in (bf16(W0), self.integers)]
        direction = to_planes(bf16([*FACTORS[0], *FACTORS[1]]), 2) + pack(CODES, 2)
        base = to_planes(bf16(W0), 2) + to_planes(self.integers, 8) + b"{}"
        self.raw = [direction, b"abcxyz", *([base] if embedded else [])]
        self.codecs = [1, 0, 1]
        self.fill = 0
        self.chunk_changes: Callable[[int, list[Any]], list[Any]] = lambda i, row: row
        self.coverage: Callable[[str, int], int] = lambda name, value: value
        self.extra: dict[str, tuple[str, list[int], bytes]] = {}

    def build(self) -> bytes:
        """The file."""
        coders: list[Callable[[bytes], bytes]] = [bytes, zstandard.compress, lambda raw: filled(raw, self.fill)]
        stored = [coders[codec](raw) for raw, codec in zip(self.raw, self.codecs, strict=False)]
        data = [stored[0], stored[1], b"".join(stored[2:])]
        entries: dict[str, tuple[str, list[int], bytes]] = {
            "relex.steps": ("I64", [len(self.steps)], np.array(self.steps, "<i8").tobytes()),
            "relex.manifest": ("U8", [], json.dumps(self.manifest).encode() + b"  "),
            "relex.tensors": ("U8", [32], b"".join(struct.pack("<BBHIIII12s", *row) for row in self.tensors)),
            "relex.directions": (
                "U8",
                [64],
                b"".join(struct.pack("<ddffHBBIII16sII", *row) for row in self.directions),
            ),
            "relex.series": ("U8", [8], b"".join(struct.pack("<II", *row) for row in self.series)),
            "relex.digests": ("U8", [16], b"".join(self.digests)),
            "relex.chunks": ("U8", [24], bytes(24 * len(stored))),
            "relex.coefficients": ("F64", [len(self.steps)], struct.pack(f"<{len(self.row)}d", *self.row)),
            **{name: ("U8", [], raw) for name, raw in zip(ref.DATA, data, strict=True)},
            **self.extra,
        }
        header: dict[str, Any] = {"__metadata__": self.metadata}
        root_length = 40 + 8 * len(entries)
        header["relex.root"] = {"dtype": "U8", "shape": [root_length], "data_offsets": [0, root_length]}
        at = root_length
        for name, (dtype, tail, raw) in entries.items():
            rows = len(raw) // (math.prod(tail) * ref.WIDTH[dtype])
            header[name] = {"dtype": dtype, "shape": [rows, *tail], "data_offsets": [at, at + len(raw)]}
            if name in ("relex.steps",):
                header[name]["shape"] = [rows * tail[0]]
            at += len(raw)
        text = json.dumps(header).encode()
        position = 8 + len(text) + at - len(b"".join(data)) - sum(len(raw) for _, _, raw in self.extra.values())
        records = []
        for i, raw in enumerate(stored):
            fill = self.fill if self.codecs[i] == 2 else 0
            row = [position, len(raw), len(self.raw[i]), zlib.crc32(raw), self.codecs[i], fill, bytes(2)]
            records.append(struct.pack("<QIIIBB2s", *self.chunk_changes(i, row)))
            position += len(raw)
        entries["relex.chunks"] = ("U8", [24], b"".join(records))
        head = struct.pack("<Q", len(text)) + text
        root = struct.pack(
            "<8sIIQII", b"RELEX\r\n\x1a", self.version, zlib.crc32(head), len(head) + at, len(entries), 0
        )
        for name, (_, _, raw) in entries.items():
            coverage = self.coverage(name, int(name.startswith("relex.data") or name == "relex.coefficients"))
            root += struct.pack("<IB3s", 0 if coverage else zlib.crc32(raw), coverage, bytes(3))
        root += struct.pack("<II", zlib.crc32(root), 0)
        return head + root + b"".join(raw for _, _, raw in entries.values())


def base_of(name: str) -> tuple[str, list[int], bytes]:
    """The base of the file made by hand."""
    return {"w": ("BF16", [2, 3], bf16(W0)), "same": ("I64", [2], struct.pack("<2q", 7, -7))}[name]


def expected(g: float) -> bytes:
    """The tensor "w", by hand."""
    a, b = FACTORS
    out = []
    for i, (w, q) in enumerate(zip(W0, CODES, strict=True)):
        p = np.float32(a[i // 3] * b[i % 3]) + np.float32(q * STEP - math.copysign(SHIFT, q) * (q != 0))
        out.append(np.float32(w) + p * np.float32(g))
    return bytes(ref.narrow(np.array(out, np.float32), "BF16"))


@pytest.mark.parametrize("fill", [0, 7, 255])
def test_filled_chunks(fill: int) -> None:
    rng = np.random.default_rng(fill)
    for n in (1, 7, 8, 9, 1000):
        for share in (0.0, 0.5, 1.0):
            raw = np.where(rng.random(n) < share, rng.integers(0, 256, n), fill).astype(np.uint8).tobytes()
            file = ref.RelexFile(Builder().build())
            file.data = filled(raw, fill)
            file.chunks = [ref.Chunk(0, len(file.data), n, zlib.crc32(file.data), 2, fill, bytes(2))]
            assert ref.read_chunk(file, 0) == raw


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\1\0\0",
        bytes(4),
        struct.pack("<I", 99) + filled(b"abcabc", 97)[4:],
        filled(b"abcabc", 97)[:-1],
        filled(b"abcabc", 97) + b"\0",
        filled(b"aaaaaa", 97) + b"\0",
        filled(b"aaaaaa", 97) + zstandard.compress(b""),
        filled(b"abcabc", 98),  # flags a byte that is the fill byte
        filled(b"abcabc" + b"b", 97),  # a flag beyond the end
        filled(b"abcabc" + b"a" * 3, 97),  # two bytes of flags
        filled(b"abcabc", 97)[: -len(zstandard.compress(b"bcbc"))],
        filled(b"abcabc", 97)[: -len(zstandard.compress(b"bcbc"))] + zstandard.compress(b"bcb"),
        filled(b"abcabc", 97)[: -len(zstandard.compress(b"bcbc"))] + b"bcbc",
    ],
)
def test_bad_filled_chunks(stored: bytes) -> None:
    file = ref.RelexFile(Builder().build())
    file.data = stored
    file.chunks = [ref.Chunk(0, len(stored), 6, zlib.crc32(stored), 2, 97, bytes(2))]
    with pytest.raises(ref.Corrupt):
        ref.read_chunk(file, 0)


def test_a_window_of_8_mib_is_allowed() -> None:
    file = ref.RelexFile(Builder().build())
    file.data = b"\x28\xb5\x2f\xfd\x80\x68" + struct.pack("<I", 6) + b"\x31\0\0abcdef"
    file.chunks = [ref.Chunk(0, len(file.data), 6, zlib.crc32(file.data), 1, 0, bytes(2))]
    assert ref.read_chunk(file, 0) == b"abcdef"


@pytest.mark.parametrize("embedded", [False, True])
def test_decode(embedded: bool) -> None:
    file = ref.RelexFile(Builder(embedded).build())
    file.check_all()
    assert list(file.index) == ["w", "same", "series"] and file.steps == [10, 20] and file.observed == 2
    assert file.manifest[0] == ("w", "BF16", [2, 3], "BF16", 0, 6)
    base = None if embedded else base_of
    for step, tier, g in ((10, "auto", 1.5), (20, "auto", 3.0), (12.5, "track", 1.875), (40, "auto", 11.0)):
        assert file.tensor("w", step, tier, base) == expected(g)
    file.observed = 1  # auto leaves the track after the last observed step
    for step, tier, g in ((10, "auto", 1.5), (10.5, "auto", 3.625), (20, "auto", 6.0), (20, "track", 3.0)):
        assert file.tensor("w", step, tier, base) == expected(g)
    assert file.tensor("w", 10, "line", base) == expected(3.5)
    assert file.tensor("w", 0, "line", base) == expected(1.0)
    assert file.tensor("w", 0, "auto", base) == bf16(W0)
    assert file.tensor("same", 15, "auto", base) == struct.pack("<2q", 7, -7)
    series = {0: b"abc", 10: b"abc", 19: b"abc", 20: b"xyz", 99: b"xyz"}
    assert {t: file.tensor("series", t, "auto", base) for t in series} == series


def test_caller_errors_and_mismatch() -> None:
    file = ref.RelexFile(Builder().build())
    wrong: list[tuple[str, Any, str]] = [("w", 9, "track"), ("w", 21, "track"), ("w", math.nan, "auto")]
    wrong += [("w", math.inf, "line"), ("w", 10**400, "line"), ("w", "x", "line"), ("w", 1e300, "line")]
    wrong += [("w", 10, "exact"), ("v", 10, "auto")]
    for name, step, tier in wrong:
        with pytest.raises(ref.InvalidArgument):
            file.tensor(name, step, tier, base_of)
    with pytest.raises(ref.InvalidArgument):
        file.tensor("w", 10)
    for bad in (("BF16", [3, 2], bf16(W0)), ("F16", [2, 3], bf16(W0)), ("BF16", [2, 3], bf16(W0 + 1))):
        with pytest.raises(ref.BaseMismatch):
            file.tensor("w", 10, "auto", lambda name, bad=bad: bad)


@pytest.mark.parametrize("embedded", [False, True])
def test_every_flip_and_every_cut_is_noticed(embedded: bool) -> None:
    whole = Builder(embedded).build()

    def decode(data: bytes) -> None:
        ref.RelexFile(data).check_all()

    for i in range(len(whole)):
        for bit in (1, 0x80):
            damaged = bytearray(whole)
            damaged[i] ^= bit
            with pytest.raises((ref.Corrupt, ref.Truncated)):
                decode(bytes(damaged))
        with pytest.raises(ref.Truncated):
            decode(whole[:i])
    with pytest.raises(ref.Corrupt):
        decode(whole + b"\0")


Change = Callable[[Builder], None]


def direction(index: int, value: Any) -> Change:
    """Another value in the direction's record."""

    def change(b: Builder) -> None:
        row = list(b.directions[0])
        row[index] = value
        b.directions[0] = tuple(row)

    return change


def tensor(which: int, index: int, value: Any) -> Change:
    """Another value in a tensor's record."""

    def change(b: Builder) -> None:
        row = list(b.tensors[which])
        row[index] = value
        b.tensors[which] = tuple(row)

    return change


def chunk(which: int, index: int, value: Callable[[Any], Any]) -> Change:
    """Another value in a chunk's record."""

    def edit(i: int, row: list[Any]) -> list[Any]:
        return [value(x) if (i, j) == (which, index) else x for j, x in enumerate(row)]

    return lambda b: setattr(b, "chunk_changes", edit)


def manifest(key: str, value: Any) -> Change:
    """Another value in the manifest."""
    return lambda b: b.manifest.update({key: value})


def row_of(which: int, index: int, value: Any) -> Change:
    """Another value in a row of the manifest's tensors."""
    return lambda b: b.manifest["tensors"][which].__setitem__(index, value)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.metadata.update(format="pt"),
        lambda b: b.metadata.pop("reader"),
        lambda b: setattr(b, "steps", [20, 10]),
        lambda b: setattr(b, "steps", [10, 10]),
        lambda b: setattr(b, "steps", [-1, 10]),
        lambda b: setattr(b, "steps", [10, (1 << 53) + 1]),
        lambda b: setattr(b, "coverage", lambda name, value: 2 if name == "x" else value),
        lambda b: setattr(b, "coverage", lambda name, value: 1 if name == "x" else value),
        lambda b: setattr(b, "coverage", lambda name, value: 1),
        manifest("observed", 3),
        manifest("observed", 0),
        manifest("observed", True),
        manifest("base", {"embedded": False}),
        manifest("base", {"uri": None, "embedded": 0}),
        manifest("quality", {"name": "x"}),
        manifest("quality", {"name": "x", "growth": True}),
        manifest("shards", []),
        manifest("shards", ["../model.safetensors"]),
        manifest("shards", ["model.safetensors\n"]),
        manifest("shards", ["model.bin"]),
        manifest("shards", ["a.safetensors", "a.safetensors"]),
        manifest("shards", ["A.safetensors", "a.safetensors"]),
        manifest("shards", ["b.safetensors", "a.safetensors"]),
        manifest("indexed", None),
        manifest("files", [["config.json", 2, 0, 0]]),
        manifest("tensors", []),
        row_of(0, 0, "same"),
        row_of(0, 0, "__metadata__"),
        row_of(0, 1, "F8_E4M3"),
        row_of(0, 2, [7]),
        row_of(0, 2, [0, 3]),
        row_of(0, 2, [2, 3.0]),
        row_of(0, 2, [2, 1 << 48]),
        row_of(0, 2, [1 << 20, 1 << 20]),
        row_of(1, 3, "I32"),
        row_of(2, 3, "I8"),
        row_of(0, 4, 1),
        tensor(0, 0, 3),
        tensor(0, 1, 3),
        tensor(0, 1, 2),
        tensor(0, 2, 2),
        tensor(0, 2, 0),
        tensor(0, 3, 1),
        tensor(0, 4, 1),
        tensor(0, 5, 1),
        tensor(0, 7, bytes(11) + b"\1"),
        tensor(2, 1, 1),
        tensor(2, 3, 1),
        direction(0, math.nan),
        direction(1, math.inf),
        direction(2, -1.0),
        direction(2, -0.0),
        direction(3, math.inf),
        direction(5, 0),
        direction(5, 7),
        direction(6, 1),
        direction(7, 1),
        direction(7, 99),
        direction(8, 1 << 20),
        direction(9, 0),
        direction(11, 1),
        direction(11, 99),
        direction(12, 1),
        direction(8, 0),
        lambda b: setattr(b, "series", [(1, 0), (0, 0)]),
        lambda b: setattr(b, "series", [(1, 0), (1, 4)]),
        lambda b: setattr(b, "series", [(1, 0)]),
        lambda b: b.digests.append(bytes(16)),
        lambda b: setattr(b, "row", (1.5, math.nan)),
        chunk(0, 0, lambda x: x + 1),
        chunk(0, 1, lambda x: x + 1),
        chunk(0, 1, lambda x: 0),
        chunk(0, 2, lambda x: x + 1),
        chunk(0, 2, lambda x: (1 << 21) + 1),
        chunk(0, 3, lambda x: x ^ 1),
        chunk(0, 4, lambda x: 2),
        chunk(0, 4, lambda x: 3),
        chunk(0, 5, lambda x: 1),
        chunk(1, 5, lambda x: 1),
        chunk(0, 4, lambda x: 0),
        chunk(1, 4, lambda x: 1),
        chunk(1, 2, lambda x: x + 1),
        chunk(1, 6, lambda x: b"\0\1"),
    ],
)
def test_broken_rules(change: Change) -> None:
    builder = Builder()
    builder.extra["x"] = ("U8", [], b"ignored")
    change(builder)
    data = builder.build()
    with pytest.raises(ref.Corrupt):
        ref.RelexFile(data).check_all()


@pytest.mark.parametrize(
    "files",
    [
        [["config.json", 2, 2, 28], ["CONFIG.json", 0, 0, 0]],
        [["config.json", 2, 2, 28], ["model.SAFETENSORS", 0, 0, 0]],
        [["x.safetensors", 2, 2, 28]],
        [["model.safetensors.index.json", 2, 2, 28]],
        [["pytorch_model.bin", 2, 2, 28]],
        [["x.pt", 2, 2, 28]],
        [["x.pth", 2, 2, 28]],
        [["x.pkl", 2, 2, 28]],
        [["x.ckpt", 2, 2, 28]],
        [["a/b", 2, 2, 28]],
        [["..", 2, 2, 28]],
        [["config.json", 1, 2, 28]],
        [["config.json", 3, 2, 28]],
        [["config.json", 2, 2, 27]],
        [["config.json", 2, 1, 0]],
        [["config.json", 2, 2, 28], ["empty", 0, 2, 30]],
        [["config.json", 2, 2, 28, 0]],
        [],
    ],
)
def test_bad_embedded_files(files: list[Any]) -> None:
    builder = Builder(embedded=True)
    builder.manifest["files"] = files
    with pytest.raises(ref.Corrupt):
        ref.RelexFile(builder.build())


def test_good_embedded_files() -> None:
    builder = Builder(embedded=True)
    builder.manifest["files"] = [["a.JSON", 1, 2, 28], ["empty", 0, 0, 0], ["0", 1, 2, 29]]
    ref.RelexFile(builder.build()).check_all()


def test_a_given_base_goes_before_an_embedded_one() -> None:
    file = ref.RelexFile(Builder(embedded=True).build())
    assert file.tensor("w", 10, "auto", base_of) == expected(1.5)
    with pytest.raises(ref.BaseMismatch):
        file.tensor("w", 10, "auto", lambda name: ("BF16", [2, 3], bf16(W0 + 1)))
    file.digests[0] = bytes(16)
    with pytest.raises(ref.Corrupt):
        file.tensor("w", 10)


def test_tensors_of_the_base_come_first() -> None:
    builder = Builder()
    builder.manifest["tensors"].reverse()
    builder.tensors = [
        (2, 2, 0, 0, 0, 0, 0, bytes(12)),
        (0, 0, 0, 0, 0, 0, 0, bytes(12)),
        (1, 0, 1, 0, 1, 0, 0, bytes(12)),
    ]
    with pytest.raises(ref.Corrupt, match="base's files"):
        ref.RelexFile(builder.build())


def test_origins_and_dtypes_of_a_series() -> None:
    """A series of BF16 over an F32 of the base: the origin is converted at step 0."""
    builder = Builder()
    origin = np.array([1.00390625, -2.0], np.float32)
    builder.manifest["tensors"][2] = ["series", "BF16", [2], "F32", 0]
    builder.tensors[2] = (2, 0, 0, 0, 2, 0, 0, bytes(12))
    builder.digests.append(hashlib.sha256(origin.tobytes()).digest()[:16])
    builder.raw[1], builder.series = b"abcdefgh", [(1, 0), (1, 4)]
    file = ref.RelexFile(builder.build())
    assert file.tensor("series", 0, "auto", lambda name: ("F32", [2], origin.tobytes())) == bf16([1.0, -2.0])
    assert file.tensor("series", 0, "line") == b"acbd"
    assert file.tensor("series", 25) == b"egfh"
    builder.tensors[2] = (2, 2, 0, 0, 0, 0, 0, bytes(12))
    builder.digests.pop()
    with pytest.raises(ref.Corrupt, match="origin dtype"):
        ref.RelexFile(builder.build())


def test_unknown_things() -> None:
    builder = Builder()
    builder.extra["relex.later.frames"] = ("F32", [], bytes(8))
    builder.manifest["later"] = {"nested": [None]}
    builder.metadata["later"] = "x"
    ref.RelexFile(builder.build()).check_all()
    for key, value in (("requires", "arithmetic"), ("relex_version", "2")):
        builder = Builder()
        builder.metadata.update({key: value, "reader": "7.5"})
        with pytest.raises(ref.Unsupported, match=r"7\.5"):
            ref.RelexFile(builder.build())
    builder = Builder()
    builder.version = 2
    with pytest.raises(ref.Unsupported):
        ref.RelexFile(builder.build())


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"junk and more junk",
        zstandard.compress(b"y" * 6) + b"\0",
        zstandard.compress(b"y" * 6) + zstandard.compress(b"y"),
        zstandard.compress(b"y" * 6)[:-1],
        zstandard.compress(b"y" * 7),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"y" * 6),
        b"\x50\x2a\x4d\x18" + struct.pack("<I", 6) + b"abcdef",  # a skippable frame
        b"\x28\xb5\x2f\xfd\x80\x69" + struct.pack("<I", 6) + b"\x31\0\0abcdef",  # a window above 2^23
    ],
)
def test_bad_frames(frame: bytes) -> None:
    file = ref.RelexFile(Builder().build())
    file.data = frame
    file.chunks = [ref.Chunk(0, len(frame), 6, zlib.crc32(frame), 1, 0, bytes(2))]
    with pytest.raises(ref.Corrupt):
        ref.read_chunk(file, 0)


def test_planes_may_lie_in_chunks_of_their_own() -> None:
    file = ref.RelexFile(Builder().build())
    file.chunks = [ref.Chunk(0, 1, 5, 0, 0, 0, bytes(2))] * 4
    file.chunks_of = {"e": range(0, 4)}
    assert list(ref.walk(file, (1, 0), ref.lengths_of(5, 3), "e")) == [(1, 0, 5), (2, 0, 5), (3, 0, 5)]
    assert list(ref.lengths_of((1 << 18) + 1, 2)) == [1 << 18, 1 << 18, 1, 1]


def test_spans_go_on_in_the_next_chunk() -> None:
    file = ref.RelexFile(Builder().build())
    file.chunks = [ref.Chunk(0, 9, raw, 0, 1, 0, bytes(2)) for raw in (10, 6, 4)]
    file.chunks_of = {"e": range(0, 2)}

    def walk(span: tuple[int, int], lengths: list[int]) -> list[tuple[int, int, int]]:
        return list(ref.walk(file, span, lengths, "e"))

    assert walk((0, 4), [3, 3, 6]) == [(0, 4, 7), (0, 7, 10), (1, 0, 6)]
    assert walk((0, 0), []) == []
    for span, lengths in (((0, 4), [3, 4]), ((0, 10), [1]), ((0, 4), [6, 6, 4]), ((2, 0), [1]), ((0, 1), [])):
        with pytest.raises(ref.Corrupt):
            walk(span, lengths)


def test_factors_of_a_stack_of_matrices() -> None:
    """Shape [2, 2, 3], r = 2, packing `none`, over more than one tensor dimension in front."""
    rng = np.random.default_rng(3)
    a, b = rng.integers(-8, 8, (2, 2, 2)) / 4, rng.integers(-8, 8, (2, 2, 3)) / 4  # matrix, pair, row or column
    values = np.concatenate([np.concatenate([a[h].ravel(), b[h].ravel()]) for h in range(2)])
    builder = Builder()
    builder.raw[0] = to_planes(bf16(values), 2)
    direction(8, 0)(builder)
    builder.manifest["tensors"][0][2] = [2, 2, 3]
    origin = bf16(np.zeros(12))
    builder.digests[0] = hashlib.sha256(origin).digest()[:16]
    for index, value in ((2, 0.0), (3, 0.0), (4, 2), (5, 0)):
        direction(index, value)(builder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = ref.RelexFile(builder.build()).tensor("w", 10, "auto", lambda name: ("BF16", [2, 2, 3], origin))
    product = np.einsum("hji,hjk->hik", a, b)
    assert got == ref.narrow((product * 1.5).astype(np.float32).ravel(), "BF16")


def test_nan_infinities_and_zeros() -> None:
    builder = Builder()
    builder.manifest["tensors"][0] = ["w", "F16", [6], "F32", 0]
    origin = np.array([np.nan, np.inf, -np.inf, -0.0, 70000.0, 2.0**-24], np.float32).tobytes()
    builder.digests[0] = hashlib.sha256(origin).digest()[:16]
    builder.raw[0] = to_planes(np.array([0, -np.inf, np.nan, 0, 0, 0], np.float32).tobytes(), 4)
    for index, value in ((2, 0.0), (3, 0.0), (4, 0), (5, 1), (8, 0)):
        direction(index, value)(builder)
    file = ref.RelexFile(builder.build())
    moved = np.frombuffer(file.tensor("w", 10, "auto", lambda name: ("F32", [6], origin)), "<u2")
    assert moved.tolist() == [0x7E00, 0x7E00, 0x7E00, 0x0000, 0x7C00, 0x0001]
    start = np.frombuffer(file.tensor("w", 0, "auto", lambda name: ("F32", [6], origin)), "<u2")
    assert start.tolist() == [0x7E00, 0x7C00, 0xFC00, 0x8000, 0x7C00, 0x0001]


# ---- The exact tier ----

VECTOR = VECTORS / "valid" / "exact-small.relex"


@pytest.mark.parametrize("dtype", list(ref.WIDTH))
def test_ordered_words(dtype: str) -> None:
    width = ref.WIDTH[dtype]
    bits = np.random.default_rng(width).integers(0, 256, 4000 * width, np.uint8).tobytes()
    if width == 1:
        bits = bytes(range(256)) * 4
    ordered = ref.to_words(bits, dtype)
    assert ordered.min() >= 0 and ordered.max() < 2 * ref.half_of(dtype)
    assert ref.from_words(ordered, dtype) == bits
    if dtype in ("F16", "F32", "I8", "I16", "I32"):  # their order is that of the values; -0 is below +0
        values = np.frombuffer(bits, {"F": "<f", "I": "<i"}[dtype[0]] + str(width))
        values, ordered = values[values == values], ordered[values == values]
        assert np.all(np.diff(values[np.argsort(ordered)]) >= 0)


def test_known_words() -> None:
    assert ref.to_words(struct.pack("<4H", 0x3F80, 0xBF80, 0x0000, 0x8000), "BF16").tolist() == [
        0xBF80, 0x407F, 0x8000, 0x7FFF,
    ]  # fmt: skip
    assert ref.to_words(struct.pack("<2b", -128, 127), "I8").tolist() == [0, 255]
    assert ref.to_words(struct.pack("<Q", 5 << 32 | 7), "I64").tolist() == [7, 5]
    assert [ref.class_of(word, "BF16", 120) for word in (0xBF80, 0x407F, 0x8000, 0xFFFF)] == [7, 7, 0, 15]
    assert ref.class_of(0xFFFFFFFF, "F64", 0) == 0


def test_frames_of_a_segment() -> None:
    assert ref.frame_order(1) == [(1, 1)]
    assert ref.frame_order(2) == [(2, 1), (1, 2)]
    assert ref.frame_order(7) == [(7, 1), (3, 2), (1, 3), (5, 3), (2, 4), (4, 4), (6, 4)]
    for count in range(1, 70):
        assert sorted(step for step, _ in ref.frame_order(count)) == list(range(1, count + 1))
        assert max(needed for _, needed in ref.frame_order(count)) <= math.ceil(math.log2(count)) + 1
        assert [step for step, _ in ref.frame_order(count)] == frame_order(count)


def test_contexts_tile_their_numbers() -> None:
    seen = [ref.list_context(1, e, o, far) for e in range(16) for o in range(5) for far in range(5)]
    seen += [ref.list_context(d, e, o, 0) for d in range(2, 8) for e in range(16) for o in range(5)]
    seen += [ref.list_context(8 << i, e, 0, 0) for i in range(9) for e in range(16)]
    seen += [first + e for first in (ref.GAP, ref.MOVE, ref.DENSE) for e in range(16)]
    assert [*seen, ref.COUNT, ref.BELOW, ref.ABOVE] == list(range(1075))
    assert ref.list_context((1 << 32) - 1, 3, 4, 4) == ref.list_context(2048, 3, 0, 0)
    assert ref.list_context(15, 0, 0, 0) == 880 and ref.list_context(16, 0, 0, 0) == 896


@pytest.mark.parametrize("elements", [0, 1 << 14])
def test_numbers_come_back(elements: int) -> None:
    rng = random.Random(elements)
    numbers = [0, 1, 2, 3, 4, (1 << 32) - 1, 1 << 31, *(rng.getrandbits(rng.randrange(1, 33)) for _ in range(2000))]
    model, pen = enc.flat(), enc.Pen(elements)
    for j, number in enumerate(numbers):
        pen.element(j)
        pen.number(j % 1075, number)
    data = pen.stream(model)
    stream = ref.Stream(data, elements, model)
    for j, number in enumerate(numbers):
        stream.element(j)
        assert stream.number(j % 1075) == number
    stream.end()
    assert [ref.zigzag(z) for z in range(7)] == [0, -1, 1, -2, 2, -3, 3]
    assert all(ref.zigzag(enc.zigzag(value)) == value for value in (*range(-9, 9), 1 << 31, -(1 << 31)))


def test_short_streams() -> None:
    """What is said in a few bits takes a byte or two; certain symbols take nothing."""
    model = enc.flat()
    certain = model._replace(contexts=bytes([ref.NO_TABLE]) * 1075, tables=[])
    pen = enc.Pen(0)
    pen.symbol(5, 0)
    assert pen.stream(certain) == b"\1"
    stream = ref.Stream(b"\1", 0, certain)
    assert stream.symbol(5) == 0 and stream.lanes == [1]
    stream.end()
    pen.symbol(5, 63)  # the first takes as many bits as the slot that it begins at
    assert pen.stream(model) == bytes.fromhex("01f003")


def test_models_come_back() -> None:
    own = [ref.Model(3, bytes([0, 1, 255] * 358 + [1]), [[4096], [1, 0, 4095]]), ref.Model(16, b"\xff" * 1075, [])]
    raw = enc.models_raw(77, own)
    assert ref.parse_models(raw, 2) == (77, own)
    assert frequency_tables.parse(raw[1:], 2)[0].frequency[1, :3].tolist() == [1, 0, 4095]
    for bad in (raw[:-1], raw + b"\0", raw[:1] + b"\21" + raw[2:]):
        with pytest.raises(ref.Corrupt):
            ref.parse_models(bad, 2)


def test_blobs_of_frames_come_back() -> None:
    found = [ref.Coded(bytes([i] * 8), i % 2, bytes(n)) for i, n in enumerate((0, 1, 63, 64, 8192))]
    blob = enc.frame_blob(found)
    assert ref.parse_frame(blob, 5) == found and len(blob) == 40 + (1 + 1 + 1 + 2 + 3) + 8320
    for bad in (blob[:-1], blob + b"\0", blob[:39], blob[:40], blob[:47]):
        with pytest.raises(ref.Corrupt):
            ref.parse_frame(bad, 5)
    five = enc.frame_blob(found[:1], [b"\x80\x80\x80\x80\1"])
    with pytest.raises(ref.Corrupt, match="streams"):
        ref.parse_frame(five, 1)


def test_every_flip_in_the_tier_is_noticed() -> None:
    """The records and blocks of a small file; the rest of it is like that of other files."""
    whole = VECTOR.read_bytes()
    entries = ref.RelexFile(whole).entries
    for i in range(entries[ref.SEGMENTS].start, len(whole)):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << i % 8
        with pytest.raises(ref.Corrupt):
            ref.RelexFile(bytes(damaged)).check_all()


@st.composite
def parts(draw: st.DrawFn) -> tuple[str, int, int, Any]:
    """A dtype, `low`, dense classes, and bits of a few elements at up to ten steps that move much or little."""
    dtype = draw(st.sampled_from(sorted(ref.WIDTH)))
    steps, n = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    width = ref.WIDTH[dtype]
    rows = [rng.integers(0, 256, (n, width), np.uint8).view(f"<u{width}")[:, 0]]
    for _ in range(steps):
        row = rows[draw(st.integers(0, len(rows) - 1))] if draw(st.booleans()) else rows[-1]
        reach = draw(st.sampled_from([1, 1, 3, 40, 1 << 8 * width - 1]))
        move = rng.integers(-reach, reach, n, np.int64, endpoint=width < 8) * (rng.random(n) < draw(st.floats(0, 1)))
        rows.append(row + move.astype(f"<i{width}").view(row.dtype))
    low = (
        0
        if dtype not in ref.MANTISSA
        else draw(st.integers(0, min(255, 1 << 8 * min(width, 4) - 1 - ref.MANTISSA[dtype])))
    )
    return dtype, low, draw(st.integers(0, 16)), np.array(rows)


def level_of(interval: Interval | None) -> int:
    """The model of a frame: that of its level."""
    return 0 if interval is None else interval.level


@settings(max_examples=150, deadline=None)
@given(parts())
def test_what_the_package_codes_is_what_the_reference_decodes(given_part: tuple[str, int, int, Any]) -> None:
    dtype, low, dense, rows = given_part
    counter = piece_coder.Counter()
    symbols = piece_coder.PartEncoder(rows, ordered_words.layout_of(dtype), low).encode(level_of, dense, counter)
    number = {step: needed - 1 for step, needed in ref.frame_order(len(rows) - 1)}
    tables = [frequency_tables.fit(counter.of(i), dense if i == 0 else 0) for i in range(1 + max(number.values()))]
    coded = {step: one.encode(frequency_tables.prepare(tables[number[step]])) for step, one in symbols.items()}
    if symbols[1].plain is not None:
        coded[1] = 1, symbols[1].plain
    there, own = ref.parse_models(bytes([low]) + frequency_tables.to_bytes(tables), len(tables))
    assert there == low
    segmented = ref.Segmented(rows[0].tobytes(), dtype, low)

    def give(step: int) -> tuple[Any, Any]:
        return ref.Coded(b"", *coded[step]), own[number[step]]

    for step in range(1, len(rows)):
        assert segmented.restore(len(rows) - 1, step, give) == rows[step].tobytes()


class Dice:
    """A stream that says anything: symbols are drawn when they are asked for, and noted by a pen."""

    def __init__(self, rng: random.Random, elements: int) -> None:
        self.rng, self.pen = rng, enc.Pen(elements)

    def element(self, j: int) -> None:
        """As of the decoder's stream."""
        self.pen.element(j)

    def symbol(self, context: int) -> int:
        """Most often a small one."""
        symbol = self.rng.choice([0, 0, 0, 1, 1, 2, 3, 4, self.rng.randrange(64)])
        self.pen.symbol(context, symbol)
        return symbol

    def number(self, context: int) -> int:
        """A number: a small one where larger ones break rules, else now and then a multiple of 2H or beside it."""
        number = self.rng.choice([0, 0, 1, 2, 5, self.rng.getrandbits(self.rng.randrange(1, 33))])
        if context == ref.COUNT or ref.GAP <= context < ref.MOVE:
            number = self.rng.choice([*[0] * 12, *[1] * 6, 2, 2, number])
        elif self.rng.random() < 0.2:
            number = 2 * (self.rng.randrange(1, 4) << 8 * self.rng.choice([1, 2])) - self.rng.randrange(2)
        self.pen.number(context, number)
        return number

    def end(self) -> None:
        """Whatever was said, it ends well."""


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from(sorted(ref.WIDTH)), st.integers(1, 6), st.integers(0, 16))
def test_streams_that_no_encoder_makes(seed: int, dtype: str, count: int, dense: int) -> None:
    """Both decoders read the same out of a stream that breaks no rule, and refuse the same ones."""
    rng, width = random.Random(seed), ref.WIDTH[dtype]
    zero = b"".join(rng.choice([bytes(width), rng.randbytes(width)]) for _ in range(rng.randrange(1, 9)))
    step = rng.randrange(1, count + 1)
    model, said = enc.flat(dense), {}

    def stream(data: bytes, elements: int, model: Any) -> Dice:
        dice.append(Dice(rng, elements))
        return dice[-1]

    def ask(at: int) -> tuple[Any, Any]:
        asked.append(at)
        return ref.Coded(b"", 0, b"?"), model

    dice: list[Dice] = []
    asked: list[int] = []
    segmented = ref.Segmented(zero, dtype, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ref, "Stream", stream)
        try:
            expected = segmented.restore(count, step, ask)
        except ref.Corrupt:
            expected = None
    said = {at: one.pen.stream(model) for at, one in zip(asked, dice, strict=True)}
    flat = frequency_tables.prepare(frequency_tables.parse(enc.models_raw(0, [model])[1:], 1)[0])

    def by_reference() -> bytes:
        restored: bytes = segmented.restore(count, step, lambda at: (ref.Coded(b"", 0, said[at]), model))
        return restored

    bits = np.frombuffer(zero, f"<u{width}")
    decoder = piece_coder.PartDecoder(bits, dtype, 100, count, dense, lambda at: piece_coder.Frame(0, said[at], flat))
    if expected is None:
        with pytest.raises(ref.Corrupt):
            by_reference()
        with pytest.raises(Corrupt):
            decoder.restore(step)
    else:
        assert by_reference() == expected
        assert decoder.restore(step).tobytes() == expected
