"""Codes and bytes against loops written after FORMAT.md sections 6 and 7."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_codec.errors import Corrupt
from relex_codec.format.chunks import compress, decompress
from relex_codec.format.constants import NONE, PACKINGS, PIECE
from relex_codec.format.packing import (
    check_codes,
    from_planes,
    pack_codes,
    packed_size,
    piece_lengths,
    to_planes,
    unpack_codes,
)

# name: (codes in a byte, radix, zero), copied from FORMAT.md
BLOCKS = {"ternary": (5, 3, 1), "quinary": (3, 5, 2), "nibble": (2, 16, 7), "byte": (1, 256, 127)}
BY_NAME = {packing.name: packing for packing in PACKINGS}


def slowly_packed(codes: list[int], m: int, radix: int, zero: int) -> bytes:
    """FORMAT.md section 7, blocks, a byte at a time."""
    out = bytearray()
    for at in range(0, len(codes), 4096 * m):
        block = codes[at : at + 4096 * m]
        width = -(-len(block) // m)
        for i in range(width):
            byte = 0
            for j in range(m):
                position = j * width + i
                digit = block[position] + zero if position < len(block) else zero
                byte += digit * radix**j
            out.append(byte)
    return bytes(out)


def random_codes(count: int, zero: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return np.clip(np.round(rng.standard_normal(count) * max(1, zero / 3)), -zero, zero).astype(np.int32)


@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=25)
@given(
    count=st.one_of(st.integers(1, 40), st.integers(4090, 4100), st.integers(20470, 20490)), seed=st.integers(0, 999)
)
def test_blocks_are_packed_as_the_format_says(name: str, count: int, seed: int) -> None:
    m, radix, zero = BLOCKS[name]
    codes = random_codes(count, zero, seed)
    raw = pack_codes(codes, BY_NAME[name])
    assert raw.tobytes() == slowly_packed(codes.tolist(), m, radix, zero)
    assert packed_size(count, BY_NAME[name]) == len(raw)
    np.testing.assert_array_equal(unpack_codes(raw, count, BY_NAME[name]), codes)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_full_piece_and_extreme_codes(name: str) -> None:
    m, radix, zero = BLOCKS[name]
    codes = np.random.default_rng(3).integers(-zero, zero + 1, PIECE).astype(np.int32)
    raw = pack_codes(codes, BY_NAME[name])
    assert raw.tobytes() == slowly_packed(codes.tolist(), m, radix, zero)
    np.testing.assert_array_equal(unpack_codes(raw, PIECE, BY_NAME[name]), codes)


def test_words_are_planes_of_digits() -> None:
    codes = np.array([-32767, 0, 1, 32767, -1], np.int32)
    raw = pack_codes(codes, BY_NAME["word"])
    digits = [int(c) + 32767 for c in codes]
    assert raw.tobytes() == bytes(d & 255 for d in digits) + bytes(d >> 8 for d in digits)
    np.testing.assert_array_equal(unpack_codes(raw, 5, BY_NAME["word"]), codes)
    with pytest.raises(Corrupt):
        check_codes(np.frombuffer(b"\xff\xff", np.uint8), 1, BY_NAME["word"])


@pytest.mark.parametrize("name", BLOCKS)
def test_every_byte_is_a_code_or_refused(name: str) -> None:
    m, radix, zero = BLOCKS[name]
    for byte in range(256):
        digits = [byte // radix**j % radix for j in range(m)]
        raw = np.array([byte], np.uint8)
        if byte < radix**m and all(d <= 2 * zero for d in digits):
            check_codes(raw, m, BY_NAME[name])
            assert unpack_codes(raw, m, BY_NAME[name]).tolist() == [d - zero for d in digits]
        else:
            with pytest.raises(Corrupt):
                check_codes(raw, m, BY_NAME[name])


@pytest.mark.parametrize("name", ["ternary", "quinary", "nibble"])
def test_padding_that_is_not_zero_is_refused(name: str) -> None:
    m, radix, _ = BLOCKS[name]
    good = pack_codes(np.zeros(m - 1, np.int32), BY_NAME[name])
    check_codes(good, m - 1, BY_NAME[name])
    np.testing.assert_array_equal(unpack_codes(good, m - 1, BY_NAME[name]), 0)
    with pytest.raises(Corrupt, match="padding"):
        check_codes(good - np.uint8(radix ** (m - 1)), m - 1, BY_NAME[name])


@settings(max_examples=50)
@given(st.integers(1, 8).filter(lambda w: w in (1, 2, 4, 8)), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_planes(width: int, count: int, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 256, count * width, np.uint8).view(f"<u{width}")
    data = bits.tobytes()
    planes = to_planes(bits)
    assert planes.tobytes() == b"".join(data[i::width] for i in range(width))
    np.testing.assert_array_equal(from_planes(planes, bits.dtype), bits)


@settings(max_examples=60)
@given(st.integers(0, 10**7))
def test_pieces(count: int) -> None:
    lengths = piece_lengths(count)
    assert sum(lengths) == count and all(n == 1 << 18 for n in lengths[:-1]) and all(0 < n <= 1 << 18 for n in lengths)


def test_no_packing_packs_nothing() -> None:
    assert packed_size(1000, NONE) == 0


# ---- Compression ----


@settings(max_examples=80)
@given(
    st.integers(1, 5000), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 20, 256]), st.floats(0, 1), st.booleans()
)  # fmt: skip
def test_compression_round_trips_and_never_grows(length: int, seed: int, values: int, same: float, match: bool) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, values, length).astype(np.uint8)
    raw[rng.random(length) < same] = 7
    codec, fill, data = compress(raw, match=match)
    assert 1 <= len(data) <= length and (codec == 2 or fill == 0)
    np.testing.assert_array_equal(decompress(data, length, codec, fill), raw)
    assert compress(raw, match=match) == (codec, fill, data)


def test_compression_comes_close_to_the_entropy() -> None:
    rng = np.random.default_rng(0)
    for name, scale in (("ternary", 0.6), ("quinary", 0.7), ("nibble", 1.5), ("byte", 8)):
        zero = BLOCKS[name][2]
        codes = np.clip(np.round(rng.standard_normal(PIECE) * scale), -zero, zero).astype(np.int32)
        p = np.unique(codes, return_counts=True)[1] / PIECE
        entropy = float(-(p * np.log2(p)).sum()) * PIECE / 8
        assert len(compress(pack_codes(codes, BY_NAME[name])).data) < 1.05 * entropy, name


def test_codec_2_is_read_as_the_format_says() -> None:
    raw = np.full(4000, 9, np.uint8)
    raw[[0, 17, 3999]] = 1, 2, 3
    flags = bytearray(500)
    for i in (0, 17, 3999):
        flags[i // 8] |= 1 << (i % 8)
    frame = zstandard.ZstdCompressor().compress
    first = frame(bytes(flags))
    data = struct.pack("<I", len(first)) + first + frame(bytes([1, 2, 3]))
    np.testing.assert_array_equal(decompress(data, 4000, 2, 9), raw)
    for broken in (
        data[:3],
        struct.pack("<I", len(data)) + data[4:],
        struct.pack("<I", len(first)) + first,
        struct.pack("<I", len(first)) + first + frame(bytes([1, 2])),
        struct.pack("<I", len(first)) + first + frame(bytes([1, 9, 3])),
        data + b"\0",
    ):
        with pytest.raises(Corrupt):
            decompress(broken, 4000, 2, 9)
    with pytest.raises(Corrupt):
        decompress(data, 3999, 2, 9)  # a flag beyond the end


def test_frames_that_are_not_one_frame_of_the_stated_size_are_refused() -> None:
    raw = np.arange(3000, dtype=np.uint32).view(np.uint8)
    frame = zstandard.ZstdCompressor().compress(raw.tobytes())
    np.testing.assert_array_equal(decompress(frame, len(raw), 1), raw)
    anonymous = zstandard.ZstdCompressor(write_content_size=False).compress(raw.tobytes())
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"abcd"
    wide = zstandard.ZstdCompressionParameters(window_log=24, write_content_size=False)
    writer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    streamed = writer.compress(raw.tobytes()) + writer.flush()
    for bad, length in (
        (frame, len(raw) - 1), (frame, len(raw) + 1), (frame[:-1], len(raw)), (frame + b"x", len(raw)),
        (frame + frame, len(raw)), (skippable, 4), (skippable + frame, len(raw)), (anonymous, len(raw)),
        (streamed, len(raw)), (b"", 5), (b"not a frame", 5),
    ):  # fmt: skip
        with pytest.raises(Corrupt):
            decompress(bad, length, 1)


def test_threads_share_nothing() -> None:
    raws = [np.random.default_rng(i).integers(0, 4, 50_000).astype(np.uint8) for i in range(16)]

    def round_trip(raw: Any) -> bool:
        codec, fill, data = compress(raw)
        return bool((decompress(data, len(raw), codec, fill) == raw).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(round_trip, raws * 4))
