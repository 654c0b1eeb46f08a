"""Ordered words against EXACT.md section 13, a number at a time, and against the order of the values."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.exact.ordered_words import from_words, layout_of, to_words, words_at
from support.plain import Array, narrow, widen
from support.tensors import WIDTH

DTYPES = sorted(ITEMSIZE)
FLOATS = {"BF16", "F16", "F32", "C64", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ"}
SIGNED = {"I8", "I16", "I32"}
MANTISSA = {"BF16": 7, "F16": 10, "F32": 23, "C64": 23, "F8_E4M3": 3, "F8_E4M3FNUZ": 3, "F8_E5M2": 2, "F8_E5M2FNUZ": 2}


def elements(dtype: str, values: list[int]) -> Array:
    return np.array(values, f"<u{ITEMSIZE[dtype]}")


def slowly_ordered(dtype: str, data: bytes) -> list[int]:
    """EXACT.md section 13, a word at a time."""
    width = min(ITEMSIZE[dtype], 4)
    half = 1 << (8 * width - 1)
    found = []
    for at in range(0, len(data), width):
        u = int.from_bytes(data[at : at + width], "little")
        if dtype in FLOATS:
            u = u + half if u < half else 2 * half - 1 - u
        elif dtype in SIGNED:
            u = (u + half) % (2 * half)
        found.append(u)
    return found


def specials(dtype: str) -> list[int]:
    """Every value of small elements; of large ones zeros, ones, powers of two and their neighbours."""
    bits = 8 * ITEMSIZE[dtype]
    if bits <= 16:
        return list(range(1 << bits))
    near = {x + d for k in range(bits) for x in (1 << k, (1 << bits) - (1 << k)) for d in (-1, 0, 1)}
    return sorted(x % (1 << bits) for x in near)


def test_all_dtypes_are_known() -> None:
    assert set(DTYPES) >= set(WIDTH) and set(DTYPES) > FLOATS | SIGNED
    for dtype in DTYPES:
        layout = layout_of(dtype)
        assert layout.width * layout.per_element == ITEMSIZE[dtype] and layout.per_element in (1, 2)
        assert layout.half == 1 << (8 * layout.width - 1)
        assert layout.mantissa == MANTISSA.get(dtype, 8 * layout.width)


@pytest.mark.parametrize("dtype", DTYPES)
def test_words_are_ordered_as_the_format_says(dtype: str) -> None:
    bits = elements(dtype, specials(dtype))
    given_bits = bits.copy()
    layout = layout_of(dtype)
    words = to_words(bits, layout)
    assert words.dtype.itemsize == layout.width and not np.shares_memory(words, bits)
    assert words.tolist() == slowly_ordered(dtype, bits.tobytes())
    if layout.per_element == 1:
        assert len(set(words.tolist())) == len(set(bits.tolist()))
    back = from_words(words, layout, dtype)
    np.testing.assert_array_equal(back, bits)
    assert back.dtype == bits.dtype and not np.shares_memory(back, words)
    np.testing.assert_array_equal(bits, given_bits)


@settings(max_examples=60)
@given(st.sampled_from(DTYPES), st.binary(max_size=400))
def test_any_bits_come_back(dtype: str, data: bytes) -> None:
    data = data[: len(data) // ITEMSIZE[dtype] * ITEMSIZE[dtype]]
    bits = np.frombuffer(data, f"<u{ITEMSIZE[dtype]}")
    words = to_words(bits, layout_of(dtype))
    assert words.tolist() == slowly_ordered(dtype, data)
    assert from_words(words, layout_of(dtype), dtype).tobytes() == data


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_value_of_16_bits_is_in_order(dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    order = np.argsort(to_words(bits, layout_of(dtype)))
    assert sorted(order.tolist()) == bits.tolist()
    values = widen(dtype, bits[order])
    real = values[~np.isnan(values)]
    assert (np.diff(real[np.isfinite(real)]) >= 0).all() and real[0] == -np.inf and real[-1] == np.inf
    zeros = np.flatnonzero(real == 0)
    assert zeros[1] - zeros[0] == 1 and np.signbit(real[zeros]).tolist() == [True, False]  # -0 just below +0
    nans = np.isnan(values)
    first, last = np.flatnonzero(~nans)[[0, -1]]
    assert nans[:first].all() and nans[last + 1 :].all()  # negative NaNs below everything, positive ones above
    assert np.signbit(values[:first].view(np.int32)).all()


@settings(max_examples=200)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=40))
def test_single_floats_are_in_order(found: list[int]) -> None:
    bits = np.array(found, np.uint32)
    words = to_words(bits, layout_of("F32")).astype(np.int64)
    values = bits.view(np.float32)
    for i, j in zip(range(len(bits) - 1), range(1, len(bits)), strict=True):
        if np.isnan(values[i]) or np.isnan(values[j]):
            continue
        if values[i] != values[j]:
            assert (words[i] < words[j]) == (values[i] < values[j])
        else:
            assert abs(words[i] - words[j]) <= 1 and (words[i] == words[j]) == (bits[i] == bits[j])


@pytest.mark.parametrize(("dtype", "signed"), [("I8", np.int8), ("I16", np.int16), ("I32", np.int32)])
def test_signed_integers_are_in_order(dtype: str, signed: type) -> None:
    values = np.unique(elements(dtype, specials(dtype)).view(signed))
    words = to_words(values.view(f"<u{ITEMSIZE[dtype]}"), layout_of(dtype)).astype(np.int64)
    np.testing.assert_array_equal(np.diff(words), np.diff(values.astype(np.int64)))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_small_floats_are_in_the_order_of_sign_and_magnitude(dtype: str) -> None:
    words = to_words(np.arange(256, dtype=np.uint8), layout_of(dtype)).tolist()
    assert words[:128] == list(range(128, 256))
    assert words[128:] == list(range(127, -1, -1))


@pytest.mark.parametrize("dtype", ["U8", "BOOL", "F8_E8M0", "U16", "U32"])
def test_what_has_no_sign_stays_as_it_is(dtype: str) -> None:
    bits = elements(dtype, specials(dtype))
    np.testing.assert_array_equal(to_words(bits, layout_of(dtype)), bits)


def test_one_ulp_is_one_word() -> None:
    """Subnormals, the step from there to normal numbers, and every step of the exponent."""
    near = np.array([2.0**-126, 2.0**-127, 2.0**-149, 1.0, 2.0, 3.4e38], np.float32)
    below, above = np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))
    words = [to_words(x.view(np.uint32), layout_of("F32")).astype(np.int64) for x in (below, near, above)]
    assert (words[1] - words[0] == 1).all() and (words[2] - words[1] == 1).all()
    bf16 = narrow("BF16", np.array([-1.0, -0.0, 0.0, 1.0], np.float32))
    assert to_words(bf16, layout_of("BF16")).tolist() == [0x7FFF - 0x3F80, 0x7FFF, 0x8000, 0x8000 + 0x3F80]


def test_elements_of_8_bytes_are_two_words() -> None:
    for dtype in ("I64", "U64", "F64"):
        words = to_words(np.array([0x1122334455667788, 1], np.uint64), layout_of(dtype))
        assert words.tolist() == [0x55667788, 0x11223344, 1, 0]
    pair = np.frombuffer(struct.pack("<ff", 1.0, -1.0), "<u8")
    assert to_words(pair, layout_of("C64")).tolist() == [0x80000000 + 0x3F800000, 0x7FFFFFFF - 0x3F800000]


def test_arrays_in_any_layout_are_read() -> None:
    table = np.arange(24, dtype=np.uint16).reshape(4, 6)
    for view in (table[:, ::2].reshape(-1), table[1], table.T.reshape(-1), table[0, :0], table[::-1, 3]):
        assert to_words(view, layout_of("U16")).tolist() == view.tolist()
    table.setflags(write=False)
    to_words(table[0], layout_of("BF16"))[0] = 7


@pytest.mark.parametrize("dtype", DTYPES)
def test_words_at_places_are_those_there(dtype: str) -> None:
    bits, layout = elements(dtype, specials(dtype)), layout_of(dtype)
    words = to_words(bits, layout)
    places = np.random.default_rng(0).permutation(len(words)).astype(np.uint32)[: len(words) * 3 // 4]
    found = words_at(bits, places, layout)
    assert found.dtype == words.dtype and np.array_equal(found, words[places])
