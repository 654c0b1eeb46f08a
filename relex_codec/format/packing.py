"""Codes and elements to bytes and back: planes, radix blocks, zstd as a Huffman coder (FORMAT.md sections 6 and 7).

Pure functions on arrays: no I/O. The layouts are those of one *piece* (at most ``PIECE`` elements).
"""

from __future__ import annotations

import threading
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from relex_codec.errors import Corrupt
from relex_codec.format.constants import BLOCK, CODEC_FILL, CODEC_STORED, CODEC_ZSTD, PIECE, Packing

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int32]

_MATCH_FREE = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=6, window_log=17, write_content_size=True
)
_MATCHING = zstandard.ZstdCompressionParameters.from_level(9, window_log=21, write_content_size=True)

FILL_FROM: Final = 0.4
"""Share of the most frequent byte from which coding it apart is tried."""

WINDOW_LIMIT: Final = 1 << 23
"""What every zstd decoder supports (RFC 8878 recommends 8 MB)."""

# zstandard's (de)compressor objects are not safe to share between threads.
_local = threading.local()


def piece_lengths(count: int) -> list[int]:
    """Return the lengths, in elements, of the pieces of a stream of `count` elements."""
    full, rest = divmod(count, PIECE)
    return [PIECE] * full + ([rest] if rest else [])


