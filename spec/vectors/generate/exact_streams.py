"""A plain encoder of the streams of the exact tier: what `Stream` of the reference decoder reads, said in its order."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import reference_decoder as ref

Bits = npt.NDArray[Any]
Words = list[int]

# ---- Streams ----


class Pen:
    """What a stream says, in order: the counterpart of the decoder's `Stream`."""

    def __init__(self, dense: int) -> None:
        """A stream with so many dense words."""
        self.lanes = 4 if dense >= ref.LANES_FROM else 1
        self.lane = 0
        self.takes: list[tuple[int, int | None, int]] = []
        """(lane, context, symbol), or (lane, None, raw bits with a 1 before them)."""

    def element(self, j: int) -> None:
        """Go to the lane of an element."""
        self.lane = j % self.lanes

    def symbol(self, context: int, symbol: int) -> None:
        """Say a symbol."""
        self.takes.append((self.lane, context, symbol))

    def number(self, context: int, value: int) -> None:
        """Say a number."""
        if value < 2:
            self.symbol(context, value)
            return
        b = value.bit_length() - 2
        self.symbol(context, 2 * (b + 1) + (value >> b & 1))
        if b > 0:
            self.takes.append((self.lane, None, 1 << b | value & ((1 << b) - 1)))

    def stream(self, tables: Any, start: Sequence[int] = ()) -> bytes:
        """The bytes; `start` is how the lanes end instead of as they must."""
        lanes = list(start) or [1 if self.lanes == 1 else 1 << 32] * self.lanes
        words: list[int] = []
        for lane, context, value in reversed(self.takes):
            x = lanes[lane]
            if context is None:
                b = value.bit_length() - 1
                if x >> (64 - b):
                    words.append(x & 0xFFFFFFFF)
                    x >>= 32
                lanes[lane] = (x << b) + value - (1 << b)
                continue
            f, c = frequency(tables, context, value)
            if x >= f << 52:
                words.append(x & 0xFFFFFFFF)
                x >>= 32
            lanes[lane] = x // f * 4096 + x % f + c
        tail = struct.pack(f"<{len(words)}I", *reversed(words))
        if self.lanes == 4:
            return struct.pack("<4Q", *lanes) + tail
        return lanes[0].to_bytes(-(-lanes[0].bit_length() // 8), "little") + tail


def frequency(tables: Any, context: int, symbol: int) -> tuple[int, int]:
    """Frequency of a symbol, and the sum of those below it."""
    table = tables.contexts[context]
    frequencies = [4096] if table == ref.NO_TABLE else tables.tables[table]
    assert frequencies[symbol] > 0, "a symbol that the table does not have"
    return frequencies[symbol], sum(frequencies[:symbol])


def zigzag(value: int) -> int:
    """The number that stands for an integer."""
    return 2 * value if value >= 0 else -2 * value - 1


def short(value: int, mod: int) -> int:
    """An integer mod 2H, from -H to H - 1."""
    return (value + mod // 2) % mod - mod // 2


def say_first(part: Any, last: Words, dense: int) -> Pen | None:
    """A first frame; None if nothing moves and nothing is dense."""
    count = sum(e < dense for e in part.classes)
    if count == 0 and part.zero == last:
        return None
    pen = Pen(count)
    for j in range(count):
        pen.element(j)
        pen.number(ref.DENSE + part.classes[j], zigzag(short(last[j] - part.zero[j], part.mod)))
    say_rest(pen, part, count, [True] * len(last), part.zero, last)
    return pen


def say_other(part: Any, i: Any, x: Words) -> Pen | None:
    """Any other frame."""
    quiet = [a == b for a, b in zip(i.a, i.b, strict=True)]
    if all(quiet) and x == i.a:
        return None
    pen = Pen(0)
    for j, rank in enumerate(rank for rank, still in enumerate(quiet) if not still):
        pen.element(j)
        context, near, d, g = part.around(i, rank)
        u = g * (x[rank] - near)
        if d >= 8:
            k = abs((i.left + i.right) // 2 - i.near)
            pen.number(context, zigzag(short(u - d * k // (i.right - i.left), part.mod)))
        elif u < 0:
            pen.symbol(context, d + 1)
            pen.number(ref.BELOW, -1 - u)
        elif u > d:
            pen.symbol(context, d + 2)
            pen.number(ref.ABOVE, u - d - 1)
        else:
            pen.symbol(context, u)
    say_rest(pen, part, 0, quiet, i.a, x)
    return pen


def say_rest(pen: Pen, part: Any, rank: int, quiet: list[bool], a: Words, x: Words) -> None:
    """The quiet words that moved, from a rank on."""
    moved = [r for r in range(rank, len(a)) if quiet[r] and a[r] != x[r]]
    pen.element(0)
    pen.number(ref.MOVED, len(moved))
    for r in moved:
        pen.number(ref.GAP + part.classes[rank], sum(quiet[rank:r]))
        pen.number(ref.MOVE + part.classes[r], zigzag(short(x[r] - a[r], part.mod)) - 1)
        rank = r + 1


# ---- Tables ----

FAMILIES: list[int] = [
    0,
    *range(400, 880, 80),
    880,
    ref.GAP,
    ref.MOVE,
    ref.DENSE,
    ref.MOVED,
    ref.BELOW,
    ref.ABOVE,
    1075,
]
Counts = dict[int, dict[int, int]]


def by_family(context: int) -> int:
    """One table for all contexts whose symbols mean the same."""
    return max(first for first in FAMILIES if first <= context)


def by_context(context: int) -> int:
    """A table for each context."""
    return context


def frequencies(counted: dict[int, int]) -> list[int]:
    """Counts scaled to a sum of 4096; the most frequent symbol takes what is left over."""
    total = sum(counted.values())
    result = [max(1, counted[s] * 4096 // total) if s in counted else 0 for s in range(max(counted) + 1)]
    result[result.index(max(result))] += 4096 - sum(result)
    return result


def fit(counts: Counts, dense: int, key: Callable[[int], int]) -> Any:
    """A table set in which contexts of one key share a table."""
    shared: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for context, counted in counts.items():
        for symbol, count in counted.items():
            shared[key(context)][symbol] += count
    numbers = {name: i for i, name in enumerate(sorted(shared))}
    contexts = bytes(numbers[key(context)] if context in counts else ref.NO_TABLE for context in range(1075))
    return ref.TableSet(dense, contexts, [frequencies(shared[name]) for name in sorted(shared)])


def flat(dense: int = 0) -> Any:
    """A table set with one table for all contexts, in which each symbol is as likely as the others."""
    return ref.TableSet(dense, bytes(1075), [[64] * 64])


def tables_raw(low: int, sets: Sequence[Any]) -> bytes:
    """The content of a blob of tables."""
    tables = [table for own in sets for table in own.tables]
    values = [value for table in tables for value in table]
    parts = [bytes([low]), *(bytes([own.dense, len(own.tables)]) for own in sets)]
    parts += [*(own.contexts for own in sets), bytes(map(len, tables))]
    return b"".join([*parts, bytes(value & 255 for value in values), bytes(value >> 8 for value in values)])


# ---- Parts ----


def lowest(bits: bytes, dtype: str) -> int:
    """The exponent from which on the sixteen classes of these elements go up to the largest."""
    if dtype not in ref.MANTISSA:
        return 0
    half = ref.half_of(dtype)
    words = ref.to_words(bits, dtype)
    return max(0, int(np.where(words >= half, words - half, half - 1 - words).max() >> ref.MANTISSA[dtype]) - 15)


def planes(bits: bytes, dtype: str) -> list[npt.NDArray[np.uint8]]:
    """The planes of a part."""
    return list(np.frombuffer(bits, np.uint8).reshape(-1, ref.WIDTH[dtype]).T.copy())


def say(part: Any, count: int, bits: dict[int, bytes], dense: int) -> tuple[dict[int, Pen | None], dict[int, bytes]]:
    """What the frames of a part say, and their bits XOR those at the left end, by step."""
    last = part.words(bits[count])
    pens = {count: say_first(part, last, dense)}
    xors = {count: xor(part.bits(part.zero), bits[count])}
    intervals = [part.whole(count, last)]
    while intervals:
        following = []
        for i in intervals:
            if i.right - i.left > 1:
                middle = (i.left + i.right) // 2
                x = part.words(bits[middle])
                pens[middle], xors[middle] = say_other(part, i, x), xor(part.bits(i.a), bits[middle])
                following += part.halves(i, x)
        intervals = following
    return pens, xors


def xor(a: bytes, b: bytes) -> bytes:
    """The bits in which bytes differ."""
    return (np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).tobytes()
