"""The valid vectors whose subject is EXACT.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import reference_decoder as ref

from .contents import Bits, bits, drift, floats, from_floats, integers, noise, special
from .exact_odd_streams import streams
from .exact_recipe import Exact, Plan, levels
from .exact_streams import by_context
from .recipe import AUTO, Recipe, Tensor, exact_recipe, quantised


def small() -> Recipe:
    """Two segments, the second from a step inside the first; flat tables. Most invalid files are made of it."""
    rows = {
        "w": drift("small w", bits("small w", 6, "BF16"), 5, 2, 2),
        "count": [integers([t, -t], "I64") for t in range(6)],
        "later": drift("small later", bits("small later", 3, "F32"), 5, 1, 9, 3),
    }
    tensors = [
        Tensor("w", "BF16", [2, 3], rows["w"][0]),
        Tensor("count", "I64", [2], rows["count"][0]),
        Tensor("empty", "BF16", [0], np.zeros(0, "<u2")),
        Tensor("later", "F32", [3], rows["later"][0], "stored"),
    ]
    plans = [Plan(3, key=None, table_sets=2, table_set=lambda step, level: min(level, 1)), Plan(2, 2, key=None)]
    exact = Exact(rows, plans, {"later": 2})
    return exact_recipe([1, 2, 3, 5, 8], tensors, exact, [(0, AUTO), (3, AUTO), (4, AUTO), (9, AUTO)], ["count"])


def worked() -> Recipe:
    """Five words at three steps: the streams that EXACT.md decodes symbol by symbol."""
    start = from_floats([1.0, 2.0, -0.5, 0.25, 3.0], "BF16")
    moves = [[100, -1700, 1, 0, -1], [210, -3300, 1, 1, 0], [300, -5000, 1, 2, 0]]
    words = ref.to_words(start.tobytes(), "BF16")
    rows = [start, *(np.frombuffer(ref.from_words(words + np.array(row), "BF16"), "<u2") for row in moves)]
    contexts = bytearray([ref.NO_TABLE] * 1075)
    contexts[:880] = bytes(880)  # short distances: table 0
    contexts[880 : ref.DENSE] = bytes([1] * (ref.DENSE - 880))  # long distances, gaps, moves: table 1
    contexts[ref.MOVED] = 1
    tables = ref.TableSet(0, bytes(contexts), [[2048, 1024, 512, 512], [64] * 64])
    frames = Exact({"w": rows}, [Plan(3, own=tables)])
    return exact_recipe([10, 20, 30], [Tensor("w", "BF16", [5], start)], frames)


def one_step() -> Recipe:
    """T = 1, after step 0 too: scalars, a tensor without elements, a framed one without elements, dense words."""
    rows = {
        "w": drift("one w", bits("one w", 5, "BF16"), 1),
        "scalar": drift("one s", bits("one s", 1, "F16"), 1, 1, 3),
        "flag": [np.array([t], "u1") for t in range(2)],
    }
    tensors = [
        Tensor("w", "BF16", [5], rows["w"][0]),
        Tensor("scalar", "F16", [], rows["scalar"][0]),
        Tensor("empty", "F32", [0], np.zeros(0, "<u4")),
        Tensor("empty.framed", "I8", [2, 0], np.zeros(0, "u1")),
        Tensor("flag", "BOOL", [], rows["flag"][0], "stored"),
    ]
    reads = [(0, AUTO), (0, "track"), (0, "line"), (3, AUTO)]
    return exact_recipe([0], tensors, Exact(rows, [Plan(1, dense=[16])]), reads, ["flag", "empty.framed"])


def many_steps(count: int) -> Recipe:
    """A table set for each level, tables by context; tensors that move much, little and not at all."""
    rows = {
        "much": drift(f"many {count}", bits(f"many much {count}", 60, "BF16"), count, 2, 2),
        "little": drift(f"little {count}", bits(f"many little {count}", 40, "BF16"), count, 30),
        "still": [bits(f"many still {count}", 9, "BF16")] * (count + 1),
    }
    tensors = [Tensor(name, "BF16", [len(own[0])], own[0]) for name, own in rows.items()]
    sets = 1 + max(levels(count).values())
    exact = Exact(rows, [Plan(count, table_sets=sets, table_set=lambda step, level: level, key=by_context)])
    return exact_recipe([3 * t + 1 for t in range(count)], tensors, exact)


def special_values() -> Recipe:
    """NaNs of all kinds, infinities, zeros, subnormals, each becoming each; all bytes of the dtypes of one byte."""
    rows = {}
    for dtype in ref.FLOAT:
        own = special(dtype)
        rows[dtype] = [np.roll(own, t * t) for t in range(6)]
    for dtype in ("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"):
        rows[dtype] = drift(f"special {dtype}", np.arange(256, dtype="u1")[:: 3 if dtype[-1] == "Z" else 1], 5, 4, 3)
    tensors = [Tensor(name, name, [len(own[0])], own[0]) for name, own in rows.items()]
    return exact_recipe([2, 4, 6, 8, 10], tensors, Exact(rows, [Plan(5, dense=[5])]))


def dtypes() -> Recipe:
    """Every dtype, as `framed` and as `same`, from the base and from the file."""
    rows, tensors = {}, []
    for i, dtype in enumerate(ref.WIDTH):
        rows[dtype] = drift(dtype, bits(dtype, 7, dtype), 3, 2, 1)
        if dtype == "BOOL":
            rows[dtype] = [row & 1 for row in rows[dtype]]
        origin = "base" if i % 3 else "stored"
        tensors.append(Tensor(dtype, dtype, [7], rows[dtype][0], origin))
    tensors.sort(key=lambda tensor: tensor.origin == "stored")
    framed = [dtype for dtype in ref.WIDTH if dtype not in ref.FLOAT or dtype == "F16"]
    return exact_recipe([1, 2, 3], tensors, Exact(rows, [Plan(3, key=by_context)]), (), framed=framed)


def framed() -> Recipe:
    """Tensors of kind `framed`, no floats: every tier at and between the steps, the first of which is 0."""
    values = [[-1, -2], [0, 7], [1, 7], [1, 8], [1 << 40, 8]]
    rows = {
        "base": [integers(own, "I64") for own in values],
        "stored": [integers(own, "I8") for own in ([5, 6], [5, 6], [6, 6], [-128, 127], [127, -128])],
    }
    tensors = [
        Tensor("base", "I64", [2], rows["base"][0]),
        Tensor("stored", "I8", [2], rows["stored"][0], "stored"),
    ]
    exact = Exact(rows, [Plan(3), Plan(1, 3)])
    reads = [(t, AUTO) for t in (0, 0.5, 5, 8.75, 9, 100, -3)] + [(0, "track"), (6, "track"), (0, "line"), (-5, "line")]
    return exact_recipe([0, 5, 9, 12], tensors, exact, reads, list(rows))


def framed_floats() -> Recipe:
    """A framed tensor of floats: NaN and infinities at stored steps, in every tier; another origin dtype."""
    rows = {"float": [from_floats(own, "BF16") for own in ([1, 2], [1, math.inf], [-math.nan, 2], [0, 0])]}
    rows["float"][0] = from_floats([1e-41, 3.14159], "BF16")
    tensors = [Tensor("float", "BF16", [2], from_floats([1e-41, 3.14159], "F32"), origin_dtype="F32")]
    reads = [(t, tier) for t in (5, 9, 12) for tier in (AUTO, "line", "track")]
    return exact_recipe([5, 9, 12], tensors, Exact(rows, [Plan(3)]), [*reads, (0, AUTO)], ["float"])


def moving() -> Recipe:
    """Directions and the exact tier: `auto` is exact at all steps, the track between observed ones, else the line."""
    steps = [4, 6, 10, 20]
    direction = quantised("exact moving", 12, "byte", (0.1, 0.25, -0.5, 1.0))
    own = drift("exact moving", bits("exact moving", 12, "F16"), 4, 1, 40)
    start = drift("exact started", bits("exact started", 12, "BF16"), 4, 2, 3)
    tensors = [
        Tensor("moving", "F16", [3, 4], own[0], directions=[direction]),
        Tensor("same", "BF16", [12], start[0]),
        Tensor("not.held", "F16", [3, 4], own[0], directions=[direction]),
    ]
    reads = [(t, AUTO) for t in (0, 4, 5, 7.5, 10, 15, 20, 21)] + [(6, "track"), (20, "track"), (10, "line")]
    exact = Exact({"moving": own, "same": start}, [Plan(2), Plan(2, 1)])
    return exact_recipe(steps, tensors, exact, reads, observed=3)


def overflow() -> Recipe:
    """A coefficient that exceeds f32, at a step that the exact tier has."""
    own = drift("exact overflow", bits("exact overflow", 4, "F32"), 2, 1, 9)
    direction = quantised("exact overflow", 4, "ternary", (1e300, 1.0))
    tensors = [Tensor("w", "F32", [4], own[0], directions=[direction])]
    return exact_recipe([1, 2], tensors, Exact({"w": own}, [Plan(2)]), [(0, AUTO), (1, AUTO), (2, "track")])


def segments() -> Recipe:
    """Four segments: from the origin, an earlier end, a step inside an earlier one; tensors that begin later."""
    rows = {
        "first": drift("segments 1", bits("segments 1", 20, "BF16"), 10),
        "second": drift("segments 2", bits("segments 2", 20, "BF16"), 10, still=4),
        "third": drift("segments 3", bits("segments 3", 4, "F32"), 10, 2, still=7),
        "last": drift("segments 4", bits("segments 4", 3, "U8"), 10, 1, still=8),
    }
    types = {"first": "BF16", "second": "BF16", "third": "F32", "last": "U8"}
    tensors = [Tensor(name, dtype, rows[name][0].shape, rows[name][0]) for name, dtype in types.items()]
    tensors.insert(1, Tensor("none", "F16", [3], bits("segments none", 3, "F16")))
    plans = [Plan(4), Plan(3, 4), Plan(1, 2), Plan(2)]
    exact = Exact(rows, plans, {"second": 2, "third": 3, "last": 4})
    return exact_recipe(list(range(10, 110, 10)), tensors, exact, [(0, AUTO), (60, AUTO), (65, AUTO)], ["last"])


def chain() -> Recipe:
    """As many frames as a step may need: five segments of one step, each from the one before, and L = 1."""
    rows = {name: drift(f"chain {name}", bits(f"chain {name}", 4, "BF16"), 5, 2) for name in ("a", "b")}
    tensors = [Tensor(name, "BF16", [4], own[0]) for name, own in rows.items()]
    return exact_recipe([1, 2, 3, 4, 5], tensors, Exact(rows, [Plan(1, k, limit=1) for k in range(5)]))


def groups() -> Recipe:
    """Groups of at most ten words: by dtype, by size, of a part that is larger; two words of an element."""
    types = {"a": "BF16", "b": "BF16", "c": "BF16", "d": "F16", "e": "BF16", "f": "BF16", "g": "C64", "h": "C64"}
    sizes = {"a": 4, "b": 6, "c": 1, "d": 3, "e": 30, "f": 2, "g": 4, "h": 2}
    rows = {name: drift(f"groups {name}", bits(name, sizes[name], dtype), 2, 2) for name, dtype in types.items()}
    tensors = [Tensor(name, dtype, [sizes[name]], rows[name][0]) for name, dtype in types.items()]
    return exact_recipe([1, 2], tensors, Exact(rows, [Plan(2, limit=10)]))


def embedded() -> Recipe:
    """An embedded base, and entries between those of the tier that a reader does not know."""
    types = {"a": "BF16", "b": "I32", "c": "F32"}
    rows = {name: drift(f"embedded {name}", bits(name, 8, dtype), 3, 2) for name, dtype in types.items()}
    tensors = [Tensor(name, dtype, [8], rows[name][0]) for name, dtype in types.items()]
    files = {"config.json": b"{}"}

    def change(parts: Any) -> None:
        known = parts.entries
        parts.entries = {}
        for name, raw in known.items():
            parts.entries[name] = raw
            if name == ref.FRAMES:
                parts.entries |= {"org.example": bytearray(b"ignored"), "relex.later": bytearray(3)}
        parts.dtypes |= {"org.example": "U8", "relex.later": "U8"}

    more: dict[str, Any] = {"embedded": True, "files": files, "change": change}
    return exact_recipe([1, 2, 3], tensors, Exact(rows, [Plan(3)]), framed=["b"], **more)


def origin_dtypes() -> Recipe:
    """Steps of another float dtype than the origin, whose bits are those of `same`: one NaN, rounded values."""
    rows, tensors = {}, []
    values = [1.0009765625, -3.14159, 70000.0, 1e-5, 6e-8, -1e-41, 3.4e38, math.nan, -math.inf, -0.0]
    for origin in ref.FLOAT:
        for dtype in ref.FLOAT:
            name = f"{origin}.{dtype}"
            start = from_floats(values, origin)
            same = start if origin == dtype else from_floats(ref.widen(start.tobytes(), origin), dtype)
            rows[name] = drift(name, same, 2, 2, 2)
            tensors.append(Tensor(name, dtype, [10], start, origin_dtype=origin))
    return exact_recipe([5, 6], tensors, Exact(rows, [Plan(2)]))


def coding_1() -> Recipe:
    """Parts in coding 1: first frames and others, before and after coding 0; two words of an element."""
    types = {"a": "BF16", "b": "BF16", "c": "BF16", "d": "F64", "e": "I16", "f": "F8_E5M2"}
    rows = {name: drift(f"xor {name}", bits(f"xor {name}", 9, dtype), 7, 2, 2) for name, dtype in types.items()}
    tensors = [Tensor(name, dtype, [9], rows[name][0]) for name, dtype in types.items()]
    xored = [("a", 7), ("b", 3), ("c", 1), ("c", 5), ("c", 6), *(("d", t) for t in range(1, 8)), ("e", 7), ("f", 5)]
    frames = Exact(rows, [Plan(7, xored=xored, dense=[3])])
    return exact_recipe([1, 2, 3, 4, 5, 6, 7], tensors, frames, framed=["d", "e"])


def far() -> Recipe:
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
    tensors = [Tensor(name, name, [16], bits[0]) for name, bits in rows.items()]
    return exact_recipe([1, 2, 3, 4], tensors, Exact(rows, [Plan(4)]), framed=["U32", "I32", "U16", "I8"])


def odd() -> Recipe:
    """Ends far apart in intervals of odd length, whose near end is the left or the right one."""
    types = {"U16": "U16", "I32": "I32", "F32": "F32", "BF16": "BF16"}
    rows = {name: drift(f"odd {name}", bits(f"odd {name}", 12, name), 11, 2, 600) for name in types}
    tensors = [Tensor(name, name, [12], own[0]) for name, own in rows.items()]
    return exact_recipe(list(range(1, 12)), tensors, Exact(rows, [Plan(11)]), framed=["U16", "I32"])


def order_of_words() -> Recipe:
    """Words that cross the places where signed, unsigned and float dtypes are ordered in different ways."""
    rows = {}
    for dtype in ref.WIDTH:
        if dtype != "BOOL":
            width = ref.WIDTH[dtype]
            start = np.array([0, 1, 2, -1, -2, -3], f"<i{width}").view(f"<u{width}")
            half = start ^ np.array(1 << 8 * width - 1, start.dtype)
            rows[dtype] = drift(f"order {dtype}", np.concatenate([start, half]), 6, 2, 3)
    tensors = [Tensor(name, name, [12], own[0]) for name, own in rows.items()]
    framed = [name for name in rows if name not in ref.FLOAT]
    return exact_recipe([1, 2, 3, 4, 5, 6], tensors, Exact(rows, [Plan(6, key=by_context)]), framed=framed)


def lanes() -> Recipe:
    """Four lanes, for 2^14 and more dense words; 2^14 - 1 have one lane, and so have lists of any length."""
    rows = {}
    for name, n in (("most", 17387), ("just", 1 << 14), ("less", (1 << 14) - 1)):
        start = np.full(n, 0x3F80, "<u2")
        middle = start + (noise(f"lanes {name}", n) < 6000).astype("<u2")
        middle[5::4111] += np.array([700, 65000, 2, 9, 3][: len(middle[5::4111])], "<u2")
        last = start + np.uint16(1)
        last[7::5003] += np.uint16(50)
        rows[name] = [start, middle, last]
    tensors = [Tensor(name, "BF16", [len(own[0])], own[0], "stored") for name, own in rows.items()]
    plan = Plan(2, table_sets=2, table_set=lambda step, level: level, dense=[16, 0])
    return exact_recipe([1, 2], tensors, Exact(rows, [plan]))


def pieces() -> Recipe:
    """A tensor of two pieces, of which the second never moves, beside one of one piece, all in two groups."""
    n = (1 << 18) + 5
    start = np.zeros(n, "u1")
    rows = {"large": [start, start.copy(), start.copy()], "small": drift("pieces", bits("pieces", 9, "U8"), 2, 2)}
    rows["large"][1][[0, 70000, (1 << 18) - 1]] = [1, 255, 3]
    rows["large"][2][[1, 70000, 200000]] = [1, 254, 9]
    tensors = [Tensor(name, "U8", [len(own[0])], own[0], "stored") for name, own in rows.items()]
    return exact_recipe([1, 2], tensors, Exact(rows, [Plan(2, limit=1 << 18)]), framed=["large"])


def tables() -> Recipe:
    """255 table sets, of which a few are used; one table for all contexts; dense classes 0 to 16; classes cut off."""
    rows = {"w": drift("tables", floats("tables", [50], "F32", 1e6), 6, 2, 300)}
    rows["w"] = [np.concatenate([row, [0, 1 << 31, 0x7F800000]]).astype("<u4") for row in rows["w"]]
    tensors = [Tensor("w", "F32", [53], rows["w"][0])]
    first = Plan(3, table_sets=255, table_set=lambda step, level: [254, 0, 7][level], dense=[*range(17), 15], low=130)
    second = Plan(3, 3, key=lambda context: 0, low=255, dense=[1])
    return exact_recipe([1, 2, 3, 4, 5, 6], tensors, Exact(rows, [first, second]))


def nothing(tensors: Sequence[Any] = ()) -> Recipe:
    """No segment holds a tensor: no groups, and frames of length 0."""
    exact = Exact({}, [Plan(2, table_sets=3), Plan(1, 2)])
    return exact_recipe([1, 2, 7], list(tensors), exact, [(0, AUTO), (7, AUTO)])


VALID: dict[str, Recipe] = {
    "exact-small": small(),
    "exact-worked": worked(),
    "exact-steps-1": one_step(),
    "exact-steps-2": many_steps(2),
    "exact-steps-17": many_steps(17),
    "exact-special-values": special_values(),
    "exact-dtypes": dtypes(),
    "exact-framed": framed(),
    "exact-framed-floats": framed_floats(),
    "exact-moving": moving(),
    "exact-overflow": overflow(),
    "exact-segments": segments(),
    "exact-chain": chain(),
    "exact-groups": groups(),
    "exact-embedded": embedded(),
    "exact-origin-dtypes": origin_dtypes(),
    "exact-coding-1": coding_1(),
    "exact-far": far(),
    "exact-odd": odd(),
    "exact-order-of-words": order_of_words(),
    "exact-lanes": lanes(),
    "exact-pieces": pieces(),
    "exact-tables": tables(),
    "exact-streams": streams(),
    "exact-nothing": nothing(),
    "exact-still": nothing([Tensor("w", "BF16", [3], bits("still", 3, "BF16"))]),
}
