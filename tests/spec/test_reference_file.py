"""The reference decoder on small files made by hand here after FORMAT.md, good and broken."""

from __future__ import annotations

import hashlib
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zstandard

from support.handmade import W0, Builder, base_of, bf16, expected, filled, half_digest, to_planes
from support.specification import ref

pytestmark = pytest.mark.filterwarnings("error")
OF = [half_digest(b"{}"[:n]) for n in range(4)]
"""Digests of the first bytes of the file that a handmade file embeds."""


@pytest.mark.parametrize("fill", [0, 7, 255])
def test_filled_chunks(fill: int) -> None:
    rng = np.random.default_rng(fill)
    for n in (1, 7, 8, 9, 1000):
        for share in (0.0, 0.5, 1.0):
            raw = np.where(rng.random(n) < share, rng.integers(0, 256, n), fill).astype(np.uint8).tobytes()
            file = ref.RelexFile(Builder().build())
            file.data = filled(raw, fill)
            file.chunks = [ref.Chunk(0, len(file.data), n, zlib.crc32(file.data), 2, fill, bytes(2))]
            assert ref.read_chunk(file, 0) == raw


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\1\0\0",
        bytes(4),
        struct.pack("<I", 99) + filled(b"abcabc", 97)[4:],
        filled(b"abcabc", 97)[:-1],
        filled(b"abcabc", 97) + b"\0",
        filled(b"aaaaaa", 97) + b"\0",
        filled(b"aaaaaa", 97) + zstandard.compress(b""),
        filled(b"abcabc", 98),  # flags a byte that is the fill byte
        filled(b"abcabc" + b"b", 97),  # a flag beyond the end
        filled(b"abcabc" + b"a" * 3, 97),  # two bytes of flags
        filled(b"abcabc", 97)[: -len(zstandard.compress(b"bcbc"))],
        filled(b"abcabc", 97)[: -len(zstandard.compress(b"bcbc"))] + zstandard.compress(b"bcb"),
        filled(b"abcabc", 97)[: -len(zstandard.compress(b"bcbc"))] + b"bcbc",
    ],
)
def test_bad_filled_chunks(stored: bytes) -> None:
    file = ref.RelexFile(Builder().build())
    file.data = stored
    file.chunks = [ref.Chunk(0, len(stored), 6, zlib.crc32(stored), 2, 97, bytes(2))]
    with pytest.raises(ref.Corrupt):
        ref.read_chunk(file, 0)


def test_a_window_of_8_mib_is_allowed() -> None:
    file = ref.RelexFile(Builder().build())
    file.data = b"\x28\xb5\x2f\xfd\x80\x68" + struct.pack("<I", 6) + b"\x31\0\0abcdef"
    file.chunks = [ref.Chunk(0, len(file.data), 6, zlib.crc32(file.data), 1, 0, bytes(2))]
    assert ref.read_chunk(file, 0) == b"abcdef"


@pytest.mark.parametrize("embedded", [False, True])
def test_decode(embedded: bool) -> None:
    file = ref.RelexFile(Builder(embedded).build())
    file.check_all()
    assert list(file.index) == ["w", "same", "framed"] and file.steps == [10, 20] and file.observed == 2
    assert file.manifest[0] == ("w", "BF16", [2, 3], "BF16", [(0, "w", [2, 3], 0, 6)], 6)
    base = None if embedded else base_of
    for step, tier, g in ((10, "auto", 1.5), (20, "auto", 3.0), (12.5, "track", 1.875), (40, "auto", 11.0)):
        assert file.tensor("w", step, tier, base) == expected(g)
    file.observed = 1  # auto leaves the track after the last observed step
    for step, tier, g in ((10, "auto", 1.5), (10.5, "auto", 3.625), (20, "auto", 6.0), (20, "track", 3.0)):
        assert file.tensor("w", step, tier, base) == expected(g)
    assert file.tensor("w", 10, "line", base) == expected(3.5)
    assert file.tensor("w", 0, "line", base) == expected(1.0)
    assert file.tensor("w", 0, "auto", base) == expected(1.0)  # the base lacks a tensor, so it is not step 0
    assert ref.read_tensor(file, 0, 0.0, "origin", base) == bf16(W0)
    assert file.tensor("same", 15, "auto", base) == struct.pack("<2q", 7, -7)
    framed = {0: b"abd", 5: b"abd", 10: b"abd", 19: b"abd", 20: b"xyz", 99: b"xyz"}
    assert {t: file.tensor("framed", t, "auto", base) for t in framed} == framed
    assert file.tensor("framed", 0, "line", base) == b"abd"
    for t in (0, 10, 20):
        with pytest.raises(ref.InvalidArgument):
            file.tensor("framed", t, "exact", base)