def packed_size(count: int, packing: Packing) -> int:
    """Return the bytes of one plane, or of the blocks, of a piece of `count` elements of a remainder in `packing`."""
    if packing.per_byte:
        full, rest = divmod(count, BLOCK * packing.per_byte)
        return full * BLOCK + -(-rest // packing.per_byte)
    return count if packing.planes else 0


def to_planes(bits: npt.NDArray[Any]) -> Bytes:
    """Split elements of w bytes into w planes, the lowest byte first; returns a flat uint8 array."""
    little = np.ascontiguousarray(bits).astype(bits.dtype.newbyteorder("<"), copy=False)
    width = little.dtype.itemsize
    return np.ascontiguousarray(little.view(np.uint8).reshape(-1, width).T).ravel()


def split_planes(bits: npt.NDArray[Any]) -> list[Bytes]:
    """Return the planes of a piece one by one: each is a piece of its own in a chunk."""
    return list(to_planes(bits).reshape(bits.dtype.itemsize, -1))


def from_planes(raw: Bytes, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Inverse of `to_planes`: a flat array of little-endian `dtype`."""
    target = np.dtype(dtype).newbyteorder("<")
    return np.ascontiguousarray(raw.reshape(target.itemsize, -1).T).reshape(-1).view(target)


def pack_codes(codes: Codes, packing: Packing) -> Bytes:
    """Pack one piece of codes, each in ``-zero .. zero`` of `packing`, as FORMAT.md section 7 says.

    Args:
        codes: flat int32, at most ``PIECE`` long; the caller guarantees the range.
    """
    if packing.name == "word":
        return to_planes((codes + packing.zero).astype("<u2"))
    k, digits = packing.per_byte, (codes + packing.zero).astype(np.uint8)
    if k == 1:
        return digits
    full = len(digits) // (BLOCK * k) * (BLOCK * k)
    parts = [_pack_blocks(digits[:full].reshape(-1, k, BLOCK), packing)]
    if rest := len(digits) - full:
        width = -(-rest // k)
        tail = np.full(k * width, packing.zero, np.uint8)
        tail[:rest] = digits[full:]
        parts.append(_pack_blocks(tail.reshape(1, k, width), packing))
    return np.concatenate(parts)


def _pack_blocks(digits: Bytes, packing: Packing) -> Bytes:
    """(blocks, K, P) digits to flat bytes, digit j of a byte from plane j."""
    packed = digits[:, packing.per_byte - 1].copy()
    for j in range(packing.per_byte - 2, -1, -1):
        packed *= np.uint8(packing.radix)
        packed += digits[:, j]
    return packed.ravel()


def unpack_codes(raw: Bytes, count: int, packing: Packing) -> Codes:
    """Inverse of `pack_codes` for a piece of `count` codes, which `check_codes` accepts.

    Returns:
        int32 codes, flat.
    """
    if packing.name == "word":
        return from_planes(raw, np.uint16).astype(np.int32) - np.int32(packing.zero)
    codes = _digits(raw, count, packing)[:count].astype(np.int32)
    codes -= np.int32(packing.zero)
    return codes


def check_codes(raw: Bytes, count: int, packing: Packing) -> None:
    """Check the raw bytes of a piece of `count` elements of a remainder.

    Raises:
        Corrupt: a digit outside the packing's range, or padding that is not the zero code.
    """
    k = packing.per_byte
    outside = f"a {packing.name} code lies outside -{packing.zero} .. {packing.zero}"
    if packing.name == "word" and len(raw) and int((raw[:count] & raw[count:]).max()) == 0xFF:
        raise Corrupt(outside)
    if not k:
        return
    most = packing.radix**k - 1 if k > 2 else 255
    if k != 2 and len(raw) and int(raw.max()) > most - (k == 1):
        raise Corrupt(f"byte {int(raw.max())} in {packing.name} codes, at most {most - (k == 1)} is possible")
    if k == 2 and (((raw & 0x0F) == 0x0F) | (raw >= 0xF0)).any():
        raise Corrupt(outside)
    begin = count // (BLOCK * k) * (BLOCK * k)
    if count > begin and (_digits(raw[begin // k :], count - begin, packing)[count - begin :] != packing.zero).any():
        raise Corrupt(f"the padding of {packing.name} codes is not zero")


def _digits(raw: Bytes, count: int, packing: Packing) -> Bytes:
    """The digits of blocks of `count` elements, those beyond the last element included."""
    k = packing.per_byte
    full = count // (BLOCK * k) * BLOCK
    digits = np.empty((k * len(raw)), np.uint8)
    _unpack_blocks(raw[:full].reshape(-1, BLOCK), digits[: k * full].reshape(-1, k, BLOCK), packing)
    if full < len(raw):
        _unpack_blocks(raw[None, full:], digits[k * full :].reshape(1, k, -1), packing)
    return digits


def _unpack_blocks(raw: Bytes, digits: Bytes, packing: Packing) -> None:
    if packing.per_byte == 1:
        digits[:, 0] = raw
        return
    rest = raw
    for j in range(packing.per_byte):
        quotient = rest // np.uint8(packing.radix)
        digits[:, j] = rest - quotient * np.uint8(packing.radix)
        rest = quotient


class Stored(NamedTuple):
    """A chunk as it is stored."""

    codec: int
    fill: int
    data: bytes


def compress(raw: Bytes, *, match: bool = False) -> Stored:
    """Compress one chunk in whichever way is smallest; never larger than storing it.

    Args:
        raw: flat uint8, 1 to ``CHUNK_LIMIT`` long.
        match: let zstd look for repetitions. Off for codes and planes of noise, where matching costs up to 30 % of
            the size and decodes several times slower (RATIONALE.md); on for text and exact series.

    The way ``CODEC_FILL`` codes which bytes differ from the most frequent one, and those bytes, each with a Huffman
    code of its own: a Huffman code spends at least one bit on a byte, so it wastes where one byte is most of a chunk.
    """
    options = [Stored(CODEC_STORED, 0, raw.tobytes()), Stored(CODEC_ZSTD, 0, _frame(raw, match))]
    counts = np.bincount(raw, minlength=256)
    fill = int(counts.argmax())
    if not match and counts[fill] > FILL_FROM * len(raw):
        others = raw != fill
        flags = _frame(np.packbits(others, bitorder="little"), match)
        rest = _frame(raw[others], match) if others.any() else b""
        options.append(Stored(CODEC_FILL, fill, len(flags).to_bytes(4, "little") + flags + rest))
    return min(options, key=lambda option: len(option.data))


def _frame(raw: Bytes, match: bool) -> bytes:
    name = "matching" if match else "match_free"
    if not hasattr(_local, name):
        setattr(_local, name, zstandard.ZstdCompressor(compression_params=_MATCHING if match else _MATCH_FREE))
    frame: bytes = getattr(_local, name).compress(np.ascontiguousarray(raw).data)
    return frame


def decompress(stored: bytes, raw_length: int, codec: int, fill: int = 0) -> Bytes:
    """Inverse of `compress`; allocates a small multiple of `raw_length` and no more.

    Raises:
        Corrupt: not zstd frames of exactly the content sizes that `raw_length` calls for.
    """
    if codec == CODEC_STORED:
        return np.frombuffer(stored, np.uint8)
    if codec == CODEC_ZSTD:
        return _unframe(stored, raw_length)
    from relex_codec.format.fill_expand import count_flags, expand  # numba is only needed here

    end = 4 + int.from_bytes(stored[:4], "little")
    if len(stored) < end:
        raise Corrupt("the flags of a chunk end early")
    packed = _unframe(stored[4:end], -(-raw_length // 8))
    if raw_length % 8 and packed[-1] >> (raw_length % 8):
        raise Corrupt("the flags of a chunk go on beyond its end")
    words = np.zeros(-(-len(packed) // 8), np.uint64)
    words.view(np.uint8)[: len(packed)] = packed
    count = count_flags(words)
    rest = _unframe(stored[end:], count) if count else np.frombuffer(stored[end:], np.uint8)
    if len(rest) != count or (rest == fill).any():
        raise Corrupt(f"a chunk has {count} flags set and {len(rest)} bytes, or one that should have no flag")
    raw = np.full(raw_length, fill, np.uint8)
    expand(words, rest, raw)
    return raw


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
