"""The inner loops of the CPU kernel: one operation, or all of them fused, over a span of elements side by side.

Arrays come as addresses. A span lies in one digit of one block (`packed` is the address of its first byte), in one row
of a matrix, and in one stretch of origin and result. p, the sum of section 8, and x are float32 buffers.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from relex_codec.format.constants import BYTE, NIBBLE, QUINARY, TERNARY, Packing

from .llvm_ops import (
    float_of_planes,
    load_f32,
    load_u8,
    load_u16,
    load_u32,
    narrow_bf16,
    narrow_f16,
    narrow_f32,
    narrow_pair,
    remainder_operation,
    store_f32,
    store_u16,
    store_u32,
    widen_bf16,
    widen_even,
    widen_f16,
    widen_f32,
    widen_odd,
    word_value,
)


def loop(function: Any) -> Any:
    """Compile an inner loop; it becomes a part of what calls it, and of what is kept on disk of that.

    It counts no references and raises nothing, so that no machine code calls Python or numba: divisors are not zero.
    """
    uncounted: dict[str, Any] = {"_nrt": False}
    return numba.njit(nogil=True, error_model="numpy", **uncounted)(function)


def _fused(packing: Packing, j: int, factors: bool) -> Any:
    """``out = bf16(origin + (p + remainder) * g)`` at once, for a BF16 tensor of one direction.

    Its bytes are read once, and written once. Without `factors` the sum begins with the remainder instead of p = +0,
    which makes no difference as the remainder is no -0 where the scale is above 0.
    """
    even, odd = remainder_operation(packing, j, 0), remainder_operation(packing, j, 1)

    @loop
    def fused(origin: Any, packed: Any, factor: Any, known: Any, p: Any, g: Any, out: Any, count: Any) -> None:
        a, b, c, d, e = (
            load_f32(known, 0),
            load_f32(known, 1),
            load_f32(known, 2),
            load_f32(known, 3),
            load_f32(known, 4),
        )
        for i in range(count // 2):
            word, pair = load_u32(origin, i), load_u16(packed, i)
            x, y = even(pair, factor, a, b, c, d, e), odd(pair, factor, a, b, c, d, e)
            if factors:
                x, y = load_f32(p, 2 * i) + x, load_f32(p, 2 * i + 1) + y
            store_u32(out, i, narrow_pair(widen_even(word) + x * g, widen_odd(word) + y * g))
        if count % 2:
            i = count - 1
            x = even(load_u8(packed, i), factor, a, b, c, d, e)
            if factors:
                x = load_f32(p, i) + x
            store_u16(out, i, narrow_bf16(widen_bf16(load_u16(origin, i)) + x * g))

    return fused


def _add_codes(packing: Packing, j: int) -> Any:
    """``p = p + (q * scale - sign(q) * shift)``, for digit `j` of each byte."""
    value = remainder_operation(packing, j, 0)

    @loop
    def add(packed: Any, factor: Any, known: Any, p: Any, count: Any) -> None:
        a, b, c, d, e = (
            load_f32(known, 0),
            load_f32(known, 1),
            load_f32(known, 2),
            load_f32(known, 3),
            load_f32(known, 4),
        )
        for i in range(count):
            store_f32(p, i, load_f32(p, i) + value(load_u8(packed, i), factor, a, b, c, d, e))

    return add


def _finish(load: Any, widen: Any, narrow: Any, store: Any) -> Any:
    """``out = narrow(widen(origin) + p * g)``, for an only direction whose p is known."""

    @loop
    def finish(origin: Any, p: Any, g: Any, out: Any, count: Any) -> None:
        for i in range(count):
            store(out, i, narrow(widen(load(origin, i)) + load_f32(p, i) * g))

    return finish


def _convert(load: Any, widen: Any) -> Any:
    """``x = widen(origin)``."""

    @loop
    def convert(origin: Any, x: Any, count: Any) -> None:
        for i in range(count):
            store_f32(x, i, widen(load(origin, i)))

    return convert


def _round(narrow: Any, store: Any) -> Any:
    """``out = narrow(x)``."""

    @loop
    def rounded(x: Any, out: Any, count: Any) -> None:
        for i in range(count):
            store(out, i, narrow(load_f32(x, i)))

    return rounded


_bf16 = (load_u16, widen_bf16, narrow_bf16, store_u16)
_f16 = (load_u16, widen_f16, narrow_f16, store_u16)
_f32 = (load_u32, widen_f32, narrow_f32, store_u32)
fused_ternary, fused_quinary, fused_byte = (_fused(p, 0, False) for p in (TERNARY, QUINARY, BYTE))
fused_low, fused_high = (_fused(NIBBLE, j, False) for j in range(2))
summed_ternary, summed_quinary, summed_byte = (_fused(p, 0, True) for p in (TERNARY, QUINARY, BYTE))
summed_low, summed_high = (_fused(NIBBLE, j, True) for j in range(2))
add_ternary, add_quinary, add_byte = (_add_codes(p, 0) for p in (TERNARY, QUINARY, BYTE))
add_low, add_high = (_add_codes(NIBBLE, j) for j in range(2))
finish_bf16, finish_f16, finish_f32 = (_finish(*dtype) for dtype in (_bf16, _f16, _f32))
convert_bf16, convert_f16, convert_f32 = (_convert(*dtype[:2]) for dtype in (_bf16, _f16, _f32))
round_bf16, round_f16, round_f32 = (_round(*dtype[2:]) for dtype in (_bf16, _f16, _f32))


@loop
def add_words(low: Any, high: Any, known: Any, p: Any, count: Any) -> None:
    """``p = p + (q * scale - sign(q) * shift)``, for packing ``word``: q + z is in two planes."""
    scale, shift = load_f32(known, 0), load_f32(known, 1)
    for i in range(count):
        store_f32(p, i, load_f32(p, i) + word_value(load_u8(low, i), load_u8(high, i), scale, shift))


@loop
def add_floats(packed: Any, plane: Any, p: Any, count: Any) -> None:
    """``p = p + value``, for packing ``float32``: four planes of `plane` bytes."""
    for i in range(count):
        value = float_of_planes(
            load_u8(packed, i), load_u8(packed + plane, i), load_u8(packed + 2 * plane, i),
            load_u8(packed + 3 * plane, i),
        )  # fmt: skip
        store_f32(p, i, load_f32(p, i) + value)


def _add_pairs(count: int, first: bool) -> Any:
    """``p = p + a_j * b_j`` for 4 or 8 pairs of factors in turn, whose `first` they may be.

    p stays in a register while it is summed.
    """

    @loop
    def four(a: Any, m: Any, b: Any, pitch: Any, p: Any, length: Any) -> None:
        a0, a1, a2, a3 = load_f32(a, 0), load_f32(a, m), load_f32(a, 2 * m), load_f32(a, 3 * m)
        for i in range(length):
            s = (np.float32(0) if first else load_f32(p, i)) + a0 * load_f32(b, i)
            s = s + a1 * load_f32(b + 4 * pitch, i)
            s = s + a2 * load_f32(b + 8 * pitch, i)
            store_f32(p, i, s + a3 * load_f32(b + 12 * pitch, i))

    @loop
    def eight(a: Any, m: Any, b: Any, pitch: Any, p: Any, length: Any) -> None:
        a0, a1, a2, a3 = load_f32(a, 0), load_f32(a, m), load_f32(a, 2 * m), load_f32(a, 3 * m)
        a4, a5, a6, a7 = load_f32(a, 4 * m), load_f32(a, 5 * m), load_f32(a, 6 * m), load_f32(a, 7 * m)
        for i in range(length):
            s = (np.float32(0) if first else load_f32(p, i)) + a0 * load_f32(b, i)
            s = s + a1 * load_f32(b + 4 * pitch, i)
            s = s + a2 * load_f32(b + 8 * pitch, i)
            s = s + a3 * load_f32(b + 12 * pitch, i)
            s = s + a4 * load_f32(b + 16 * pitch, i)
            s = s + a5 * load_f32(b + 20 * pitch, i)
            s = s + a6 * load_f32(b + 24 * pitch, i)
            store_f32(p, i, s + a7 * load_f32(b + 28 * pitch, i))

    return four if count == 4 else eight


begin_four, add_four = _add_pairs(4, True), _add_pairs(4, False)
begin_eight, add_eight = _add_pairs(8, True), _add_pairs(8, False)


@loop
def add_pair(a: Any, b: Any, p: Any, count: Any) -> None:
    """``p = p + a * b``, for one pair of factors and one row, whose a is a number."""
    for i in range(count):
        store_f32(p, i, load_f32(p, i) + a * load_f32(b, i))


@loop
def zero(p: Any, count: Any) -> None:
    """``p = +0``."""
    for i in range(count):
        store_f32(p, i, np.float32(0))


@loop
def add_product(p: Any, g: Any, x: Any, count: Any) -> None:
    """``x = x + p * g``."""
    for i in range(count):
        store_f32(x, i, load_f32(x, i) + load_f32(p, i) * g)


@loop
def spread(cells: Any, out: Any, stride: Any, size: Any, count: Any) -> None:
    """Copy a span to where its elements do not lie side by side."""
    for i in range(count):
        if size == 2:
            store_u16(out, i * stride, load_u16(cells, i))
        else:
            store_u32(out, i * stride, load_u32(cells, i))
