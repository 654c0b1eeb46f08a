"""Damaged and hostile exact tiers: an error of this package or the right bits; never another error, never a hang."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import relex_codec
from relex_codec import Corrupt, RelexError, Truncated
from relex_codec.exact.bisection import frame_order
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE
from support.plain import COVERED_ELSEWHERE, MAGIC, File
from support.runs import Made
from support.sources import Held
from support.spoiled import decoded_streams, mutated
from support.tensors import bf16, random_bits

SEGMENTS, FRAMES, DATA = "relex.exact.segments", "relex.exact.frames", "relex.data.frames"
STEPS = [2, 3, 7, 9, 12]
NAMES = ("a", "b", "c", "n", "s", "z")


Open = Callable[[bytes | bytearray], relex_codec.Run]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open bytes as if they were a file."""

    def open_bytes(data: bytes | bytearray) -> relex_codec.Run:
        monkeypatch.setattr("relex_codec.run.run_reader.open_source", lambda path, options: Held(data))
        return relex_codec.open("held.relex")

    return open_bytes


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> File:
    """Five steps of six small tensors, with the base inside: four groups, the first of two tensors."""
    root = tmp_path_factory.mktemp("exact_faults")
    start, drift = np.random.default_rng(0).standard_normal((2, 9, 8)) * 0.1
    base = {
        "a": bf16(start),
        "b": random_bits("BF16", (25,), 0),
        "c": random_bits("U8", (90,), 1),
        "s": ("I32", np.array([1, 2], np.uint32)),
        "z": random_bits("BF16", (20,), 3),
    }

    def at(step: int) -> dict[str, Any]:
        noise = np.random.default_rng(step).standard_normal((9, 8)) * 0.002
        moved = bf16(start + drift * step / 50 + noise)
        codes = base["c"][1].copy()
        codes[step : 2 * step] += np.uint8(step)
        counted = np.array([1, step * 1000], np.uint32)
        found = {"a": moved, "c": ("U8", codes), "s": ("I32", counted), "z": base["z"]}
        return found | {name: random_bits("BF16", (25,), step + i) for i, name in enumerate(("b", "n"))}

    made = Made(root, STEPS, base, at)
    write_checkpoint(made.base_path, base)
    write_run(made.run, STEPS, at)
    relex_codec.encode(made.run, root / "x.relex", base=made.base_path, quality=0.3, exact=True, embed_base=True)
    found = File(root / "x.relex")
    assert sorted(found.names) == list(NAMES) and len(found.data) < 20_000
    return found


def everything(run: relex_codec.Run) -> dict[tuple[str, int], Any]:
    """All that the exact tier has, with errors where they are raised."""
    found: dict[tuple[str, int], Any] = {}
    for name in NAMES:
        for step in STEPS:
            try:
                found[name, step] = run._reader.bits(name, step, "exact").tobytes()
            except (Corrupt, Truncated) as error:
                found[name, step] = error
    return found


