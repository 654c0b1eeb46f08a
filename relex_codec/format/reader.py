"""Opening a file and reading its chunks: root, header, tables, data (FORMAT.md sections 2, 3 and 6).

Everything read is checked against its checksum before it is used. Structural rules are in format/validate.py.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from relex_codec.core.digests import digest
from relex_codec.core.dtypes import Bytes
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import Corrupt, Truncated, Unsupported
from relex_codec.storage.coalesce import FIRST_READ
from relex_codec.storage.source import Source, read_checked

from . import constants as f
from . import manifest_parser, safetensors_header
from .chunks import decompress
from .index import Index, PiecePlace, Records, table
from .safetensors_header import METADATA, WORD, Entry
from .tensor_record import join
from .validate import check

COEFFICIENTS_AT_OPEN: Final = 16 << 20
"""Coefficients up to this size come with the index; larger ones are read by the row."""
R = TypeVar("R")
F64 = np.dtype("<f8")


class FileReader:
    """A ``.relex`` file opened for reading.

    Attributes:
        index: the checked tables.
        identity: a digest of the root, which has checksums of all tables, which have those of everything else.

    Raises:
        Truncated, Corrupt, Unsupported: see `relex_codec.errors`.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        read_checked(self._open, [(source, 0, source.size)])

    def _open(self) -> None:
        """Read root, header and tables, and check them."""
        source = self.source
        head = source.read_cached(0, min(source.size, FIRST_READ))
        length = safetensors_header.header_length(
            head, source.size, limit=f.HEADER_LIMIT, error=Corrupt, where=source.path
        )
        if len(head) < WORD + length:
            head += source.read_cached(len(head), WORD + length)
        self._data_start = WORD + length
        metadata, entries = self._open_root(head)
        by_name = {entry.name: entry for entry in entries}
        self._check_entries(entries, by_name)
        self._tail = b""
        self._read_index(by_name, head)
        steps = np.frombuffer(self._entry(by_name[f.STEPS], head), "<i8").astype(np.int64)
        document = manifest_parser.parse(self._entry(by_name[f.MANIFEST], head), [int(step) for step in steps])
        tables = {
            name: table(name, by_name[name], self._entry(by_name[name], head))
            for name in (f.TENSORS, f.DIRECTIONS, f.CHUNKS)
        }
        self.index = Index(
            source.path, metadata, by_name, steps, document, join(document, tables[f.TENSORS]), tables[f.DIRECTIONS],
            np.frombuffer(self._entry(by_name[f.DIGESTS], head), np.uint8).reshape(-1, 16), tables[f.CHUNKS],
        )  # fmt: skip
        check(self.index, source.size)
        directions = len(self.index.directions)
        for name, expected in (
            (f.COEFFICIENTS, (directions, len(steps))), (f.ERRORS, (2, len(steps))),
            (f.NORMS, (len(self.index.tensors) + directions,)),
        ):  # fmt: skip
            if by_name[name].shape != expected:
                raise Corrupt(f"{name} is {list(by_name[name].shape)}, expected {list(expected)}")
        entry = by_name[f.COEFFICIENTS]
        self._coefficients = self._tail[entry.begin - self._tail_start : entry.end - self._tail_start]
        self._figures = (
            {name: self._entry(by_name[name], head) for name in (f.ERRORS, f.NORMS)} if self._at_hand else {}
        )
        self._tail = b""

    def _open_root(self, head: bytes) -> tuple[dict[str, str], list[Entry]]:
        """Check header and root in the order of FORMAT.md section 2, and return the header's content.

        What holds in every version comes first, then the version, then what holds in this one.
        """
        source, start = self.source, self._data_start
        header = safetensors_header.load_object(head[WORD:start], error=Corrupt, where=source.path, exact=True)
        metadata = _metadata(header.pop(METADATA, None), source.path)
        root, rows, tail = self._root(head, _root_size(header, source.path))
        if source.size < int(root["size"]):
            raise Truncated(f"{source.path} has {source.size} bytes, expected {int(root['size'])}: copy it again")
        if source.size > int(root["size"]):
            raise Corrupt(f"{source.path} has {source.size} bytes, expected {int(root['size'])}")
        if zlib.crc32(head[:start]) != int(root["header_crc"]):
            raise Corrupt(f"{source.path}: the checksum of the header does not match its bytes")
        self._check_version(metadata, int(root["version"]))
        self.identity = digest(root.tobytes() + rows.tobytes()).hex()

        metadata, entries = safetensors_header.parse(head[WORD:start], source.size, error=Corrupt, where=source.path)
        if "producer" not in metadata:
            raise Corrupt(f"{source.path}: the header's metadata lack producer")
        if list(header) != [entry.name for entry in entries]:
            raise Corrupt(f"{source.path}: the header does not list its entries in the order of their data")
        if len(rows) != len(entries) - 1:
            raise Corrupt(f"{f.ROOT} lists {len(rows)} entries, the header {len(entries) - 1}")
        if int(root["reserved"]) or int(tail["reserved"]) or rows["reserved"].any() or (rows["coverage"] > 1).any():
            raise Corrupt(f"{f.ROOT}: a reserved field is not zero")
        for row, entry in zip(rows, entries[1:], strict=True):
            if bool(row["coverage"]) != (entry.name in f.COVERED_ELSEWHERE) or (row["coverage"] and row["crc"]):
                raise Corrupt(f"{f.ROOT}: {quote(entry.name)} has the wrong coverage")
        self._checksums = {entry.name: int(row["crc"]) for row, entry in zip(rows, entries[1:], strict=True)}
        return metadata, entries

    def _root(self, head: bytes, size: int) -> tuple[np.void, Records, np.void]:
        """Return head, rows and tail of the root, whose magic, length and checksum are right."""
        raw = self._bytes(head, self._data_start, self._data_start + size)
        root: np.void = np.frombuffer(raw, f.ROOT_HEAD, 1)[0]
        if root["magic"].tobytes() != f.MAGIC:
            raise Corrupt(f"{self.source.path} is not a .relex file: {f.ROOT} does not begin with its magic")
        end = f.ROOT_HEAD.itemsize + int(root["entries"]) * f.ROOT_ROW.itemsize
        if size != end + f.ROOT_TAIL.itemsize:
            raise Corrupt(f"{self.source.path}: {f.ROOT} has {size} bytes and lists {int(root['entries'])} entries")
        tail: np.void = np.frombuffer(raw[end:], f.ROOT_TAIL)[0]
        if zlib.crc32(raw[:end]) != int(tail["crc"]):
            raise Corrupt(f"{self.source.path}: the checksum of {f.ROOT} does not match its bytes")
        return root, np.frombuffer(raw[f.ROOT_HEAD.itemsize : end], f.ROOT_ROW), tail

    def _check_version(self, metadata: dict[str, str], version: int) -> None:
        names = metadata["requires"].split(",") if metadata["requires"] else []
        unknown = [name for name in names if name not in f.FEATURES]
        others = {str(version), metadata["relex_version"]} - {str(f.VERSION)}
        if others or unknown:
            what = f"feature {quote(unknown[0])}" if unknown else f"version {quote(max(others))}"
            raise Unsupported(
                f"{self.source.path} needs {what}; install relex-codec {quote(metadata['reader'], 20)} or later"
            )

    def _check_entries(self, entries: Sequence[Entry], by_name: dict[str, Entry]) -> None:
        known = [entry.name for entry in entries if entry.name in (*f.ENTRIES, *f.FRAME_ENTRIES)]
        expected = [*f.ENTRIES, *(f.FRAME_ENTRIES if any(name in by_name for name in f.FRAME_ENTRIES) else ())]
        if known != expected:
            missing = [name for name in expected if name not in by_name]
            raise Corrupt(f"{self.source.path} lacks {missing[0]}" if missing else "the entries are out of order")
        for name, dtype, dimensions in (
            (f.STEPS, "I64", 1), (f.MANIFEST, "U8", 1), (f.DIGESTS, "U8", 2), (f.COEFFICIENTS, "F64", 2),
            (f.ERRORS, "F32", 2), (f.NORMS, "F64", 1),
            *((name, "U8", 1) for name in f.DATA),
        ):  # fmt: skip
            entry = by_name[name]
            if entry.dtype != dtype or len(entry.shape) != dimensions or (name == f.DIGESTS and entry.shape[1] != 16):
                raise Corrupt(f"{name} is {entry.dtype} {list(entry.shape)}")
        if f.SEGMENTS in by_name:
            steps = by_name[f.STEPS].shape[0]
            segments, frames, data = (by_name[name] for name in f.FRAME_ENTRIES)
            rows = segments.shape[0] if segments.shape else 0
            for entry, shape in (
                (segments, (rows, f.SEGMENT_RECORD.itemsize)), (frames, (steps, f.FRAME_RECORD.itemsize)),
                (data, (data.end - data.begin,)),
            ):  # fmt: skip
                if entry.dtype != "U8" or entry.shape != shape:
                    raise Corrupt(f"{entry.name} is {entry.dtype} {list(entry.shape)}")

    def _read_index(self, by_name: dict[str, Entry], head: bytes) -> None:
        """Read all tables with one request."""
        coefficients = by_name[f.COEFFICIENTS]
        self._at_hand = coefficients.end - coefficients.begin <= COEFFICIENTS_AT_OPEN
        """Whether coefficients, and what comes after them, came with the tables."""
        last = by_name[f.NORMS if self._at_hand else f.CHUNKS]
        self._tail_start = by_name[f.STEPS].begin
        have = head[self._tail_start : last.end]
        missing = last.end - self._tail_start - len(have)
        self._tail = have + (self.source.read_cached(last.end - missing, last.end) if missing else b"")

    def _bytes(self, head: bytes, start: int, end: int) -> bytes:
        """Bytes of the beginning of the file, read further if the first request did not reach them."""
        if end > self.source.size:
            raise Truncated(f"{self.source.path} has {self.source.size} bytes, expected at least {end}")
        return head[start:end] if end <= len(head) else self.source.read_cached(start, end)

    def _entry(self, entry: Entry, head: bytes) -> bytes:
        raw = self._tail[entry.begin - self._tail_start : entry.end - self._tail_start]
        self.check_bytes(entry, raw)
        return raw

    def coefficients(self, direction: int, count: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Return the coefficients of `count` directions from `direction` on: float64 [count, T], checked."""
        width = len(self.index.steps) * 8
        entry = self.index.entries[f.COEFFICIENTS]
        low, high = direction * width, (direction + count) * width
        if self._at_hand:
            raw = self._coefficients[low:high]
        else:
            raw = self.source.read(entry.begin + low, entry.begin + high)
        wrong = self._wrong_row(direction, raw, width)
        if wrong is not None and self.source.forget(entry.begin + low, entry.begin + high):
            if self._at_hand:
                self._coefficients = self.source.read_cached(entry.begin, entry.end)
                raw = self._coefficients[low:high]
            else:
                raw = self.source.read(entry.begin + low, entry.begin + high)
            wrong = self._wrong_row(direction, raw, width)
        if wrong is not None:
            raise Corrupt(f"{self.source.path}: the checksum of {f.COEFFICIENTS}, row {wrong}, is wrong")
        values = np.frombuffer(raw, F64).reshape(count, -1).astype(np.float64)
        if not np.isfinite(values).all():
            raise Corrupt(f"{self.source.path}: {f.COEFFICIENTS} holds a number that is not finite")
        return values

    def _wrong_row(self, first: int, raw: bytes, width: int) -> int | None:
        """Return the first row of coefficients, of those from `first` on, whose checksum is wrong."""
        for row, at in enumerate(range(0, len(raw), width), first):
            if zlib.crc32(raw[at : at + width]) != int(self.index.directions[row]["coefficients_crc"]):
                return row
        return None

    def errors(self) -> npt.NDArray[np.float32]:
        """Return the relative errors of tiers ``track`` and ``line`` at each step, float32 [2, T]; NaN: not known."""
        return np.frombuffer(self._figure(f.ERRORS), "<f4").reshape(2, -1).astype(np.float32)

    def norms(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the 1-norm of each tensor's origin, and that of each direction, float64; NaN where not known."""
        found = np.frombuffer(self._figure(f.NORMS), F64).astype(np.float64)
        return found[: len(self.index.tensors)], found[len(self.index.tensors) :]

    def _figure(self, name: str) -> bytes:
        """Return the checked bytes of an entry that is only for reports."""
        if name not in self._figures:
            entry = self.index.entries[name]

            def read() -> None:
                self._figures[name] = self.source.read_cached(entry.begin, entry.end)
                self.check_bytes(entry, self._figures[name])

            read_checked(read, [(self.source, entry.begin, entry.end)])
        return self._figures[name]

    def pieces(
        self, places: Sequence[PiecePlace], use: Callable[[int, Bytes], R], outs: Sequence[Bytes] = ()
    ) -> list[R]:
        """Read the chunks of `places`, and call ``use(i, raw bytes of place i)`` for each, on several threads.

        Args:
            outs: memory for the raw bytes of each place; empty: they are where they are.

        Returns:
            The results in the order of `places`.

        Raises:
            Corrupt: a checksum or a frame is wrong; the message names the entry.
        """
        numbers = list(dict.fromkeys(place.chunk for place in places))
        records = [self.index.chunks[number] for number in numbers]
        ranges = [(int(r["position"]), int(r["position"]) + int(r["stored"])) for r in records]
        uses = Counter(place.chunk for place in places)
        stored: dict[int, bytes] = {}
        if not self.source.at_hand:
            stored.update(zip(numbers, self.source.read_many(ranges), strict=True))
        spans = dict(zip(numbers, ranges, strict=True))

        def chunk(number: int, out: Bytes | None = None) -> Bytes:
            return self._chunk(number, stored[number] if number in stored else self.source.read(*spans[number]), out)

        ready = {number: chunk(number) for number in numbers if uses[number] > 1}

        def one(i: int) -> R:
            place = places[i]
            if place.chunk not in ready and outs and place.length == self.index.chunks[place.chunk]["raw"]:
                return use(i, chunk(place.chunk, outs[i]))
            raw = ready[place.chunk] if place.chunk in ready else chunk(place.chunk)
            raw = raw[place.offset : place.offset + place.length]
            if outs:
                outs[i][:] = raw
                raw = outs[i]
            return use(i, raw)

        return parallel_map(one, range(len(places)))

    def _chunk(self, number: int, stored: bytes, out: Bytes | None = None) -> Bytes:
        record = self.index.chunks[number]
        where = f"{self.source.path}: chunk {number} of {self._data_of(number)}"
        begin, end = int(record["position"]), int(record["position"]) + int(record["stored"])
        if zlib.crc32(stored) != int(record["crc"]) and self.source.forget(begin, end):
            stored = self.source.read(begin, end)
        if zlib.crc32(stored) != int(record["crc"]):
            raise Corrupt(f"{where} does not match its checksum: copy the file again")
        try:
            return decompress(stored, int(record["raw"]), int(record["codec"]), int(record["fill"]), out)
        except Corrupt as error:
            raise Corrupt(f"{where}: {error}") from None

    def _data_of(self, number: int) -> str:
        return next(name for name in reversed(f.DATA) if self.index.first_chunk[name] <= number)

    def check_bytes(self, entry: Entry, raw: bytes) -> None:
        """Check the CRC of an entry of which all bytes are at hand."""
        if zlib.crc32(raw) != self._checksums[entry.name]:
            raise Corrupt(f"{self.source.path}: the checksum of {quote(entry.name)} does not match its bytes")

    def check_entry(self, entry: Entry) -> None:
        """Read an entry that this version does not know and check its CRC, in bounded memory."""
        read_checked(lambda: self._check_entry(entry), [(self.source, entry.begin, entry.end)])

    def _check_entry(self, entry: Entry) -> None:
        value = 0
        for at in range(entry.begin, entry.end, f.CHUNK_LIMIT):
            value = zlib.crc32(self.source.read(at, min(at + f.CHUNK_LIMIT, entry.end)), value)
        if value != self._checksums[entry.name]:
            raise Corrupt(f"{self.source.path}: the checksum of {quote(entry.name)} does not match its bytes")


def _metadata(found: object, path: str) -> dict[str, str]:
    """Return the strings of ``__metadata__`` that every version has."""
    if not isinstance(found, dict) or found.get("format") != "relex":
        raise Corrupt(f"{path} is not a .relex file: its header does not say that its format is relex")
    kept = {key: found[key] for key in ("format", "relex_version", "requires", "reader") if type(found.get(key)) is str}
    for key in ("relex_version", "requires", "reader"):
        if key not in kept:
            raise Corrupt(f"{path}: the header's metadata lack {key}")
    return kept


def _root_size(header: dict[str, Any], path: str) -> int:
    """Return the bytes of the root, which must be the first entry, at the beginning of the data."""
    fields = header[f.ROOT] if next(iter(header), None) == f.ROOT else None
    if not isinstance(fields, dict):
        raise Corrupt(f"{path}: {f.ROOT} is not the first entry")
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    if fields.get("dtype") != "U8" or not isinstance(shape, list) or len(shape) != 1 or offsets != [0, shape[0]]:
        raise Corrupt(f"{path}: {f.ROOT} is not a row of bytes at the beginning of the data")
    size = shape[0]
    least = f.ROOT_HEAD.itemsize + f.ROOT_TAIL.itemsize
    if any(type(value) is not int for value in (size, *offsets)) or size < least:
        raise Corrupt(f"{path}: {f.ROOT} is {quote(size)} bytes long, expected at least {least}")
    return int(size)
