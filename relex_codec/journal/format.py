"""What is in the files of a journal: constants, records and heads, as spec/JOURNAL.md says. No I/O."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np

from relex_codec.core.digests import DIGEST
from relex_codec.core.dtypes import FLOATS, ITEMSIZE
from relex_codec.core.text import quote
from relex_codec.errors import Corrupt, Truncated, Unsupported
from relex_codec.format.constants import PIECE, STEP_LIMIT
from relex_codec.format.safetensors_header import DIMENSIONS_LIMIT, ELEMENTS_LIMIT, load_object

from .boxes import Box, Shape

VERSION: Final = 1
READER: Final = "0.1.0"
"""The first release that reads what this one writes."""
MARKER: Final = "journal.json"
FORMAT: Final = "relex-journal"
MARKER_LIMIT: Final = 1 << 16
"""Bytes that the marker may have."""
MAGIC: Final = b"RELEXJ\r\n"
CHUNK: Final = PIECE
"""Elements of a box that are compared and coded together."""
GENERATION_LIMIT: Final = 10_000
RANK_LIMIT: Final = 100_000
ABSENT: Final = 255
"""The codec of a stream that is not there, since all its bytes are 0."""
FLOAT_WORDS: Final = frozenset({"BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
"""Dtypes whose bits are a sign and a magnitude."""

HEAD: Final = struct.Struct("<8sIIQII")
"""Magic, version, length of the JSON, bytes of digests, their CRC, CRC of what is before and of the JSON."""
COMMIT: Final = struct.Struct("<QQQQII")
"""Step, begin, index, end, number, CRC."""
SECTION: Final = struct.Struct("<Q")
ENTRY: Final = struct.Struct("<II")
CRC: Final = struct.Struct("<I")
BLOB_HEAD: Final = struct.Struct("<II")
"""Changes (0: all elements are coded), skips."""
STREAM_HEAD: Final = struct.Struct("<BBBH")
"""Codec, fill, length in 24 bits."""

_NAME: Final = re.compile(r"([0-9]{4})-([0-9]{5})\.(steps|data)")


class Part(NamedTuple):
    """What a rank holds of a tensor.

    Attributes:
        name: of the tensor.
        dtype: by its safetensors name.
        box: where the part is in the tensor.
        base: dtype of the base's tensor that the first step is compared with; None: it is compared with zeros.
    """

    name: str
    dtype: str
    box: Box
    base: str | None

    @property
    def chunks(self) -> int:
        """Chunks of the part."""
        return -(-self.box.elements // CHUNK)

    @property
    def pieces(self) -> list[int]:
        """The pieces of the base's tensor whose first element is in the box: those that the rank has digests of."""
        if self.base is None:
            return []
        shape, offset, size = self.box
        numbers = np.arange(-(-math.prod(shape) // PIECE), dtype=np.int64)
        rest, inside = numbers * PIECE, np.ones(len(numbers), np.bool_)
        for n, first, count in zip(reversed(shape), reversed(offset), reversed(size), strict=True):
            rest, index = np.divmod(rest, max(n, 1))
            inside &= (index >= first) & (index < first + count)
        return [int(number) for number in numbers[inside]]


@dataclass(frozen=True)
class Head:
    """What the files of a rank begin with.

    Attributes:
        generation: number of the files among those of the journal, from 0 on.
        rank: from 0 on.
        world: number of ranks.
        after: the step that the first one is compared with; None: the base.
        parts: what the rank holds.
    """

    generation: int
    rank: int
    world: int
    after: int | None
    parts: Sequence[Part]

    def sections(self) -> list[int]:
        """Where the section of each part begins in an index, and where the index ends."""
        sizes = (SECTION.size + part.chunks * ENTRY.size + CRC.size for part in self.parts)
        return list(accumulate(sizes, initial=0))

    def digests(self) -> int:
        """How many bytes of digests there are before the first step."""
        return DIGEST * sum(len(part.pieces) for part in self.parts) if self.after is None else 0

    def build(self, digests: bytes) -> bytes:
        """Return the bytes that the file of commit records begins with."""
        document = {
            "generation": self.generation,
            "rank": self.rank,
            "world": self.world,
            "after": self.after,
            "tensors": [_described(part) for part in self.parts],
        }
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(HEAD.size + len(text)) % 8)
        before = HEAD.pack(MAGIC, VERSION, len(text), len(digests), zlib.crc32(digests), 0)[:-4]
        return before + CRC.pack(zlib.crc32(before + text)) + text


class Opening(NamedTuple):
    """What a file of commit records begins with, checked.

    Attributes:
        head: the JSON.
        length: bytes up to the first commit record.
        crc: of the head, which commit records are bound to.
        digests, digests_crc: bytes of digests at the begin of the other file, and their CRC.
    """

    head: Head
    length: int
    crc: int
    digests: int
    digests_crc: int


class Commit(NamedTuple):
    """A commit record: the step is whole.

    Attributes:
        begin, index_at, end: positions in the file of differences: of the blobs, of the index after them, and its end.
    """

    step: int
    begin: int
    index_at: int
    end: int

    def pack(self, number: int, crc: int) -> bytes:
        """Return the record: the commit record `number` of a file whose head has the CRC `crc`."""
        before = COMMIT.pack(*self, number, 0)[:-4]
        return before + CRC.pack(zlib.crc32(before, crc))


def file_name(generation: int, rank: int, kind: str) -> str:
    """Return the name of a file; `kind` is ``steps`` or ``data``."""
    return f"{generation:04d}-{rank:05d}.{kind}"


def parse_name(name: str) -> tuple[int, int, str] | None:
    """Return generation, rank and kind of a file of a journal; None: it is another one."""
    match = _NAME.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]), match[3])