@pytest.fixture(scope="module")
def good(file: File) -> dict[tuple[str, int], Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relex_codec.run.run_reader.open_source", lambda path, options: Held(file.data))
        found = everything(relex_codec.open("held.relex"))
    assert all(isinstance(value, bytes) for value in found.values())
    return found


# ---- Rebuilding files ----


@dataclass
class Tier:
    """Records and blobs of a file with one segment, to be changed and put together again."""

    file: File
    segment: list[int]
    """first, count, left, table sets, groups, limit."""
    table_sets: list[int]
    blobs: list[list[bytes]]
    """By block, in the order of the file, then by group."""

    @classmethod
    def of(cls, file: File) -> Tier:
        *segment, position, _ = struct.unpack_from("<6IQQ", file.entries[SEGMENTS])
        frames = list(struct.iter_unpack("<QQB7x", file.entries[FRAMES]))
        blocks = [position, *(frames[step - 1][0] for step in frame_order(len(frames)))]
        blobs = []
        for at in blocks:
            index = list(struct.iter_unpack("<QI", file.data[at : at + 12 * segment[4]]))
            ends = [12 * segment[4], *(end for end, _ in index)]
            blobs.append([file.data[at + a : at + b] for a, b in pairwise(ends)])
            assert [zlib.crc32(blob) for blob in blobs[-1]] == [crc for _, crc in index]
        return cls(file, segment, [number for *_, number in frames], blobs)

    def entries(self) -> dict[str, bytes]:
        """The three entries, as if ``relex.data.frames`` began at byte 0."""
        data, places = b"", []
        for block in self.blobs:
            ends = np.cumsum([12 * len(block), *map(len, block)])[1:]
            index = b"".join(
                struct.pack("<QI", end, zlib.crc32(blob)) for end, blob in zip(ends.tolist(), block, strict=True)
            )
            places.append((len(data), len(index) + sum(map(len, block))))
            data += index + b"".join(block)
        frames = [b""] * len(self.table_sets)
        for step, place in zip(frame_order(len(self.table_sets)), places[1:], strict=True):
            frames[step - 1] = struct.pack("<QQB7x", *place, self.table_sets[step - 1])
        return {SEGMENTS: struct.pack("<6IQQ8x", *self.segment, *places[0]), FRAMES: b"".join(frames), DATA: data}

    def bytes(self, spoil: Callable[[dict[str, bytearray]], None] = lambda entries: None) -> bytes:
        """The file; `spoil` may change the entries when everything in them is right."""
        entries = self.entries()
        start = len(self.file.data) - len(self.file.entries[DATA])
        spoiled: dict[str, bytearray] = {}
        for _ in range(2):  # the header's length depends on the offsets in it
            spoiled = {name: bytearray(data) for name, data in entries.items()}
            for name, stride, field in ((SEGMENTS, 48, 24), (FRAMES, 24, 0)):
                for at in range(field, len(spoiled[name]), stride):
                    struct.pack_into("<Q", spoiled[name], at, struct.unpack_from("<Q", spoiled[name], at)[0] + start)
            spoil(spoiled)
            data = assembled(self.file, {name: bytes(data) for name, data in spoiled.items()})
            start = len(data) - len(spoiled[DATA])
        return data


def assembled(file: File, changes: dict[str, bytes]) -> bytes:
    """The file with other bytes in some entries, and header, root and chunk positions made to fit."""
    entries = {**file.entries, **changes, "relex.root": bytes(40 + 8 * (len(file.shapes) - 1))}
    at, listing = 0, {}
    for name, (dtype, shape) in file.shapes.items():
        if name in changes:
            shape = [len(entries[name])] if len(shape) == 1 else [len(entries[name]) // shape[1], shape[1]]
        listing[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(entries[name])]}
        at += len(entries[name])
    text = json.dumps({"__metadata__": file.metadata, **listing}).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    shift = len(head) + listing["relex.data.directions"]["data_offsets"][0] - file.places["relex.data.directions"][0]
    entries["relex.chunks"] = b"".join(struct.pack("<QIIIBB2x", p + shift, *rest) for p, *rest in file.chunks)
    names = [name for name in file.shapes if name != "relex.root"]
    body = struct.pack("<8sIIQII", MAGIC, 1, zlib.crc32(head), len(head) + at, len(names), 0)
    for name in names:
        elsewhere = name in COVERED_ELSEWHERE
        body += struct.pack("<IB3x", 0 if elsewhere else zlib.crc32(entries[name]), elsewhere)
    entries["relex.root"] = body + struct.pack("<II", zlib.crc32(body), 0)
    return head + b"".join(entries[name] for name in file.shapes)


def test_a_rebuilt_file_reads_the_same(file: File, good: Any, opened: Open) -> None:
    """The lies below are told with this; without a lie the file is good."""
    run = opened(Tier.of(file).bytes())
    assert everything(run) == good
    run.verify()


# ---- Damage ----


@pytest.mark.slow
def test_every_flipped_byte_is_found(file: File, good: Any, opened: Open) -> None:
    chances = random.Random(0)
    begin, end = file.places[DATA]

    def damaged(at: int) -> relex_codec.Run:
        data = bytearray(file.data)
        data[at] ^= chances.choice((0xFF, 1 << chances.randrange(8)))
        return opened(data)

    for at in (*range(*file.places[SEGMENTS]), *range(*file.places[FRAMES])):
        for name in (SEGMENTS, FRAMES):
            if file.places[name][0] <= at < file.places[name][1]:
                with pytest.raises(Corrupt, match=name):
                    damaged(at).verify()
                with pytest.raises(Corrupt, match=name):
                    damaged(at)._reader.bits("a", 3)
    for at in chances.sample(range(begin, end), 100):
        with pytest.raises(Corrupt, match=DATA):
            damaged(at).verify()
        found = everything(damaged(at))
        wrong = [key for key, value in found.items() if isinstance(value, Corrupt)]
        assert 0 < len(wrong) < len(good) and all(found[key] == good[key] for key in good if key not in wrong)


def test_what_is_cut_off_is_missed(file: File, opened: Open) -> None:
    for length in range(file.places[SEGMENTS][0], len(file.data), 101):
        with pytest.raises(Truncated):
            opened(file.data[:length])


# ---- Bad streams with checksums that fit ----


@pytest.mark.slow
def test_blobs_of_anything(file: File, good: Any, opened: Open) -> None:
    """Frames and tables in which anything has changed, with checksums that fit: the decoder meets them itself."""
    chances = random.Random(1)
    outcomes = dict.fromkeys(("right", "wrong"), 0)
    for _ in range(150):
        tier = Tier.of(file)
        block = chances.randrange(len(tier.blobs))
        group = chances.choice([i for i, blob in enumerate(tier.blobs[block]) if blob])
        tier.blobs[block][group] = mutated(tier.blobs[block][group], chances)
        found = everything(opened(tier.bytes()))
        for key, value in found.items():
            outcomes["right" if value == good[key] else "wrong"] += 1
            assert value == good[key] or isinstance(value, Corrupt), (key, block, group)
    assert min(outcomes.values()) > 400


def streams_of(blob: bytes, parts: int) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Digests, and (coding, stream) of each part."""
    at, sizes, streams = 8 * parts, [], []
    for _ in range(parts):
        value = shift = 0
        while True:
            value |= (blob[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if blob[at - 1] < 128:
                break
        sizes.append(value)
    for value in sizes:
        streams.append((value & 1, blob[at : at + value // 2]))
        at += value // 2
    assert at == len(blob)
    return blob[: 8 * parts], streams


def frame_blob(digests: bytes, streams: list[tuple[int, bytes]]) -> bytes:
    lengths = b""
    for coding, stream in streams:
        value = 2 * len(stream) + coding
        while value > 127:
            lengths += bytes([value & 127 | 128])
            value >>= 7
        lengths += bytes([value])
    return digests + lengths + b"".join(stream for _, stream in streams)


def parts_of(file: File) -> list[list[str]]:
    """Names of the tensors in each group: all are of one piece, and `z` is in none."""
    groups: list[list[str]] = []
    dtypes: list[str] = []
    for name, dtype, *_ in file.manifest["tensors"]:
        if name == "z":
            continue
        if not dtypes or dtypes[-1] != dtype:
            groups.append([])
        dtypes.append(dtype)
        groups[-1].append(name)
    return groups


@pytest.mark.slow
def test_streams_of_anything(file: File, good: Any, opened: Open) -> None:
    """The same below the blobs: each stream is what its length says, but says something else."""
    chances = random.Random(2)
    groups = parts_of(file)
    refused = 0
    for _ in range(150):
        tier = Tier.of(file)
        assert len(groups) == tier.segment[4]
        block, group = chances.randrange(1, len(tier.blobs)), chances.randrange(len(groups))
        digests, streams = streams_of(tier.blobs[block][group], len(groups[group]))
        part = chances.randrange(len(streams))
        coding, stream = streams[part]
        streams[part] = coding ^ (chances.random() < 0.1), mutated(stream, chances)
        tier.blobs[block][group] = frame_blob(digests, streams)
        run = opened(tier.bytes())
        run.verify()  # every checksum is right, and every length
        found = everything(run)
        for (name, step), value in found.items():
            if value != good[name, step]:
                assert isinstance(value, Corrupt) and repr(name) in str(value), name
                assert name == groups[group][part]
                refused += 1
    assert refused > 150


def table_blobs(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(raw)


@pytest.mark.slow
def test_tables_of_anything(file: File, good: Any, opened: Open) -> None:
    chances = random.Random(3)
    refused = right = 0
    for round_ in range(100):
        tier = Tier.of(file)
        group = chances.randrange(len(tier.blobs[0]))
        raw = bytearray(zstandard.ZstdDecompressor().decompress(tier.blobs[0][group]))
        sets = tier.segment[3]
        if round_ % 2:  # other tables for contexts, low, dense
            heads = 1 + 2 * sets
            for _ in range(30):
                context = chances.randrange(heads, heads + 1075 * sets)
                at = chances.choice((0, chances.randrange(1, heads, 2), context))
                raw[at] = chances.choice((0, 1, 2, 255, chances.randrange(17)))
        else:
            raw = bytearray(mutated(bytes(raw), chances))
        tier.blobs[0][group] = table_blobs(bytes(raw))
        for key, value in everything(opened(tier.bytes())).items():
            assert value == good[key] or isinstance(value, Corrupt), key
            refused += value != good[key]
            right += value == good[key]
    assert refused > 100 and right > 100


def test_frequencies_of_anything(file: File, good: Any, opened: Open) -> None:
    """Tables that are allowed, but not those that the streams were coded with."""
    chances = random.Random(4)
    for _ in range(20):
        tier = Tier.of(file)
        sets, group = tier.segment[3], chances.randrange(tier.segment[4])
        heads, contexts, lengths, low, high = b"", b"", b"", b"", b""
        for _ in range(sets):
            used = chances.randrange(0, 255)
            heads += bytes([chances.randrange(17), used])
            contexts += bytes(chances.choice((255, chances.randrange(used))) if used else 255 for _ in range(1075))
            for _ in range(used):
                cuts = sorted(chances.sample(range(1, 4096), chances.choice((0, 1, 2, 63))))
                row = [b - a for a, b in zip([0, *cuts], [*cuts, 4096], strict=True)]
                lengths += bytes([len(row)])
                low += bytes(x & 255 for x in row)
                high += bytes(x >> 8 for x in row)
        tier.blobs[0][group] = table_blobs(bytes([chances.randrange(256)]) + heads + contexts + lengths + low + high)
        run = opened(tier.bytes())
        run.verify()
        for key, value in everything(run).items():
            assert value == good[key] or isinstance(value, Corrupt), key


INTERPRETED = """
import sys
sys.path.insert(0, sys.argv[1])
from support.spoiled import decoded_streams
print(decoded_streams(int(sys.argv[2])))
"""


@pytest.mark.slow
def test_no_index_is_out_of_bounds() -> None:
    """Compiled code has no bounds checks, the interpreter has: both must find the same."""
    found = subprocess.run(
        [sys.executable, "-c", INTERPRETED, str(Path(__file__).parents[1]), "200"],
        cwd=ELSEWHERE, env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"{decoded_streams(200)}\n"
    assert found.stdout.count("stream") > 50 and found.stdout.count("[") > 20


# ---- Records that lie ----


@pytest.mark.slow
def test_tables_of_random_numbers_are_refused_or_read(file: File, good: Any, opened: Open) -> None:
    """Any value in any field of a record or an index: an error of this package, or the right bits."""
    chances = random.Random(6)
    outcomes = {"refused": 0, "read": 0}
    tier = Tier.of(file)
    places = {SEGMENTS: list(range(0, 48, 4)), FRAMES: list(range(0, len(file.entries[FRAMES]), 4))}
    frames = struct.iter_unpack("<QQB7x", file.entries[FRAMES])
    blocks = [0, *(position - file.places[DATA][0] for position, *_ in frames)]
    places[DATA] = [at + i for at in blocks for i in range(0, 12 * tier.segment[4], 4)]
    for _ in range(70):
        entry = chances.choice((SEGMENTS, FRAMES, DATA))
        size = chances.choice((1, 2, 4))
        value = chances.choice((0, 1, 255, 2**31, 2 ** (8 * size) - 1, chances.getrandbits(8 * size)))
        spoil = altered(entry, chances.choice(places[entry]), size, value, chances.choice((1, -1, 0, 0)))

        def read(spoiled: bytes = tier.bytes(spoil)) -> None:
            try:
                run = opened(spoiled)
                run.verify()
            except RelexError:
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
            try:
                found = everything(opened(spoiled))
            except RelexError:
                return
            assert all(found[key] == good[key] or isinstance(found[key], RelexError) for key in good)

        assert peak(read) < 8 << 20
    assert min(outcomes.values()) > 0 and outcomes["refused"] > 40


def peak(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        call()
    finally:
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return held


def altered(entry: str, at: int, size: int, value: int, step: int) -> Callable[[dict[str, bytearray]], None]:
    """Another value in a field, or `step` more, if that is not 0."""

    def spoil(entries: dict[str, bytearray]) -> None:
        field = slice(at, at + size)
        new = int.from_bytes(entries[entry][field], "little") + step if step else value
        entries[entry][field] = (new % 256**size).to_bytes(size, "little")

    return spoil


def packed(entry: str, at: int, fmt: str, *values: int) -> Callable[[dict[str, bytearray]], None]:
    def spoil(entries: dict[str, bytearray]) -> None:
        struct.pack_into(fmt, entries[entry], at, *values)

    return spoil


def with_ends(*values: int) -> Callable[[dict[str, bytearray]], None]:
    """Other ends in the index of the block of tables."""

    def spoil(entries: dict[str, bytearray]) -> None:
        for i, value in enumerate(values):
            struct.pack_into("<Q", entries[DATA], 12 * i, value % (1 << 64))

    return spoil


def lies(file: File) -> dict[str, bytes]:
    tier = Tier.of(file)
    groups, length = tier.segment[4], 12 * tier.segment[4] + sum(map(len, tier.blobs[0]))
    frames = len(file.entries[FRAMES])
    told = {
        "a segment that begins later": packed(SEGMENTS, 0, "<I", 1),
        "a segment of no steps": packed(SEGMENTS, 4, "<I", 0),
        "a segment of too many steps": packed(SEGMENTS, 4, "<I", 6),
        "a segment of too few steps": packed(SEGMENTS, 4, "<I", 4),
        "a segment of very many steps": packed(SEGMENTS, 4, "<I", 0xFFFFFFFF),
        "a left end in the segment itself": packed(SEGMENTS, 8, "<I", 1),
        "no table sets": packed(SEGMENTS, 12, "<I", 0),
        "too many table sets": packed(SEGMENTS, 12, "<I", 256),
        "one table set more": packed(SEGMENTS, 12, "<I", tier.segment[3] + 1),
        "one table set less": packed(SEGMENTS, 12, "<I", tier.segment[3] - 1),
        "no groups": packed(SEGMENTS, 16, "<I", 0),
        "one group less": packed(SEGMENTS, 16, "<I", groups - 1),
        "one group more": packed(SEGMENTS, 16, "<I", groups + 1),
        "very many groups": packed(SEGMENTS, 16, "<I", 0xFFFFFFFF),
        "groups of nothing": packed(SEGMENTS, 20, "<I", 0),
        "smaller groups": packed(SEGMENTS, 20, "<I", 1),
        "a block of tables elsewhere": packed(SEGMENTS, 24, "<Q", 0),
        "a longer block of tables": packed(SEGMENTS, 32, "<Q", length + 1),
        "an endless block of tables": packed(SEGMENTS, 32, "<Q", (1 << 64) - 1),
        "reserved bytes of a segment": packed(SEGMENTS, 47, "<B", 1),
        "a frame elsewhere": packed(FRAMES, 0, "<Q", file.places[DATA][0]),
        "a frame behind the end": packed(FRAMES, frames - 24, "<Q", (1 << 64) - 8),
        "an empty frame": packed(FRAMES, 8, "<Q", 0),
        "a longer frame": packed(FRAMES, frames - 16, "<Q", 1 << 40),
        "a table set that is not there": packed(FRAMES, 16, "<B", tier.segment[3]),
        "reserved bytes of a frame": packed(FRAMES, 23, "<B", 1),
        "a blob in the index": with_ends(12 * groups - 1),
        "a blob behind its block": with_ends(length + 1),
        "blobs that go back": with_ends(length - 1, 12 * groups),
        "blobs that wrap around": with_ends((1 << 63) - 1, 1 << 63, (1 << 64) - 1),
        "blobs that wrap around twice": with_ends(length, (1 << 64) - 1, length),
    }
    found = {name: tier.bytes(spoil) for name, spoil in told.items()}

    def with_entries(**changes: bytes) -> bytes:
        return tier.bytes(lambda entries: entries.update({SEGMENTS: bytearray(changes["segments"])}))

    found["no segments"] = with_entries(segments=b"")
    found["two segments of everything"] = with_entries(segments=tier.entries()[SEGMENTS] * 2)
    return found


LIES = (
    "a segment that begins later", "a segment of no steps", "a segment of too many steps",
    "a segment of too few steps", "a segment of very many steps", "a left end in the segment itself", "no table sets",
    "too many table sets", "one table set more", "one table set less", "no groups", "one group less", "one group more",
    "very many groups", "groups of nothing", "smaller groups", "a block of tables elsewhere",
    "a longer block of tables", "an endless block of tables", "reserved bytes of a segment", "a frame elsewhere",
    "a frame behind the end", "an empty frame", "a longer frame", "a table set that is not there",
    "reserved bytes of a frame", "a blob in the index", "a blob behind its block", "blobs that go back",
    "blobs that wrap around", "blobs that wrap around twice", "no segments", "two segments of everything",
)  # fmt: skip


@pytest.fixture(scope="module")
def told(file: File) -> dict[str, bytes]:
    found = lies(file)
    assert tuple(found) == LIES
    return found


@pytest.mark.parametrize("lie", LIES)
def test_no_record_is_believed(told: dict[str, bytes], good: Any, opened: Open, lie: str) -> None:
    def read() -> None:
        with pytest.raises((Corrupt, Truncated)):
            opened(told[lie]).verify()
        try:
            found = everything(opened(told[lie]))
        except Corrupt:
            return
        wrong = [key for key, value in found.items() if value != good[key]]
        assert wrong and all(isinstance(found[key], (Corrupt, Truncated)) for key in wrong)

    assert peak(read) < 4 << 20


def test_a_missing_entry(file: File, opened: Open) -> None:
    for missing in (SEGMENTS, FRAMES, DATA):
        damaged = File.__new__(File)
        damaged.__dict__ |= file.__dict__
        damaged.shapes = {name: shape for name, shape in file.shapes.items() if name != missing}
        with pytest.raises(Corrupt):
            opened(assembled(damaged, {}))


# ---- Blobs that break a rule ----


def frame_lies(file: File) -> Iterator[tuple[str, bytes]]:
    """Blobs of the first frame for the group of two tensors."""
    tier = Tier.of(file)
    group = next(i for i, names in enumerate(parts_of(file)) if len(names) == 2)
    digests, streams = streams_of(tier.blobs[1][group], 2)
    (c0, s0), (c1, s1) = streams
    ok = frame_blob(digests, streams)
    yield "cut", ok[:-1]
    yield "longer", ok + b"\0"
    yield "empty", b""
    yield "digests only", digests
    yield "half of the digests", digests[:9]
    yield "one length", digests + ok[16:17]
    two = [bytes([2 * n & 127 | 128, 2 * n >> 7]) for n in (len(s0), len(s0) + 1)]
    one = bytes([2 * len(s1)])
    assert digests + two[0] + one + s0 + s1 == ok
    for name, lengths in {
        "too long by one": two[1] + one,
        "without end": b"\xff" * 40,
        "of six bytes": b"\x80\x80\x80\x80\x80\x01\x00",
        "padded": bytes([two[0][0], two[0][1] | 128, 0]) + one,
        "of 32 GB": b"\xff\xff\xff\xff\x7f" * 2,
    }.items():
        yield f"lengths {name}", digests + lengths + s0 + s1
    yield "an empty stream", frame_blob(digests, [(c0, b""), (c1, s1)])
    yield "an empty frame of zstd", frame_blob(digests, [(1, b""), (c1, s1)])
    for name, stream in {
        "of too much": zstandard.ZstdCompressor().compress(bytes(1 << 26)),
        "of too little": zstandard.ZstdCompressor().compress(b"abc"),
        "without size": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(2 * 72)),
        "and more": zstandard.ZstdCompressor().compress(bytes(2 * 72)) + b"x",
        "that is none": b"\x28\xb5\x2f\xfd" + bytes(20),
        "to skip": struct.pack("<II", 0x184D2A50, 4) + b"abcd",
    }.items():
        yield f"zstd {name}", frame_blob(digests, [(1, stream), (c1, s1)])
    for length in (1, 4, 5, 8, 9, 12, 200):
        for byte in (0, 1, 255):
            yield f"{length} bytes {byte}", frame_blob(digests, [(0, bytes([byte]) * length), (c1, s1)])
    yield "a further word", frame_blob(digests, [(c0, s0 + bytes(4)), (c1, s1)])
    yield "a word less", frame_blob(digests, [(c0, s0[:-4]), (c1, s1)])
    yield "streams that changed places", frame_blob(digests, [(c1, s1), (c0, s0)])
    yield "another digest", bytes([digests[0] ^ 1]) + ok[1:]


def test_frames_that_break_a_rule(file: File, good: Any, opened: Open) -> None:
    group = next(i for i, names in enumerate(parts_of(file)) if len(names) == 2)
    name = parts_of(file)[group][0]
    for lie, blob in frame_lies(file):
        tier = Tier.of(file)
        tier.blobs[1][group] = blob
        data = tier.bytes()

        def read(data: bytes = data) -> None:
            run = opened(data)
            with pytest.raises(Corrupt):
                run._reader.bits(name, STEPS[-1], "exact")
            np.testing.assert_array_equal(run._reader.bits("s", 12, "exact").tobytes(), good["s", 12])

        assert peak(read) < 4 << 20, lie


def test_tables_that_break_a_rule(file: File, opened: Open) -> None:
    tier = Tier.of(file)
    group = next(i for i, names in enumerate(parts_of(file)) if len(names) == 2)
    raw = zstandard.ZstdDecompressor().decompress(tier.blobs[0][group])
    count = tier.segment[3]
    limit = 1 + count * (2 + 1075 + 254 * 129)
    for blob in (
        b"", b"x", raw, table_blobs(b""), table_blobs(raw[:1]), table_blobs(raw[:-1]), table_blobs(raw + b"\0"),
        table_blobs(bytes(1 << 26)), table_blobs(bytes(limit)), table_blobs(bytes(limit + 1)), table_blobs(raw) + b"x",
        table_blobs(raw) + table_blobs(b""), zstandard.ZstdCompressor(write_content_size=False).compress(raw),
        struct.pack("<II", 0x184D2A50, 4) + b"abcd", tier.blobs[0][group][:-1],
    ):  # fmt: skip
        tier.blobs[0][group] = blob
        data = tier.bytes()

        def read(data: bytes = data) -> None:
            for use in (lambda run: run._reader.bits("a", 7, "exact"), lambda run: run.verify()):
                with pytest.raises(Corrupt, match=r"relex\.data\.frames"):
                    use(opened(data))
            opened(data)._reader.bits("s", 7, "exact")

        assert peak(read) < 16 << 20


def test_shapes_that_nothing_stands_behind(file: File, opened: Open) -> None:
    """A tensor that frames hold is as large as its origin, which the file's chunks or the base's digests bound."""
    for name in NAMES:
        manifest = dict(file.manifest)
        manifest["tensors"] = [[n, d, [1 << 46] if n == name else s, o] for n, d, s, o in file.manifest["tensors"]]
        changed = File.__new__(File)
        changed.__dict__ |= file.__dict__
        changed.entries = {**file.entries, "relex.manifest": json.dumps(manifest).encode()}
        changed.shapes = {**file.shapes, "relex.manifest": ("U8", [len(changed.entries["relex.manifest"])])}
        data = Tier.of(file)
        data.file = changed

        def read(data: bytes = data.bytes()) -> None:
            with pytest.raises((Corrupt, Truncated)):
                opened(data)

        assert peak(read) < 1 << 20


def test_what_has_failed_once_fails_again(file: File, good: Any, opened: Open) -> None:
    """Nothing of a damaged blob is kept, and what is good is read all the same."""
    damaged = bytearray(file.data)
    damaged[-1] ^= 1
    run = opened(damaged)
    for _ in range(3):
        found = everything(run)
        wrong = {key for key, value in found.items() if value != good[key]}
        assert 0 < len(wrong) < len(good)
        assert all("copy the file again" in str(found[key]) for key in wrong)
