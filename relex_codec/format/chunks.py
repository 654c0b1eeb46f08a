"""Chunks: raw bytes, compressed one by one (FORMAT.md section 6). Pure functions on arrays.

zstd codes frames (RFC 8878); where matching is off it is used as a Huffman coder.
"""

from __future__ import annotations

import threading
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from relex_codec.core.dtypes import Bytes
from relex_codec.core.machine_code import MachineCode
from relex_codec.errors import Corrupt

from .constants import CODEC_FILL, CODEC_STORED, CODEC_ZSTD

_MATCH_FREE = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, window_log=17, write_content_size=True
)
_MATCHING = zstandard.ZstdCompressionParameters.from_level(9, window_log=21, write_content_size=True)
FILL_FROM: Final = 0.4
"""Share of the most frequent byte from which coding it apart is tried."""
WINDOW_LIMIT: Final = 1 << 23
"""What every zstd decoder supports (RFC 8878 recommends 8 MB)."""
count_flags: Final = MachineCode("relex_codec.format.fill_expand", "count_flags", "Qq")
expand: Final = MachineCode("relex_codec.format.fill_expand", "expand", "QqBBq")
count_bytes: Final = MachineCode("relex_codec.format.fill_expand", "count_bytes", "BqQ")
split: Final = MachineCode("relex_codec.format.fill_expand", "split", "BqqBB")
COMPILED_FROM: Final = 1 << 15
"""Bytes of a chunk from which compiled code takes it apart: small files need no compiler."""


# zstandard's (de)compressor objects are not safe to share between threads.
_local = threading.local()


class Stored(NamedTuple):
    """A chunk as it is stored.

    Attributes:
        codec: 0 as it is, 1 a zstd frame, 2 flags and the bytes that are not `fill`.
        fill: the most frequent byte, for codec 2; else 0.
        data: what is stored.
    """

    codec: int
    fill: int
    data: bytes


def compress(raw: Bytes, *, match: bool = False, fill: bool = True) -> Stored:
    """Compress one chunk in whichever way is smallest; never larger than storing it.

    Args:
        raw: flat uint8, 1 to ``CHUNK_LIMIT`` long.
        match: let zstd look for repetitions. Off for codes and planes of noise, where matching costs up to 30 % of
            the size and decodes several times slower (RATIONALE.md); on for text.
        fill: whether ``CODEC_FILL`` may be tried, which takes time that recording does not have.

    The way ``CODEC_FILL`` codes which bytes differ from the most frequent one, and those bytes, each with a Huffman
    code of its own: a Huffman code spends at least one bit on a byte, so it wastes where one byte is most of a chunk.

    Examples:
        >>> raw = np.arange(1000).astype(np.uint8) // 100
        >>> stored = compress(raw)
        >>> len(stored.data) < 500
        True
        >>> bool((decompress(stored.data, len(raw), stored.codec, stored.fill) == raw).all())
        True
    """
    options = [Stored(CODEC_STORED, 0, raw.tobytes()), Stored(CODEC_ZSTD, 0, _frame(raw, match))]
    if fill and not match and (filled := _filled(raw)) is not None:
        options.append(filled)
    return min(options, key=lambda option: len(option.data))


def _filled(raw: Bytes) -> Stored | None:
    """Return a chunk with its most frequent byte apart, if there is enough of it."""
    counts = _counts(raw)
    fill = int(counts.argmax())
    if counts[fill] <= FILL_FROM * len(raw):
        return None
    others, bytes_apart = _apart(raw, fill)
    flags = _frame(others, False)
    rest = _frame(bytes_apart, False) if len(bytes_apart) else b""
    return Stored(CODEC_FILL, fill, len(flags).to_bytes(4, "little") + flags + rest)


def _counts(raw: Bytes) -> npt.NDArray[Any]:
    """Return how often each byte occurs, [256]."""
    if len(raw) < COMPILED_FROM:
        return np.bincount(raw, minlength=256)
    raw, counts = np.ascontiguousarray(raw), np.zeros(1024, np.uint64)
    count_bytes(raw.ctypes.data, len(raw), counts.ctypes.data)
    total: npt.NDArray[Any] = counts.reshape(4, 256).sum(axis=0)
    return total


