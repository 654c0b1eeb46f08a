"""Writing a file: chunks are collected in scratch files, then everything is laid out in order (FORMAT.md 2, 3, 6)."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from relex_codec._version import __version__
from relex_codec.core.dtypes import Bytes
from relex_codec.errors import InvalidArgument
from relex_codec.storage.condition import ANYTHING, Condition
from relex_codec.storage.explain import write_error
from relex_codec.storage.leftovers import WorkingDirectory
from relex_codec.storage.outputs import output_file
from relex_codec.storage.stores.base import ObjectVersion
from relex_codec.storage.urls import Options, PathLike

from . import constants as f
from .index import Records
from .manifest import Manifest
from .manifest_text import packed
from .packed_span import ChunkRow, PackedSpan, PendingSpan, compress_chunk
from .safetensors_header import build

SHARED_CHUNK: Final = 64 << 10
"""Raw bytes at which a shared chunk is closed."""
COPY: Final = 1 << 20


@dataclass(slots=True)
class _Shared:
    parts: list[Bytes] = field(default_factory=list)
    spans: list[PendingSpan] = field(default_factory=list)
    size: int = 0


class ChunkWriter:
    """Compresses spans of one data entry into a scratch file."""

    def __init__(self, scratch: IO[bytes]) -> None:
        self.scratch = scratch
        self.records: list[ChunkRow] = []
        """One of each chunk."""
        self._shared: dict[tuple[str, bool], _Shared] = {}
        self._spans: list[PendingSpan] = []

    def add(self, pieces: Iterable[Bytes], size: int, pool: str = "planes", *, match: bool = False) -> PendingSpan:
        """Write a span of pieces.

        Args:
            pieces: raw bytes of each piece, or of each plane of it, in order; taken one at a time.
            size: their total length.
            pool: what they are, ``planes`` or the name of a packing; small spans share chunks with their like.
            match: see `packing.compress`.
        """
        span = PackedSpan(size, pool, match)
        if span.shares:
            span.parts.extend(pieces)
        self.put(span)
        if not span.shares:
            for piece in pieces:
                self._chunk(piece, match)
        return span.place

    def put(self, span: PackedSpan) -> PendingSpan:
        """Write a span that has been compressed; what it holds is let go of."""
        place, key = span.place, (span.pool, span.match)
        if not span.size:
            return place
        self._spans.append(place)
        if span.shares:
            shared = self._shared.setdefault(key, _Shared())
            if shared.size + span.size > SHARED_CHUNK:
                self._close_shared(key)
                shared = self._shared[key] = _Shared()
            place.offset = shared.size
            shared.parts.extend(span.parts)
            shared.spans.append(place)
            shared.size += span.size
            span.parts = []
            return place
        place.chunk = len(self.records)
        if span.data is not None:
            self.records.extend(span.rows)
            with span.data as data:
                data.seek(0)
                shutil.copyfileobj(data, self.scratch, COPY)
            span.data = None
        return place

    def put_stored(self, row: ChunkRow, stored: bytes) -> None:
        """Write a chunk of another file as it is; its spans are those of that file."""
        self.records.append(row)
        self.scratch.write(stored)

    def close(self, first: int) -> None:
        """Write the shared chunks that are still open; `first` is the number of this entry's first chunk."""
        for key in list(self._shared):
            self._close_shared(key)
        for span in self._spans:
            span.chunk += first

    def _close_shared(self, key: tuple[str, bool]) -> None:
        shared = self._shared.pop(key)
        for span in shared.spans:
            span.chunk = len(self.records)
        self._chunk(np.concatenate(shared.parts), key[1])

    def _chunk(self, raw: Bytes, match: bool) -> None:
        row, stored = compress_chunk(raw, match)
        self.records.append(row)
        self.scratch.write(stored)


@dataclass(slots=True)
class Tables:
    """The tables of a file, ready to be written; arrays as in `index.Index`.

    Attributes:
        errors: float32 [2, T], relative errors of tiers ``track`` and ``line`` at each step.
        norms: float64 [tensors + directions], 1-norms of origins, then of directions; `unknown_figures` gives both
            where they are not known.
    """

    steps: npt.NDArray[np.int64]
    manifest: Manifest
    tensors: npt.NDArray[Any]
    directions: npt.NDArray[Any]
    digests: npt.NDArray[np.uint8]
    coefficients: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float32]
    norms: npt.NDArray[np.float64]


