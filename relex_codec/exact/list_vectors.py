"""What words need beside their symbols, for 32 at a time, in vector registers (EXACT.md section 14).

Contexts and distances do not depend on what is decoded, and words in the middle only on the ways, so both take a few
instructions a word here where a loop over int64 takes fifty. Lanes are as wide as words, and sums are modulo their
range, as words are. In encoding all that a near word needs follows from the words alone, its record too. What is left
of a list, less than 32 words, is done one by one by those that call these, with the functions of contexts.py; tests
compare the two.
"""

from __future__ import annotations

from typing import Any, Final

import numba
from llvmlite import ir
from numba import types

from relex_codec.core.jit import INTERPRETED

from .contexts import CLASSES, FAR, NEAR

LANES: Final = 32
MANY: Final = 1 << 30 if INTERPRETED else LANES
"""Words that are worked on together. Where compiling is switched off they are never so many, and loops over what is
left do all of them."""
_I1, _I8, _I16, _I64 = (ir.IntType(width) for width in (1, 8, 16, 64))
_FAR_LENGTHS: Final = range(4, 12)
"""Lengths in bits, less one, at which a further range of distances begins, from 8 on."""


def _vector(kind: Any) -> Any:
    return ir.VectorType(kind, LANES)


def _all(kind: Any, value: int) -> Any:
    return ir.Constant(_vector(kind), [value] * LANES)


class _Lanes:
    """Loads, stores and operations on 32 lanes, for the arguments of one intrinsic."""

    def __init__(self, context: Any, builder: Any, signature: Any, values: Any) -> None:
        self.context, self.b, self.kinds, self.values = context, builder, signature.args, values
        self.word = ir.IntType(signature.args[0].dtype.bitwidth)

    def _place(self, which: int, at: int) -> Any:
        """Where element ``values[at]`` of an array begins, as a pointer to 32 of them; not checked."""
        kind = self.kinds[which]
        first = self.b.gep(
            self.context.make_array(kind)(self.context, self.b, self.values[which]).data, [self.values[at]]
        )
        return self.b.bitcast(first, _vector(ir.IntType(kind.dtype.bitwidth)).as_pointer())

    def load(self, which: int, at: int) -> Any:
        return self.b.load(self._place(which, at), align=1)

    def store(self, value: Any, which: int, at: int) -> None:
        self.b.store(value, self._place(which, at), align=1)

    def spread(self, value: Any, kind: Any) -> Any:
        """A number in all lanes."""
        if value.type != kind:
            value = self.b.trunc(value, kind)
        empty = ir.Constant(_vector(kind), ir.Undefined)
        one = self.b.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
        return self.b.shuffle_vector(one, empty, _all(ir.IntType(32), 0))

    def flag(self, which: int) -> Any:
        """An integer, 0 or 1, as a condition in all lanes."""
        return self.spread(self.values[which], _I1)

    def short(self, value: Any) -> Any:
        """Lanes of words, which are below 2^16, as lanes of 16 bits."""
        width = value.type.element.width
        if width == 16:
            return value
        return self.b.zext(value, _vector(_I16)) if width < 16 else self.b.trunc(value, _vector(_I16))

    def least(self, x: Any, y: Any) -> Any:
        return self.b.select(self.b.icmp_unsigned("<", x, y), x, y)

    def most(self, x: Any, y: Any) -> Any:
        return self.b.select(self.b.icmp_unsigned(">", x, y), x, y)

    def beyond(self, x: Any, y: Any) -> Any:
        """How far x is above y, 0 if it is not."""
        return self.b.sub(self.most(x, y), y)

    def five(self, x: Any) -> Any:
        return self.b.add(self.b.shl(x, _all(_I16, 2)), x)


def _class(v: _Lanes, word: Any, mantissa: Any, half: Any, low: Any) -> Any:
    """`contexts.scale_class`, in 16 bits."""
    b, width = v.b, v.word.width
    middle = v.spread(half, v.word)
    flip = b.select(b.icmp_unsigned(">=", word, middle), middle, b.sub(middle, _all(v.word, 1)))
    shift = b.and_(mantissa, ir.Constant(_I64, width - 1))
    above = v.beyond(b.lshr(b.xor(word, flip), v.spread(shift, v.word)), v.spread(low, v.word))
    found = v.least(above, _all(v.word, CLASSES - 1))
    without = v.spread(b.icmp_unsigned(">=", mantissa, ir.Constant(_I64, width)), _I1)  # no bits above the mantissa
    return v.short(b.select(without, _all(v.word, 0), found))


