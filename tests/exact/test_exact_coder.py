"""Symbols, rANS, frequency tables and parts: against loops written after EXACT.md section 14, and there and back."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.errors import Corrupt
from relex_codec.exact import contexts
from relex_codec.exact.bisection import Interval, frames_of, whole_segment
from relex_codec.exact.frequency_tables import (
    UNUSED,
    CoderTables,
    FrequencyTables,
    fit_tables,
    lay_out,
    most_table_bytes,
    tables_from_bytes,
    tables_to_bytes,
)
from relex_codec.exact.part_coder import (
    CODED,
    PLAIN,
    Symbols,
)
from relex_codec.exact.part_decoder import Frame, PartDecoder
from relex_codec.exact.rans import LANES_FROM, open_stream
from relex_codec.exact.stream_encoder import coding_tables, encode_stream
from relex_codec.format.packing import to_planes
from support.exact_parts import CONTENTS, Part, content, part_of, random_elements, replayed
from support.plain import Array

CONTEXTS = 1075
FIRST_NUMBER = 880
"""The first context of numbers, which may have raw bits; before it are plain symbols."""
FAMILIES = [(0, 400), *((400 + 80 * i, 480 + 80 * i) for i in range(6)), (880, 1024), (1024, 1040), (1040, 1056),
            (1056, 1072), (1072, 1073), (1073, 1074), (1074, 1075)]  # fmt: skip


def plainly(function: Any) -> Any:
    """The function that was compiled, run by the interpreter."""
    return getattr(function, "py_func", function)


# ---- Symbols and contexts ----


def slow_number(value: int) -> tuple[int, int, int]:
    """EXACT.md section 14: symbol, number of raw bits, raw bits."""
    if value < 2:
        return value, 0, 0
    for v in range(2, 64):
        b = v // 2 - 1
        low = (2 + v % 2) << b
        if low <= value < low + (1 << b):
            return v, b, value - low
    raise AssertionError(value)


@given(st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1), st.integers(0, 31).map(lambda k: (1 << k + 1) - 1)))
def test_numbers_are_symbols_and_raw_bits(value: int) -> None:
    symbol, bits, raw = slow_number(value)
    assert contexts.bit_length(value) == value.bit_length()  # an instruction: there is no Python of it
    assert plainly(contexts.number_symbol)(value) == symbol
    assert plainly(contexts.raw_bits)(symbol) == bits <= 30
    assert plainly(contexts.number)(symbol, raw) == value
    assert value & ((1 << bits) - 1) == raw  # how the encoder finds them


@given(st.integers(-(2**32), 2**32), st.sampled_from([1 << 7, 1 << 15, 1 << 31]))
def test_moves_are_numbers(value: int, half: int) -> None:
    z = plainly(contexts.zigzag)(value)
    assert z >= 0 and (z // 2 if z % 2 == 0 else -(z + 1) // 2) == value == plainly(contexts.unzigzag)(z)
    short = plainly(contexts.wrapped)(value, half)
    assert -half <= short < half and (short - value) % (2 * half) == 0


def test_contexts_are_those_of_the_format() -> None:
    assert contexts.CONTEXTS == CONTEXTS and contexts.FAR == FIRST_NUMBER and list(contexts.FAMILIES) == FAMILIES
    assert (contexts.GAP, contexts.MOVE, contexts.DENSE) == (1024, 1040, 1056)
    assert (contexts.COUNT, contexts.BELOW, contexts.ABOVE) == (1072, 1073, 1074)
    assert [b for _, b in FAMILIES[:-1]] == [a for a, _ in FAMILIES[1:]]
    seen = set()
    for e in range(16):
        for d, p, q, g, near_is_right in product(range(1, 8), range(-2, 3), range(-2, 3), (1, -1), (False, True)):
            o, o_far = (2 - g * q, 2 - g * p) if near_is_right else (2 + g * p, 2 + g * q)
            expected = 25 * e + 5 * o + o_far if d == 1 else 400 + 80 * (d - 2) + 5 * e + o
            key = plainly(contexts.near_key)(d, e, (2 + p) | (2 + q) << 4, (g > 0) != near_is_right)
            assert contexts.NEAR_CONTEXTS[int(near_is_right), key] == expected
            seen.add(expected)
        for d in (*(1 << k for k in range(3, 32)), *((1 << k) - 1 for k in range(4, 33))):
            expected = 880 + 16 * min(d.bit_length() - 4, 8) + e
            assert plainly(contexts.far_context)(d, e) == expected
            seen.add(expected)
    assert sorted(seen) == list(range(1024))


def test_classes_and_clipped_movements() -> None:
    clip = [plainly(contexts.clipped)(v) for v in range(-5, 6)]
    assert clip == [0, 0, 0, 0, 1, 2, 3, 4, 4, 4, 4]
    for half, mantissa in ((1 << 15, 7), (1 << 31, 23), (1 << 7, 3), (1 << 7, 8), (1 << 31, 32)):
        for low in (0, 3, 200):
            for word in (0, 1, half - 1, half, half + 1, 2 * half - 1, half + 5 * (1 << mantissa) % half):
                magnitude = word - half if word >= half else half - 1 - word
                expected = min(max((magnitude >> mantissa) - low, 0), 15)
                assert plainly(contexts.scale_class)(word, mantissa, half, low) == expected


# ---- rANS ----


class SlowStream:
    """A stream of coding 0 as EXACT.md section 14 reads it, with Python's integers."""

    def __init__(self, stream: bytes, elements: int) -> None:
        head = len(stream) if len(stream) <= 8 else 5 + (len(stream) - 5) % 4
        if elements >= 1 << 14:
            head = 32
            self.lanes = [int.from_bytes(stream[i : i + 8], "little") for i in range(0, 32, 8)]
        else:
            self.lanes = [int.from_bytes(stream[:head], "little")]
        self.words = [int.from_bytes(stream[i : i + 4], "little") for i in range(head, len(stream), 4)][::-1]
        self.elements = elements

    def lane(self, element: int) -> int:
        return element % len(self.lanes) if element < self.elements else 0

    def refill(self, lane: int) -> None:
        if self.lanes[lane] < 1 << 32 and self.words:
            self.lanes[lane] = (self.lanes[lane] << 32) + self.words.pop()

    def symbol(self, lane: int, frequencies: list[int]) -> int:
        x, s, begin = self.lanes[lane], 0, 0
        slot = x % 4096
        while slot >= begin + frequencies[s]:
            begin += frequencies[s]
            s += 1
        self.lanes[lane] = frequencies[s] * (x // 4096) + slot - begin
        self.refill(lane)
        return s

    def raw(self, lane: int, bits: int) -> int:
        value = self.lanes[lane] % (1 << bits)
        self.lanes[lane] >>= bits
        self.refill(lane)
        return value

    @property
    def ended(self) -> bool:
        return not self.words and self.lanes == ([1] if len(self.lanes) == 1 else [1 << 32] * 4)


def counts_of(pairs: list[tuple[int, int]]) -> Array:
    counts = np.zeros((CONTEXTS, 64), np.int64)
    for context, symbol in pairs:
        counts[context, symbol] += 1
    return counts


def coded(found: list[tuple[int, int, int]], elements: int, tables: FrequencyTables) -> bytes:
    """Code (context, symbol, raw bits)."""
    coder = lay_out(tables)
    records = np.array([plainly(contexts.record_of)(context, s) for context, s, _ in found], np.uint16)
    raws = np.array([raw for context, s, raw in found if context >= FIRST_NUMBER and s >= 4], np.uint32)
    return encode_stream(records, raws, elements, coding_tables(coder))


def check_stream(found: list[tuple[int, int, int]], elements: int) -> bytes:
    tables = fit_tables(counts_of([(c, s) for c, s, _ in found]), 0)
    stream = coded(found, elements, tables)
    opened = open_stream(stream, elements)
    assert opened is not None
    slow = SlowStream(stream, elements)
    assert opened[0].tolist() == (slow.lanes if len(slow.lanes) == 4 else [*slow.lanes, *[1 << 32] * 3])
    assert opened[1].tolist() == slow.words[::-1]
    assert opened[2] == (1 if elements < LANES_FROM else 1 << 32)
    for element, (context, symbol, raw) in enumerate(found):
        lane = slow.lane(element)
        assert slow.symbol(lane, tables.frequency[tables.contexts[context]].tolist()) == symbol
        bits = max(symbol // 2 - 1, 0)
        if context >= FIRST_NUMBER and bits:
            assert slow.raw(lane, bits) == raw
    assert slow.ended
    return stream


def random_records(count: int, seed: int, spread: float, numbers: float) -> list[tuple[int, int, int]]:
    chances = random.Random(seed)
    found = []
    for _ in range(count):
        number = chances.random() < numbers
        context = chances.choice((880, 1024, 1041, 1056, 1072)) if number else chances.choice((0, 3, 401, 560, 879))
        symbol = min(int(chances.expovariate(1 / spread)), 63 if number else 15)
        raw = chances.getrandbits(symbol // 2 - 1) if number and symbol >= 4 else 0
        found.append((context, symbol, raw))
    return found


def test_records_have_every_symbol_in_16_bits() -> None:
    found = {}
    for context in range(CONTEXTS):
        for symbol in range(64 if context >= FIRST_NUMBER else 16):
            record = plainly(contexts.record_of)(context, symbol)
            assert (contexts.CONTEXT_OF[record], contexts.SYMBOL_OF[record]) == (context, symbol)
            found[record] = context, symbol
    assert sorted(found) == list(range(contexts.RECORDS)) and contexts.RECORDS <= 0xFFFF
    assert len(found) == 16 * FIRST_NUMBER + 64 * (CONTEXTS - FIRST_NUMBER)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.one_of(st.integers(1, 6), st.integers(1, 600)), st.integers(0, 2**32), st.sampled_from([0.2, 2, 20, 1000]),
    st.sampled_from([0, 0.3, 1]),
)  # fmt: skip
def test_one_lane_is_read_as_the_format_says(count: int, seed: int, spread: float, numbers: float) -> None:
    found = random_records(count, seed, spread, numbers)
    check_stream(found, random.Random(seed).randint(0, count))


@pytest.mark.parametrize("spread", [0.3, 30])
@pytest.mark.parametrize("elements", [LANES_FROM, LANES_FROM + 1, LANES_FROM + 3])
def test_four_lanes_are_read_as_the_format_says(elements: int, spread: float) -> None:
    found = random_records(elements, elements, spread, 0.5)
    found += random_records(50, 1, spread, 1)
    check_stream(found, elements)


@pytest.mark.parametrize("bits", range(31))
def test_every_number_of_raw_bits(bits: int) -> None:
    chances = random.Random(bits)
    symbol = 2 * (bits + 1) + chances.randint(0, 1) if bits else 1
    raws = [0, (1 << bits) - 1, *(chances.getrandbits(bits) if bits else 0 for _ in range(40))]
    found = [(1040, symbol, raw) for raw in raws] + [(1040, 0, 0)]
    stream = check_stream(found, len(found))
    assert len(stream) <= 8 + (bits * len(raws) + len(found)) / 8


def test_streams_are_as_short_as_what_they_say() -> None:
    assert len(check_stream([(0, 5, 0)] * 1000, 1000)) == 1  # the only symbol there is
    assert len(check_stream([(0, 0, 0), (0, 1, 0)], 2)) == 2
    for count in range(1, 200):
        found = [(0, i % 2, 0) for i in range(count)]
        assert len(check_stream(found, count)) <= count / 8 + 2.5  # the first one costs 12 bits
    rng = np.random.default_rng(0)
    symbols = np.minimum(rng.geometric(0.4, 20_000) - 1, 15)
    p = np.bincount(symbols) / len(symbols)
    entropy = float(-(p[p > 0] * np.log2(p[p > 0])).sum()) * len(symbols) / 8
    assert len(check_stream([(0, int(s), 0) for s in symbols], len(symbols))) < 1.005 * entropy + 32


def test_streams_of_impossible_lengths_are_refused() -> None:
    for length in (0, 8, 31, 33, 34, 35):
        assert open_stream(bytes(length), LANES_FROM) is None
    for length in (32, 36, 400):
        assert open_stream(bytes(length), LANES_FROM) is not None
    for length in range(60):
        opened = open_stream(bytes(length), LANES_FROM - 1)
        assert opened is not None and len(opened[1]) == (max(length - 5, 0) // 4 if length > 8 else 0)


# ---- Frequency tables ----


def random_counts(seed: int, used: int, spread: float = 3) -> Array:
    """Counts of `used` contexts, of every family."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((CONTEXTS, 64), np.int64)
    for context in rng.permutation(CONTEXTS)[:used]:
        low, high = next(family for family in FAMILIES if family[0] <= context < family[1])
        symbols = np.minimum(rng.exponential(spread * (1 + low % 7), rng.integers(1, 4000)), 63).astype(int)
        counts[context] = np.bincount(symbols, minlength=64) * (high > low)
    return counts


@pytest.mark.parametrize(("used", "spread"), [(0, 1), (1, 3), (40, 3), (CONTEXTS, 0.1), (CONTEXTS, 3), (CONTEXTS, 40)])
def test_tables_fit_and_come_back(used: int, spread: float) -> None:
    counts = random_counts(used, used, spread)
    tables = fit_tables(counts, 5)
    assert tables.frequency.shape[1] == 64 and len(tables.frequency) <= 254
    assert (tables.frequency.sum(axis=1, dtype=np.int64) == 4096).all()
    assert ((tables.contexts == UNUSED) == (counts.sum(axis=1) == 0)).all()
    for context in np.flatnonzero(counts.sum(axis=1)):
        assert (tables.frequency[tables.contexts[context]][counts[context] > 0] > 0).all()
    of_family = [set(tables.contexts[low:high].tolist()) - {UNUSED} for low, high in FAMILIES]
    assert sum(map(len, of_family)) == len(set().union(*of_family)) == len(tables.frequency)  # none is shared
    other = fit_tables(random_counts(used + 1, 3), 0)
    data = tables_to_bytes([tables, other])
    assert len(data) <= most_table_bytes(2)
    for found, expected in zip(tables_from_bytes(data, 2), (tables, other), strict=True):
        assert found.dense == expected.dense
        np.testing.assert_array_equal(found.contexts, expected.contexts)
        np.testing.assert_array_equal(found.frequency, expected.frequency)
    check_laid_out(lay_out(tables), tables)


def check_laid_out(coder: CoderTables, tables: FrequencyTables) -> None:
    used = len(tables.frequency)
    for context, table in enumerate(tables.contexts.tolist()):
        assert coder.table_of[context] == (used if table == UNUSED else table)
    for table, row in enumerate([*tables.frequency.tolist(), [4096]]):
        symbols = [s for s, f in enumerate(row) for _ in range(f)]
        starts = [sum(row[:symbol]) for symbol in range(len(row))]
        buckets = [row[symbol] | starts[symbol] << 13 | symbol << 25 for symbol in symbols[::16]]
        assert coder.buckets[256 * table : 256 * table + 256].tolist() == buckets
        begin = 0
        for s, f in enumerate(row):
            if begin < 4096:  # those behind the last one are never looked at
                assert coder.entries[64 * table + s] == f | begin << 16
            begin += f
    assert (len(coder.buckets), len(coder.entries)) == (256 * (used + 1), 64 * (used + 1))


def test_contexts_that_differ_get_tables_of_their_own() -> None:
    counts = np.zeros((CONTEXTS, 64), np.int64)
    counts[0, :2] = 9000, 1000
    counts[1, :2] = 1000, 9000
    counts[2, :2] = 18100, 1900
    tables = fit_tables(counts, 0)
    assert tables.contexts[0] == tables.contexts[2] != tables.contexts[1]
    assert abs(int(tables.frequency[tables.contexts[0], 0]) - 3700) < 30


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(0, 2**32), st.booleans())
def test_any_counts_give_tables(symbols: int, seed: int, rare: bool) -> None:
    rng = np.random.default_rng(seed)
    counts = np.zeros((CONTEXTS, 64), np.int64)
    counts[7, rng.permutation(64)[:symbols]] = 1 if rare else rng.integers(1, 10**9, symbols)
    if rare:
        counts[7, 1] = 10**9
    frequency = fit_tables(counts, 0).frequency
    assert frequency.shape == (1, 64) and frequency.sum() == 4096 and ((frequency[0] > 0) == (counts[7] > 0)).all()


def changed(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


def test_tables_that_break_the_rules_are_refused() -> None:
    counts = np.zeros((CONTEXTS, 64), np.int64)
    counts[0, [0, 2]] = 3, 1
    counts[1072, 0] = 5
    data = tables_to_bytes([fit_tables(counts, 3)])  # tables of 3 and of 1 values: 3072, 0, 1024 and 4096
    assert data[:2] == bytes([3, 2]) and len(data) == 2 + CONTEXTS + 2 + 4 + 4
    lengths, low, high = 2 + CONTEXTS, 4 + CONTEXTS, 8 + CONTEXTS
    assert data[lengths:] == bytes([3, 1, 0, 0, 0, 0, 12, 0, 4, 16])
    assert len(tables_from_bytes(changed(data, 0, 16), 1)) == 1
    for broken in (
        b"", data[:2], data[: lengths - 1], data[:lengths], data[:-1], data + b"\0",
        changed(data, 0, 17), changed(data, 0, 255),  # dense
        changed(data, 1, 1), changed(data, 1, 3), changed(data, 1, 255),  # number of tables
        changed(data, 2, 2), changed(data, 3, 254),  # a table that is not there
        changed(data, lengths, 2), changed(data, lengths, 0), changed(data, lengths, 65),
        changed(data, low, 1), changed(data, high + 1, 4),  # another sum
        changed(changed(data, high, 16), high + 2, 0),  # the last value is 0
    ):  # fmt: skip
        with pytest.raises(Corrupt):
            tables_from_bytes(broken, 1)
    with pytest.raises(Corrupt):
        tables_from_bytes(data, 2)
    with pytest.raises(Corrupt):
        tables_from_bytes(data + data, 1)
    many = bytes([0, 255]) + bytes([UNUSED]) * CONTEXTS + bytes([1]) * 255 + bytes(255) + bytes([16]) * 255
    with pytest.raises(Corrupt):
        tables_from_bytes(many, 1)
    assert len(tables_from_bytes(bytes([0, 0]) + bytes([UNUSED]) * CONTEXTS, 1)[0].frequency) == 0


def plainly_scaled(counted: Array) -> Array:
    row = np.maximum(counted * 4096 // counted.sum(), counted > 0)
    while rest := 4096 - int(row.sum()):
        if rest > 0:
            row[np.argmax(counted / np.maximum(row, 1))] += rest if rest < 4 else rest // 2
        else:
            row[np.argmin(np.where(row > 1, counted / np.maximum(row, 1), np.inf))] -= 1
    return row


@settings(max_examples=300)
@given(st.lists(st.one_of(st.just(0), st.integers(1, 5), st.integers(1, 10**9)), min_size=1, max_size=64))
def test_frequencies_are_those_of_numpy(counted: list[int]) -> None:
    """A file is the same whatever makes it: here of a table alone, in the context of moved."""
    if not any(counted):
        return
    counts = np.zeros((CONTEXTS, 64), np.int64)
    counts[1072, : len(counted)] = counted
    assert fit_tables(counts, 0).frequency.tolist() == [plainly_scaled(counts[1072]).tolist()]


@settings(max_examples=80)
@given(st.data())
def test_any_byte_of_tables_is_a_table_or_refused(data: Any) -> None:
    good = tables_to_bytes([fit_tables(random_counts(1, 30), 2), fit_tables(random_counts(2, 5), 0)])
    at = data.draw(st.integers(0, len(good) - 1))
    try:
        found = tables_from_bytes(changed(good, at, data.draw(st.integers(0, 255))), 2)
    except Corrupt:
        return
    for tables in found:
        check_laid_out(lay_out(tables), tables)


# ---- Parts ----


def check_part(part: Part) -> None:
    """Every step, every range, and no frame larger than the XOR with the left end."""
    count = len(part.bits) - 1
    assert sorted(part.streams) == list(range(1, count + 1))
    for step in range(1, count + 1):
        np.testing.assert_array_equal(part.decoder().restore(step), part.bits[step])
        assert part.asked == frames_of(step, count)
    pairs = [(a, b) for a in range(1, count + 1) for b in range(a, count + 1)]
    for start, stop in pairs if count < 6 else [(1, count), *random.Random(count).sample(pairs, 6)]:
        decoder = part.decoder()
        seen = []
        for step in replayed(decoder, start, stop):
            np.testing.assert_array_equal(decoder.bits(), part.bits[step])
            seen.append(step)
        assert seen == list(range(start, stop + 1))
        needed = {frame for step in seen for frame in frames_of(step, count)}
        assert sorted(part.asked) == sorted(needed)
    check_sizes(part)


def intervals(count: int) -> Iterator[tuple[int, int]]:
    """(left end, step) of every frame."""
    yield 0, count

    def below(interval: Interval) -> Iterator[tuple[int, int]]:
        if interval.has_middle:
            yield interval.left, interval.middle
            yield from below(interval.low)
            yield from below(interval.high)

    yield from below(whole_segment(count))


def check_sizes(part: Part) -> None:
    for left, step in intervals(len(part.bits) - 1):
        xored = zstandard.ZstdCompressor(3).compress(to_planes(part.bits[left] ^ part.bits[step]).tobytes())
        assert len(part.streams[step][1]) <= len(xored) + 24, (left, step)


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("dtype", sorted(ITEMSIZE))
def test_every_dtype_comes_back(dtype: str, name: str) -> None:
    check_part(part_of(content(name, dtype, 333, 4), dtype))


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("steps", [*range(1, 10), 17])
def test_every_number_of_steps_comes_back(steps: int, name: str) -> None:
    check_part(part_of(content(name, "BF16", 200, steps), "BF16"))


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("size", [1, 2, 15, 16, 1000, (1 << 14) - 1, 1 << 14, 40_001])
def test_every_size_comes_back(size: int, name: str) -> None:
    part = part_of(content(name, "BF16", size, 3), "BF16")
    check_part(part)
    if name == "dense":  # the first frame is coded word by word, in four lanes if there are enough
        assert part.streams[3][0] == CODED and (part.symbols[3].dense >= LANES_FROM) == (size >= LANES_FROM)


@pytest.mark.parametrize(("dtype", "size"), [("F32", 1 << 14), ("I64", 1 << 13), ("U8", 70_000), ("C64", 9000)])
def test_lanes_of_every_width_come_back(dtype: str, size: int) -> None:
    for name in ("noise", "dense", "wraps"):
        check_part(part_of(content(name, dtype, size, 2), dtype))


def test_what_is_no_number_comes_back() -> None:
    """NaNs of any payload, infinities, subnormals and zeros of both signs, turning into each other."""
    special = np.array([0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x7F81, 0x0001, 0x8001, 0x0000, 0x8000, 0x3F80], np.uint16)
    rng = np.random.default_rng(8)
    check_part(part_of(special[rng.integers(0, len(special), (8, 500))], "BF16"))
    wide = np.array([0x7F800000, 0xFFFFFFFF, 0x7FC00001, 0x80000000, 0, 1, 0x00800000, 0x007FFFFF], np.uint32)
    check_part(part_of(wide[rng.integers(0, len(wide), (5, 500))], "F32"))


@settings(max_examples=60)
@given(
    st.sampled_from(["BF16", "U8", "F32", "I64"]), st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**32),
    st.integers(1, 5),
)  # fmt: skip
def test_any_part_comes_back(dtype: str, size: int, steps: int, seed: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    alphabet = random_elements(dtype, values, seed)
    bits = alphabet[rng.integers(0, values, (steps + 1, size))]
    where = rng.random((steps + 1, size)) < 0.3
    bits[where] += rng.integers(0, 9, int(where.sum())).astype(bits.dtype)
    check_part(part_of(bits, dtype))


def test_nothing_that_moves_takes_no_bytes() -> None:
    part = part_of(content("still", "BF16", 5000, 9), "BF16")
    assert part.size == 0 and all(not len(tables.frequency) for tables in part.tables)
    bits = content("still", "BF16", 5000, 9).copy()
    bits[5:, 77] += np.uint16(1)
    assert part_of(bits, "BF16").size < 20


def test_the_smaller_coding_is_taken() -> None:
    part = part_of(content("repeated", "F32", 3000, 4), "F32")
    codings = {step: coding for step, (coding, _) in part.streams.items()}
    assert PLAIN in codings.values()
    for step, symbols in part.symbols.items():
        stream = part.streams[step][1]
        coder = coding_tables(part.coders[part.numbers[step - 1]])
        without = Symbols(symbols.records, symbols.raws, symbols.dense).encode(coder)
        assert without[0] == CODED
        assert len(stream) == min(len(x) for x in (without[1], symbols.plain) if x is not None)
        small = Symbols(symbols.records, symbols.raws, symbols.dense, bytes(max(len(without[1]) - 1, 0)))
        if without[1]:
            assert small.encode(coder) == (PLAIN, small.plain)
        assert Symbols(symbols.records, symbols.raws, symbols.dense, without[1] + b"x").encode(coder) == without
    assert {coding for coding, _ in part_of(content("sparse", "F32", 3000, 4), "F32").streams.values()} == {CODED}


@pytest.mark.parametrize("first", [PLAIN, CODED])
def test_both_codings_may_follow_each_other(first: int) -> None:
    """Any frame may be in either coding, whatever the others are."""
    part = part_of(content("dense", "BF16", 2000, 9), "BF16")
    for left, step in intervals(9):
        if step % 2 == first:
            xored = zstandard.ZstdCompressor().compress(to_planes(part.bits[left] ^ part.bits[step]).tobytes())
            part.streams[step] = (PLAIN, xored)
    assert {coding for coding, _ in part.streams.values()} == {CODED, PLAIN}
    for step in range(1, 10):
        np.testing.assert_array_equal(part.decoder().restore(step), part.bits[step])
    decoder = part.decoder()
    for step in replayed(decoder, 1, 9):
        np.testing.assert_array_equal(decoder.bits(), part.bits[step])


def test_small_steps_take_little() -> None:
    """Words that move by one code rarely: less than half of what zstd makes of them."""
    part = part_of(content("sparse", "BF16", 100_000, 8), "BF16")
    xored = 0
    for left, right in zip(part.bits, part.bits[1:], strict=False):
        xored += len(zstandard.ZstdCompressor(3).compress(to_planes(left ^ right).tobytes()))
    assert part.size < 0.6 * xored


@pytest.mark.parametrize("name", ["noise", "dense", "repeated"])
def test_the_same_part_gives_the_same_bytes(name: str) -> None:
    bits = content(name, "BF16", 20_000, 5)

    def digest(_: int) -> str:
        part = part_of(bits.copy(), "BF16")
        hashed = hashlib.sha256(tables_to_bytes(part.tables))
        for step in sorted(part.streams):
            hashed.update(repr(part.streams[step][0]).encode() + part.streams[step][1])
        return hashed.hexdigest()

    alone = digest(0)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(digest, range(8))) == {alone}


def test_threads_share_nothing() -> None:
    parts = [part_of(content("dense", "BF16", 3000 + i, 5), "BF16") for i in range(6)]

    def restored(i: int) -> bool:
        part = parts[i % len(parts)]
        decoder = PartDecoder(
            part.bits[0], part.dtype, part.low, 5, part.dense,
            lambda step: Frame(*part.streams[step], part.coders[part.numbers[step - 1]]),
        )  # fmt: skip
        return bool((decoder.restore(1 + i % 5) == part.bits[1 + i % 5]).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(restored, range(60)))


def test_moves_that_come_back_to_the_same_word_are_no_moves() -> None:
    """EXACT.md section 14 allows moves of multiples of 2H: such a word does not differ, and is in no list."""
    counts = np.zeros((CONTEXTS, 64), np.int64)
    for value in (0, 1, 2, 511, 512, 510, 3):
        for context in (1024, 1040, 1056, 1072):
            counts[context, slow_number(value)[0]] += 1
    counts[:880, :2] = 5  # list: a word in it that does not belong there would cost a bit

    def stream_of(values: list[tuple[int, int]], coder: CoderTables) -> bytes:
        found = [slow_number(value) for _, value in values]
        records = np.array(
            [plainly(contexts.record_of)(c, s) for (c, _), (s, *_) in zip(values, found, strict=True)], np.uint16
        )
        raws = np.array([raw for _, bits, raw in found if bits], np.uint32)
        return encode_stream(records, raws, 0, coding_tables(coder))

    coder = lay_out(fit_tables(counts, 0))
    origin = np.full(6, 9, np.uint8)
    for dense_classes in (0, 1):
        if dense_classes:  # 512 is a move by 256, 2 by one
            first = [(1056, z) for z in (0, 512, 2, 0, 511, 0)] + [(1072, 0)]
        else:  # two words, of which the second moves by 256
            first = [(1072, 2), (1024, 2), (1040, 1), (1024, 1), (1040, 511)]
        middle = [(12, 1), (1072, 1), (1024, 3), (1040, 0)]  # the list has one word, and one of the others moves by -1
        streams = {2: stream_of(first, coder), 1: stream_of(middle, coder)}

        def frame(step: int, streams: dict[int, bytes] = streams) -> Frame:
            return Frame(CODED, streams[step], coder)

        for step, expected in ((2, [9, 9, 10, 9, 9, 9]), (1, [9, 9, 10, 9, 8, 9])):
            assert PartDecoder(origin, "U8", 0, 2, dense_classes, frame).restore(step).tolist() == expected