def unknown_figures(tensors: int, directions: int, steps: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return `Tables.errors` and `Tables.norms` of a file of which nobody knows them: NaN everywhere."""
    return np.full((2, steps), np.nan, np.float32), np.full(tensors + directions, np.nan, np.float64)


@dataclass(slots=True)
class FrameEntries:
    """The frames of a file that is being written.

    Attributes:
        segments, frames: records; positions count from the beginning of ``relex.data.frames``.
        size: bytes of that entry.
        data: yields them.
    """

    segments: Records
    frames: Records
    size: int
    data: Callable[[], Iterator[bytes]]


class FileWriter:
    """A ``.relex`` file in the making; a context manager. The file appears under its name when `finish` was called.

    Args:
        path: local path or fsspec URL.
        storage_options: for fsspec.
        condition: what may be replaced under that name.
    """

    def __init__(self, path: PathLike, storage_options: Options = None, condition: Condition = ANYTHING) -> None:
        self._file = output_file(path, storage_options, condition)
        self._stack = ExitStack()
        self.directory = ""
        """Where scratch files are: beside a local output. Known on entering."""
        self.directions: ChunkWriter
        self.base: ChunkWriter

    def __enter__(self) -> FileWriter:
        self._stack.enter_context(self._file)
        try:
            self.directory = self._file.scratch
            self.directions, self.base = ChunkWriter(self.scratch()), ChunkWriter(self.scratch())
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stack.__exit__(kind, error, trace)
        except OSError as e:  # closing a scratch file writes its buffer out, and fails as the write before did
            error = error or e
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InvalidArgument(f"cannot write {self._file.path}: {error.strerror}; nothing was changed") from None
        if kind is None and error is not None:
            raise error

    def only_replace(self, version: ObjectVersion | None) -> None:
        """Replace just this version of the file, that was read: if it is another one by then, it stays."""
        self._file.condition = Condition(version=version)

    def close_chunks(self) -> None:
        """Close all chunk writers, so that spans are resolved."""
        first = 0
        for chunks in (self.directions, self.base):
            chunks.close(first)
            first += len(chunks.records)

    def scratch(self) -> IO[bytes]:
        """Return a further scratch file, which lives as long as the writer.

        Raises:
            InvalidArgument: it cannot be made.
        """
        try:
            return self._stack.enter_context(tempfile.TemporaryFile(dir=self.directory))
        except OSError as e:
            raise write_error(self._file.path, e) from None

    def working_directory(self) -> str:
        """Return a directory for what is many files, which lives as long as the writer.

        Raises:
            InvalidArgument: it cannot be made.
        """
        try:
            return self._stack.enter_context(WorkingDirectory(os.path.join(self.directory, "units"))).path
        except OSError as e:
            raise write_error(self._file.path, e) from None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append bytes to a file that is not laid out by `finish`."""
        return self._file.write(data)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._file.tell()

    def finish(self, tables: Tables, frames: FrameEntries | None = None) -> int:
        """Lay out the file and return its size in bytes; `close_chunks` comes first.

        Args:
            frames: those of the file, if it has any.
        """
        writers = (self.directions, self.base)
        sizes = [sum(record[0] for record in chunks.records) for chunks in writers]
        records = np.zeros(sum(len(chunks.records) for chunks in writers), f.CHUNK_RECORD)
        for field_number, name in enumerate(("stored", "raw", "crc", "codec", "fill")):
            records[name] = [record[field_number] for chunks in writers for record in chunks.records]
        raw = {
            f.STEPS: tables.steps.astype("<i8").tobytes(),
            f.MANIFEST: packed(tables.manifest.to_bytes()),
            f.TENSORS: tables.tensors.tobytes(),
            f.DIRECTIONS: tables.directions.tobytes(),
            f.DIGESTS: tables.digests.tobytes(),
            f.CHUNKS: records.tobytes(),
            f.COEFFICIENTS: tables.coefficients.astype("<f8").tobytes(),
            f.ERRORS: tables.errors.astype("<f4").tobytes(),
            f.NORMS: tables.norms.astype("<f8").tobytes(),
        }
        shapes: dict[str, tuple[str, Sequence[int]]] = {
            f.STEPS: ("I64", [len(tables.steps)]),
            f.TENSORS: ("U8", [len(tables.tensors), f.TENSOR_RECORD.itemsize]),
            f.DIRECTIONS: ("U8", [len(tables.directions), f.DIRECTION_RECORD.itemsize]),
            f.DIGESTS: ("U8", list(tables.digests.shape)),
            f.CHUNKS: ("U8", [len(records), f.CHUNK_RECORD.itemsize]),
            f.COEFFICIENTS: ("F64", list(tables.coefficients.shape)),
            f.ERRORS: ("F32", list(tables.errors.shape)),
            f.NORMS: ("F64", list(tables.norms.shape)),
        }
        lengths = {name: len(data) for name, data in raw.items()} | dict(zip(f.DATA, sizes, strict=True))
        names: tuple[str, ...] = f.ENTRIES
        if frames is not None:
            names += f.FRAME_ENTRIES
            raw[f.SEGMENTS], raw[f.FRAMES] = frames.segments.tobytes(), frames.frames.tobytes()
            shapes[f.SEGMENTS] = ("U8", [len(frames.segments), f.SEGMENT_RECORD.itemsize])
            shapes[f.FRAMES] = ("U8", [len(frames.frames), f.FRAME_RECORD.itemsize])
            lengths |= {f.SEGMENTS: frames.segments.nbytes, f.FRAMES: frames.frames.nbytes, f.DATA_FRAMES: frames.size}
        rows = len(names) - 1
        lengths[f.ROOT] = f.ROOT_HEAD.itemsize + rows * f.ROOT_ROW.itemsize + f.ROOT_TAIL.itemsize
        metadata = {
            "format": "relex",
            "relex_version": str(f.VERSION),
            "producer": f"relex-codec {__version__}",
            "reader": f.READER,
            "requires": "",
        }
        head = build([(name, *shapes.get(name, ("U8", [lengths[name]])), lengths[name]) for name in names], metadata)
        total = len(head) + sum(lengths.values())
        start = len(head) + sum(lengths[name] for name in f.ENTRIES) - sum(sizes)
        records["position"] = start + np.concatenate([[0], np.cumsum(records["stored"], dtype=np.uint64)])[:-1]
        raw[f.CHUNKS] = records.tobytes()
        if frames is not None:
            for positions in (frames.segments, frames.frames):
                positions["position"] += np.uint64(total - frames.size)
            raw[f.SEGMENTS], raw[f.FRAMES] = frames.segments.tobytes(), frames.frames.tobytes()
        tables_of = b"".join(raw[name] for name in f.ENTRIES if name in raw)
        self._file.write(head + root(head, total, names, raw) + tables_of)
        for chunks in writers:
            chunks.scratch.seek(0)
            shutil.copyfileobj(chunks.scratch, self._file, COPY)
        if frames is not None:
            self._file.write(raw[f.SEGMENTS] + raw[f.FRAMES])
            for data in frames.data():
                self._file.write(data)
        if self._file.tell() != total:
            raise AssertionError(f"wrote {self._file.tell()} bytes of {total}")
        return total


def root(head: bytes, size: int, names: Sequence[str], raw: dict[str, bytes]) -> bytes:
    """Return the root entry of a file of `size` bytes that begins with `head` and has entries `names` (section 3)."""
    rows = np.zeros(len(names) - 1, f.ROOT_ROW)
    rows["coverage"] = [name in f.COVERED_ELSEWHERE for name in names[1:]]
    rows["crc"] = [0 if name in f.COVERED_ELSEWHERE else zlib.crc32(raw[name]) for name in names[1:]]
    begin = np.zeros(1, f.ROOT_HEAD)
    begin[0] = (f.MAGIC, f.VERSION, zlib.crc32(head), size, len(rows), 0)
    body = begin.tobytes() + rows.tobytes()
    return body + np.array([(zlib.crc32(body), 0)], f.ROOT_TAIL).tobytes()
