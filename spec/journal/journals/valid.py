"""The valid journals, with their bases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import reference_decoder as ref
from reference_journal import CHUNK

from .build import MARKER, Bits, Files, Rank, Rows, bf16, part


def random_bits(dtype: str, shape: Sequence[int], seed: int) -> tuple[str, Bits]:
    """A tensor of any bits."""
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, ref.WIDTH[dtype]), np.uint8)
    return dtype, raw.reshape(-1).view(f"<u{ref.WIDTH[dtype]}").reshape(shape)


def changed(rows: Rows, seed: int, share: float) -> Rows:
    """Other bits in a share of the elements."""
    rng = np.random.default_rng(seed)
    found = {}
    for i, (name, (dtype, bits)) in enumerate(rows.items()):
        other = random_bits(dtype, bits.shape, seed + i)[1]
        near = bits + rng.integers(1, 3, bits.shape).astype(bits.dtype)
        new = np.where(rng.random(bits.shape) < 0.5, other, near)
        found[name] = dtype, np.where(rng.random(bits.shape) < share, new, bits).astype(bits.dtype)
    return found


def worked() -> tuple[Files, Rows]:
    """The journal of section 7."""
    base: Rows = {"w": bf16(0x3F80, 0x4000, 0x0000, 0xBF80)}
    rank = Rank(0, 0, 1, None, [part("w", "BF16", [4], "BF16")], base)
    rank.add(7, base, {"w": bf16(0x3F80, 0x4001, 0x0000, 0xBF81)}, codec=0)
    return {"journal.json": MARKER, **rank.files()}, base


def dtypes() -> tuple[Files, Rows]:
    """Every dtype and codec, changes of some elements and of all, a step in which nothing changes."""
    base = {dtype: random_bits(dtype, (6, 7), i) for i, dtype in enumerate(ref.WIDTH)}
    base["scalar"] = random_bits("F32", (), 50)
    base["empty"] = random_bits("BF16", (0, 3), 51)
    rank = Rank(0, 0, 1, None, [part(name, d, bits.shape, d) for name, (d, bits) in base.items()], base)
    rows = base
    for step, (codec, dense, share) in enumerate(
        [
            (0, False, 0.2),
            (1, False, 0.9),
            (2, False, 0.3),
            (0, True, 0.9),
            (1, True, 1.0),
            (2, True, 0.4),
            (1, False, 0),
        ]
    ):
        after = changed(rows, 100 * step + 100, share)
        rank.add(3 * step, rows, after, codec, dense)
        rows = after
    return {"journal.json": MARKER, **rank.files()}, base


def chunks() -> tuple[Files, Rows]:
    """A tensor of two chunks that the base lacks; long skips, and changes at the ends of chunks."""
    size = CHUNK + 300
    zeros: Rows = {"a": ("U8", np.zeros(size, np.uint8)), "b": bf16(1, 2)}
    rank = Rank(0, 0, 1, None, [part("a", "U8", [size], None), part("b", "BF16", [2], "BF16")], zeros)
    rows = zeros
    for step, where in ((10, [0, 255, 511, CHUNK - 1]), (20, [CHUNK, size - 1]), (30, [5, CHUNK + 260])):
        bits = rows["a"][1].copy()
        bits[where] += step
        after = {"a": ("U8", bits), "b": bf16(step, 2)}
        rank.add(step, rows, after)
        rows = after
    return {"journal.json": MARKER, **rank.files()}, {"b": zeros["b"]}


COLUMNS = [([0, 0], [5, 3]), ([0, 3], [5, 4])]
ROWS = [([0, 0], [2, 7]), ([2, 0], [2, 7]), ([4, 0], [1, 7])]


def ranks_and_generations() -> dict[str, Any]:
    """Parts of a journal of three generations: two ranks, three ranks, one; a tail, and steps that are left behind."""
    base: Rows = {
        "m": random_bits("BF16", (5, 7), 1),
        "f": random_bits("F32", (3,), 2),
        "lone": random_bits("I64", (4,), 3),
    }
    whole = [part("f", "F32", [3], "F32"), part("lone", "I64", [4], "I64")]
    first = [
        Rank(0, r, 2, None, [part("m", "BF16", [5, 7], "BF16", COLUMNS[r]), *(whole if r == 0 else [])], base)
        for r in range(2)
    ]
    rows = {0: base}
    for step, before in ((1, 0), (2, 1), (3, 2), (4, 3), (12, 2), (13, 12), (20, 13), (21, 20)):
        rows[step] = changed(rows[before], 7 * step, 0.4)
    for rank in first:
        for step, before in ((1, 0), (2, 1), (3, 2)):
            rank.add(step, rows[before], rows[step])
    first[0].add(4, rows[3], rows[4])  # the other one was killed
    second = [
        Rank(1, r, 3, 2, [part("m", "BF16", [5, 7], "BF16", ROWS[r]), *([whole[r]] if r < 2 else [])], base)
        for r in range(3)
    ]
    for rank in second:
        rank.add(12, rows[2], rows[12])
        rank.add(13, rows[12], rows[13])
    gone = Rank(2, 0, 2, 1, [part("m", "BF16", [5, 7], "BF16", COLUMNS[0]), *whole], base)  # nothing was committed
    third = Rank(3, 0, 1, 13, [part("m", "BF16", [5, 7], "BF16"), *whole], base)
    third.add(20, rows[13], rows[20])
    third.add(21, rows[20], rows[21])
    return {"base": base, "ranks": [*first, *second, gone, third], "rows": rows}


def generations() -> tuple[Files, Rows]:
    """Ranks, generations and tails."""
    made = ranks_and_generations()
    files = {"journal.json": MARKER, "notes.txt": b"ignored", "0009-00000.data": b"ignored"}
    for rank in made["ranks"]:
        files |= rank.files()
    files["0003-00000.steps"] += b"\x07" * 39
    files["0003-00000.data"] += b"cut off"
    files["0001-00002.steps"] += bytes(40)
    return files, made["base"]


def converted() -> tuple[Files, Rows]:
    """A run whose dtypes are not the base's."""
    base: Rows = {
        "a": ("F32", np.array([1.0, -2.5, 3.14159, np.inf, 1e-40], np.float32).view(np.uint32)),
        "b": ("F16", np.array([1.0, 65504.0, 6e-8], np.float16).view(np.uint16)),
    }
    start: Rows = {"a": bf16(0x3F80, 0xC020, 0x4049, 0x7F80, 0x0001), "b": bf16(0x3F80, 0x4780, 0x3380)}
    parts = [part("a", "BF16", [5], "F32"), part("b", "BF16", [3], "F16")]
    rank = Rank(0, 0, 1, None, parts, base)
    rank.add(1, start, {"a": bf16(0x3F81, 0xC020, 0x4049, 0x7F81, 0x0000), "b": start["b"]})
    return {"journal.json": MARKER, **rank.files()}, base


VALID: dict[str, Callable[[], tuple[Files, Rows]]] = {
    "worked": worked, "dtypes": dtypes, "chunks": chunks, "generations": generations, "converted": converted,
}  # fmt: skip