def _classes(*arguments: Any) -> Any:
    def build(context: Any, b: Any, signature: Any, values: Any) -> Any:
        v = _Lanes(context, b, signature, values)
        v.store(b.trunc(_class(v, v.load(0, 2), *values[3:6]), _vector(_I8)), 1, 2)
        return context.get_dummy_value()

    return types.none(*arguments), build


class _Ends:
    """Words at both ends of an interval, with what follows from them alone.

    Attributes:
        near, far, outer: loaded, outer movements as lanes of 16 bits.
        rises: whether the far word is the larger.
        distance: of both.
        scale: class of the near word, in 16 bits.
        small: the distance, or 8 where it is more, in 16 bits.
        far_apart: whether it is 8 or more.
    """

    def __init__(self, v: _Lanes, near: Any, far: Any, outer: Any, shape: Any) -> None:
        b = v.b
        self.v, self.near, self.far, self.outer = v, near, far, b.zext(outer, _vector(_I16))
        self.rises = b.icmp_unsigned(">", far, near)
        self.distance = b.sub(v.most(near, far), v.least(near, far))
        self.scale = _class(v, near, *shape)
        self.small = v.least(v.short(v.least(self.distance, _all(v.word, 8))), _all(_I16, 8))
        self.far_apart = b.icmp_unsigned(">=", self.small, _all(_I16, 8))

    def contexts(self, right: Any) -> Any:
        """Contexts in 16 bits; `right`: whether the near end is the right one."""
        v, b = self.v, self.v.b
        left_end, right_end = b.and_(self.outer, _all(_I16, 15)), b.lshr(self.outer, _all(_I16, 4))
        along = b.xor(self.rises, right)  # movements count upwards: from left to right, if that is the way
        ends = []
        for one, other in ((right_end, left_end), (left_end, right_end)):
            end = b.select(right, one, other)
            ends.append(b.select(along, end, b.sub(_all(_I16, 4), end)))
        base = b.add(v.five(self.scale), ends[0])
        one_apart = b.add(v.five(base), ends[1])
        rows = b.sub(self.small, _all(_I16, 2))
        eighty = b.add(b.shl(rows, _all(_I16, 6)), b.shl(rows, _all(_I16, 4)))
        near_apart = b.add(b.add(eighty, base), _all(_I16, NEAR))
        lengths = _all(_I16, 0)
        for bits in (bits for bits in _FAR_LENGTHS if bits < v.word.width):
            longer = b.icmp_unsigned(">=", self.distance, _all(v.word, 1 << bits))
            lengths = b.add(lengths, b.zext(longer, _vector(_I16)))
        far_contexts = b.add(b.add(b.shl(lengths, _all(_I16, 4)), self.scale), _all(_I16, FAR))
        found = b.select(b.icmp_unsigned("<", self.small, _all(_I16, 2)), one_apart, near_apart)
        return b.select(self.far_apart, far_contexts, found)


def _contexts(*arguments: Any) -> Any:
    def build(context: Any, b: Any, signature: Any, values: Any) -> Any:
        v = _Lanes(context, b, signature, values)
        ends = _Ends(v, v.load(0, 3), v.load(1, 3), v.load(2, 3), values[8:11])
        v.store(ends.distance, 5, 6)
        v.store(ends.contexts(v.flag(7)), 4, 6)
        return context.get_dummy_value()

    return types.none(*arguments), build


def _records(*arguments: Any) -> Any:
    def build(context: Any, b: Any, signature: Any, values: Any) -> Any:
        v = _Lanes(context, b, signature, values)
        ends = _Ends(v, v.load(0, 4), v.load(1, 4), v.load(2, 4), values[8:11])
        here = v.load(3, 4)
        way = b.select(ends.rises, b.sub(here, ends.near), b.sub(ends.near, here))
        # a way of -1 or less is a word above the distance: modulo the range of words, the far word is one of them
        beyond = b.icmp_unsigned(">", way, ends.distance)
        below = b.select(ends.rises, b.icmp_unsigned("<", here, ends.near), b.icmp_unsigned(">", here, ends.near))
        past = b.add(ends.small, b.select(below, _all(_I16, 1), _all(_I16, 2)))
        symbol = b.select(beyond, past, v.short(way))
        found = ends.contexts(v.flag(7))
        v.store(b.select(ends.far_apart, found, b.or_(b.shl(found, _all(_I16, 4)), symbol)), 5, 6)
        marked = b.bitcast(b.or_(ends.far_apart, beyond), ir.IntType(LANES))
        return b.zext(marked, _I64)

    return types.uint64(*arguments), build


