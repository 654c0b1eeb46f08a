"""Changes that make an invalid journal of a valid one."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import zstandard

from .build import Files, Rank, Rows, bf16, part, safetensors

Change = Callable[[Files], None]


def with_crc(files: Files, change: Callable[[bytearray, dict[str, Any]], dict[str, Any] | None]) -> None:
    """Change the head of the worked journal, and make its CRC right; its commit record stays one of the old head."""
    raw = files["0000-00000.steps"]
    n = struct.unpack_from("<I", raw, 12)[0]
    fixed, document = bytearray(raw[:28]), json.loads(raw[32 : 32 + n])
    document = change(fixed, document) or document
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    struct.pack_into("<I", fixed, 12, len(text))
    crc = zlib.crc32(bytes(fixed) + text)
    record = raw[32 + n : 32 + n + 36]
    files["0000-00000.steps"] = (
        bytes(fixed) + struct.pack("<I", crc) + text + record + struct.pack("<I", zlib.crc32(record, crc))
    )


def head(**values: Any) -> Change:
    """Other values in the head."""
    return lambda files: with_crc(files, lambda _, document: {**document, **values})


def tensor(**values: Any) -> Change:
    """Other values in the only part."""
    return lambda files: with_crc(files, lambda _, d: {**d, "tensors": [{**d["tensors"][0], **values}]})


def record(offset: int, form: str, value: int) -> Change:
    """Another value in the commit record, whose CRC is made right."""

    def change(files: Files) -> None:
        raw = bytearray(files["0000-00000.steps"])
        at, crc = len(raw) - 40, struct.unpack_from("<I", raw, 28)[0]
        struct.pack_into(form, raw, at + offset, value)
        struct.pack_into("<I", raw, at + 36, zlib.crc32(raw[at : at + 36], crc))
        files["0000-00000.steps"] = bytes(raw)

    return change


def with_blob(made: bytes) -> Change:
    """Another blob in the worked journal, with everything around it made right."""

    def change(files: Files) -> None:
        base: Rows = {"w": bf16(0x3F80, 0x4000, 0x0000, 0xBF80)}
        rank = Rank(0, 0, 1, None, [part("w", "BF16", [4], "BF16")], base)
        section = struct.pack("<QII", len(rank.data), len(made), zlib.crc32(made))
        rank.data += made
        rank.commit(7, len(rank.data) - len(made), section + struct.pack("<I", zlib.crc32(section)))
        files |= rank.files()

    return change


def streams(k: int, length: int, *parts: bytes) -> bytes:
    """A blob of these streams."""
    return struct.pack("<II", k, length) + b"".join(parts)


def plain(raw: bytes, codec: int = 0, fill: int = 0) -> bytes:
    """A stream of these bytes."""
    return struct.pack("<BBBH", codec, fill, len(raw) & 255, len(raw) >> 8) + raw


NONE = struct.pack("<BBBH", 255, 0, 0, 0)
TWO = plain(b"\x01\x01")


def flip(name: str, at: int) -> Change:
    """A bit that is wrong."""

    def change(files: Files) -> None:
        raw = bytearray(files[name])
        raw[at] ^= 1
        files[name] = bytes(raw)

    return change


def edit(name: str, how: Callable[[bytes], bytes]) -> Change:
    """Another file."""

    def change(files: Files) -> None:
        files[name] = how(files[name])

    return change


def twice(files: Files) -> None:
    """Two records, the first of which is wrong."""
    raw = bytearray(files["0000-00000.steps"])
    at, crc = len(raw) - 40, struct.unpack_from("<I", raw, 28)[0]
    later = bytearray(raw[at:])
    struct.pack_into("<I", later, 32, 1)
    struct.pack_into("<I", later, 36, zlib.crc32(later[:36], crc))
    raw[at] ^= 1
    files["0000-00000.steps"] = bytes(raw + later)


def after_later(files: Files) -> None:
    """A step that is not later than the one that it follows."""

    def follow(fixed: bytearray, document: dict[str, Any]) -> dict[str, Any]:
        fixed[16:28] = bytes(12)
        return {**document, "after": 7}

    with_crc(files, follow)
    files[DATA] = files[DATA][16:]


def digests_short(files: Files) -> None:
    """Digests that are cut, and no step."""
    files[DATA] = files[DATA][:8]
    files[STEPS] = files[STEPS][:-40]


def other_base(files: Files) -> None:
    """A base with other bits."""
    files["base.safetensors"] = safetensors({"w": bf16(0x3F80, 0x4000, 0, 0x3F80)})


def without(begin: str) -> Change:
    """The files whose names begin so are lost."""

    def change(files: Files) -> None:
        for name in [name for name in files if name.startswith(begin)]:
            del files[name]

    return change


STEPS, DATA = "0000-00000.steps", "0000-00000.data"
INVALID: list[tuple[str, str, str, str, str, Change]] = [
    # name, journal that is changed, what is wrong, error, when it must be noticed, change
    ("marker-format", "worked", "format of journal.json", "Corrupt", "open", edit("journal.json", lambda r: r.replace(b"relex-j", b"other-j"))),
    ("marker-version", "worked", "version 2 of journal.json", "Unsupported", "open", edit("journal.json", lambda r: r.replace(b": 1", b": 2"))),
    ("marker-base", "worked", "base of journal.json is a number", "Corrupt", "open", edit("journal.json", lambda r: r.replace(b"null", b"17"))),
    ("marker-json", "worked", "journal.json is cut", "Corrupt", "open", edit("journal.json", lambda r: r[:-4])),
    ("marker-long", "worked", "journal.json of more than 65,536 bytes", "Corrupt", "open", edit("journal.json", lambda r: r[:-2] + b" " * 65_536 + b"}")),
    ("head-magic", "worked", "magic", "Corrupt", "open", flip(STEPS, 0)),
    ("head-version", "worked", "version 2 of a head", "Unsupported", "open", edit(STEPS, lambda r: r[:8] + b"\x02" + r[9:])),
    ("head-short", "worked", "20 bytes", "Truncated", "open", edit(STEPS, lambda r: r[:20])),
    ("head-cut", "worked", "the JSON of a head is cut", "Truncated", "open", edit(STEPS, lambda r: r[:50])),
    ("head-crc", "worked", "a bit of the JSON", "Corrupt", "open", flip(STEPS, 40)),
    ("head-rank", "worked", "rank is not that of the name", "Corrupt", "open", head(rank=1, world=2)),
    ("head-generation", "worked", "generation is not that of the name", "Corrupt", "open", head(generation=1)),
    ("head-world", "worked", "world is 0", "Corrupt", "open", head(world=0)),
    ("head-world-true", "worked", "world is no integer", "Corrupt", "open", head(world=True)),
    ("head-missing-rank", "worked", "a rank without files, and a commit record", "Corrupt", "open", head(world=2)),
    ("head-after", "worked", "after is negative", "Corrupt", "open", head(after=-1)),
    ("head-after-later", "worked", "after is later than the step", "Corrupt", "open", after_later),
    ("head-tensors", "worked", "tensors is an object", "Corrupt", "open", head(tensors={})),
    ("head-twice", "worked", "a tensor twice", "Corrupt", "open", lambda f: with_crc(f, lambda _, d: {**d, "tensors": d["tensors"] * 2})),
    ("part-dtype", "worked", "an unknown dtype", "Corrupt", "open", tensor(dtype="BF17")),
    ("part-shape", "worked", "a negative size", "Corrupt", "open", tensor(shape=[-4])),
    ("part-large", "worked", "2^48 elements", "Corrupt", "open", tensor(shape=[1 << 24, 1 << 24])),
    ("part-digests", "worked", "more pieces than digests", "Corrupt", "open", tensor(shape=[1 << 40])),
    ("part-box", "worked", "a box that leaves its tensor", "Corrupt", "open", tensor(offset=[1], size=[4])),
    ("part-incomplete", "worked", "elements that no rank has", "Corrupt", "open", tensor(offset=[0], size=[3])),
    ("part-rank", "worked", "offset of another number of dimensions", "Corrupt", "open", tensor(offset=[0, 0], size=[4])),
    ("part-base", "worked", "a base of another kind", "Corrupt", "open", tensor(base="I16")),
    ("digests-crc", "worked", "a bit of the digests", "Corrupt", "open", flip(DATA, 3)),
    ("digests-short", "worked", "the digests are cut", "Truncated", "open", digests_short),
    ("digest-of-another", "worked", "a base with other bits", "BaseMismatch", "read", other_base),
    ("commit-middle", "worked", "a wrong commit record before one that is right", "Corrupt", "open", twice),
    ("commit-begin", "worked", "a step that does not begin where the digests end", "Corrupt", "open", record(8, "<Q", 15)),
    ("commit-index", "worked", "an index of another length", "Corrupt", "open", record(16, "<Q", 42)),
    ("commit-step", "worked", "a step above 2^53", "Corrupt", "open", record(0, "<Q", (1 << 53) + 1)),
    ("commit-end", "worked", "a step that ends beyond the file", "Truncated", "open", edit(DATA, lambda r: r[:-1])),
    ("index-crc", "worked", "a bit of an index", "Corrupt", "verify", flip(DATA, 52)),
    ("blob-crc", "worked", "a bit of a blob", "Corrupt", "verify", flip(DATA, 30)),
    ("blob-short", "worked", "a blob of 7 bytes", "Corrupt", "verify", with_blob(b"\x01" * 7)),
    ("blob-count", "worked", "more changes than elements", "Corrupt", "verify", with_blob(streams(5, 5, plain(bytes(5)), plain(b"\x02" * 5), NONE))),
    ("blob-skips-many", "worked", "more skips than there can be", "Corrupt", "verify", with_blob(streams(1, 2, plain(b"\x01\x01"), plain(b"\x02"), NONE))),
    ("blob-skips-few", "worked", "fewer skips than changes", "Corrupt", "verify", with_blob(streams(2, 1, plain(b"\x01"), plain(b"\x02\x02"), NONE))),
    ("blob-skips-beyond", "worked", "a change beyond the chunk", "Corrupt", "verify", with_blob(streams(2, 2, plain(b"\x01\x02"), plain(b"\x02\x02"), NONE))),
    ("blob-skips-end", "worked", "skips that end with 255", "Corrupt", "verify", with_blob(streams(2, 2, plain(b"\x01\xff"), plain(b"\x02\x02"), NONE))),
    ("blob-skips-absent", "worked", "skips that are absent", "Corrupt", "verify", with_blob(streams(1, 1, NONE, plain(b"\x02"), NONE))),
    ("blob-zero", "worked", "a change that is none", "Corrupt", "verify", with_blob(streams(2, 2, TWO, plain(b"\x02\x00"), NONE))),
    ("blob-dense-zero", "worked", "all changes are none", "Corrupt", "verify", with_blob(streams(0, 0, NONE, NONE))),
    ("blob-dense-skips", "worked", "skips of all elements", "Corrupt", "verify", with_blob(streams(0, 2, TWO, plain(b"\x02\x02"), NONE))),
    ("blob-more", "worked", "a byte after the streams", "Corrupt", "verify", with_blob(streams(2, 2, TWO, plain(b"\x02\x01"), NONE) + b"\0")),
    ("blob-cut", "worked", "a stream is missing", "Corrupt", "verify", with_blob(streams(2, 2, TWO, plain(b"\x02\x01")))),
    ("stream-codec", "worked", "codec 3", "Corrupt", "verify", with_blob(streams(2, 2, TWO, plain(b"\x02\x01", 3), NONE))),
    ("stream-fill", "worked", "a fill byte of codec 0", "Corrupt", "verify", with_blob(streams(2, 2, TWO, plain(b"\x02\x01", 0, 1), NONE))),
    ("stream-length", "worked", "a stored stream of another length", "Corrupt", "verify", with_blob(streams(2, 2, TWO, plain(b"\x02"), NONE))),
    ("stream-absent", "worked", "an absent stream with bytes", "Corrupt", "verify", with_blob(streams(2, 2, TWO, plain(b"\x02\x01"), plain(b"\0", 255)))),
    ("stream-frame", "worked", "a zstd frame of another content size", "Corrupt", "verify", with_blob(streams(2, 2, TWO, plain(zstandard.ZstdCompressor().compress(b"\x02\x01\x01"), 1), NONE))),
    ("stream-empty", "worked", "a stream of no bytes that is not absent", "Corrupt", "verify", with_blob(streams(2, 2, TWO, plain(b"\x02\x01"), plain(b"", 1)))),
    ("ranks-after", "generations", "a generation follows a step that is not there", "Corrupt", "open", without("0001")),
    ("ranks-lost", "generations", "a file of a rank is lost", "Corrupt", "open", without("0000-00001.steps")),
]  # fmt: skip
