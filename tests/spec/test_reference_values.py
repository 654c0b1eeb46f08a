"""Units of the reference decoder: arithmetic, pieces, JSON and safetensors headers."""

from __future__ import annotations

import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.handmade import pack
from support.specification import ref

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


def parse_header(raw: bytes, any_order: bool = False) -> tuple[Any, Any]:
    """`__metadata__` and entries of a header."""
    header = ref.parse_json(raw)
    metadata = header.pop("__metadata__", {})
    ref.check_metadata(metadata)
    return metadata, ref.parse_entries(header, 8 + len(raw), any_order)


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
        '{"a":1e999}',
        '{"a":+1}',
        '{"a":1.}',
        '{"a":.5}',
        '{"a":0x10}',
        '{"a":-Infinity}',
        '{"a":17976931348623159e292}',
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
    assert ref.parse_json(b'{"a":[-1,-0.5,-0,1E+2,5e-324,1.5]}') == {"a": [-1, -0.5, 0, 100, 5e-324, 1.5]}
    assert type(ref.parse_json(b'{"a":-0}')["a"]) is float and type(ref.parse_json(b'{"a":-3}')["a"]) is int
    metadata, entries = parse_header(GOOD.encode())
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
        parse_header(json.dumps(header).encode())


def test_a_base_may_list_its_tensors_in_any_order() -> None:
    header = {
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [8, 10]},
        "empty": {"dtype": "U8", "shape": [0], "data_offsets": [8, 8]},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    raw = json.dumps(header).encode()
    _, entries = parse_header(raw, any_order=True)
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
