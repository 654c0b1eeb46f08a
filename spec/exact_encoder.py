"""A plain encoder of the exact tier (FORMAT.md sections 13 and 14), for make_exact_vectors.py.

It shares nothing with the package's: the vectors do not change when that finds better tables. Streams are what the
reference decoder's `Stream` reads, said in the same order. `Tier` is the tier of a file in parts that can be changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import struct
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard


def script(name: str) -> ModuleType:
    """A script beside this one, which belongs to no package."""
    full = f"relex_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


ref = script("reference_decoder")
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

    def stream(self, model: Any, start: Sequence[int] = ()) -> bytes:
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
            f, c = frequency(model, context, value)
            if x >= f << 52:
                words.append(x & 0xFFFFFFFF)
                x >>= 32
            lanes[lane] = x // f * 4096 + x % f + c
        tail = struct.pack(f"<{len(words)}I", *reversed(words))
        if self.lanes == 4:
            return struct.pack("<4Q", *lanes) + tail
        return lanes[0].to_bytes(-(-lanes[0].bit_length() // 8), "little") + tail


def frequency(model: Any, context: int, symbol: int) -> tuple[int, int]:
    """Frequency of a symbol, and the sum of those below it."""
    table = model.contexts[context]
    frequencies = [4096] if table == ref.NO_TABLE else model.tables[table]
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
    pen.number(ref.COUNT, len(moved))
    for r in moved:
        pen.number(ref.GAP + part.classes[rank], sum(quiet[rank:r]))
        pen.number(ref.MOVE + part.classes[r], zigzag(short(x[r] - a[r], part.mod)) - 1)
        rank = r + 1


# ---- Models ----

FAMILIES: list[int] = [
    0,
    *range(400, 880, 80),
    880,
    ref.GAP,
    ref.MOVE,
    ref.DENSE,
    ref.COUNT,
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
    """A model in which contexts of one key share a table."""
    shared: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for context, counted in counts.items():
        for symbol, count in counted.items():
            shared[key(context)][symbol] += count
    numbers = {name: i for i, name in enumerate(sorted(shared))}
    contexts = bytes(numbers[key(context)] if context in counts else ref.NO_TABLE for context in range(1075))
    return ref.Model(dense, contexts, [frequencies(shared[name]) for name in sorted(shared)])


def flat(dense: int = 0) -> Any:
    """A model that has one table for all contexts, in which each symbol is as likely as the others."""
    return ref.Model(dense, bytes(1075), [[64] * 64])


def models_raw(low: int, models: Sequence[Any]) -> bytes:
    """The content of a blob of models."""
    tables = [table for model in models for table in model.tables]
    values = [value for table in tables for value in table]
    parts = [bytes([low]), *(bytes([model.dense, len(model.tables)]) for model in models)]
    parts += [*(model.contexts for model in models), bytes(map(len, tables))]
    return b"".join([*parts, bytes(value & 255 for value in values), bytes(value >> 8 for value in values)])


def frame(raw: bytes) -> bytes:
    """A zstd frame."""
    return bytes(zstandard.ZstdCompressor(level=19).compress(raw))


# ---- Blobs, blocks, segments ----


def leb128(number: int) -> bytes:
    """7 bits a byte, lowest first."""
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def frame_blob(found: Sequence[Any], numbers: Sequence[bytes] = (), tail: bytes = b"") -> bytes:
    """The blob of a frame; `numbers` are other ones than those of the streams."""
    own = [leb128(2 * len(one.stream) + one.coding) for one in found]
    return b"".join([*(one.digest for one in found), *(numbers or own), *(one.stream for one in found), tail])


@dataclass
class Block:
    """A block: the blobs of its groups; what index and record say follows from them unless it is given."""

    blobs: list[bytes]
    model: int = 0
    reserved: bytes = bytes(7)
    ahead: bytes = b""  # bytes of the entry that belong to no block
    behind: bytes = b""  # bytes after the last blob
    shift: int = 0  # of its position
    longer: int = 0
    edit: Callable[[bytearray], Any] = lambda index: None
    raw: bytes | None = None  # instead of index and blobs

    def build(self) -> bytes:
        """Index and blobs."""
        if self.raw is not None:
            return self.raw
        index, end = bytearray(), 12 * len(self.blobs)
        for blob in self.blobs:
            end += len(blob)
            index += struct.pack("<QI", end, zlib.crc32(blob))
        self.edit(index)
        return bytes(index) + b"".join(self.blobs) + self.behind


@dataclass
class Segment:
    """A segment: its record, and its blocks by step; 0 is that of the models."""

    before: int
    count: int
    left: int
    models: int
    groups: int
    most: int
    blocks: dict[int, Block]
    reserved: bytes = bytes(8)
    order: list[int] = field(default_factory=list)  # of the blocks, if it is another than it must be
    record: dict[str, int] = field(default_factory=dict)  # other values in the record


@dataclass
class Tier:
    """The exact tier of a file."""

    segments: list[Segment]
    tail: bytes = b""  # after the last block
    records: bytes = b""  # after that of the last step

    def entries(self, start: int) -> dict[str, bytes]:
        """Its entries; the last one begins at byte `start` of the file."""
        segments, data = b"", bytearray()
        frames: dict[int, bytes] = {}
        for segment in self.segments:
            for step in segment.order or [0, *(step for step, _ in ref.frame_order(segment.count))]:
                block = segment.blocks[step]
                raw = block.build()
                data += block.ahead
                place = (start + len(data) + block.shift) % (1 << 64), len(raw) + block.longer
                data += raw
                if step > 0:
                    frames[segment.before + step] = struct.pack("<QQB7s", *place, block.model, block.reserved)
                    continue
                names = ("before", "count", "left", "models", "groups", "most")
                head = [segment.record.get(name, getattr(segment, name)) for name in names]
                segments += struct.pack("<6IQQ8s", *head, *place, segment.reserved)
        return {
            ref.SEGMENTS: segments,
            ref.FRAMES: b"".join(frames[number] for number in sorted(frames)) + self.records,
            ref.DATA_FRAMES: bytes(data) + self.tail,
        }


def parse(file: Any) -> Tier:
    """The tier of a valid file."""
    result = []
    for k, s in enumerate(file.segments):
        count = len(file.groups[k])
        blocks = {}
        for step in range(s.count + 1):
            record = file.frames[s.before + step - 1] if step > 0 else s
            blobs = [ref.read_blob(file, record, count, group) for group in range(count)]
            blocks[step] = Block(blobs, record.model if step > 0 else 0)
        result.append(Segment(s.before, s.count, s.left, s.models, s.groups, s.most, blocks))
    return Tier(result)


# ---- Recipes ----

Stream = Callable[[Any, Any, Pen | None], bytes]


@dataclass
class Plan:
    """How a segment is coded."""

    count: int
    left: int = 0
    most: int = 1 << 20
    models: int = 1
    model: Callable[[int, int], int] = lambda step, level: 0
    """Gives the model of a step whose frame is in a level; the first frame's is 0."""
    dense: Sequence[int] = (0,)
    key: Callable[[int], int] | None = by_family
    """See `fit`; None: flat tables."""
    low: int | None = None
    xored: Sequence[tuple[str, int]] = ()
    """Name and step of parts in coding 1."""
    made: dict[tuple[str, int], Stream] = field(default_factory=dict)
    """Streams of a name and step that are made by hand: from the part (`Segmented`), the model, and the pen."""


