"""A valid vector of streams that an encoder would not choose, and the makers of such streams."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import reference_decoder as ref

from .exact_recipe import Exact, Plan
from .exact_streams import Pen, frequency, zigzag
from .recipe import Recipe, Tensor, exact_recipe


def streams() -> Recipe:
    """Streams that an encoder would not choose, all with the flat table; the second segment has dense words."""
    one = 0x3F80
    still = [one, one, one]
    quiet, gap, move, dense = ref.MOVED, ref.GAP + 15, ref.MOVE + 15, ref.DENSE + 15
    turn = 2 * (1 << 16)  # stands for a move of 2H
    made: dict[str, tuple[list[list[int]], dict[int, Callable[..., bytes]]]] = {
        # nothing moves, and a stream says so
        "silent": ([still] * 6, {step: said((quiet, 0)) for step in (3, 1, 2, 4)}),
        # no word moves, in a first frame with dense words
        "none": ([still] * 6, {5: lambda part, tables, pen: b""}),
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
    tensors = [Tensor(name, "BF16", [3], own[0]) for name, own in rows.items()]
    exact = Exact(rows, [Plan(3, key=None, made=by_step), Plan(2, 3, key=None, dense=[16])])
    exact.plans[1].made = {(name, step - 3): make for (name, step), make in by_step.items() if step > 3}
    return exact_recipe([1, 2, 3, 4, 5], tensors, exact)


def said(*takes: tuple[int, int]) -> Callable[..., bytes]:
    """A stream of numbers in contexts, of one lane."""

    def make(part: Any, tables: Any, pen: Any) -> bytes:
        own = Pen(0)
        for context, value in takes:
            own.number(context, value)
        return bytes(own.stream(tables))

    return make


def longer(part: Any, tables: Any, pen: Any) -> bytes:
    """The lane in eight bytes, the last of them 0."""
    stream = pen.stream(tables)
    assert len(stream) < 8
    return bytes(stream.ljust(8, b"\0"))


def high_symbol(part: Any, tables: Any, pen: Any) -> bytes:
    """Symbol 63 instead of d + 2 for a word above its ends."""
    at = next(i for i, (_, context, _) in enumerate(pen.takes) if context == ref.ABOVE)
    lane, context, _ = pen.takes[at - 1]
    pen.takes[at - 1] = lane, context, 63
    return bytes(pen.stream(tables))


def one_turn_more(part: Any, tables: Any, pen: Any) -> bytes:
    """A word between ends that are far apart, its y larger by 2H."""
    own = Pen(0)
    for lane, context, value in pen.takes:
        if context is not None and 880 <= context < ref.GAP:
            assert value == 0
            own.number(context, zigzag(part.mod))
        else:
            own.takes.append((lane, context, value))
    return bytes(own.stream(tables))


def through_zero(part: Any, tables: Any, pen: Any) -> bytes:
    """A stream whose lane becomes 0: the next word leaves it below 2^32, and no other is taken in until it is used."""
    rest = Pen(0)
    rest.takes = pen.takes[2:]
    (x,) = struct.unpack("<Q", rest.stream(tables).ljust(8, b"\0"))
    assert 1 << 32 <= x < 1 << 58
    (_, count, c), (_, gap, s) = pen.takes[:2]
    assert count == ref.MOVED and gap is not None and c in (2, 3)  # symbols that no raw bits follow
    f, start = frequency(tables, gap, s)
    word = (x >> 32) // f * 4096 + (x >> 32) % f + start
    first: int = frequency(tables, ref.MOVED, c)[1]
    return first.to_bytes(5, "little") + struct.pack("<II", word, x & 0xFFFFFFFF)