def parse_marker(raw: bytes, where: str) -> dict[str, Any]:
    """Return the content of `journal.json`.

    Raises:
        Corrupt: it is no journal's.
        Unsupported: it is a newer one's.
    """
    if len(raw) > MARKER_LIMIT:
        raise Corrupt(f"{where} has more than {MARKER_LIMIT:,} bytes")
    found = load_object(raw.rstrip(b"\n"), error=Corrupt, where=where, exact=True)
    if found.get("format") != FORMAT or type(found.get("version")) is not int:
        raise Corrupt(f'{where} is not that of a journal: expected "format": "{FORMAT}" and a version')
    if found["version"] != VERSION:
        raise Unsupported(f"{where} says version {found['version']}, this release reads {VERSION}; use a newer one")
    if type(found.get("base")) not in (str, type(None)):
        raise Corrupt(f"{where} has a base that is no text")
    return found


def parse_opening(raw: bytes, where: str) -> Opening:
    """Return what a file of commit records begins with.

    Raises:
        Truncated: it ends early, as when its writer was killed.
        Corrupt, Unsupported: it is damaged, or newer.
    """
    if len(raw) < HEAD.size:
        raise Truncated(f"{where} has {len(raw)} bytes, too few for a head")
    magic, version, length, digests, digests_crc, crc = HEAD.unpack_from(raw)
    if magic != MAGIC:
        raise Corrupt(f"{where} does not begin as a file of a journal does")
    if version != VERSION:
        raise Unsupported(f"{where} is of version {version}, this release reads {VERSION}; use a newer one")
    end = HEAD.size + length
    if len(raw) < end:
        raise Truncated(f"{where} has {len(raw)} bytes, its head {end}")
    if zlib.crc32(raw[: HEAD.size - 4] + raw[HEAD.size : end]) != crc:
        raise Corrupt(f"{where}: the checksum of its head is wrong")
    head = _parse_head(
        load_object(raw[HEAD.size : end], error=Corrupt, where=f"the head of {where}", exact=True), where
    )
    return Opening(head, end, crc, digests, digests_crc)


