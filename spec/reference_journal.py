"""A slow reader of journals that follows JOURNAL.md heading by heading, to be read beside it.

It needs numpy, zstandard and the standard library, and takes what FORMAT.md says from reference_decoder.py. It shares
no code with the package.

    python spec/reference_journal.py JOURNAL [--base model.safetensors]
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import re
import struct
import sys
import zlib
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import reference_decoder as ref
from reference_decoder import Base, Truncated, Unsupported, require

# ---- 1. Terms ----

CHUNK = 1 << 18
Part = namedtuple("Part", "name dtype shape base offset size")
Rank = namedtuple("Rank", "head parts digests commits data")
Step = namedtuple("Step", "step generation number")


def elements(shape: Any) -> int:
    """How many elements there are."""
    return math.prod(shape)


def places(part: Any) -> Any:
    """Where each element of a box is in its tensor."""
    grids = np.meshgrid(*(np.arange(o, o + s) for o, s in zip(part.offset, part.size, strict=True)), indexing="ij")
    if not grids:
        return np.zeros(1, np.int64)
    flat = [grid.reshape(-1) for grid in grids]
    return np.ravel_multi_index(flat, part.shape) if flat[0].size else flat[0]


# ---- 2. The directory ----


def read_marker(folder: Path) -> dict[str, Any]:
    """The content of journal.json."""
    raw = (folder / "journal.json").read_bytes()
    require(len(raw) <= 65_536, "journal.json is too long")
    found = ref.parse_json(raw.rstrip(b"\n"))
    require(found.get("format") == "relex-journal", "format of journal.json")
    require(type(found.get("version")) is int, "version of journal.json")
    if found["version"] != 1:
        raise Unsupported(f"journal.json has version {found['version']}")
    require(found.get("base") is None or type(found["base"]) is str, "base of journal.json")
    return found


def read_generations(folder: Path) -> list[list[Any]]:
    """All ranks of all generations."""
    names = sorted(path.name for path in folder.iterdir() if re.fullmatch(r"[0-9]{4}-[0-9]{5}\.steps", path.name))
    return [
        [read_rank(folder / name) for name in group] for _, group in itertools.groupby(names, key=lambda name: name[:4])
    ]


# ---- 3. The head of .steps ----


def read_rank(path: Path) -> Any:
    """The two files of a rank."""
    raw, data = path.read_bytes(), path.with_suffix(".data").read_bytes()
    if len(raw) < 32:
        raise Truncated("a head")
    magic, version, n, digests, digests_crc, crc = struct.unpack_from("<8sIIQII", raw)
    require(magic == b"RELEXJ\r\n", "magic")
    if version != 1:
        raise Unsupported(f"version {version}")
    if len(raw) < 32 + n:
        raise Truncated("the JSON of a head")
    require(zlib.crc32(raw[:28] + raw[32 : 32 + n]) == crc, "CRC of a head")
    head = ref.parse_json(raw[32 : 32 + n])
    require(ref.is_integer(head.get("world"), 1, 100_000), "world")
    require(ref.is_integer(head.get("rank"), 0, head["world"] - 1), "rank")
    require(ref.is_integer(head.get("generation"), 0, 9_999), "generation")
    require("after" in head and (head["after"] is None or ref.is_integer(head["after"], 0, 1 << 53)), "after")
    require(path.stem == f"{head['generation']:04d}-{head['rank']:05d}", "name of a file")
    require(type(head.get("tensors")) is list, "tensors")
    parts = [read_part(row) for row in head["tensors"]]
    require(len({part.name for part in parts}) == len(parts), "a tensor twice")
    if len(data) < digests:
        raise Truncated("digests")
    require(zlib.crc32(data[:digests]) == digests_crc, "CRC of digests")
    return Rank(head, parts, data[:digests], read_commits(raw, 32 + n, crc, head, parts, digests, data), data)


def read_part(row: Any) -> Any:
    """A part of a head."""
    require(type(row) is dict and {"name", "dtype", "shape", "base"} <= row.keys(), "a part")
    shape = row["shape"]
    require(type(shape) is list, "shape")
    offset, size = row.get("offset", [0] * len(shape)), row.get("size", shape)
    part = Part(row["name"], row["dtype"], shape, row["base"], offset, size)
    require(type(part.name) is str and type(part.dtype) is str and part.dtype in ref.WIDTH, "name or dtype")
    for sides in (part.shape, part.offset, part.size):
        require(type(sides) is list and len(sides) == len(shape), "sides of a box")
        require(all(ref.is_integer(side, 0, (1 << 48) - 1) for side in sides), "sides of a box")
    require(all(o + s <= n for n, o, s in zip(part.shape, part.offset, part.size, strict=True)), "a box")
    require(len(shape) <= 64 and elements(filter(None, shape)) < 1 << 48, "shape")
    both = part.base in ref.FLOAT and part.dtype in ref.FLOAT
    require(part.base is None or part.base == part.dtype or both, "base of a part")
    return part


def own_pieces(part: Any) -> list[int]:
    """The pieces whose first element is in the box."""
    if part.base is None:
        return []
    inside = set(places(part).tolist())
    return [piece for piece in range(-(-elements(part.shape) // ref.PIECE)) if piece * ref.PIECE in inside]


def digests_of(ranks: list[Any]) -> dict[tuple[str, int], bytes]:
    """The digest of each piece of the base."""
    found = {}
    for rank in ranks:
        parts = rank.parts if rank.head["after"] is None else []
        own = [(part.name, piece) for part in parts for piece in own_pieces(part)]
        require(len(rank.digests) == 16 * len(own), "digests")
        found.update({key: rank.digests[16 * i : 16 * i + 16] for i, key in enumerate(own)})
    return found


# ---- 4. Commit records and steps ----


def index_length(parts: list[Any]) -> int:
    """Bytes of an index."""
    return sum(12 + 8 * chunks(part) for part in parts)


def chunks(part: Any) -> int:
    """Chunks of a part."""
    return -(-elements(part.size) // CHUNK)


def read_commits(raw: bytes, at: int, crc: int, head: Any, parts: list[Any], end: int, data: bytes) -> list[Any]:
    """The commit records before the tail."""
    records = [raw[i : i + 40] for i in range(at, len(raw) - 39, 40)]
    whole = [zlib.crc32(record[:36], crc) == struct.unpack_from("<I", record, 36)[0] for record in records]
    found: list[Any] = []
    last = -1 if head["after"] is None else head["after"]
    for number, record in enumerate(records):
        step, begin, index, stop, own, _ = struct.unpack("<QQQQII", record)
        if not whole[number] or own != number:
            require(not any(whole[number + 1 :]), "a commit record in the middle")
            break
        require(last < step <= 1 << 53, "the order of steps")
        require(begin == end <= index and stop == index + index_length(parts), "the begin of a step")
        if stop > len(data):
            raise Truncated("a step")
        found.append((step, begin, index))
        last, end = step, stop
    return found


def read_blobs(rank: Any, number: int, part: int) -> Iterator[tuple[int, bytes]]:
    """The blobs of a part at a step: first element, bytes."""
    _, begin, index = rank.commits[number]
    at = index + index_length(rank.parts[:part])
    section = rank.data[at : at + index_length([rank.parts[part]])]
    require(zlib.crc32(section[:-4]) == struct.unpack("<I", section[-4:])[0], "CRC of an index")
    (position,) = struct.unpack_from("<Q", section)
    for chunk in range(chunks(rank.parts[part])):
        length, crc = struct.unpack_from("<II", section, 8 + 8 * chunk)
        require(begin <= position and position + length <= index, "a blob outside of its step")
        blob = rank.data[position : position + length]
        require(zlib.crc32(blob) == crc, "CRC of a blob")
        yield chunk * CHUNK, blob
        position += length


# ---- 5. Blobs ----

ORDERED = {"BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}


def read_streams(blob: bytes, at: int, sizes: list[int]) -> list[bytes]:
    """The content of streams that follow each other, up to the end of the blob."""
    found = []
    for size in sizes:
        require(at + 5 <= len(blob), "the head of a stream")
        codec, fill, low, high = struct.unpack_from("<BBBH", blob, at)
        length = low + (high << 8)
        stored = blob[at + 5 : at + 5 + length]
        require(len(stored) == length, "the length of a stream")
        at += 5 + length
        if codec == 255:
            require(fill == 0 and length == 0, "a stream that is absent")
            found.append(bytes(size))
            continue
        require(codec <= 2 and (fill == 0 or codec == 2) and length, "the codec of a stream")
        found.append(read_codec(stored, codec, fill, size))
    require(at == len(blob), "the end of a blob")
    return found


def read_codec(stored: bytes, codec: int, fill: int, size: int) -> bytes:
    """What the bytes of a stream stand for (FORMAT.md, section 6)."""
    if codec == 0:
        require(len(stored) == size, "the length of a stream")
        return stored
    if codec == 1:
        return ref.unframe(stored, size)
    require(len(stored) >= 4, "flags")
    end = 4 + struct.unpack_from("<I", stored)[0]
    require(len(stored) >= end, "flags")
    flags = np.unpackbits(np.frombuffer(ref.unframe(stored[4:end], -(-size // 8)), np.uint8), bitorder="little")
    require(not flags[size:].any(), "flags beyond the end")
    count = int(flags.sum())
    rest = ref.unframe(stored[end:], count) if count else stored[end:]
    require(len(rest) == count and fill not in rest, "bytes that differ")
    out = np.full(size, fill, np.uint8)
    out[flags[:size] == 1] = np.frombuffer(rest, np.uint8)
    return out.tobytes()


def read_changes(blob: bytes, n: int, width: int) -> Iterator[tuple[int, int]]:
    """Elements of a chunk and their changes."""
    require(len(blob) >= 8, "the head of a blob")
    k, length = struct.unpack_from("<II", blob)
    if k == 0:
        require(length == 0, "skips of all elements")
        positions, streams = list(range(n)), read_streams(blob, 8, [n] * width)
    else:
        require(k <= n and k <= length <= k + n // 255 and blob[8:9] != b"\xff", "the number of skips")
        skips, *streams = read_streams(blob, 8, [length] + [k] * width)
        positions, at = [], 0
        for skip in skips:
            at += skip
            if skip < 255:
                positions.append(at)
                at += 1
        require(len(positions) == k and skips[-1] < 255 and positions[-1] < n, "skips")
    numbers = [int.from_bytes(bytes(column), "little") for column in zip(*streams, strict=True)]
    require(all(numbers) if k else any(numbers), "a change that is none")
    for position, z in zip(positions, numbers, strict=True):
        yield position, z // 2 if z % 2 == 0 else -(z + 1) // 2


def moved(u: int, change: int, dtype: str) -> int:
    """The bits of an element whose word moves."""
    full, half = 1 << 8 * ref.WIDTH[dtype], 1 << (8 * ref.WIDTH[dtype] - 1)
    if dtype not in ORDERED:
        return (u + change) % full
    word = u + half if u < half else full - 1 - u
    word = (word + change) % full
    return word - half if word >= half else full - 1 - word


# ---- 6. Which steps there are ----


class Journal:
    """A journal in memory."""

    def __init__(self, folder: Path) -> None:
        self.marker = read_marker(folder)
        self.steps: list[Any] = []
        for ranks in read_generations(folder):
            numbers = self.committed(ranks)
            if numbers:
                after = ranks[0].head["after"]
                kept = [] if after is None else [step for step in self.steps if step.step <= after]
                require(after is None or (kept and kept[-1].step == after), "the step that a generation follows")
                self.steps = kept + [Step(step, ranks, i) for i, step in enumerate(numbers)]
        self.tensors: dict[str, Any] = {}
        self.digests: dict[tuple[str, int], bytes] = {}
        if self.steps:
            first = self.steps[0].generation
            self.tensors = self.tensors_of(first)
            self.digests = digests_of(first)
            for step in self.steps:
                require(self.tensors_of(step.generation) == self.tensors, "other tensors")

    @staticmethod
    def committed(ranks: list[Any]) -> list[int]:
        """The steps that all ranks have committed."""
        world = ranks[0].head["world"]
        require(len({(rank.head["world"], rank.head["after"]) for rank in ranks}) == 1, "ranks that disagree")
        if [rank.head["rank"] for rank in ranks] != list(range(world)):
            require(not any(rank.commits for rank in ranks), "a rank without files")
            return []
        numbers = []
        for row in zip(*(rank.commits for rank in ranks), strict=False):
            if len({step for step, _, _ in row}) > 1:
                break
            numbers.append(row[0][0])
        return numbers

    @staticmethod
    def tensors_of(ranks: list[Any]) -> dict[str, Any]:
        """dtype, shape and base of each tensor."""
        found: dict[str, Any] = {}
        covered: dict[str, Any] = {}
        for part in itertools.chain.from_iterable(rank.parts for rank in ranks):
            own = (part.dtype, part.shape, part.base)
            require(found.setdefault(part.name, own) == own, "ranks that disagree about a tensor")
            covered.setdefault(part.name, []).extend(places(part).tolist())
        for name, (_, shape, _) in found.items():
            require(sorted(covered[name]) == list(range(elements(shape))), "elements that no rank has, or two have")
        digests_of(ranks)
        return found

    def tensor(self, name: str, step: int, base: Base | None) -> bytes:
        """The bytes of a tensor at a step."""
        dtype, _, _ = self.tensors[name]
        width = ref.WIDTH[dtype]
        raw = self.origin(name, base)
        bits = [int.from_bytes(raw[i : i + width], "little") for i in range(0, len(raw), width)]
        for one in itertools.takewhile(lambda one: one.step <= step, self.steps):
            for rank in one.generation:
                for number, part in enumerate(rank.parts):
                    if part.name == name:
                        self.apply(rank, one.number, number, part, bits)
        return b"".join(u.to_bytes(width, "little") for u in bits)

    @staticmethod
    def apply(rank: Any, step: int, number: int, part: Any, bits: list[int]) -> None:
        """Change the elements of a part."""
        where = places(part)
        for start, blob in read_blobs(rank, step, number):
            n = min(CHUNK, elements(part.size) - start)
            for position, change in read_changes(blob, n, ref.WIDTH[part.dtype]) if blob else ():
                place = int(where[start + position])
                bits[place] = moved(bits[place], change, part.dtype)

    def origin(self, name: str, base: Base | None) -> bytes:
        """What the first step is compared with."""
        dtype, shape, have = self.tensors[name]
        if have is None:
            return bytes(elements(shape) * ref.WIDTH[dtype])
        if base is None:
            raise ref.InvalidArgument("no base is given")
        found, found_shape, raw = base(name)
        if (found, list(found_shape)) != (have, list(shape)):
            raise ref.BaseMismatch("dtype or shape of the base")
        size = ref.PIECE * ref.WIDTH[have]
        for piece, at in enumerate(range(0, len(raw), size)):
            if hashlib.sha256(raw[at : at + size]).digest()[:16] != self.digests[name, piece]:
                raise ref.BaseMismatch("a digest of the base")
        return raw if have == dtype else ref.narrow(ref.widen(raw, have), dtype)

    def check(self) -> None:
        """Decode every blob of every step."""
        for one in self.steps:
            for rank in one.generation:
                for number, part in enumerate(rank.parts):
                    for start, blob in read_blobs(rank, one.number, number):
                        n = min(CHUNK, elements(part.size) - start)
                        list(read_changes(blob, n, ref.WIDTH[part.dtype]) if blob else ())


def main() -> int:
    """Print the digest of each tensor at each step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("journal", type=Path)
    parser.add_argument("--base", type=Path)
    arguments = parser.parse_args()
    journal = Journal(arguments.journal)
    journal.check()
    base = None if arguments.base is None else ref.read_safetensors(arguments.base)
    for step in journal.steps:
        for name in journal.tensors:
            print(step.step, name, hashlib.sha256(journal.tensor(name, step.step, base)).hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