def test_caller_errors_and_mismatch() -> None:
    file = ref.RelexFile(Builder().build())
    wrong: list[tuple[str, Any, str]] = [("w", 9, "track"), ("w", 21, "track"), ("w", math.nan, "auto")]
    wrong += [("w", math.inf, "line"), ("w", 10**400, "line"), ("w", "x", "line"), ("w", 1e300, "line")]
    wrong += [("w", 10, "exact"), ("v", 10, "auto")]
    for name, step, tier in wrong:
        with pytest.raises(ref.InvalidArgument):
            file.tensor(name, step, tier, base_of)
    with pytest.raises(ref.InvalidArgument):
        file.tensor("w", 10)
    for bad in (("BF16", [3, 2], bf16(W0)), ("F16", [2, 3], bf16(W0)), ("BF16", [2, 3], bf16(W0 + 1))):
        with pytest.raises(ref.BaseMismatch):
            file.tensor("w", 10, "auto", lambda name, bad=bad: bad)


@pytest.mark.parametrize("embedded", [False, True])
def test_every_flip_and_every_cut_is_noticed(embedded: bool) -> None:
    """One bit of every byte, another one from byte to byte; a checksum that misses a byte misses all its bits."""
    whole = Builder(embedded).build()
    for i in range(len(whole)):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << i % 8
        with pytest.raises((ref.Corrupt, ref.Truncated)):
            ref.RelexFile(bytes(damaged)).check_all()
    for i in range(0 if embedded else len(whole)):
        with pytest.raises(ref.Truncated):
            ref.RelexFile(whole[:i])
    with pytest.raises(ref.Corrupt):
        ref.RelexFile(whole + b"\0")


Change = Callable[[Builder], None]


def direction(index: int, value: Any) -> Change:
    """Another value in the direction's record."""

    def change(b: Builder) -> None:
        row = list(b.directions[0])
        row[index] = value
        b.directions[0] = tuple(row)

    return change


def tensor(which: int, index: int, value: Any) -> Change:
    """Another value in a tensor's record."""

    def change(b: Builder) -> None:
        row = list(b.tensors[which])
        row[index] = value
        b.tensors[which] = tuple(row)

    return change


def chunk(which: int, index: int, value: Callable[[Any], Any]) -> Change:
    """Another value in a chunk's record."""

    def edit(i: int, row: list[Any]) -> list[Any]:
        return [value(x) if (i, j) == (which, index) else x for j, x in enumerate(row)]

    return lambda b: setattr(b, "chunk_changes", edit)


def manifest(key: str, value: Any) -> Change:
    """Another value in the manifest."""
    return lambda b: b.manifest.update({key: value})


def base(**values: Any) -> Change:
    """Other values in the manifest's base."""
    return lambda b: b.manifest["base"].update(values)


def layout(**values: Any) -> Change:
    """Other values in the only layout."""
    return lambda b: b.manifest["layouts"][0].update(values)


