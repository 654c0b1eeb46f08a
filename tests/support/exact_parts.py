"""Parts of the exact tier that are coded alone, and what may be in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.exact.bisection import Interval, whole_segment
from relex_codec.exact.frequency_tables import FrequencyTables, fit_tables, lay_out, tables_from_bytes, tables_to_bytes
from relex_codec.exact.interval_lists import IntervalList
from relex_codec.exact.ordered_words import layout_of, to_words
from relex_codec.exact.part_coder import PartEncoder, SymbolCounter, Symbols, lowest_exponent
from relex_codec.exact.part_decoder import Frame, PartDecoder
from relex_codec.exact.segments import table_set_numbers
from relex_codec.exact.stream_encoder import coding_tables

from .plain import Array


@dataclass
class Part:
    """A part that was coded, as a group of its own."""

    bits: Array
    dtype: str
    low: int
    dense: int
    numbers: list[int]
    tables: list[FrequencyTables]
    symbols: dict[int, Symbols]
    streams: dict[int, tuple[int, bytes]]

    def __post_init__(self) -> None:
        self.coders = [lay_out(tables) for tables in tables_from_bytes(tables_to_bytes(self.tables), len(self.tables))]
        self.asked: list[int] = []

    def decoder(self) -> PartDecoder:
        def frame(step: int) -> Frame:
            self.asked.append(step)
            return Frame(*self.streams[step], self.coders[self.numbers[step - 1]])

        self.asked.clear()
        return PartDecoder(self.bits[0], self.dtype, self.low, len(self.bits) - 1, self.dense, frame)

    @property
    def size(self) -> int:
        return sum(len(stream) for _, stream in self.streams.values())


def part_of(bits: Array, dtype: str) -> Part:
    layout, count = layout_of(dtype), len(bits) - 1
    low = lowest_exponent(to_words(bits[0], layout), layout)
    numbers = table_set_numbers(count)
    encoder, counter = PartEncoder(list(bits), layout, low), SymbolCounter()
    dense = encoder.dense()
    symbols = dict(encoder.encode(lambda i: numbers[(count if i is None else i.middle) - 1], dense, counter))
    tables = [fit_tables(counter.of(i), dense if i == numbers[-1] else 0) for i in range(max(numbers) + 1)]
    coders = [coding_tables(lay_out(found)) for found in tables]
    streams = {step: found.encode(coders[numbers[step - 1]]) for step, found in symbols.items()}
    return Part(bits, dtype, low, dense, numbers, tables, symbols, streams)


def replayed(decoder: PartDecoder, start: int, stop: int) -> Iterator[int]:
    """Restore steps one after the other, each frame decoded once, as replay.py does; yields their numbers."""

    def walk(interval: Interval, listed: IntervalList) -> Iterator[int]:
        if interval.left >= stop:
            return
        if interval.right <= start or not interval.has_middle:
            decoder.apply(listed)
            if interval.right >= start:
                yield interval.right
            return
        low, high = decoder.halves(interval, listed)
        yield from walk(interval.low, low)
        yield from walk(interval.high, high)

    yield from walk(whole_segment(decoder.count), decoder.first_list())


def random_elements(dtype: str, size: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, size * ITEMSIZE[dtype], np.uint8).view(f"<u{ITEMSIZE[dtype]}")


def weights(dtype: str, size: int, seed: int) -> Array:
    """Normal numbers in float dtypes, otherwise small integers."""
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(size) * 0.05).astype(np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    if dtype == "F16":
        return values.astype(np.float16).view(np.uint16)
    if dtype == "F32":
        return values.view(np.uint32)
    if dtype == "F64":
        return values.astype(np.float64).view(np.uint64)
    if dtype == "C64":
        return np.stack([values, values[::-1]], 1).reshape(-1).view(np.uint64)
    if dtype == "BOOL":
        return (values > 0).astype(np.uint8)
    return rng.integers(0, 100, size).astype(f"<u{ITEMSIZE[dtype]}")


Content = Callable[[str, int, int], list[Array]]


def still(dtype: str, size: int, steps: int) -> list[Array]:
    return [random_elements(dtype, size, 1)] * (steps + 1)


def noise(dtype: str, size: int, steps: int) -> list[Array]:
    return [random_elements(dtype, size, step) for step in range(steps + 1)]


def moved(dtype: str, size: int, steps: int, share: float) -> list[Array]:
    rng = np.random.default_rng(size)
    found = [weights(dtype, size, 3)]
    for _ in range(steps):
        bits = found[-1].copy()
        where = np.flatnonzero(rng.random(size) < share)
        bits[where] += rng.choice(np.array([1, 1, 1, 2, -1], np.int64), len(where)).astype(bits.dtype)
        found.append(bits)
    return found


def sparse(dtype: str, size: int, steps: int) -> list[Array]:
    return moved(dtype, size, steps, 0.02)


def dense(dtype: str, size: int, steps: int) -> list[Array]:
    return moved(dtype, size, steps, 0.6)


def alternating(dtype: str, size: int, steps: int) -> list[Array]:
    a, b = weights(dtype, size, 4), weights(dtype, size, 5)
    return [a if step % 2 else b for step in range(steps + 1)]


def wraps(dtype: str, size: int, steps: int) -> list[Array]:
    """From the smallest word to the largest and back: differences of the whole range."""
    width = 8 * ITEMSIZE[dtype]
    ends = np.array([0, (1 << width) - 1, 1 << width - 1, (1 << width - 1) - 1], f"<u{ITEMSIZE[dtype]}")
    return [np.resize(np.roll(ends, step), size) for step in range(steps + 1)]


def drift(dtype: str, size: int, steps: int) -> list[Array]:
    first = weights(dtype, size, 6)
    speed = np.arange(size) % 50
    return [(first + (speed * step).astype(first.dtype)).astype(first.dtype) for step in range(steps + 1)]


def repeated(dtype: str, size: int, steps: int) -> list[Array]:
    """All move by the same bits, to words far away: best said by the XOR."""
    first = weights(dtype, size, 7)
    flip = np.resize(np.array([0x9E3779B97F4A7C15 >> (64 - 8 * ITEMSIZE[dtype])], first.dtype), size)
    return [first ^ flip if step % 3 == 1 else first for step in range(steps + 1)]


CONTENTS: dict[str, Content] = {
    c.__name__: c for c in (still, noise, sparse, dense, alternating, wraps, drift, repeated)
}


def content(name: str, dtype: str, size: int, steps: int) -> Array:
    return np.array(CONTENTS[name](dtype, size, steps))
