"""The vectors of the exact tier (FORMAT.md sections 13 and 14), for make_vectors.py."""

from __future__ import annotations

import importlib.util
import math
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt


def script(name: str) -> ModuleType:
    """A script beside this one, which belongs to no package."""
    full = f"relex_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


v = script("make_vectors")
ref, enc = v.ref, script("exact_encoder")
Bits = npt.NDArray[Any]

# ---- Valid files ----

AUTO = "auto"


def drift(seed: str, start: Bits, count: int, share: int = 3, reach: int = 1, still: int = 0) -> list[Bits]:
    """Bits that move from step to step: about one of `share`, by up to `reach`, after `still` steps of rest."""
    rows = [start]
    for t in range(1, count + 1):
        r = v.noise(f"{seed} {t}", len(start))
        move = np.where((r % share == 0) & (t > still), r // share % (2 * reach + 1) - reach, 0)
        rows.append(rows[-1] + move.astype(f"<i{start.itemsize}").view(start.dtype))
    return rows


def bits(seed: str, n: int, dtype: str) -> Bits:
    """Any bits; of floats, those of values between -1 and 1."""
    if dtype in ref.FLOAT:
        result: Bits = v.floats(seed, [n], dtype)
        return result
    width = ref.WIDTH[dtype]
    raw: Bits = v.noise(seed, n * width).astype(np.uint8).view(f"<u{width}")
    return raw & 1 if dtype == "BOOL" else raw


def recipe(
    steps: list[int],
    tensors: list[Any],
    exact: Any,
    reads: Sequence[tuple[float, str]] = ((0, AUTO),),
    **more: Any,
) -> Any:
    """A file with the exact tier, of which every stored step is read, and further reads."""
    every = [(t, "exact") for t in steps]
    return v.Recipe(steps, tensors, [*every, *reads], change=exact, expected=exact.rows, **more)


def small() -> Any:
    """Two segments, the second from a step inside the first; flat tables. Most invalid files are made of it."""
    rows = {
        "w": drift("small w", bits("small w", 6, "BF16"), 5, 2, 2),
        "count": [v.integers([t, -t], "I64") for t in range(6)],
        "later": drift("small later", bits("small later", 3, "F32"), 5, 1, 9, 3),
    }
    tensors = [
        v.Tensor("w", "BF16", [2, 3], rows["w"][0]),
        v.Tensor("count", "I64", [2], rows["count"][0]),
        v.Tensor("empty", "BF16", [0], np.zeros(0, "<u2")),
        v.Tensor("later", "F32", [3], rows["later"][0], "stored"),
    ]
    plans = [enc.Plan(3, key=None, models=2, model=lambda step, level: min(level, 1)), enc.Plan(2, 2, key=None)]
    exact = enc.Exact(rows, plans, {"later": 2}, ["count"])
    return recipe([1, 2, 3, 5, 8], tensors, exact, [(0, AUTO), (3, AUTO), (4, AUTO), (9, AUTO)])


def one_step() -> Any:
    """T = 1, after step 0 too: scalars, a tensor without elements, a `series` without elements, dense words."""
    rows = {
        "w": drift("one w", bits("one w", 5, "BF16"), 1),
        "scalar": drift("one s", bits("one s", 1, "F16"), 1, 1, 3),
        "flag": [np.array([t], "u1") for t in range(2)],
    }
    tensors = [
        v.Tensor("w", "BF16", [5], rows["w"][0]),
        v.Tensor("scalar", "F16", [], rows["scalar"][0]),
        v.Tensor("empty", "F32", [0], np.zeros(0, "<u4")),
        v.Tensor("empty.series", "I8", [2, 0], np.zeros(0, "u1")),
        v.Tensor("flag", "BOOL", [], rows["flag"][0], "stored"),
    ]
    exact = enc.Exact(rows, [enc.Plan(1, dense=[16])], series=["flag", "empty.series"])
    return recipe([0], tensors, exact, [(0, AUTO), (0, "track"), (0, "line"), (3, AUTO)])


def many_steps(count: int) -> Any:
    """A model for each level, tables by context; tensors that move much, little and not at all."""
    rows = {
        "much": drift(f"many {count}", bits(f"many much {count}", 60, "BF16"), count, 2, 2),
        "little": drift(f"little {count}", bits(f"many little {count}", 40, "BF16"), count, 30),
        "still": [bits(f"many still {count}", 9, "BF16")] * (count + 1),
    }
    tensors = [v.Tensor(name, "BF16", [len(own[0])], own[0]) for name, own in rows.items()]
    models = 1 + max(enc.levels(count).values())
    exact = enc.Exact(rows, [enc.Plan(count, models=models, model=lambda step, level: level, key=enc.by_context)])
    return recipe([3 * t + 1 for t in range(count)], tensors, exact)


def special_values() -> Any:
    """NaNs of all kinds, infinities, zeros, subnormals, each becoming each; all bytes of the dtypes of one byte."""
    rows = {}
    for dtype in ref.FLOAT:
        own = v.special(dtype)
        rows[dtype] = [np.roll(own, t * t) for t in range(6)]
    for dtype in ("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"):
        rows[dtype] = drift(f"special {dtype}", np.arange(256, dtype="u1")[:: 3 if dtype[-1] == "Z" else 1], 5, 4, 3)
    tensors = [v.Tensor(name, name, [len(own[0])], own[0]) for name, own in rows.items()]
    return recipe([2, 4, 6, 8, 10], tensors, enc.Exact(rows, [enc.Plan(5, dense=[5])]))


def dtypes() -> Any:
    """Every dtype, as `series` and as `same`, from the base and from the file."""
    rows, tensors = {}, []
    for i, dtype in enumerate(ref.WIDTH):
        rows[dtype] = drift(dtype, bits(dtype, 7, dtype), 3, 2, 1)
        if dtype == "BOOL":
            rows[dtype] = [row & 1 for row in rows[dtype]]
        origin = "base" if i % 3 else "stored"
        tensors.append(v.Tensor(dtype, dtype, [7], rows[dtype][0], origin))
    tensors.sort(key=lambda tensor: tensor.origin == "stored")
    series = [dtype for dtype in ref.WIDTH if dtype not in ref.FLOAT or dtype == "F16"]
    return recipe([1, 2, 3], tensors, enc.Exact(rows, [enc.Plan(3, key=enc.by_context)], series=series))


def series() -> Any:
    """Tensors of kind `series`: every tier at and between the steps, the first of which is 0."""
    values = [[-1, -2], [0, 7], [1, 7], [1, 8], [1 << 40, 8]]
    rows = {
        "base": [v.integers(own, "I64") for own in values],
        "stored": [v.integers(own, "I8") for own in ([5, 6], [5, 6], [6, 6], [-128, 127], [127, -128])],
        "float": [v.from_floats(own, "BF16") for own in ([1, 2], [1, math.inf], [-math.inf, 2], [0, 0], [1, 2])],
    }
    rows["float"][0] = v.from_floats([1e-41, 3.14159], "BF16")
    tensors = [
        v.Tensor("base", "I64", [2], rows["base"][0]),
        v.Tensor("float", "BF16", [2], v.from_floats([1e-41, 3.14159], "F32"), origin_dtype="F32"),
        v.Tensor("stored", "I8", [2], rows["stored"][0], "stored"),
    ]
    exact = enc.Exact(rows, [enc.Plan(3), enc.Plan(1, 3)], series=list(rows))
    reads = [(t, AUTO) for t in (0, 0.5, 5, 8.75, 9, 100, -3)] + [(0, "track"), (6, "track"), (0, "line"), (-5, "line")]
    return recipe([0, 5, 9, 12], tensors, exact, reads)


def moving() -> Any:
    """Directions and the exact tier: `auto` is exact at all steps, the track between observed ones, else the line."""
    steps = [4, 6, 10, 20]
    direction = v.quantised("exact moving", 12, "byte", (0.1, 0.25, -0.5, 1.0))
    own = drift("exact moving", bits("exact moving", 12, "F16"), 4, 1, 40)
    start = drift("exact started", bits("exact started", 12, "BF16"), 4, 2, 3)
    tensors = [
        v.Tensor("moving", "F16", [3, 4], own[0], directions=[direction]),
        v.Tensor("same", "BF16", [12], start[0]),
        v.Tensor("not.held", "F16", [3, 4], own[0], directions=[direction]),
    ]
    reads = [(t, AUTO) for t in (0, 4, 5, 7.5, 10, 15, 20, 21)] + [(6, "track"), (20, "track"), (10, "line")]
    exact = enc.Exact({"moving": own, "same": start}, [enc.Plan(2), enc.Plan(2, 1)])
    return recipe(steps, tensors, exact, reads, observed=3)


def overflow() -> Any:
    """A coefficient that exceeds f32, at a step that the exact tier has."""
    own = drift("exact overflow", bits("exact overflow", 4, "F32"), 2, 1, 9)
    direction = v.quantised("exact overflow", 4, "ternary", (1e300, 1.0))
    tensors = [v.Tensor("w", "F32", [4], own[0], directions=[direction])]
    return recipe([1, 2], tensors, enc.Exact({"w": own}, [enc.Plan(2)]), [(0, AUTO), (1, AUTO), (2, "track")])


def segments() -> Any:
    """Four segments: from the origin, an earlier end, a step inside an earlier one; tensors that begin later."""
    rows = {
        "first": drift("segments 1", bits("segments 1", 20, "BF16"), 10),
        "second": drift("segments 2", bits("segments 2", 20, "BF16"), 10, still=4),
        "third": drift("segments 3", bits("segments 3", 4, "F32"), 10, 2, still=7),
        "last": drift("segments 4", bits("segments 4", 3, "U8"), 10, 1, still=8),
    }
    types = {"first": "BF16", "second": "BF16", "third": "F32", "last": "U8"}
    tensors = [v.Tensor(name, dtype, rows[name][0].shape, rows[name][0]) for name, dtype in types.items()]
    tensors.insert(1, v.Tensor("none", "F16", [3], bits("segments none", 3, "F16")))
    plans = [enc.Plan(4), enc.Plan(3, 4), enc.Plan(1, 2), enc.Plan(2)]
    exact = enc.Exact(rows, plans, {"second": 2, "third": 3, "last": 4}, ["last"])
    return recipe(list(range(10, 110, 10)), tensors, exact, [(0, AUTO), (60, AUTO), (65, AUTO)])


def chain() -> Any:
    """As many frames as a step may need: five segments of one step, each from the one before, and L = 1."""
    rows = {name: drift(f"chain {name}", bits(f"chain {name}", 4, "BF16"), 5, 2) for name in ("a", "b")}
    tensors = [v.Tensor(name, "BF16", [4], own[0]) for name, own in rows.items()]
    return recipe([1, 2, 3, 4, 5], tensors, enc.Exact(rows, [enc.Plan(1, k, most=1) for k in range(5)]))


def groups() -> Any:
    """Groups of at most ten words: by dtype, by size, of a part that is larger; two words of an element."""
    types = {"a": "BF16", "b": "BF16", "c": "BF16", "d": "F16", "e": "BF16", "f": "BF16", "g": "C64", "h": "C64"}
    sizes = {"a": 4, "b": 6, "c": 1, "d": 3, "e": 30, "f": 2, "g": 4, "h": 2}
    rows = {name: drift(f"groups {name}", bits(name, sizes[name], dtype), 2, 2) for name, dtype in types.items()}
    tensors = [v.Tensor(name, dtype, [sizes[name]], rows[name][0]) for name, dtype in types.items()]
    return recipe([1, 2], tensors, enc.Exact(rows, [enc.Plan(2, most=10)]))


def embedded() -> Any:
    """An embedded base, and entries between those of the tier that a reader does not know."""
    types = {"a": "BF16", "b": "I32", "c": "F32"}
    rows = {name: drift(f"embedded {name}", bits(name, 8, dtype), 3, 2) for name, dtype in types.items()}
    tensors = [v.Tensor(name, dtype, [8], rows[name][0]) for name, dtype in types.items()]
    files = {"config.json": b"{}"}

    def more(parts: Any) -> None:
        known = parts.entries
        parts.entries = {}
        for name, raw in known.items():
            parts.entries[name] = raw
            if name == ref.FRAMES:
                parts.entries |= {"org.example": bytearray(b"ignored"), "relex.later": bytearray(3)}
        parts.dtypes |= {"org.example": "U8", "relex.later": "U8"}

    exact = enc.Exact(rows, [enc.Plan(3)], series=["b"], more=more)
    return recipe([1, 2, 3], tensors, exact, embedded=True, files=files)


def origin_dtypes() -> Any:
    """Steps of another float dtype than the origin, whose bits are those of `same`: one NaN, rounded values."""
    rows, tensors = {}, []
    values = [1.0009765625, -3.14159, 70000.0, 1e-5, 6e-8, -1e-41, 3.4e38, math.nan, -math.inf, -0.0]
    for origin in ref.FLOAT:
        for dtype in ref.FLOAT:
            name = f"{origin}.{dtype}"
            start = v.from_floats(values, origin)
            same = start if origin == dtype else v.from_floats(ref.widen(start.tobytes(), origin), dtype)
            rows[name] = drift(name, same, 2, 2, 2)
            tensors.append(v.Tensor(name, dtype, [10], start, origin_dtype=origin))
    return recipe([5, 6], tensors, enc.Exact(rows, [enc.Plan(2)]))


def coding_1() -> Any:
    """Parts in coding 1: first frames and others, before and after coding 0; two words of an element."""
    types = {"a": "BF16", "b": "BF16", "c": "BF16", "d": "F64", "e": "I16", "f": "F8_E5M2"}
    rows = {name: drift(f"xor {name}", bits(f"xor {name}", 9, dtype), 7, 2, 2) for name, dtype in types.items()}
    tensors = [v.Tensor(name, dtype, [9], rows[name][0]) for name, dtype in types.items()]
    xored = [("a", 7), ("b", 3), ("c", 1), ("c", 5), ("c", 6), *(("d", t) for t in range(1, 8)), ("e", 7), ("f", 5)]
    exact = enc.Exact(rows, [enc.Plan(7, xored=xored, dense=[3])], series=["d", "e"])
    return recipe([1, 2, 3, 4, 5, 6, 7], tensors, exact)


def far() -> Any:
    """Ends far apart, from one end of the words to the other, and words below and above their ends."""
    top = (1 << 32) - 1
    table = [
        [0, 0, top, top, 1 << 31, 5, 100, 100, 7, 7, 7, 7, 7, 7, 0, top],
        [top, 1, 0, top - 1, 0, 70, 300, 50, 7, 8, 7, 6, 7, 10, 3, top - 2],
        [0, 9, 1 << 31, 3, top, 200, 200, 400, 9, 7, 3, 9, 6, 8, top, 5],
        [top, 100, 2, top, 1, 130, 250, 100, 8, 9, 12, 5, 9, 9, 1, top - 1],
        [1, 1000, top, 0, 1 << 31, 135, 333, 90, 9, 10, 10, 8, 8, 7, top - 1, 0],
    ]
    rows: dict[str, list[Bits]] = {}
    for dtype in ("U32", "I32", "F32", "U16", "I8", "BF16"):
        shift = 32 - 8 * ref.WIDTH[dtype]
        mod = 1 << 8 * ref.WIDTH[dtype]
        own = [[u >> shift if u >> 20 else u % mod for u in row] for row in table]
        rows[dtype] = [np.array(row, f"<u{ref.WIDTH[dtype]}") for row in own]
    tensors = [v.Tensor(name, name, [16], bits[0]) for name, bits in rows.items()]
    return recipe([1, 2, 3, 4], tensors, enc.Exact(rows, [enc.Plan(4)], series=["U32", "I32", "U16", "I8"]))


def lanes() -> Any:
    """Four lanes, for 2^14 and more dense words; 2^14 - 1 have one lane, and so have lists of any length."""
    rows = {}
    for name, n in (("most", 17387), ("just", 1 << 14), ("less", (1 << 14) - 1)):
        start = np.full(n, 0x3F80, "<u2")
        middle = start + (v.noise(f"lanes {name}", n) < 6000).astype("<u2")
        middle[5::4111] += np.array([700, 65000, 2, 9, 3][: len(middle[5::4111])], "<u2")
        last = start + np.uint16(1)
        last[7::5003] += np.uint16(50)
        rows[name] = [start, middle, last]
    tensors = [v.Tensor(name, "BF16", [len(own[0])], own[0], "stored") for name, own in rows.items()]
    plan = enc.Plan(2, models=2, model=lambda step, level: level, dense=[16, 0])
    return recipe([1, 2], tensors, enc.Exact(rows, [plan]))


def pieces() -> Any:
    """A tensor of two pieces, of which the second never moves, beside one of one piece, all in two groups."""
    n = (1 << 18) + 5
    start = np.zeros(n, "u1")
    rows = {"large": [start, start.copy(), start.copy()], "small": drift("pieces", bits("pieces", 9, "U8"), 2, 2)}
    rows["large"][1][[0, 70000, (1 << 18) - 1]] = [1, 255, 3]
    rows["large"][2][[1, 70000, 200000]] = [1, 254, 9]
    tensors = [v.Tensor(name, "U8", [len(own[0])], own[0], "stored") for name, own in rows.items()]
    return recipe([1, 2], tensors, enc.Exact(rows, [enc.Plan(2, most=1 << 18)], series=["large"]))


def models() -> Any:
    """255 models, of which a few are used; one table for all contexts; dense classes 0 to 16; classes cut off."""
    rows = {"w": drift("models", v.floats("models", [50], "F32", 1e6), 6, 2, 300)}
    rows["w"] = [np.concatenate([row, [0, 1 << 31, 0x7F800000]]).astype("<u4") for row in rows["w"]]
    tensors = [v.Tensor("w", "F32", [53], rows["w"][0])]
    first = enc.Plan(3, models=255, model=lambda step, level: [254, 0, 7][level], dense=[*range(17), 15], low=130)
    second = enc.Plan(3, 3, key=lambda context: 0, low=255, dense=[1])
    return recipe([1, 2, 3, 4, 5, 6], tensors, enc.Exact(rows, [first, second]))


def nothing(tensors: Sequence[Any] = ()) -> Any:
    """No segment holds a tensor: no groups, and empty blocks."""
    exact = enc.Exact({}, [enc.Plan(2, models=3), enc.Plan(1, 2)])
    return recipe([1, 2, 7], list(tensors), exact, [(0, AUTO), (7, AUTO)])


def streams() -> Any:
    """Streams that an encoder would not choose, all with the flat table; the second segment has dense words."""
    one = 0x3F80
    still = [one, one, one]
    quiet, gap, move, dense = ref.COUNT, ref.GAP + 15, ref.MOVE + 15, ref.DENSE + 15
    turn = 2 * (1 << 16)  # stands for a move of 2H
    made: dict[str, tuple[list[list[int]], dict[int, Callable[..., bytes]]]] = {
        # nothing moves, and a stream says so
        "silent": ([still] * 6, {step: said((quiet, 0)) for step in (3, 1, 2, 4)}),
        # no word moves, in a first frame with dense words
        "none": ([still] * 6, {5: lambda part, model, pen: b""}),
        # a lane of eight bytes that needs fewer
        "padded": ([still, [one, one + 1, one], [one, one + 2, one], [one, one + 1, one + 1]], {3: longer, 1: longer}),
        # words that move by multiples of 2H do not differ: they are in no list
        "turned": (
            [still, [one, one + 1, one], [one, one + 1, one + 1], still, [one, one + 2, one], [one, one + 1, one]],
            {
                3: said((quiet, 2), (gap, 0), (move, turn - 1), (gap, 1), (move, 2 * turn - 1)),
                5: said((dense, turn), (dense, 2), (dense, 3 * turn), (quiet, 0)),
            },
        ),
        "turned.later": (
            [still, still, [one, one + 3, one], [one, one, one + 2]],
            {1: said((400 + 5 * 15 + 2, 0), (quiet, 1), (gap, 1), (move, turn - 1))},
        ),
        "above": ([still, [one, one + 9, one], [one, one + 1, one + 4], [one, one + 2, one + 3]], {1: high_symbol}),
        "around": ([still, [one + 20] * 3, [one + 9, one, one], [one + 60, one, one]], {1: one_turn_more}),
        "zero": ([still, [one + 5, one, one], still, [one + 30000, one, one + 35000]], {3: through_zero}),
        "zero.later": ([still, [one + 20000, one + 40000, one], [one, one, one + 1], still], {1: through_zero}),
    }
    rows = {name: [np.array(row, "<u2") for row in own + own[-1:] * (6 - len(own))] for name, (own, _) in made.items()}
    by_step = {(name, step): make for name, (_, own) in made.items() for step, make in own.items()}
    tensors = [v.Tensor(name, "BF16", [3], own[0]) for name, own in rows.items()]
    exact = enc.Exact(rows, [enc.Plan(3, key=None, made=by_step), enc.Plan(2, 3, key=None, dense=[16])])
    exact.plans[1].made = {(name, step - 3): make for (name, step), make in by_step.items() if step > 3}
    return recipe([1, 2, 3, 4, 5], tensors, exact)


def said(*takes: tuple[int, int]) -> Any:
    """A stream of numbers in contexts, of one lane."""

    def make(part: Any, model: Any, pen: Any) -> bytes:
        own = enc.Pen(0)
        for context, value in takes:
            own.number(context, value)
        return bytes(own.stream(model))

    return make


def longer(part: Any, model: Any, pen: Any) -> bytes:
    """The lane in eight bytes, the last of them 0."""
    stream = pen.stream(model)
    assert len(stream) < 8
    return bytes(stream.ljust(8, b"\0"))


def high_symbol(part: Any, model: Any, pen: Any) -> bytes:
    """Symbol 63 instead of d + 2 for a word above its ends."""
    at = next(i for i, (_, context, _) in enumerate(pen.takes) if context == ref.ABOVE)
    lane, context, _ = pen.takes[at - 1]
    pen.takes[at - 1] = lane, context, 63
    return bytes(pen.stream(model))


def one_turn_more(part: Any, model: Any, pen: Any) -> bytes:
    """A word between ends that are far apart, its y larger by 2H."""
    own = enc.Pen(0)
    for lane, context, value in pen.takes:
        if context is not None and 880 <= context < ref.GAP:
            assert value == 0
            own.number(context, enc.zigzag(part.mod))
        else:
            own.takes.append((lane, context, value))
    return bytes(own.stream(model))


def through_zero(part: Any, model: Any, pen: Any) -> bytes:
    """A stream whose lane becomes 0: the next word leaves it below 2^32, and no other is taken in until it is used."""
    rest = enc.Pen(0)
    rest.takes = pen.takes[2:]
    (x,) = struct.unpack("<Q", rest.stream(model).ljust(8, b"\0"))
    assert 1 << 32 <= x < 1 << 58
    (_, count, c), (_, gap, s) = pen.takes[:2]
    assert count == ref.COUNT and gap is not None and c in (2, 3)  # symbols that no raw bits follow
    f, start = enc.frequency(model, gap, s)
    word = (x >> 32) // f * 4096 + (x >> 32) % f + start
    first: int = enc.frequency(model, ref.COUNT, c)[1]
    return first.to_bytes(5, "little") + struct.pack("<II", word, x & 0xFFFFFFFF)


VALID: dict[str, Any] = {
    "exact-small": small(),
    "exact-steps-1": one_step(),
    "exact-steps-2": many_steps(2),
    "exact-steps-17": many_steps(17),
    "exact-special-values": special_values(),
    "exact-dtypes": dtypes(),
    "exact-series": series(),
    "exact-moving": moving(),
    "exact-overflow": overflow(),
    "exact-segments": segments(),
    "exact-chain": chain(),
    "exact-groups": groups(),
    "exact-embedded": embedded(),
    "exact-origin-dtypes": origin_dtypes(),
    "exact-coding-1": coding_1(),
    "exact-far": far(),
    "exact-lanes": lanes(),
    "exact-pieces": pieces(),
    "exact-models": models(),
    "exact-streams": streams(),
    "exact-nothing": nothing(),
    "exact-still": nothing([v.Tensor("w", "BF16", [3], bits("still", 3, "BF16"))]),
}


# ---- Invalid files ----

Change = Callable[[Any], Any]


def segment(k: int, **values: int) -> Change:
    """Other values in the record of a segment."""
    return lambda parts: parts.tier.segments[k].record.update(values)


def block(k: int, step: int, **values: Any) -> Change:
    """Another block; step 0 is that of the models."""

    def change(parts: Any) -> None:
        blocks = parts.tier.segments[k].blocks
        blocks[step] = replace(blocks[step], **values)

    return change


def index(k: int, step: int, *ends: int) -> Change:
    """Other ends in the index of a block."""

    def edit(raw: bytearray) -> None:
        for group, end in enumerate(ends):
            struct.pack_into("<Q", raw, 12 * group, end % (1 << 64))

    return block(k, step, edit=edit)


def blob(k: int, step: int, group: int, make: Callable[[bytes], bytes]) -> Change:
    """Another blob, made of the one that was there."""

    def change(parts: Any) -> None:
        blobs = parts.tier.segments[k].blocks[step].blobs
        blobs[group] = make(blobs[group])

    return change


def content(make: Callable[[bytes], bytes]) -> Change:
    """Another content of the first blob of models."""
    return blob(0, 0, 0, lambda old: enc.frame(make(ref.unframe(old, ref.content_size(old, 0, 1 << 30)))))


def tables(*own: list[int]) -> Change:
    """Other tables of the first model."""

    def make(raw: bytes) -> bytes:
        low, models = ref.parse_models(raw, 2)
        return bytes(enc.models_raw(low, [models[0]._replace(tables=list(own)), models[1]]))

    return content(make)


def numbers(*raw: bytes) -> Change:
    """Other lengths of streams in the frame of step 1, which has one part, than they are."""
    return blob(0, 1, 0, lambda old: enc.frame_blob(ref.parse_frame(old, 1), raw))


def stream(name: str, step: int, make: Callable[..., bytes], source: str = "exact-small") -> Change:
    """Another stream of a part in the first segment."""

    def change(parts: Any) -> None:
        exact = VALID[source].change
        first = replace(exact.plans[0], made={(name, step): make})
        parts.tier = replace(exact, plans=[first, *exact.plans[1:]]).tier(ref.RelexFile(parts.source))

    return change


def spoken(make: Callable[[bytes], bytes]) -> Callable[..., bytes]:
    """A stream made of the one that it should be."""
    return lambda part, model, pen: make(pen.stream(model))


def ended(*lanes: int) -> Callable[..., bytes]:
    """A stream whose lanes end otherwise."""

    def make(part: Any, model: Any, pen: Any) -> bytes:
        return bytes(pen.stream(model, lanes))

    return make


def moved_one(entry: str, after: str) -> Change:
    """An entry in another place."""

    def change(parts: Any) -> None:
        there = {name: raw for name, raw in parts.entries.items() if name != entry}
        parts.entries = {}
        for name, raw in there.items():
            parts.entries[name] = raw
            if name == after:
                parts.entries[entry] = bytearray(entry.encode())

    return change


def fixed(entry: str, edit: Callable[[bytearray], Any]) -> Change:
    """Other bytes of an entry, whatever the tier says."""

    def change(parts: Any) -> None:
        edit(parts.entries[entry])
        parts.tier = None

    return change


def without_base(parts: Any) -> None:
    """A series without an origin."""
    parts.patch("relex.tensors", 32 * 3, "BB", 2, 2)
    parts.patch("relex.tensors", 32 * 3 + 12, "II", 0, 0)
    parts.chunks.clear()


def with_spans(parts: Any) -> None:
    """A series with spans, one for each step, as without the tier."""
    parts.entries["relex.series"] += bytes(8 * 5)
    parts.chunks.insert(0, v.Chunk("relex.data.exact", bytes(16), 16, 0))
    parts.patch("relex.tensors", 32 * 3 + 12, "I", 1)


def xored(make: Callable[[bytes], bytes]) -> Change:
    """Another stream of coding 1: that of the first part in the frame of step 7."""

    def change(old: bytes) -> bytes:
        found = ref.parse_frame(old, 3)
        return bytes(enc.frame_blob([found[0]._replace(stream=make(found[0].stream)), *found[1:]]))

    return blob(0, 7, 0, change)


def opened() -> Iterator[tuple[str, str, Change]]:
    """Name, reason and change of files that are refused when they are opened."""
    segments, frames, data = ref.EXACT
    yield "missing-segments", "frames without segments", v.rename(segments)
    yield "missing-frames", "segments without frames", v.rename(frames)
    yield "missing-data", "records without blocks", v.rename(data)
    yield "order-records", "frames before segments", moved_one(segments, frames)
    yield "order-base", "blocks before the base", moved_one(data, "relex.data.exact")
    yield "segments-shape", "segments in one dimension", v.header(segments, shape=[96])
    yield "frames-shape", "records of 12 bytes", v.header(frames, shape=[10, 12])
    yield "frames-dtype", "frames of I8", v.header(frames, dtype="I8")
    yield "frames-fewer", "a step without a record", fixed(frames, lambda raw: raw.__delitem__(slice(96, None)))
    yield "data-dtype", "blocks of I8", v.header(data, dtype="I8")
    yield "coverage-data", "coverage 0 of the blocks", lambda p: p.coverage.update({data: 0})
    yield "coverage-frames", "coverage 1 of the frames", lambda p: p.coverage.update({frames: 1})
    yield "tensor-segment", "a segment after the last", v.tensor(3, 20, "I", 3)
    yield "tensor-segment-empty", "an empty tensor in a segment", v.tensor(2, 20, "I", 1)
    yield "tensor-segment-none", "a series that no segment holds", v.tensor(1, 20, "I", 0)
    yield "tensor-reserved", "reserved bytes of a tensor", v.tensor(0, 24, "B", 1)
    yield "series-spans", "spans of a series beside the tier", with_spans
    yield "series-first", "an index of spans that there are not", v.tensor(1, 4, "I", 1)
    yield "series-no-origin", "a series without an origin", without_base


def records() -> Iterator[tuple[str, str, Change]]:
    """Those in which the records of segments and frames are wrong: nothing of the tier can be read."""
    yield "segment-gap", "a step between two segments", segment(1, before=4)
    yield "segment-overlap", "a step in two segments", segment(1, before=2)
    yield "segment-empty", "a segment without steps", segment(0, count=0)
    yield "segment-short", "a step after the last segment", one_less
    yield "segment-long", "a segment that goes on after the last step", segment(1, count=3)
    yield "segment-huge", "2^32 - 1 steps", segment(1, count=(1 << 32) - 1)
    yield "left-own", "a left end inside the segment", segment(1, left=4)
    yield "left-first", "a left end of the first segment", segment(0, left=1)
    yield "models-none", "no models", segment(1, models=0)
    yield "models-many", "256 models", segment(1, models=256)
    yield "limit-none", "groups of no words", segment(0, most=0)
    yield "segment-reserved", "reserved bytes", lambda p: setattr(p.tier.segments[1], "reserved", b"\0\0\0\0\1\0\0\0")
    yield "frame-model", "a model that the segment lacks", block(0, 2, model=2)
    yield "frame-reserved", "reserved bytes", block(1, 1, reserved=b"\1" + bytes(6))
    yield "frames-order", "blocks in the order of the steps", by_step
    yield "block-first", "the first block does not begin with its entry", block(0, 0, ahead=b"\0")
    yield "block-hole", "a byte between two blocks", block(1, 0, ahead=b"\0")
    yield "block-overlap", "a block ends in the next one", block(0, 1, longer=1)
    yield "block-position", "a position beyond the file", block(0, 1, shift=1 << 40)
    yield "block-beyond", "the last block ends after its entry", block(1, 1, longer=1)
    yield "block-tail", "a byte after the last block", lambda p: setattr(p.tier, "tail", b"\0")


def blobs() -> Iterator[tuple[str, str, Change]]:
    """Those in which what is needed for the tensor `w` at the second step cannot be used."""
    yield "groups-more", "a group too many", segment(0, groups=3)
    yield "groups-fewer", "a group too few", segment(0, groups=1)
    yield "index-cut", "a block that ends in its index", block(0, 2, raw=bytes(23))
    yield "index-low", "a blob that ends in the index", index(0, 3, 23)
    yield "index-order", "a blob that ends before it begins", index(0, 3, 1 << 20)
    yield "index-end", "a byte after the last blob", block(0, 1, behind=b"\0")
    yield "index-beyond", "a blob that goes on after its block", index(0, 1, 40, 1 << 40)
    yield "index-crc", "the checksum of a blob of models", block(0, 0, edit=lambda raw: raw.__setitem__(8, raw[8] ^ 1))
    yield "blob-crc", "the checksum of a blob of a frame", block(0, 3, edit=lambda raw: raw.__setitem__(9, raw[9] ^ 1))

    yield "models-frame", "models that are no frame", blob(0, 0, 0, lambda old: b"no frame")
    yield "models-trailing", "a byte after the frame", blob(0, 0, 0, lambda old: old + b"\0")
    yield "models-no-size", "a frame without a content size", blob(0, 0, 0, lambda old: v.other_frame(bytes(100)))
    yield "models-large", "one byte more than models can have", blob(0, 0, 0, lambda old: states(2 + 33843 * 2))
    yield "models-huge", "a content of 2^32 - 1 bytes", blob(0, 0, 0, lambda old: states((1 << 32) - 1))
    yield "models-small", "models that end early", content(lambda raw: raw[: 2 * 1077])
    yield "models-longer", "a byte after the models", content(lambda raw: raw + b"\0")
    yield "models-shorter", "a byte less", content(lambda raw: raw[:-1])
    yield "models-dense", "17 dense classes", content(lambda raw: raw[:1] + b"\21" + raw[2:])
    yield "models-table", "a table that its model lacks", content(lambda raw: raw[:5] + b"\1" + raw[6:])
    yield "models-tables", "255 tables", tables(*[[4096]] * 255)
    yield "table-empty", "a table without frequencies", tables([])
    yield "table-long", "65 frequencies", tables([63] * 64 + [64])
    yield "table-low", "a sum of 4095", tables([64] * 63 + [63])
    yield "table-wraps", "a sum of 2^16 + 4096", tables([65535, 4097])
    yield "table-last", "a last frequency 0", tables([4096, 0])

    yield "parts-cut", "digests that end early", blob(0, 1, 0, lambda old: old[:7])
    yield "number-none", "a blob without lengths", blob(0, 1, 0, lambda old: old[:8])
    yield "number-cut", "a length that ends early", blob(0, 1, 0, lambda old: old[:8] + b"\x80")
    yield "number-long", "a length of six bytes", numbers(b"\x80\x80\x80\x80\x80\1")
    yield "number-padded", "a length that could be shorter", numbers(b"\x92\0")
    yield "number-zero", "a length 0 of two bytes", numbers(b"\x80\0")
    yield "stream-beyond", "a stream that goes on after its blob", numbers(enc.leb128(400))
    yield "stream-after", "bytes after the last stream", blob(0, 1, 0, lambda old: old + b"\0")


def states(size: int) -> bytes:
    """A frame that states a content size, and has less."""
    return struct.pack("<IBBI", 0xFD2FB528, 0x80, 0x38, size) + b"\3\0\0\0"


def streams_of_w() -> Iterator[tuple[str, str, Change]]:
    """Those in which a stream of `w` is wrong: the first frame is that of step 3; step 1 has a list."""
    count, gap, move = ref.COUNT, ref.GAP, ref.MOVE
    yield "stream-empty", "no stream, but words that differ", stream("w", 1, lambda part, model, pen: b"")
    yield "stream-state", "a lane that ends with 2", stream("w", 3, ended(2))
    yield "stream-list-state", "a lane that ends with 0", stream("w", 1, ended(0))
    yield "stream-word", "a word too many", stream("w", 1, spoken(lambda raw: raw.ljust(8, b"\0") + bytes(4)))
    yield "stream-short", "a stream without its last byte", stream("w", 3, spoken(lambda raw: raw[:-1]))
    yield "stream-zero", "a lane 0", stream("w", 3, spoken(lambda raw: b"\0"))
    yield "moved-many", "more words moved than there are", stream("w", 3, said((count, 7), *[(gap, 0), (move, 0)] * 7))
    yield "moved-quiet", "more words moved than are quiet", stream("w", 1, listed_and((count, 6)))
    yield "gap-end", "a gap that ends after the last word", stream("w", 3, said((count, 1), (gap, 6), (move, 0)))
    two = said((count, 2), (gap, 5), (move, 0), (gap, 0), (move, 0))
    yield "gap-begin", "a gap that begins after the last word", stream("w", 3, two)
    yield "digest-middle", "a digest of the step", blob(0, 2, 0, lambda old: bytes([old[0] ^ 1]) + old[1:])


def listed_and(*takes: tuple[int, int]) -> Callable[..., bytes]:
    """The list as it should be, and then other numbers."""

    def make(part: Any, model: Any, pen: Any) -> bytes:
        at = next(i for i, (_, context, _) in enumerate(pen.takes) if context == ref.COUNT)
        pen.takes = pen.takes[:at]
        for context, value in takes:
            pen.number(context, value)
        return bytes(pen.stream(model))

    return make


def others() -> Iterator[tuple[str, str, float, list[tuple[str, str, Change]]]]:
    """Those that are made of other files: source, tensor and step, and what is wrong with them."""
    one = said((ref.COUNT, 1), (ref.GAP, 2), (ref.MOVE, 5))
    yield "exact-small", "w", 3, [("digest", "other bits than the digest says", stream("w", 3, one))]

    none, hidden = fixed(ref.SEGMENTS, bytearray.clear), block(0, 1, behind=b"hidden")
    still = [("segments-none", "no segments", none), ("block-hidden", "a block of no groups that is not empty", hidden)]
    yield "exact-still", "w", 2, still

    limit, cut, wraps = segment(0, most=11), segment(0, most=9), index(0, 0, 1 << 62, 2 << 62, 3 << 62)
    groups = [("groups-limit", "fewer groups, by L, than there are", limit), ("index-wraps", "ends beyond 2^63", wraps)]
    yield "exact-groups", "a", 1, [*groups, ("groups-cut", "parts in other groups, by L, than they are", cut)]
    yield "exact-segments", "first", 10, [("frames-many", "a step that needs seven frames", deep)]

    plain: list[tuple[str, str, Callable[[bytes], bytes]]] = [
        ("size", "a content of another size", lambda raw: enc.frame(bytes(19))),
        ("frame", "no frame", lambda raw: b"no frame"),
        ("empty", "coding 1 without a stream", lambda raw: b""),
        ("trailing", "a byte after the frame", lambda raw: raw + b"\0"),
    ]
    yield "exact-coding-1", "a", 7, [(f"xor-{name}", reason, xored(make)) for name, reason, make in plain]

    low = 1 << 32
    lanes = [
        ("short", "three lanes", spoken(lambda raw: raw[:28])),
        ("length", "a length that is no multiple of 4", spoken(lambda raw: raw + b"\0")),
        ("word", "a word of the stream too many", spoken(lambda raw: raw + bytes(4))),
        ("state", "the last lane ends with 2^32 + 1", ended(low, low, low, low + 1)),
    ]
    changed = [(f"lanes-{name}", reason, stream("just", 2, make, "exact-lanes")) for name, reason, make in lanes]
    yield "exact-lanes", "just", 2, changed

    other = v.raw(0, lambda raw: raw.__setitem__(0, raw[0] ^ 1))
    yield "exact-embedded", "a", 3, [("base-embedded", "other bits of the embedded base", other)]


def by_step(parts: Any) -> None:
    """The blocks of the first segment in the order of their steps."""
    parts.tier.segments[0].order = [0, 1, 2, 3]


def invalid() -> Iterator[tuple[str, Any]]:
    """All invalid files."""
    exact: dict[str, Any] = {"source": "exact-small", "tier": "exact"}
    read_w: dict[str, Any] = exact | {"operation": "read", "tensor": "w", "step": 2}
    for name, reason, change in opened():
        yield f"exact-{name}", v.Invalid(reason, change, **exact)
    for name, reason, change in (*records(), *blobs(), *streams_of_w()):
        yield f"exact-{name}", v.Invalid(reason, change, **read_w)
    for name, entry in (("segments", ref.SEGMENTS), ("frames", ref.FRAMES), ("data", ref.DATA_FRAMES)):
        bend = v.flip(entry, 30 if name == "data" else 5)
        yield f"exact-flip-{name}", v.Invalid(f"one bit is wrong: {entry}", bend=bend, **exact, operation="verify")
    yield "exact-flip-read", v.Invalid("one bit of a blob is wrong", bend=v.flip(ref.DATA_FRAMES, 40), **read_w)
    yield "exact-series-digest", v.Invalid(
        "a digest of a series, in another tier", blob(1, 1, 1, lambda old: bytes([old[0] ^ 1]) + old[1:]),
        **exact | {"tier": "line", "operation": "read", "tensor": "count", "step": 7},
    )  # fmt: skip

    for source, tensor_name, step, cases in others():
        own = {"source": source, "tensor": tensor_name, "step": step}
        for name, reason, change in cases:
            yield f"exact-{name}", v.Invalid(reason, change, **read_w | own)
    without = v.Invalid("a segment in a file without the tier", v.tensor(0, 20, "I", 1), source="minimal")
    yield "exact-tensor-without", without

    run = {"source": "exact-steps-17", "base": "exact-steps-2", "error": "BaseMismatch"}
    for name, step in (("much", 49), ("much", 1), ("little", 25), ("still", 4)):
        reason = f"the base of another run: {name} at step {step}"
        yield f"exact-base-{name}-{step}", v.Invalid(reason, **read_w | run | {"tensor": name, "step": step})


def deep(parts: Any) -> None:
    """Left ends that make a step need more frames than it may."""
    parts.tier.segments[1].record["left"] = 1
    parts.tier.segments[2].record["left"] = 6


def one_less(parts: Any) -> None:
    """A last segment of one step, with the blocks of one step; the step after it has a record."""
    last = parts.tier.segments[-1]
    last.count, last.blocks = 1, {0: last.blocks[0], 1: last.blocks[2]}
    parts.tier.records = bytes(24)
