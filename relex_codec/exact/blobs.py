"""Blobs of the exact tier: the tables of a group, and its streams in a frame (EXACT.md section 13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import zstandard

from relex_codec.core.digests import EXACT_DIGEST
from relex_codec.errors import Corrupt
from relex_codec.format import constants as f
from relex_codec.format.chunks import decompress

from .frequency_tables import FrequencyTables, lay_out, most_table_bytes, tables_from_bytes
from .rans import CoderTables


class Key(NamedTuple):
    """A blob of a group: its tables in a segment (step 0), or its streams in the frame of a step, counted from 1."""

    segment: int
    step: int
    group: int


class Streams(NamedTuple):
    """A parsed frame blob: digests [parts, 8], coding and stream of each part."""

    digests: bytes
    streams: list[tuple[int, bytes]]


class GroupTables:
    """The table sets of a group; each is laid out when a frame needs it.

    Args:
        low: lowest exponent of the group.
        sets: as they are stored.
    """

    def __init__(self, low: int, sets: list[FrequencyTables]) -> None:
        self.low, self.sets = low, sets
        self._ready: dict[int, CoderTables] = {}

    def dense(self, number: int) -> int:
        """Classes of a first frame with this table set that are coded word by word."""
        return self.sets[number].dense

    def coder(self, number: int) -> CoderTables:
        """One table set, laid out for decoding."""
        if number not in self._ready:
            self._ready[number] = lay_out(self.sets[number])
        return self._ready[number]


Blob = Streams | GroupTables
Blobs = Mapping[Key, Blob]


def parse_group_tables(blob: bytes, count: int) -> tuple[int, list[FrequencyTables]]:
    """Read a group's blob of tables: its lowest exponent, and `count` table sets.

    Raises:
        Corrupt: it is no zstd frame of a possible size, or the tables break the rules.
    """
    try:
        size = zstandard.get_frame_parameters(blob).content_size
    except zstandard.ZstdError as error:
        raise Corrupt(f"a blob of tables cannot be decoded ({error})") from None
    if size > 1 + most_table_bytes(count):
        raise Corrupt(f"a blob of tables says {size} bytes")
    raw = decompress(blob, size, f.CODEC_ZSTD).tobytes()
    if not raw:
        raise Corrupt("a blob of tables is empty")
    return raw[0], tables_from_bytes(raw[1:], count)


def parse_frame(blob: bytes, parts: int) -> Streams:
    """Cut the blob of a frame into digests and streams, one of each for each of `parts` parts.

    Raises:
        Corrupt: the lengths of the streams are malformed or do not add up to the blob's.
    """
    at = parts * EXACT_DIGEST
    sizes = []
    for _ in range(parts):
        value = shift = 0
        while True:
            if at >= len(blob) or shift > 28:
                raise Corrupt("the lengths of a frame's streams end early")
            byte = blob[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if not byte and shift > 7:
            raise Corrupt("a length of a stream is not in its shortest form")
        sizes.append(value)
    streams = []
    for value in sizes:
        streams.append((value & 1, blob[at : at + (value >> 1)]))
        at += value >> 1
    if at != len(blob):
        raise Corrupt("the streams of a frame do not fill their blob")
    return Streams(blob[: parts * EXACT_DIGEST], streams)