def row_of(which: int, index: int, value: Any) -> Change:
    """Another value in a row of the manifest's tensors."""
    return lambda b: b.manifest["tensors"][which].__setitem__(index, value)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.metadata.update(format="pt"),
        lambda b: b.metadata.pop("reader"),
        lambda b: setattr(b, "steps", [20, 10]),
        lambda b: setattr(b, "steps", [10, 10]),
        lambda b: setattr(b, "steps", [-1, 10]),
        lambda b: setattr(b, "steps", [10, (1 << 53) + 1]),
        lambda b: setattr(b, "coverage", lambda name, value: 2 if name == "x" else value),
        lambda b: setattr(b, "coverage", lambda name, value: 1 if name == "x" else value),
        lambda b: setattr(b, "coverage", lambda name, value: 1),
        manifest("observed", 3),
        manifest("observed", 0),
        manifest("observed", True),
        manifest("base", {"embedded": False}),
        manifest("base", {"uri": None, "embedded": 0}),
        manifest("quality", {"name": "x"}),
        manifest("quality", {"name": "x", "growth": True}),
        *(
            change(shards=names)
            for change in (base, layout)
            for names in (
                [],
                ["../model.safetensors"],
                ["model.safetensors\n"],
                ["model.bin"],
                ["a.safetensors", "a.safetensors"],
                ["A.safetensors", "a.safetensors"],
                ["b.safetensors", "a.safetensors"],
            )
        ),
        layout(indexed=None),
        layout(tensors=[0, 0]),
        layout(tensors=[0, 0, 1]),
        layout(files=[0]),
        manifest("layouts", []),
        manifest("layout", 1),
        manifest("steps", [[None, 0]]),
        manifest("steps", [["x", 0], ["X", 0]]),
        manifest("left_out", [["x", 1]]),
        manifest("files", [["config.json", 2, OF[2], 0, 0]]),
        manifest("tensors", []),
        row_of(0, 0, "same"),
        row_of(0, 0, "__metadata__"),
        row_of(0, 1, "F8_E4M3"),
        row_of(0, 2, [7]),
        row_of(0, 2, [0, 3]),
        row_of(0, 2, [2, 3.0]),
        row_of(0, 2, [2, 1 << 48]),
        row_of(0, 2, [1 << 20, 1 << 20]),
        row_of(1, 3, ["I32", [0]]),
        row_of(2, 3, ["I8", [0]]),
        row_of(0, 3, ["BF16", [1]]),
        row_of(0, 3, ["BF16", [[0, "w", [2, 3], 1, 6]]]),
        row_of(0, 3, None),
        tensor(0, 0, 3),
        tensor(0, 0, 4),
        tensor(0, 1, 3),
        tensor(0, 1, 2),
        tensor(0, 2, 2),
        tensor(0, 2, 0),
        tensor(0, 3, 1),
        tensor(0, 4, 1),
        tensor(0, 5, 1),
        tensor(0, 8, bytes(7) + b"\1"),
        direction(0, math.nan),
        direction(1, math.inf),
        direction(2, -1.0),
        direction(2, -0.0),
        direction(3, math.inf),
        direction(5, 0),
        direction(5, 7),
        direction(6, 1),
        direction(7, 1),
        direction(7, 99),
        direction(8, 1 << 20),
        direction(9, 0),
        direction(11, 1),
        direction(11, 99),
        direction(12, 1),
        direction(8, 0),
        lambda b: setattr(b, "framed", ()),
        tensor(2, 7, 0),
        tensor(2, 7, 2),
        tensor(0, 7, 1),
        tensor(2, 1, 2),
        tensor(2, 2, 1),
        tensor(2, 3, 1),
        manifest("exact", 0),
        manifest("exact", None),
        lambda b: b.digests.append(bytes(16)),
        lambda b: setattr(b, "row", (1.5, math.nan)),
        chunk(0, 0, lambda x: x + 1),
        chunk(0, 1, lambda x: x + 1),
        chunk(0, 1, lambda x: 0),
        chunk(0, 2, lambda x: x + 1),
        chunk(0, 2, lambda x: (1 << 21) + 1),
        chunk(0, 3, lambda x: x ^ 1),
        chunk(0, 4, lambda x: 2),
        chunk(0, 4, lambda x: 3),
        chunk(0, 5, lambda x: 1),
        chunk(1, 5, lambda x: 1),
        chunk(0, 4, lambda x: 0),
        chunk(1, 4, lambda x: 1),
        chunk(1, 2, lambda x: x + 1),
        chunk(1, 6, lambda x: b"\0\1"),
    ],
)
def test_broken_rules(change: Change) -> None:
    builder = Builder()
    builder.extra["x"] = ("U8", [], b"ignored")
    change(builder)
    data = builder.build()
    with pytest.raises(ref.Corrupt):
        ref.RelexFile(data).check_all()


@pytest.mark.parametrize(
    "files",
    [
        [["config.json", 2, OF[2], 1, 31], ["CONFIG.json", 0, OF[0], 0, 0]],
        [["config.json", 2, OF[2], 1, 31], ["model.SAFETENSORS", 0, OF[0], 0, 0]],
        [["x.safetensors", 2, OF[2], 1, 31]],
        [["model.safetensors.index.json", 2, OF[2], 1, 31]],
        [["pytorch_model.bin", 2, OF[2], 1, 31]],
        [["x.pt", 2, OF[2], 1, 31]],
        [["x.pth", 2, OF[2], 1, 31]],
        [["x.pkl", 2, OF[2], 1, 31]],
        [["x.ckpt", 2, OF[2], 1, 31]],
        [["a/b", 2, OF[2], 1, 31]],
        [["..", 2, OF[2], 1, 31]],
        [["config.json.", 2, OF[2], 1, 31]],
        [["nul.txt", 2, OF[2], 1, 31]],
        [["trainer_state.json", 2, OF[2], 1, 31]],
        [["adapter_config.json", 2, OF[2], 1, 31]],
        [["weights.model", 2, OF[2], 1, 31]],
        [["config.json", 1, OF[1], 1, 31]],
        [["config.json", 3, OF[3], 1, 31]],
        [["config.json", 2, OF[2], 1, 30]],
        [["config.json", 2, OF[2], 0, 0]],
        [["config.json", 2, OF[2], 1, 31], ["empty.txt", 0, OF[0], 1, 33]],
        [["config.json", 2, OF[2], 1, 31, 0]],
        [],
    ],
)
def test_bad_embedded_files(files: list[Any]) -> None:
    builder = Builder(embedded=True)
    builder.manifest["files"] = files
    builder.manifest["layouts"][0]["files"] = list(range(len(files)))
    with pytest.raises(ref.Corrupt):
        ref.RelexFile(builder.build())


