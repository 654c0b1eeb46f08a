"""Invalid vectors of sections 6 to 9: chunks, spans, codes, coefficients, the base, what a caller may not ask for."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import reference_decoder as ref

from .chunks import codec_filled, dictionary_frame, short_frame, skippable_frame, small_frame, two_frames, unsized_frame
from .invalid_changes import (
    Change,
    Invalid,
    both,
    chunk,
    direction,
    file_row,
    origin_dtype,
    patch,
    raw,
    row,
    stored,
    tensor,
)  # fmt: skip
from .parts import Parts
from .recipe import AUTO


def split_chunk(parts: Parts) -> None:
    """A chunk that ends within a piece."""
    first = parts.chunks[0]
    parts.chunks[:1] = [replace(first, stored=first.stored[a:b], raw=b - a) for a, b in ((0, 7), (7, first.raw))]
    for i in range(5):
        parts.patch("relex.tensors", 32 * i + 12, "I", 4)
    parts.patch("relex.directions", 64 + 28, "I", 3)
    parts.patch("relex.directions", 64 + 56, "I", 2)
    for file in parts.manifest["files"][:2]:
        file[3] = 5


def chunk_in_two_entries(parts: Parts) -> None:
    """A chunk that belongs to one entry by its position, and to the next by its length."""
    last = next(c for c in reversed(parts.chunks) if c.entry == ref.DATA_DIRECTIONS)
    last.length = last.raw = len(last.stored) + 1
    last.crc = zlib.crc32(last.stored + next(c.stored for c in parts.chunks if c.entry == ref.DATA_BASE)[:1])


def put(index: int, value: int) -> Callable[[bytearray], Any]:
    """Another byte."""
    return lambda data: data.__setitem__(index, value)


def placed() -> Iterator[tuple[str, str, Change]]:
    """Chunks and spans that are refused when a file is opened."""
    yield from [
        # section 6
        ("chunk-reserved", "reserved bytes of a chunk", chunk(0, reserved=b"\0\1")),
        ("chunk-codec", "codec 3", chunk(0, codec=3)),
        ("chunk-fill", "a fill byte without codec 2", chunk(0, fill=1)),
        ("chunk-stored-empty", "stored length 0", chunk(3, length=0)),
        ("chunk-raw-empty", "raw length 0", chunk(4, raw=0)),
        ("chunk-raw-huge", "raw length 2^32 - 1", chunk(4, raw=(1 << 32) - 1)),
        ("chunk-raw-large", "raw length 2^21 + 1", chunk(4, raw=(1 << 21) + 1)),
        ("chunk-two-lengths", "codec 0 with two lengths", chunk(1, raw=27)),
        ("chunk-overlap", "a chunk begins before the last one ends", chunk(1, shift=-1)),
        ("chunk-gap", "bytes between two chunks", chunk(1, before=b"\0")),
        ("chunk-hole-at-end", "bytes of an entry after its last chunk", chunk(2, length=9, raw=9)),
        ("chunk-two-entries", "a chunk goes on in the next entry", chunk_in_two_entries),
        ("chunk-position", "a position beyond the file", chunk(4, shift=1 << 40)),
        ("chunk-position-wraps", "a position that wraps round 2^64", chunk(0, shift=(1 << 64) - (1 << 20))),
        ("span-outside", "a span begins after the last chunk", direction(1, 28, "I", 99)),
        ("span-offset", "a span goes on beyond its chunk", direction(1, 32, "I", 1)),
        ("span-offset-end", "a span begins at the end of its chunk", direction(1, 56, "II", 0, 20)),
        ("span-entry", "a span of a direction in relex.data.base", direction(1, 28, "I", 3)),
        ("span-overlap", "two spans share bytes", tensor(1, 16, "I", 79)),
        ("span-twice", "two tensors share a span", tensor(2, 12, "II", 3, 80)),
        ("span-empty", "the span of an empty file is not (0, 0)", file_row(2, 3, 4)),
        ("span-factors-without", "a span of factors with r = 0", direction(0, 56, "II", 0, 1)),
        (
            "span-hidden",
            "raw bytes at a chunk's end belong to no span",
            file_row(1, 1, 399),
        ),
        (
            "span-hidden-begin",
            "raw bytes at a chunk's begin belong to no span",
            both(file_row(0, 1, 12), file_row(0, 3, 4, 10)),
        ),
        ("span-crossing", "a piece crosses the end of a chunk", split_chunk),
    ]


def invalid() -> Iterator[tuple[str, Invalid]]:
    """All of them."""
    for name, reason, change in placed():
        yield name, Invalid(reason, change)
    verified: list[tuple[str, str, str, Change]] = [
        ("coefficient-nan", "a coefficient is NaN", "embedded", lambda p: p.set_row(1, 1.0, math.nan, 1.0)),
        ("coefficient-infinite", "a coefficient is infinite", "embedded", lambda p: p.set_row(0, 1.0, 2.0, -math.inf)),
        ("coefficients-crc", "the CRC of a row of coefficients", "embedded", direction(0, 36, "I", 1)),
        ("codes-ternary", "a byte 243", "packing-ternary", raw(0, put(0, 243))),
        (
            "codes-ternary-padding",
            "a digit beyond the last element is not z",
            "packing-ternary",
            raw(0, put(0, 121 + 81)),
        ),
        ("codes-quinary", "a byte 125", "packing-quinary", raw(0, put(0, 125))),
        (
            "codes-quinary-padding",
            "a digit beyond the last element is not z",
            "packing-quinary",
            raw(0, put(0, 62 - 25)),
        ),
        ("codes-nibble-low", "digit 15 in the low half", "packing-nibble", raw(0, put(1, 0x7F))),
        ("codes-nibble-high", "digit 15 in the high half", "packing-nibble", raw(0, put(1, 0xF7))),
        ("codes-nibble-padding", "a digit beyond the last element is not z", "packing-nibble", raw(0, put(0, 0x87))),
        ("codes-byte", "digit 255", "packing-byte", raw(0, put(3, 255))),
        ("codes-word", "digit 65535", "packing-word", raw(0, lambda data: data.__setitem__(slice(0, 2), b"\xff\xff"))),
        ("chunk-crc", "the CRC of a chunk", "embedded", chunk(1, crc=1)),
        (
            "frame-content-size",
            "another content size than the raw length",
            "embedded",
            stored(1, 1, lambda r: small_frame(r + b"x", 10)),
        ),
        ("frame-no-content-size", "a frame without a content size", "embedded", stored(1, 1, unsized_frame)),
        ("frame-short", "a frame with less than it states", "embedded", stored(1, 1, short_frame)),
        ("frame-trailing", "a byte after the frame", "embedded", stored(1, 1, lambda r: small_frame(r, 10) + b"\0")),
        ("frame-two", "a second frame after the first", "embedded", stored(1, 1, two_frames)),
        ("frame-cut", "a frame that is cut", "embedded", stored(1, 1, lambda r: small_frame(r, 10)[:-1])),
        ("frame-skippable", "a skippable frame", "embedded", stored(1, 1, skippable_frame)),
        ("frame-dictionary", "a frame that needs a dictionary", "embedded", stored(1, 1, dictionary_frame)),
        ("frame-window", "a window of 2^24 bytes", "embedded", stored(1, 1, lambda r: small_frame(r, 24))),
        ("frame-not", "no frame at all", "embedded", stored(1, 1, lambda r: r)),
        ("filled-short", "codec 2 without the length L", "chunk-codecs", stored(3, 2, lambda r: b"\0\0\0")),
        (
            "filled-length",
            "L beyond the stored bytes",
            "chunk-codecs",
            stored(3, 2, lambda r: b"\xff" * 4 + codec_filled(r, 1)[4:]),
        ),
        (
            "filled-flags",
            "flags of another length",
            "chunk-codecs",
            stored(3, 2, lambda r: codec_filled(r + b"\1" * 7, 1)),
        ),
        (
            "filled-beyond",
            "a flag beyond the last byte",
            "chunk-codecs",
            stored(3, 2, lambda r: codec_filled(r + b"\2", 1)),
        ),
        (
            "filled-fill-byte",
            "a flag at a byte that is the fill byte",
            "chunk-codecs",
            stored(3, 2, lambda r: codec_filled(r, 2)),
        ),
        (
            "filled-fewer",
            "fewer bytes than flags",
            "chunk-codecs",
            stored(3, 2, lambda r: codec_filled(r, 1)[:19] + small_frame(r[:5], 10)),
        ),
        (
            "filled-frame",
            "an empty frame where no flag is set",
            "chunk-codecs",
            stored(4, 2, lambda r: codec_filled(r, 3) + small_frame(b"", 10)),
        ),
        (
            "filled-trailing",
            "a byte after the second frame",
            "chunk-codecs",
            stored(3, 2, lambda r: codec_filled(r, 1) + b"\0"),
        ),
        ("embedded-digest", "a digest of the embedded base", "embedded", patch("relex.digests", 0, "B", 0)),
    ]
    for name, reason, source, change in verified:
        yield name, Invalid(reason, change, source=source, operation="verify")
    yield (
        "read-embedded-digest",
        Invalid(
            "a digest of the embedded base", patch("relex.digests", 0, "B", 0), operation="read", tensor="a.weight"
        ),
    )
    yield (
        "read-coefficient",
        Invalid(
            "a coefficient is NaN", lambda p: p.set_row(1, 1.0, math.nan, 1.0), operation="read", tensor="b.weight"
        ),
    )
    yield (
        "read-codes",
        Invalid("a byte 243", raw(0, put(0, 243)), source="packing-ternary", operation="read", tensor="ternary.1"),
    )
    yield from bases()
    yield from requests()


def bases() -> Iterator[tuple[str, Invalid]]:
    """Bases that are not those that the file was made from."""
    for name, reason, change in (
        ("digest", "the base's bits differ", patch("relex.digests", 15, "B", 0)),
        ("shape", "the base's shape differs", row(0, 2, [3, 2])),
        ("dtype", "the base's dtype differs", origin_dtype(0, "F16")),
        ("missing", "the base lacks the tensor", row(0, 0, "v")),
    ):
        tensor_name = "v" if name == "missing" else "w"
        yield (
            f"base-{name}",
            Invalid(reason, change, source="minimal", error="BaseMismatch", operation="read", tensor=tensor_name),
        )

    given: dict[str, Any] = {"source": "embedded-given", "error": "BaseMismatch", "operation": "read"}
    reason = "a base beside an embedded one, which has other bits and their digest"
    yield "base-given-bits", Invalid(reason, other_origin, tensor="a.weight", **given)
    digest = patch("relex.digests", 0, "B", 0)
    yield "base-given-digest", Invalid("a digest that neither base has", digest, tensor="a.weight", **given)
    yield (
        "base-given-missing",
        Invalid("a base beside an embedded one lacks the tensor", base="minimal", tensor="a.weight", **given),
    )


def other_origin(parts: Parts) -> None:
    """Another origin of `a.weight` in the embedded base, with its digest."""
    data = bytearray(parts.raw[3])
    data[0] ^= 1
    parts.set_raw(3, bytes(data))
    digest = hashlib.sha256(ref.from_planes(bytes(data[:80]), 2)).digest()[:16]
    parts.patch("relex.digests", 0, "16s", digest)


def requests() -> Iterator[tuple[str, Invalid]]:
    """What a caller may not ask for: the files are as they should be."""
    own: dict[str, Any] = {"error": "InvalidArgument", "operation": "read", "tensor": "w", "source": "minimal"}
    minimal: list[tuple[str, str, float, str]] = [
        ("before", "tier track before the first step", 3, "track"),
        ("after", "tier track after the last step", 9, "track"),
        ("exact", "tier exact of a file without it", 4, "exact"),
        ("tier", "a tier that there is not", 4, "nearest"),
        ("line-overflow", "a coefficient of a line that exceeds f32", 1e300, "line"),
        ("line-rounded", "a coefficient that exceeds f32 when it is rounded", 2.7222588542378693e39, "line"),
        ("auto-overflow", "a coefficient that exceeds f32, in tier auto", -1e40, AUTO),
    ]
    for name, reason, step, tier in minimal:
        yield f"argument-{name}", Invalid(reason, **own | {"step": step, "tier": tier})
    others: list[tuple[str, str, float, str, str, str]] = [
        ("track-overflow", "a stored coefficient that exceeds f32", 1, "track", "exact-overflow", "w"),
        ("between-overflow", "a coefficient between steps that exceeds f32", 1.5, AUTO, "exact-overflow", "w"),
        ("f64-overflow", "a coefficient that exceeds f64", 1.7e308, "line", "arithmetic-operations", "three.F32"),
        ("exact-between", "tier exact between two steps", 4, "exact", "exact-small", "w"),
        ("exact-origin", "tier exact at step 0, which is none of the steps", 0, "exact", "exact-small", "w"),
        ("exact-framed", "tier exact, frames of framed tensors only", 5, "exact", "framed", "base"),
    ]
    for name, reason, step, tier, source, own_tensor in others:
        where = {"step": step, "tier": tier, "source": source, "tensor": own_tensor}
        yield f"argument-{name}", Invalid(reason, **own | where)
    yield "argument-base", Invalid("a base that is needed and not given", base="none", **own | {"step": 4})
    yield "argument-tensor", Invalid("a tensor that the file does not have", **own | {"tensor": "v"})
