"""The manifest's text as an entry: as it is, or packed (FORMAT.md section 4). Pure functions on bytes."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from relex_codec.errors import Corrupt

from .chunks import compress, content_size, decompress
from .constants import CHUNK_LIMIT, CODEC_ZSTD

_HEAD: Final = struct.Struct("<BBH")
"""Before the frame: 0, how many bytes follow it, reserved."""
ANY: Final = 1 << 16
"""Bytes of text that any frame may hold."""
TIMES: Final = 64
"""How many more it may hold for each of its bytes."""


def packed(text: bytes) -> bytes:
    """Return an entry that holds `text`, packed where that is smaller; its length is a multiple of 8.

    Examples:
        >>> text = b"{" + b" " * 1000 + b"}"
        >>> len(packed(text)) < 100, unpacked(packed(text)) == text
        (True, True)
        >>> packed(b"{}")
        b'{}      '
    """
    plain = text + b" " * (-len(text) % 8)
    if len(text) > CHUNK_LIMIT:
        return plain
    stored = compress(np.frombuffer(text, np.uint8), match=True)
    if stored.codec != CODEC_ZSTD or len(text) > _most(len(stored.data)):
        return plain
    padding = -(_HEAD.size + len(stored.data)) % 8
    found = _HEAD.pack(0, padding, 0) + stored.data + bytes(padding)
    return min(found, plain, key=len)


def unpacked(entry: bytes) -> bytes:
    """Return the text of an entry: the inverse of `packed`.

    Raises:
        Corrupt: it is packed, and not as FORMAT.md says.
    """
    if entry[:1] != b"\0":
        return entry
    if len(entry) < _HEAD.size:
        raise Corrupt("relex.manifest is packed, and ends early")
    _, padding, reserved = _HEAD.unpack_from(entry)
    end = len(entry) - padding
    if reserved or padding >= 8 or end < _HEAD.size or any(entry[end:]):
        raise Corrupt("relex.manifest is packed: what is around its frame is wrong")
    frame = entry[_HEAD.size : end]
    size = content_size(frame)
    if not 0 < size <= min(_most(len(frame)), CHUNK_LIMIT):
        raise Corrupt(f"relex.manifest: a frame of {len(frame)} bytes says that it holds {size}")
    return decompress(frame, size, CODEC_ZSTD).tobytes()


def _most(frame: int) -> int:
    """Return how many bytes of text a frame of so many bytes may hold."""
    return ANY + TIMES * frame