def test_good_embedded_files() -> None:
    builder = Builder(embedded=True)
    half = half_digest(b"{")
    builder.manifest["files"] = [
        ["a.Config.JSON", 1, half, 1, 31],
        ["empty.md", 0, None, 0, 0],
        ["LICENCE", 1, None, 1, 32],
    ]
    builder.manifest["layouts"][0]["files"] = [2, 0]
    ref.RelexFile(builder.build()).check_all()


def test_a_given_base_goes_before_an_embedded_one() -> None:
    file = ref.RelexFile(Builder(embedded=True).build())
    assert file.tensor("w", 10, "auto", base_of) == expected(1.5)
    with pytest.raises(ref.BaseMismatch):
        file.tensor("w", 10, "auto", lambda name: ("BF16", [2, 3], bf16(W0 + 1)))
    file.digests[0] = bytes(16)
    with pytest.raises(ref.Corrupt):
        file.tensor("w", 10)


def test_the_order_of_tensors_is_free() -> None:
    builder = Builder()
    builder.manifest["tensors"].reverse()
    builder.tensors = [
        (2, 1, 0, 0, 0, 1, 0, 1, bytes(8)),
        (0, 0, 0, 0, 0, 0, 0, 0, bytes(8)),
        (1, 0, 1, 0, 1, 0, 0, 0, bytes(8)),
    ]
    builder.digests.reverse()
    file = ref.RelexFile(builder.build())
    assert list(file.index) == ["framed", "same", "w"] and file.tensor("w", 10, "auto", base_of) == expected(1.5)


def test_origins_and_dtypes_of_a_framed_tensor() -> None:
    """A framed BF16 over an F32 of the base: the origin is converted, also as step 0 of the segment."""
    builder = Builder()
    origin = np.array([1.00390625, -2.0], np.float32)
    builder.manifest["tensors"][2] = ["framed", "BF16", [2], ["F32", [0]]]
    builder.tensors[2] = (2, 0, 0, 0, 2, 0, 0, 1, bytes(8))
    builder.digests.append(hashlib.sha256(origin.tobytes()).digest()[:16])
    builder.framed, builder.width = (bf16([1.0, -2.0]), b"abcd", b"efgh"), 2
    builder.raw.pop()
    file = ref.RelexFile(builder.build())

    def base(name: str) -> tuple[str, list[int], bytes]:
        return "F32", [2], origin.tobytes()

    assert file.tensor("framed", 0, "auto", base) == bf16([1.0, -2.0])
    for tier in ("line", "track", "auto"):
        assert file.tensor("framed", 10, tier, base) == b"abcd"
        assert file.tensor("framed", 20, tier, base) == b"efgh"
    for t, tier in ((0, "line"), (15, "track"), (25, "auto")):
        with pytest.raises(ref.InvalidArgument, match="no line"):
            file.tensor("framed", t, tier, base)
    builder.tensors[2] = (2, 1, 0, 0, 0, 0, 0, 1, bytes(8))
    builder.digests.pop()
    with pytest.raises(ref.Corrupt, match="sources of its origin"):
        ref.RelexFile(builder.build())


def test_unknown_things() -> None:
    builder = Builder()
    builder.extra["relex.later.frames"] = ("F32", [], bytes(8))
    builder.manifest["later"] = {"nested": [None]}
    builder.metadata["later"] = "x"
    ref.RelexFile(builder.build()).check_all()
    for key, value in (("requires", "arithmetic"), ("relex_version", "2")):
        builder = Builder()
        builder.metadata.update({key: value, "reader": "7.5"})
        with pytest.raises(ref.Unsupported, match=r"7\.5"):
            ref.RelexFile(builder.build())
    builder = Builder()
    builder.version = 2
    with pytest.raises(ref.Unsupported):
        ref.RelexFile(builder.build())


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"junk and more junk",
        zstandard.compress(b"y" * 6) + b"\0",
        zstandard.compress(b"y" * 6) + zstandard.compress(b"y"),
        zstandard.compress(b"y" * 6)[:-1],
        zstandard.compress(b"y" * 7),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"y" * 6),
        b"\x50\x2a\x4d\x18" + struct.pack("<I", 6) + b"abcdef",  # a skippable frame
        b"\x28\xb5\x2f\xfd\x80\x69" + struct.pack("<I", 6) + b"\x31\0\0abcdef",  # a window above 2^23
    ],
)
def test_bad_frames(frame: bytes) -> None:
    file = ref.RelexFile(Builder().build())
    file.data = frame
    file.chunks = [ref.Chunk(0, len(frame), 6, zlib.crc32(frame), 1, 0, bytes(2))]
    with pytest.raises(ref.Corrupt):
        ref.read_chunk(file, 0)


