"""What changed in a chunk from one step to the next: found by compiled code, and made bytes (JOURNAL.md section 5).

An element that changed is a position and a *change*: by how much the ordered word of its bits moved. Training moves
most weights of BF16 to a neighbour, so nearly all changes are 1 or -1, and take a bit or two.
"""

from __future__ import annotations

import threading
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import ITEMSIZE, Bits, Bytes
from relex_codec.errors import Corrupt
from relex_codec.format.chunks import compress, decompress
from relex_codec.format.constants import CODEC_STORED

from .changes import BLOCK, GROUP, SKIP, apply_dense, apply_sparse, most_frequent, spread, take_changes
from .format import ABSENT, BLOB_HEAD, CHUNK, FLOAT_WORDS, STREAM_HEAD

LOT: Final = 8 * CHUNK
"""Elements that are compared in one call, at most."""
DENSE_FROM: Final = 8
"""Coding all elements is tried where at least one in so many changed."""
FILL_FROM: Final = 0.6
"""Share of the most frequent byte from which coding it apart is tried: less takes long for little."""


class Changes(NamedTuple):
    """What changed in chunks of a part that follow each other; not compressed yet.

    Attributes:
        elements: of all these chunks.
        width: bytes of an element.
        rows: int64 [chunks, 3]: how many changes, how many skips, and how many planes that are not zero.
        skips: those of all chunks, one after another.
        planes: uint8 [planes, changes], the same.
    """

    elements: int
    width: int
    rows: npt.NDArray[np.int64]
    skips: Bytes
    planes: Bytes

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.skips.nbytes + self.planes.nbytes + self.rows.nbytes


