"""What changed in a chunk from one step to the next: found by compiled code, and made bytes (JOURNAL.md section 5).

An element that changed is a position and a *change*: by how much the ordered word of its bits moved. Training moves
most weights of BF16 to a neighbour, so nearly all changes are 1 or -1, and take a bit or two.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import numpy as np

from relex_codec.core.dtypes import ITEMSIZE, Bits, Bytes
from relex_codec.errors import Corrupt
from relex_codec.format.chunks import compress, decompress
from relex_codec.format.constants import CODEC_STORED

from .changes import (
    SKIP,
    apply_dense,
    apply_sparse,
    describe_changes,
    most_frequent,
    split_dense,
)
from .format import ABSENT, BLOB_HEAD, CHUNK, FLOAT_WORDS, STREAM_HEAD

DENSE_FROM: Final = 8
"""Coding all elements is tried where at least one in so many changed."""
FILL_FROM: Final = 0.6
"""Share of the most frequent byte from which coding it apart is tried: less takes long for little."""


class _Scratch(threading.local):
    """Memory of a thread for what it finds in a chunk."""

    def __init__(self) -> None:
        self.positions = np.empty(CHUNK, np.uint32)
        self.words = np.empty(CHUNK + 1, np.uint32)
        self.changes = np.empty(CHUNK, np.uint64)
        self.skips = np.empty(CHUNK + CHUNK // SKIP + 1, np.uint8)
        self.planes = np.empty((8, CHUNK), np.uint8)
        self.most = np.empty(9, np.int64)


_scratch = _Scratch()


def encode_difference(old: Bits, new: Bits, dtype: str) -> bytes:
    """Return the blob that turns `old` into `new`, empty if they are equal.

    Args:
        old: the elements of a chunk, one-dimensional and contiguous, of the dtype's bits.
        new: the same elements at the next step.
        dtype: by its safetensors name.

    Example:
        >>> old = np.array([16256, 16384, 0, 49024], np.uint16)
        >>> new = np.array([16256, 16385, 0, 49025], np.uint16)
        >>> blob = encode_difference(old, new, "BF16")
        >>> row = old.copy()
        >>> apply_difference(blob, row, 0, 4, "BF16")
        >>> row.tolist() == new.tolist()
        True
    """
    width, scratch, is_float = ITEMSIZE[dtype], _scratch, dtype in FLOAT_WORDS
    words = len(old) * width // 8
    count, length, top = describe_changes(
        old, new, old[: words * 8 // width].view(np.uint64), new[: words * 8 // width].view(np.uint64), is_float,
        scratch.words, scratch.positions, scratch.changes, scratch.skips, scratch.planes, scratch.most,
    )  # fmt: skip
    if not count:
        return b""
    blob = _blob(count, scratch.skips[:length], scratch.planes[:, :count], top, width, scratch.most)
    if count * DENSE_FROM < len(old):
        return blob
    top = split_dense(scratch.positions[:count], scratch.changes[:count], scratch.planes, len(old), width)
    for plane in range(top):
        scratch.most[1 + plane] = most_frequent(scratch.planes[plane, : len(old)])
    dense = _blob(0, None, scratch.planes[:, : len(old)], top, width, scratch.most)
    return min(blob, dense, key=len)


def _blob(count: int, skips: Bytes | None, planes: Bytes, top: int, width: int, most: Any) -> bytes:
    """Return a blob; planes from `top` on are zero. `most`: how often the most frequent byte of each stream occurs."""
    head = BLOB_HEAD.pack(count, 0 if skips is None else len(skips))
    streams = [] if skips is None else [_stream(skips, most[0])]
    streams += [_stream(planes[plane], most[1 + plane]) for plane in range(top)]
    return b"".join([head, *streams, *[STREAM_HEAD.pack(ABSENT, 0, 0, 0)] * (width - top)])


def _stream(raw: Bytes, most: int) -> bytes:
    stored = compress(raw, fill=bool(most > FILL_FROM * len(raw)))
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
