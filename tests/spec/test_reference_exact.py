"""Units of the reference decoder for the exact tier, and streams that it and the package read the same way."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

import numpy as np
import pytest
from generate import exact_streams as enc
from generate.exact_tier import frame_blob
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_codec.errors import Corrupt
from relex_codec.exact import frequency_tables, ordered_words, part_coder, part_decoder, stream_encoder
from relex_codec.exact.bisection import Interval, frame_order
from support.specification import VECTORS, ref

pytestmark = pytest.mark.filterwarnings("error")

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
    assert [*seen, ref.MOVED, ref.BELOW, ref.ABOVE] == list(range(1075))
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


def test_tables_come_back() -> None:
    own = [
        ref.TableSet(3, bytes([0, 1, 255] * 358 + [1]), [[4096], [1, 0, 4095]]),
        ref.TableSet(16, b"\xff" * 1075, []),
    ]
    raw = enc.tables_raw(77, own)
    assert ref.parse_tables(raw, 2) == (77, own)
    assert frequency_tables.tables_from_bytes(raw[1:], 2)[0].frequency[1, :3].tolist() == [1, 0, 4095]
    for bad in (raw[:-1], raw + b"\0", raw[:1] + b"\21" + raw[2:]):
        with pytest.raises(ref.Corrupt):
            ref.parse_tables(bad, 2)


def test_blobs_of_frames_come_back() -> None:
    found = [ref.Coded(bytes([i] * 8), i % 2, bytes(n)) for i, n in enumerate((0, 1, 63, 64, 8192))]
    blob = frame_blob(found)
    assert ref.parse_frame(blob, 5) == found and len(blob) == 40 + (1 + 1 + 1 + 2 + 3) + 8320
    for bad in (blob[:-1], blob + b"\0", blob[:39], blob[:40], blob[:47]):
        with pytest.raises(ref.Corrupt):
            ref.parse_frame(bad, 5)
    five = frame_blob(found[:1], [b"\x80\x80\x80\x80\1"])
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
    counter = part_coder.SymbolCounter()
    encoder = part_coder.PartEncoder(rows, ordered_words.layout_of(dtype), low)
    symbols = dict(encoder.encode(level_of, dense, counter))
    number = {step: needed - 1 for step, needed in ref.frame_order(len(rows) - 1)}
    tables = [
        frequency_tables.fit_tables(counter.of(i), dense if i == 0 else 0) for i in range(1 + max(number.values()))
    ]
    coders = [stream_encoder.coding_tables(frequency_tables.lay_out(found)) for found in tables]
    coded = {step: one.encode(coders[number[step]]) for step, one in symbols.items()}
    if symbols[1].plain is not None:
        coded[1] = 1, symbols[1].plain
    there, own = ref.parse_tables(bytes([low]) + frequency_tables.tables_to_bytes(tables), len(tables))
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
        if context == ref.MOVED or ref.GAP <= context < ref.MOVE:
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
    flat = frequency_tables.lay_out(frequency_tables.tables_from_bytes(enc.tables_raw(0, [model])[1:], 1)[0])

    def by_reference() -> bytes:
        restored: bytes = segmented.restore(count, step, lambda at: (ref.Coded(b"", 0, said[at]), model))
        return restored

    bits = np.frombuffer(zero, f"<u{width}")
    decoder = part_decoder.PartDecoder(bits, dtype, 100, count, dense, lambda at: part_decoder.Frame(0, said[at], flat))
    if expected is None:
        with pytest.raises(ref.Corrupt):
            by_reference()
        with pytest.raises(Corrupt):
            decoder.restore(step)
    else:
        assert by_reference() == expected
        assert decoder.restore(step).tobytes() == expected
