"""What the compiled loops do to one element, written in LLVM's terms: loads, stores, conversions, digits, codes.

Python's integers in compiled code are 64 bits wide, so that a loop over bytes would use an eighth of each vector
register; here every operation has the width that it needs. Each is one rounded operation of FORMAT.md section 8, and
none may be contracted with its neighbour, as none carries a fast-math flag.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types

from relex_codec.core.dtypes import NAN
from relex_codec.core.jit import operation
from relex_codec.format.constants import WORD, Packing

from .tables import CHAINED

I8, I16, I32, I64, F32 = (*(ir.IntType(width) for width in (8, 16, 32, 64)), ir.FloatType())
_LLVM: Final = {types.uint8: I8, types.uint16: I16, types.uint32: I32, types.int64: I64, types.float32: F32}


def _i32(value: int) -> Any:
    return ir.Constant(I32, value)


def _pointer(b: Any, address: Any, index: Any, kind: Any) -> Any:
    """The address is turned into a pointer before the index is added: so LLVM sees a loop over an array."""
    return b.gep(b.inttoptr(address, _LLVM[kind].as_pointer()), [index])


def _load(kind: Any) -> Any:
    """``load(address, i)``: element i of an array at an address."""
    return operation(kind, (types.int64, types.int64), lambda b, a, i: b.load(_pointer(b, a, i, kind), align=1))


def _store(kind: Any) -> Any:
    """``store(address, i, value)``."""

    def build(b: Any, address: Any, index: Any, value: Any) -> Any:
        b.store(value, _pointer(b, address, index, kind), align=1)
        return ir.Constant(ir.IntType(1), 0)

    return operation(types.boolean, (types.int64, types.int64, kind), build)


load_u8, load_u16, load_u32 = map(_load, (types.uint8, types.uint16, types.uint32))
load_i64, load_f32 = map(_load, (types.int64, types.float32))
store_u16, store_u32, store_f32 = map(_store, (types.uint16, types.uint32, types.float32))


def _widen_bf16(b: Any, h: Any) -> Any:
    return b.bitcast(b.shl(b.zext(h, I32), _i32(16)), F32)


def _widen_f16(b: Any, h: Any) -> Any:
    wide = b.zext(h, I32)
    sign, magnitude = b.shl(b.and_(wide, _i32(0x8000)), _i32(16)), b.and_(wide, _i32(0x7FFF))
    shifted = b.shl(magnitude, _i32(13))
    normal = b.add(shifted, _i32(112 << 23))
    special = b.or_(shifted, _i32(0x7F800000))
    # A product of normal numbers: right also where subnormal operands would be taken for zeros.
    small = b.bitcast(b.fmul(b.uitofp(magnitude, F32), ir.Constant(F32, 2.0**-24)), I32)
    u = b.select(b.icmp_unsigned(">=", magnitude, _i32(0x7C00)), special, normal)
    u = b.select(b.icmp_unsigned("<", magnitude, _i32(0x400)), small, u)
    return b.bitcast(b.or_(u, sign), F32)


def _or_nan(b: Any, x: Any, bits: Any, nan: int) -> Any:
    return b.select(b.fcmp_ordered("ord", x, x), bits, ir.Constant(bits.type, nan))


def _rounded_bf16(b: Any, x: Any) -> Any:
    """Bits of x, rounded to those of a BF16 in their upper half; the lower half is left as it falls."""
    u = b.bitcast(x, I32)
    odd = b.and_(b.lshr(u, _i32(16)), _i32(1))
    return _or_nan(b, x, b.add(b.add(u, _i32(0x7FFF)), odd), NAN["BF16"] << 16)


def _narrow_bf16(b: Any, x: Any) -> Any:
    return b.trunc(b.lshr(_rounded_bf16(b, x), _i32(16)), I16)


def _narrow_f16(b: Any, x: Any) -> Any:
    u = b.bitcast(x, I32)
    sign, magnitude = b.and_(u, _i32(0x80000000)), b.and_(u, _i32(0x7FFFFFFF))
    odd = b.and_(b.lshr(magnitude, _i32(13)), _i32(1))
    normal = b.lshr(b.add(b.add(magnitude, _i32((0xFFF - (112 << 23)) & 0xFFFFFFFF)), odd), _i32(13))
    # Adding 0.5, whose unit is the smallest subnormal half, lets the processor round.
    half = ir.Constant(F32, 0.5)
    small = b.sub(b.bitcast(b.fadd(b.bitcast(magnitude, F32), half), I32), _i32(126 << 23))
    bits = b.select(b.icmp_unsigned("<", magnitude, _i32(113 << 23)), small, normal)
    bits = b.select(b.icmp_unsigned(">=", magnitude, _i32(143 << 23)), _i32(0x7C00), bits)
    return _or_nan(b, x, b.trunc(b.or_(bits, b.lshr(sign, _i32(16))), I16), NAN["F16"])


def _narrow_f32(b: Any, x: Any) -> Any:
    return _or_nan(b, x, b.bitcast(x, I32), NAN["F32"])


widen_bf16 = operation(types.float32, (types.uint16,), _widen_bf16)
widen_f16 = operation(types.float32, (types.uint16,), _widen_f16)
widen_f32 = operation(types.float32, (types.uint32,), lambda b, u: b.bitcast(u, F32))
narrow_bf16 = operation(types.uint16, (types.float32,), _narrow_bf16)
narrow_f16 = operation(types.uint16, (types.float32,), _narrow_f16)
narrow_f32 = operation(types.uint32, (types.float32,), _narrow_f32)


# BF16 elements two at a time: the even one in the lower half of a word, the odd one in the upper, as in memory. They
# are widened and narrowed in place, which takes a third of the shuffles that one at a time would.
widen_even = operation(types.float32, (types.uint32,), lambda b, u: b.bitcast(b.shl(u, _i32(16)), F32))
widen_odd = operation(types.float32, (types.uint32,), lambda b, u: b.bitcast(b.and_(u, _i32(0xFFFF0000)), F32))


def _narrow_pair(b: Any, even: Any, odd: Any) -> Any:
    return b.or_(b.lshr(_rounded_bf16(b, even), _i32(16)), b.and_(_rounded_bf16(b, odd), _i32(0xFFFF0000)))


narrow_pair = operation(types.uint32, (types.float32, types.float32), _narrow_pair)


def remainder_operation(packing: Packing, j: int, place: int) -> Any:
    """Return the compiled ``value(bytes, factor, *constants)``: ``q * scale - sign(q) * shift``.

    q is digit `j` minus z of byte `place` (0 or 1) of two bytes in a uint16. For radix 3 and 5, j is that of `factor`.
    """

    def build(b: Any, pair: Any, factor: Any, *known: Any) -> Any:
        wide = b.zext(pair, I32)
        if packing.radix in CHAINED:
            byte = b.lshr(wide, _i32(8)) if place else b.and_(wide, _i32(0xFF))
            fraction, value = b.mul(byte, factor), known[0]
            for number in range(1, packing.radix):
                least = _i32(-(-(number << 32) // packing.radix))
                value = b.select(b.icmp_unsigned(">=", fraction, least), known[number], value)
            return value
        bits = packing.radix.bit_length() - 1
        number = b.and_(b.lshr(wide, _i32(8 * place + bits * j)), _i32(packing.radix - 1))
        return _value(b, number, packing.zero, *known[:2])

    return operation(types.float32, (types.uint16, types.uint32, *[types.float32] * 5), build)


def _value(b: Any, number: Any, zero: int, scale: Any, shift: Any) -> Any:
    """``q * scale - sign(q) * shift`` for a digit below 2^16: for q = 0 that is the product, +0.

    The digit becomes a float as the lowest bits of 2^23, from which 2^23 + z is subtracted, which is exact.
    """
    q = b.fsub(b.bitcast(b.or_(number, _i32(0x4B000000)), F32), ir.Constant(F32, float((1 << 23) + zero)))
    product, nothing = b.fmul(q, scale), ir.Constant(F32, 0.0)
    below = b.select(b.fcmp_ordered("<", q, nothing), b.fadd(product, shift), product)
    return b.select(b.fcmp_ordered(">", q, nothing), b.fsub(product, shift), below)


def _word_value(b: Any, low: Any, high: Any, scale: Any, shift: Any) -> Any:
    return _value(b, b.or_(b.zext(low, I32), b.shl(b.zext(high, I32), _i32(8))), WORD.zero, scale, shift)


word_value = operation(types.float32, (types.uint8, types.uint8, types.float32, types.float32), _word_value)
"""The same for packing ``word``, from the two bytes of its digit."""


def _float_of_planes(b: Any, *planes: Any) -> Any:
    u = b.zext(planes[0], I32)
    for place, byte in enumerate(planes[1:], 1):
        u = b.or_(u, b.shl(b.zext(byte, I32), _i32(8 * place)))
    return b.bitcast(u, F32)


float_of_planes = operation(types.float32, (types.uint8,) * 4, _float_of_planes)
"""A float32 from its four bytes, the lowest first."""