def _words(*arguments: Any) -> Any:
    def build(context: Any, b: Any, signature: Any, values: Any) -> Any:
        v = _Lanes(context, b, signature, values)
        near, far, way = v.load(0, 2), v.load(1, 2), v.load(3, 4)
        v.store(b.add(near, b.select(b.icmp_unsigned(">", far, near), way, b.sub(_all(v.word, 0), way))), 5, 2)
        return context.get_dummy_value()

    return types.none(*arguments), build


def _movements(*arguments: Any) -> Any:
    def build(context: Any, b: Any, signature: Any, values: Any) -> Any:
        v = _Lanes(context, b, signature, values)
        here, other, outer, high = v.load(0, 3), v.load(1, 3), v.load(2, 3), v.flag(6)
        up, down = (v.least(found, _all(v.word, 2)) for found in (v.beyond(here, other), v.beyond(other, here)))
        movement = b.add(b.select(high, b.sub(up, down), b.sub(down, up)), _all(v.word, 2))
        movement = movement if v.word.width == 8 else b.trunc(movement, _vector(_I8))
        kept = b.select(high, b.and_(outer, _all(_I8, 0xF0)), b.and_(outer, _all(_I8, 15)))
        v.store(b.or_(kept, b.select(high, movement, b.shl(movement, _all(_I8, 4)))), 4, 5)
        return context.get_dummy_value()

    return types.none(*arguments), build


def _many_classes(_: Any, words: Any, classes: Any, first: Any, mantissa: Any, half: Any, low: Any) -> Any:
    """Classes of `MANY` words, from `first` on.

    Args:
        classes: uint8, filled from `first` on. Neither these nor the words are checked to be long enough.
        mantissa, half, low: `interval_lists.word_shape`.
    """
    return _classes(words, classes, first, mantissa, half, low)


many_classes: Any = numba.extending.intrinsic(_many_classes)


def _many_contexts(
    _: Any, near: Any, far: Any, outer: Any, first: Any, context: Any, distance: Any, at: Any, near_is_right: Any,
    mantissa: Any, half: Any, low: Any,
) -> Any:  # fmt: skip
    """Contexts and distances of `MANY` words of a list, from `first` on, to `context` and `distance` from `at` on.

    Args:
        near, far, outer: as of `list_decoder.decode_list`.
        context: uint16; `distance`: of the words' dtype. Neither these nor the list are checked to be long enough.
        near_is_right: 0 or 1.
        mantissa, half, low: `interval_lists.word_shape`.
    """
    return _contexts(near, far, outer, first, context, distance, at, near_is_right, mantissa, half, low)


many_contexts: Any = numba.extending.intrinsic(_many_contexts)


def _many_words(_: Any, near: Any, far: Any, first: Any, way: Any, at: Any, middle: Any) -> Any:
    """The words of `MANY` words of a list in the frame, from `first` on.

    Args:
        near, far: as of `list_decoder.decode_list`.
        way: ways, from `at` on, of the words' dtype.
        middle: filled from `first` on.
    """
    return _words(near, far, first, way, at, middle)


many_words: Any = numba.extending.intrinsic(_many_words)


def _many_movements(
    _: Any, middle: Any, other: Any, outer: Any, first: Any, moved: Any, at: Any, is_high: Any
) -> Any:  # fmt: skip
    """The outer movements of `MANY` words of a list, from `first` on, in the list on one side of the frame.

    Args:
        middle, outer: of the list.
        other: the list's words at the end that is not of that side.
        moved: uint8, filled from `at` on.
        is_high: 0 or 1, that side.
    """
    return _movements(middle, other, outer, first, moved, at, is_high)


many_movements: Any = numba.extending.intrinsic(_many_movements)


def _many_records(
    _: Any, near: Any, far: Any, outer: Any, middle: Any, first: Any, record: Any, at: Any, near_is_right: Any,
    mantissa: Any, half: Any, low: Any,
) -> Any:  # fmt: skip
    """Records of `MANY` words of a list, from `first` on, to `record` from `at` on; the context alone of numbers.

    Args:
        near, far, outer: as of `list_decoder.decode_list`.
        middle: the list's words in the frame.
        record: uint16.
        near_is_right: 0 or 1.
        mantissa, half, low: `interval_lists.word_shape`.

    Returns:
        A bit for each word that is a number, or whose record is followed by one.
    """
    return _records(near, far, outer, middle, first, record, at, near_is_right, mantissa, half, low)


many_records: Any = numba.extending.intrinsic(_many_records)
