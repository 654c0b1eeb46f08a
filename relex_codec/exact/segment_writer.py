"""Coding the parts of a segment group by group; its blocks go out frame by frame (EXACT.md section 13)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from relex_codec.core.digests import EXACT_DIGEST, part_digest
from relex_codec.core.dtypes import Bits
from relex_codec.core.threads import parallel_map
from relex_codec.format import constants as f

from .bisection import Interval, frame_order
from .frequency_tables import fit_tables, lay_out, tables_to_bytes
from .ordered_words import layout_of, to_words
from .part_coder import PartEncoder, SymbolCounter, lowest_exponent
from .segments import PartInfo, table_set_numbers
from .stream_encoder import coding_tables
from .symbol_log import PartSymbols, SymbolLog

LOT: Final = 16 << 20
"""Bytes of frames that are coded together, at most."""
TABLES_LEVEL: Final = 9
"""zstd level of the blobs of tables."""


BLOB: Final = np.dtype([("length", "<u8"), ("crc", "<u4")])
"""What is known of a blob when it has been written."""
Blobs = npt.NDArray[np.void]


@dataclass(slots=True)
class _Part:
    """What is known of a part until its group is complete; no symbols if it never moves."""

    info: PartInfo
    digests: bytes
    """Of every step, one after another; of a part that never moves the one that it always has."""
    symbols: PartSymbols | None = None

    def digest(self, step: int) -> bytes:
        """Its digest at a step of the segment."""
        return self.digests[EXACT_DIGEST * (step - 1) : EXACT_DIGEST * step] if self.symbols else self.digests


@dataclass(slots=True)
class _Group:
    parts: list[_Part] = field(default_factory=list)
    counter: SymbolCounter = field(default_factory=SymbolCounter)
    low: int | None = None
    dense: int | None = None


class GroupCoder:
    """Codes the parts of a segment group by group: parts of one group, then `close`, then those of the next one.

    Args:
        scratch: opens a file for symbols that are too many for memory.
        count: steps of the segment.
    """

    def __init__(self, scratch: Callable[[], IO[bytes]], count: int) -> None:
        self.count, self.table_sets = count, table_set_numbers(count)
        self.blocks = [0, *frame_order(count)]
        """Steps of the blocks in the order of the file; 0 stands for the block of tables."""
        self._log = SymbolLog(scratch)
        self._group = _Group()

    def add(self, info: PartInfo, bits: Sequence[Bits]) -> None:
        """Code a part.

        Args:
            bits: its elements at the left end and at each step: n + 1 rows.
        """
        group = self._group
        layout = layout_of(info.dtype)
        if group.low is None:
            group.low = lowest_exponent(to_words(bits[0], layout), layout)
        encoder = PartEncoder(bits, layout, group.low)
        if group.dense is None:
            group.dense = encoder.dense()
        digests = b"".join(parallel_map(part_digest, bits[1:]))
        symbols = PartSymbols(self._log, self.count)
        for step, found in encoder.encode(self._table_set, group.dense, group.counter):
            symbols.put(step, found)
        group.parts.append(_Part(info, digests, symbols))

    def add_still(self, info: PartInfo, digest: bytes) -> None:
        """Code a part that is the same at the left end and at every step, and has this digest."""
        self._group.parts.append(_Part(info, digest))

    def close(self, write: Callable[[bytes], object]) -> Blobs:
        """Fit the tables of the group that its parts make, and write its blobs, one for each block, in that order.

        Returns:
            Their lengths and checksums.
        """
        group, self._group = self._group, _Group()
        first = self._table_set(None)
        tables = [
            fit_tables(group.counter.of(number), (group.dense or 0) if number == first else 0)
            for number in range(max(self.table_sets) + 1)
        ]
        coders = [coding_tables(lay_out(one)) for one in tables]
        head = bytes([group.low or 0]) + tables_to_bytes(tables)
        moving = [part.symbols for part in group.parts if part.symbols]

        def frame(step: int) -> bytes:
            coded = [
                part.symbols.get(step).encode(coders[self.table_sets[step - 1]]) if part.symbols else (0, b"")
                for part in group.parts
            ]
            sizes = b"".join(_varint(2 * len(stream) + coding) for coding, stream in coded)
            digests = b"".join(part.digest(step) for part in group.parts)
            return digests + sizes + b"".join(stream for _, stream in coded)

        blobs: Blobs = np.zeros(len(self.blocks), BLOB)
        blobs[0] = _written(zstandard.ZstdCompressor(TABLES_LEVEL).compress(head), write)
        most = sum((symbols.bounds() for symbols in moving), np.zeros(self.count + 1, np.int64))
        block = 1
        for steps in _lots(self.blocks[1:], most):
            for blob in parallel_map(frame, steps):
                blobs[block] = _written(blob, write)
                block += 1
        self._log.clear()
        return blobs

    def _table_set(self, interval: Interval | None) -> int:
        return self.table_sets[(self.count if interval is None else interval.middle) - 1]


class CodedGroup(NamedTuple):
    """The blobs of a group, one after another.

    Attributes:
        read: returns bytes of what they are in, by position and length.
        at: position of the first one.
        blobs: of each block.
    """

    read: Callable[[int, int], bytes]
    at: int
    blobs: Blobs


def blocks_of(groups: Sequence[CodedGroup], count: int) -> Iterator[tuple[int, int, Iterator[bytes]]]:
    """Yield (step, length, data) of each block of a segment, in the order of the file; step 0 stands for the tables.

    Args:
        groups: all of the segment, in order.
        count: its steps.
    """
    at = [group.at for group in groups]
    for number, step in enumerate([0, *frame_order(count)]):
        index = np.zeros(len(groups), f.BLOB_RECORD)
        lengths = np.array([group.blobs["length"][number] for group in groups], np.uint64)
        index["end"] = index.nbytes + np.cumsum(lengths)
        index["crc"] = [group.blobs["crc"][number] for group in groups]
        places = [(group.read, begin, int(length)) for group, begin, length in zip(groups, at, lengths, strict=True)]
        at = [begin + length for _, begin, length in places]
        yield step, index.nbytes + int(lengths.sum()), _data(index.tobytes(), places)


def _data(index: bytes, places: Sequence[tuple[Callable[[int, int], bytes], int, int]]) -> Iterator[bytes]:
    yield index
    for read, at, length in places:
        if length:
            yield read(at, length)


def _written(blob: bytes, write: Callable[[bytes], object]) -> tuple[int, int]:
    write(blob)
    return len(blob), zlib.crc32(blob)


def _lots(steps: Sequence[int], most: npt.NDArray[np.int64]) -> Iterator[list[int]]:
    """Cut steps into lots whose frames are in memory together.

    Args:
        most: bytes that the streams of each step have at most.
    """
    lot: list[int] = []
    size = 0
    for step in steps:
        if lot and size + int(most[step]) > LOT:
            yield lot
            lot, size = [], 0
        lot.append(step)
        size += int(most[step])
    if lot:
        yield lot


def _varint(value: int) -> bytes:
    """LEB128: 7 bits a byte, the lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