def parse_commits(raw: bytes, opening: Opening, data_size: int, where: str) -> list[Commit]:
    """Return the steps that are committed: the tail after the last whole record is cut.

    Args:
        raw: the whole file of commit records.
        opening: what it begins with.
        data_size: bytes of the other file.
        where: the file, for messages.

    Raises:
        Corrupt: a record is wrong, and a later one is not: that is no tail. Or a whole one breaks a rule.
        Truncated: a step is committed, and its differences end early.
    """
    size = opening.head.sections()[-1]
    found: list[Commit] = []
    end, last = opening.digests, -1 if opening.head.after is None else opening.head.after
    records = [raw[at : at + COMMIT.size] for at in range(opening.length, len(raw) - COMMIT.size + 1, COMMIT.size)]
    for number, record in enumerate(records):
        commit = Commit(*COMMIT.unpack(record)[:4])
        if commit.pack(number, opening.crc) != record:
            if any(_is_whole(later, opening.crc) for later in records[number + 1 :]):
                raise Corrupt(f"{where}: the checksum of commit record {number} is wrong, and others follow it")
            break
        if (
            commit.begin != end
            or not end <= commit.index_at == commit.end - size
            or not last < commit.step <= STEP_LIMIT
        ):
            raise Corrupt(f"{where}: commit record {number} (step {commit.step}) does not follow the one before it")
        if commit.end > data_size:
            raise Truncated(f"{where}: step {commit.step} ends at byte {commit.end} of a file of {data_size}")
        found.append(commit)
        end, last = commit.end, commit.step
    return found


def _is_whole(record: bytes, crc: int) -> bool:
    *fields, number, _ = COMMIT.unpack(record)
    return Commit(*fields).pack(number, crc) == record


def _described(part: Part) -> dict[str, Any]:
    found: dict[str, Any] = {"name": part.name, "dtype": part.dtype, "shape": list(part.box.shape), "base": part.base}
    if not part.box.is_whole:
        found["offset"], found["size"] = list(part.box.offset), list(part.box.size)
    return found


def _parse_head(document: dict[str, Any], where: str) -> Head:
    try:
        generation, rank, world, after = (document[key] for key in ("generation", "rank", "world", "after"))
        rows = document["tensors"]
        whole = all(type(value) is int for value in (generation, rank, world)) and type(after) in (int, type(None))
        if not whole or type(rows) is not list or not 0 <= rank < world <= RANK_LIMIT:
            raise ValueError("has numbers that cannot be")
        if not 0 <= generation < GENERATION_LIMIT or not (after is None or 0 <= after <= STEP_LIMIT):
            raise ValueError("has numbers that cannot be")
        parts = [_parse_part(row) for row in rows]
        if len({part.name for part in parts}) != len(parts):
            raise ValueError("has a tensor twice")
    except KeyError as e:
        raise Corrupt(f"the head of {where} lacks {e}") from None
    except ValueError as e:
        raise Corrupt(f"the head of {where} {e}") from None
    return Head(generation, rank, world, after, parts)


def _parse_part(row: Any) -> Part:
    if type(row) is not dict:
        raise ValueError("has a tensor that is no object")
    name, dtype, shape, base = row["name"], row["dtype"], row["shape"], row["base"]
    if type(name) is not str:
        raise ValueError("has a name that is no text")
    whole = _sides(shape)
    box = Box(whole, _sides(row.get("offset", [0] * len(whole))), _sides(row.get("size", shape)))
    if len(shape) > DIMENSIONS_LIMIT or math.prod(filter(None, shape)) > ELEMENTS_LIMIT or not box.fits:
        raise ValueError(f"has a box of {quote(name)} that cannot be")
    known = (type(d) is str and d in ITEMSIZE for d in (dtype, dtype if base is None else base))
    if not all(known) or not (base in (None, dtype) or {base, dtype} <= FLOATS):
        raise ValueError(f"has a dtype of {quote(name)} that cannot be")
    return Part(name, dtype, box, base)


def _sides(value: Any) -> Shape:
    if type(value) is not list or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError("has sizes that are no lists of integers")
    return tuple(value)