def test_planes_may_lie_in_chunks_of_their_own() -> None:
    file = ref.RelexFile(Builder().build())
    file.chunks = [ref.Chunk(0, 1, 5, 0, 0, 0, bytes(2))] * 4
    file.chunks_of = {"e": range(0, 4)}
    assert list(ref.walk(file, (1, 0), ref.lengths_of(5, 3), "e")) == [(1, 0, 5), (2, 0, 5), (3, 0, 5)]
    assert list(ref.lengths_of((1 << 18) + 1, 2)) == [1 << 18, 1 << 18, 1, 1]


def test_spans_go_on_in_the_next_chunk() -> None:
    file = ref.RelexFile(Builder().build())
    file.chunks = [ref.Chunk(0, 9, raw, 0, 1, 0, bytes(2)) for raw in (10, 6, 4)]
    file.chunks_of = {"e": range(0, 2)}

    def walk(span: tuple[int, int], lengths: list[int]) -> list[tuple[int, int, int]]:
        return list(ref.walk(file, span, lengths, "e"))

    assert walk((0, 4), [3, 3, 6]) == [(0, 4, 7), (0, 7, 10), (1, 0, 6)]
    assert walk((0, 0), []) == []
    for span, lengths in (((0, 4), [3, 4]), ((0, 10), [1]), ((0, 4), [6, 6, 4]), ((2, 0), [1]), ((0, 1), [])):
        with pytest.raises(ref.Corrupt):
            walk(span, lengths)


def test_factors_of_a_stack_of_matrices() -> None:
    """Shape [2, 2, 3], r = 2, packing `none`, over more than one tensor dimension in front."""
    rng = np.random.default_rng(3)
    a, b = rng.integers(-8, 8, (2, 2, 2)) / 4, rng.integers(-8, 8, (2, 2, 3)) / 4  # matrix, pair, row or column
    values = np.concatenate([np.concatenate([a[h].ravel(), b[h].ravel()]) for h in range(2)])
    builder = Builder()
    builder.raw[0] = to_planes(bf16(values), 2)
    direction(8, 0)(builder)
    builder.manifest["tensors"][0][2] = [2, 2, 3]
    origin = bf16(np.zeros(12))
    builder.digests[0] = hashlib.sha256(origin).digest()[:16]
    for index, value in ((2, 0.0), (3, 0.0), (4, 2), (5, 0)):
        direction(index, value)(builder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = ref.RelexFile(builder.build()).tensor("w", 10, "auto", lambda name: ("BF16", [2, 2, 3], origin))
    product = np.einsum("hji,hjk->hik", a, b)
    assert got == ref.narrow((product * 1.5).astype(np.float32).ravel(), "BF16")


def test_nan_infinities_and_zeros() -> None:
    builder = Builder()
    builder.manifest["tensors"][0] = ["w", "F16", [6], ["F32", [0]]]
    origin = np.array([np.nan, np.inf, -np.inf, -0.0, 70000.0, 2.0**-24], np.float32).tobytes()
    builder.digests[0] = hashlib.sha256(origin).digest()[:16]
    builder.raw[0] = to_planes(np.array([0, -np.inf, np.nan, 0, 0, 0], np.float32).tobytes(), 4)
    for index, value in ((2, 0.0), (3, 0.0), (4, 0), (5, 1), (8, 0)):
        direction(index, value)(builder)
    file = ref.RelexFile(builder.build())
    moved = np.frombuffer(file.tensor("w", 10, "auto", lambda name: ("F32", [6], origin)), "<u2")
    assert moved.tolist() == [0x7E00, 0x7E00, 0x7E00, 0x0000, 0x7C00, 0x0001]
    start = np.frombuffer(ref.read_tensor(file, 0, 0.0, "origin", lambda name: ("F32", [6], origin)), "<u2")
    assert start.tolist() == [0x7E00, 0x7C00, 0xFC00, 0x8000, 0x7C00, 0x0001]