def _apart(raw: Bytes, fill: int) -> tuple[Bytes, Bytes]:
    """Return which bytes are not `fill`, a bit for each, and those bytes."""
    if len(raw) < COMPILED_FROM:
        others = raw != fill
        return np.packbits(others, bitorder="little"), raw[others]
    raw = np.ascontiguousarray(raw)
    flags, rest = np.empty(-(-len(raw) // 8), np.uint8), np.empty(len(raw) + 1, np.uint8)
    count = split(raw.ctypes.data, len(raw), fill, flags.ctypes.data, rest.ctypes.data)
    return flags, rest[:count]


def _frame(raw: Bytes, match: bool) -> bytes:
    name = "matching" if match else "match_free"
    if not hasattr(_local, name):
        setattr(_local, name, zstandard.ZstdCompressor(compression_params=_MATCHING if match else _MATCH_FREE))
    frame: bytes = getattr(_local, name).compress(np.ascontiguousarray(raw).data)
    return frame


def decompress(stored: bytes, raw_length: int, codec: int, fill: int = 0, out: Bytes | None = None) -> Bytes:
    """Return the raw bytes of a chunk: the inverse of `compress`. Allocates a small multiple of `raw_length` at most.

    Args:
        stored: what is stored; anything, as files come from anywhere.
        raw_length: what it must give, at least 1.
        codec, fill: see `Stored`.
        out: uint8 [raw_length], contiguous: memory to use.

    Returns:
        uint8 [raw_length]; `out`, if there is one; read-only, if it is `stored` itself.

    Raises:
        Corrupt: not zstd frames of exactly the content sizes that `raw_length` calls for.
    """
    if codec != CODEC_FILL:
        raw = np.frombuffer(stored, np.uint8) if codec == CODEC_STORED else _unframe(stored, raw_length)
        if out is None:
            return raw
        out[:] = raw
        return out

    end = 4 + int.from_bytes(stored[:4], "little")
    if len(stored) < end:
        raise Corrupt("the flags of a chunk end early")
    packed = _unframe(stored[4:end], -(-raw_length // 8))
    if raw_length % 8 and packed[-1] >> (raw_length % 8):
        raise Corrupt("the flags of a chunk go on beyond its end")
    words = np.zeros(-(-len(packed) // 8), np.uint64)
    words.view(np.uint8)[: len(packed)] = packed
    count = count_flags(words.ctypes.data, len(words))
    rest = _unframe(stored[end:], count) if count else np.frombuffer(stored[end:], np.uint8)
    raw = np.empty(raw_length, np.uint8) if out is None else out
    raw.fill(fill)
    if len(rest) != count or expand(words.ctypes.data, len(words), rest.ctypes.data, raw.ctypes.data, fill):
        raise Corrupt(f"a chunk has {count} flags set and {len(rest)} bytes, or one that should have no flag")
    return raw


def content_size(stored: bytes) -> int:
    """Return the content size that a zstd frame says; -1 if it says none.

    Raises:
        Corrupt: it is no zstd frame.
    """
    try:
        size = zstandard.get_frame_parameters(stored).content_size
    except zstandard.ZstdError as error:
        raise Corrupt(f"a zstd frame cannot be decoded ({error})") from None
    return -1 if size == zstandard.CONTENTSIZE_UNKNOWN else int(size)


def _unframe(stored: bytes, raw_length: int) -> Bytes:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    try:
        parameters = zstandard.get_frame_parameters(stored)
        if parameters.content_size != raw_length or parameters.dict_id:
            raise Corrupt(f"a zstd frame says {parameters.content_size} bytes, its chunk {raw_length}")
        if parameters.window_size > WINDOW_LIMIT:
            raise Corrupt(f"a zstd frame needs a window of {parameters.window_size} bytes, limit {WINDOW_LIMIT}")
        raw = _local.decompressor.decompress(stored, max_output_size=raw_length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Corrupt(f"a zstd frame cannot be decoded ({error})") from None
    if len(raw) != raw_length:
        raise Corrupt(f"a zstd frame gave {len(raw)} bytes, its chunk says {raw_length}")
    return np.frombuffer(raw, np.uint8)