class _Scratch(threading.local):
    """Memory of a thread for what it finds; only what is written to takes any."""

    def __init__(self) -> None:
        self.masks = np.empty(BLOCK // GROUP, np.uint64)
        self.groups = np.empty(BLOCK // GROUP, np.int64)
        self.positions = np.empty(CHUNK + GROUP, np.uint32)
        self.changes = np.empty(CHUNK, np.uint64)
        self.skips = np.empty(LOT + LOT // SKIP + LOT // CHUNK, np.uint8)
        self.planes = np.empty(8 * LOT, np.uint8)


_scratch = _Scratch()


def find_changes(old: Bits, new: Bits, dtype: str, *, keep: bool = True) -> Changes:
    """Return what turns `old` into `new`.

    Args:
        old: elements of chunks that follow each other, at most `LOT`: one-dimensional and contiguous, of the dtype's
            bits.
        new: the same elements at the next step.
        dtype: by its safetensors name.
        keep: `old` stays as it is; else it becomes `new`.
    """
    width, scratch = ITEMSIZE[dtype], _scratch
    rows = np.empty((-(-len(old) // CHUNK), 3), np.int64)
    planes = scratch.planes[: width * len(old)].reshape(width, len(old))
    take_changes(
        old, new, dtype in FLOAT_WORDS, keep, CHUNK, scratch.masks, scratch.groups, scratch.positions,
        scratch.changes.view(old.dtype)[:CHUNK], scratch.skips, planes, rows,
    )  # fmt: skip
    count, length = int(rows[:, 0].sum()), int(rows[:, 1].sum())
    top = int(rows[:, 2].max(initial=0))
    return Changes(len(old), width, rows, scratch.skips[:length].copy(), planes[:top, :count].copy())


def code_changes(found: Changes) -> list[bytes]:
    """Return the blob of each chunk, empty where nothing changed."""
    blobs, skipped, taken = [], 0, 0
    for number, (count, length, top) in enumerate(found.rows.tolist()):
        if not count:
            blobs.append(b"")
            continue
        skips = found.skips[skipped : skipped + length]
        planes = found.planes[:top, taken : taken + count]
        blob = _blob(count, skips, planes, found.width)
        elements = min(CHUNK, found.elements - number * CHUNK)
        if count * DENSE_FROM >= elements:
            dense = np.empty((top, elements), np.uint8)
            spread(skips, planes, dense)
            blob = min(blob, _blob(0, None, dense, found.width), key=len)
        blobs.append(blob)
        skipped, taken = skipped + length, taken + count
    return blobs


def encode_difference(old: Bits, new: Bits, dtype: str) -> bytes:
    """Return the blob that turns a chunk into what it is at the next step, empty if it is the same.

    Args:
        old, new, dtype: as for `find_changes`.

    Examples:
        >>> old = np.array([16256, 16384, 0, 49024], np.uint16)
        >>> new = np.array([16256, 16385, 0, 49025], np.uint16)
        >>> blob = encode_difference(old, new, "BF16")
        >>> row = old.copy()
        >>> apply_difference(blob, row, 0, 4, "BF16")
        >>> row.tolist() == new.tolist()
        True
    """
    blobs = code_changes(find_changes(old, new, dtype))
    return blobs[0] if blobs else b""


def _blob(count: int, skips: Bytes | None, planes: Bytes, width: int) -> bytes:
    """Return a blob; the planes that are not given are zero."""
    head = BLOB_HEAD.pack(count, 0 if skips is None else len(skips))
    streams = [] if skips is None else [_stream(skips)]
    streams += [_stream(plane) for plane in planes]
    return b"".join([head, *streams, *[STREAM_HEAD.pack(ABSENT, 0, 0, 0)] * (width - len(planes))])


def _stream(raw: Bytes) -> bytes:
    stored = compress(raw, fill=bool(most_frequent(raw) > FILL_FROM * len(raw)))
    length = len(stored.data)
    return STREAM_HEAD.pack(stored.codec, stored.fill, length & 0xFF, length >> 8) + stored.data


def apply_difference(blob: bytes, row: Bits, first: int, elements: int, dtype: str) -> None:
    """Change elements of a chunk, as they are at one step, to what they are at the next.

    Args:
        blob: what `encode_difference` made; anything, as files come from anywhere.
        row: elements of the chunk from `first` on, changed in place.
        first: see `row`.
        elements: how many the chunk has.
        dtype: by its safetensors name.

    Raises:
        Corrupt: the blob breaks a rule; `row` may then hold anything.
    """
    if not blob:
        return
    width = ITEMSIZE[dtype]
    if len(blob) < BLOB_HEAD.size:
        raise Corrupt(f"a difference has {len(blob)} bytes")
    count, length = BLOB_HEAD.unpack_from(blob)
    at, is_float = BLOB_HEAD.size, dtype in FLOAT_WORDS
    if not count:
        if length:
            raise Corrupt(f"a difference of all elements has {length} skips")
        planes, at = _read_planes(blob, at, width, elements)
        _check_end(blob, at)
        if not planes.any():
            raise Corrupt("a difference has no change")
        apply_dense(row, planes[:, first : first + len(row)], is_float)
        return
    if count > elements or not count <= length <= count + elements // SKIP:
        raise Corrupt(f"a difference of {count} of {elements} elements has {length} skips")
    skips, at = _read_stream(blob, at, length)
    if skips is None:
        raise Corrupt("a difference has no skips")
    planes, at = _read_planes(blob, at, width, count)
    _check_end(blob, at)
    wrong = apply_sparse(row, first, elements, skips, planes, is_float)
    if wrong:
        raise Corrupt(f"a difference {_WRONG[wrong]}")


_WRONG: Final = {
    1: "has skips of another number of changes",
    2: "goes beyond its chunk",
    3: "has a change that is none",
}


def _check_end(blob: bytes, at: int) -> None:
    if at != len(blob):
        raise Corrupt(f"a difference has {len(blob)} bytes, its streams {at}")


def _read_planes(blob: bytes, at: int, width: int, length: int) -> tuple[Bytes, int]:
    planes: Bytes = np.zeros((width, length), np.uint8)
    for plane in range(width):
        raw, at = _read_stream(blob, at, length)
        if raw is not None:
            planes[plane] = raw
    return planes, at


def _read_stream(blob: bytes, at: int, raw_length: int) -> tuple[Bytes | None, int]:
    """Return the bytes of a stream, None for one that is absent, and where the next one begins."""
    if len(blob) < at + STREAM_HEAD.size:
        raise Corrupt("a difference ends within its streams")
    codec, fill, low, high = STREAM_HEAD.unpack_from(blob, at)
    at += STREAM_HEAD.size
    end = at + low + (high << 8)
    if codec == ABSENT:
        if fill or end != at:
            raise Corrupt("a stream that is absent has bytes")
        return None, at
    if codec > 2 or (fill and codec != 2):
        raise Corrupt(f"a stream has codec {codec} and fill {fill}")
    if not at < end <= len(blob) or (codec == CODEC_STORED and end - at != raw_length):
        raise Corrupt(f"a stream of {raw_length} bytes has {end - at}, of {len(blob) - at} that are there")
    return decompress(blob[at:end], raw_length, codec, fill), end