@dataclass
class Exact:
    """The exact tier of a recipe: how it changes a file that has none."""

    rows: dict[str, list[Bits]]
    """The bits of tensors at each step, which the first segment of `since` holds."""
    plans: list[Plan]
    since: dict[str, int] = field(default_factory=dict)  # 1 unless it is given
    series: Sequence[str] = ()
    more: Callable[[Any], None] = lambda parts: None

    def __call__(self, parts: Any) -> None:
        """Add the tier to a file."""
        file = ref.RelexFile(parts.source)
        for name in self.rows:
            parts.patch("relex.tensors", 32 * file.index[name] + 20, "I", self.since.get(name, 1))
        for name in self.series:
            parts.patch("relex.tensors", 32 * file.index[name], "B", ref.SERIES)
        parts.tier = self.tier(file)
        for name, raw in parts.tier.entries(0).items():
            parts.entries[name], parts.dtypes[name] = bytearray(raw), "U8"
        self.more(parts)

    def tier(self, file: Any) -> Tier:
        """The tier."""
        held = [self.since.get(named.name, 1) if named.name in self.rows else 0 for named in file.manifest]
        stub = SimpleNamespace(manifest=file.manifest, segments=self.plans)
        stub.tensors = [SimpleNamespace(segment=segment) for segment in held]
        result, before = [], 0
        for k, plan in enumerate(self.plans):
            groups = ref.groups_of(stub, k)
            blocks = {step: Block([]) for step in range(plan.count + 1)}
            for parts in groups:
                self._group(file, plan, before, parts, blocks)
            result.append(Segment(before, plan.count, plan.left, plan.models, len(groups), plan.most, blocks))
            before += plan.count
        return Tier(result)

    def _group(self, file: Any, plan: Plan, before: int, parts: Sequence[Any], blocks: dict[int, Block]) -> None:
        """Append the blobs of a group to the blocks of a segment."""
        dtype = file.manifest[parts[0].tensor].dtype
        sources = [self._bits(file, part, plan.left) for part in parts]
        low = lowest(b"".join(sources), dtype) if plan.low is None else plan.low
        cut = [ref.Segmented(bits, dtype, low) for bits in sources]
        numbers = {step: plan.model(step, level) for step, level in levels(plan.count).items()}
        pens, texts = [], []
        for part, one in zip(parts, cut, strict=True):
            bits = {step: self._bits(file, part, before + step) for step in numbers}
            spoken, xors = say(one, plan.count, bits, plan.dense[numbers[plan.count] % len(plan.dense)])
            pens.append(spoken)
            texts.append((bits, xors))
        models = []
        for number in range(plan.models):
            counts: Counts = defaultdict(lambda: defaultdict(int))
            for spoken in pens:
                for step, pen in spoken.items():
                    for _, context, value in pen.takes if pen and numbers[step] == number else ():
                        if context is not None:
                            counts[context][value] += 1
            dense = plan.dense[number % len(plan.dense)]
            models.append(flat(dense) if plan.key is None else fit(counts, dense, plan.key))
        blocks[0].blobs.append(frame(models_raw(low, models)))
        for step, number in numbers.items():
            blocks[step].model = number
            found = []
            for part, one, spoken, (bits, xors) in zip(parts, cut, pens, texts, strict=True):
                name, pen = file.manifest[part.tensor].name, spoken[step]
                coding, stream = 0, pen.stream(models[number]) if pen else b""
                if (name, step) in plan.xored:
                    coding, stream = 1, frame(b"".join(plane.tobytes() for plane in planes(xors[step], dtype)))
                if (name, step) in plan.made:
                    stream = plan.made[name, step](one, models[number], pen)
                found.append(ref.Coded(hashlib.sha256(bits[step]).digest()[:8], coding, stream))
            blocks[step].blobs.append(frame_blob(found))

    def _bits(self, file: Any, part: Any, number: int) -> bytes:
        """The elements of a part at the step of a number."""
        named = file.manifest[part.tensor]
        whole = self.rows[named.name][number]
        assert whole.size == named.n and len(self.rows[named.name]) == len(file.steps) + 1, named.name
        result: bytes = whole[part.start : part.stop].tobytes()
        return result


def levels(count: int) -> dict[int, int]:
    """The level of the frame of each step; 0 for the first frame."""
    return {step: needed - 1 for step, needed in ref.frame_order(count)}


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
