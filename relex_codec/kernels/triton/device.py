"""What the Triton kernels are made of: the tables that they read, numbers and their rounding, factors.

Tables are of int64 (`JobField`, `DirectionField`): pointers as numbers, float32 as the bits of their low half. Rounding
is integer arithmetic on the bits, since Triton's interpreter truncates where bfloat16 is made; for float16 it and the
hardware both round to nearest even.
"""

from __future__ import annotations

import triton
import triton.language as tl

from relex_codec.format.constants import BLOCK as BLOCK_BYTES
from relex_codec.format.constants import PIECE as PIECE_ELEMENTS

from .plan import SEVERAL, TARGET_WORDS, DirectionField, JobField

PIECE = tl.constexpr(PIECE_ELEMENTS)
BLOCK = tl.constexpr(BLOCK_BYTES)
ANY = tl.constexpr(SEVERAL)
T_WORDS = tl.constexpr(TARGET_WORDS)
(
    J_ELEMENT_0, J_ORIGIN, J_LO, J_HI, J_FIRST_PIECE, J_SIZE, J_CALL, J_DIRECTIONS,
    J_START, J_WIDTH, J_COLUMNS, J_COUNT, J_PITCH,
) = (tl.constexpr(int(field)) for field in JobField)  # fmt: skip
(
    D_PACKED, D_PIECE_BYTES, D_SCALE, D_SHIFT, D_A, D_B, D_RANK, D_M, D_N, D_ROWS,
    D_PACKING, D_PER_BYTE, D_RADIX, D_ZERO,
) = (tl.constexpr(int(field)) for field in DirectionField)  # fmt: skip
JOB_FIELDS = tl.constexpr(len(JobField))
DIRECTION_FIELDS = tl.constexpr(len(DirectionField))


# ---- Numbers ----


@triton.jit
def widen(bits, DTYPE: tl.constexpr):
    """Bits of a float dtype as float32, exactly."""
    if DTYPE == "BF16":
        x = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == "F16":
        x = bits.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        x = bits.to(tl.float32, bitcast=True)
    return x


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """float32 rounded to the bits of a float dtype; one NaN."""
    if DTYPE == "BF16":
        u = x.to(tl.int32, bitcast=True)
        bits = tl.where(x != x, 0x7FC0, (u + 0x7FFF + ((u >> 16) & 1)) >> 16).to(tl.int16)
    elif DTYPE == "F16":
        bits = tl.where(x != x, 0x7E00, x.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)).to(tl.int16)
    else:
        bits = tl.where(x != x, 0x7FC00000, x.to(tl.int32, bitcast=True))
    return bits


@triton.jit
def number(place):
    """A float32 of a table."""
    return tl.load(place).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def elements(place, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The pointer to elements whose address a table holds."""
    address = tl.load(place)
    if DTYPE == "U8":
        pointer = address.to(tl.pointer_type(tl.uint8))
    elif DTYPE == "F32":
        pointer = address.to(tl.pointer_type(tl.int32))
    else:
        pointer = address.to(tl.pointer_type(tl.int16))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def fetch(pointer, mask, ALIGNED: tl.constexpr):
    """Load; where a tile is whole, without the mask, which would keep loads from being wide."""
    if ALIGNED:
        value = tl.load(pointer)
    else:
        value = tl.load(pointer, mask=mask, other=0)
    return value


# ---- A direction ----


@triton.jit
def quantised(digit, zero, direction):
    """``q * scale - sign(q) * shift``; +0 for q = 0, as scale is not negative and both are finite."""
    q = digit - zero
    shift = number(direction + D_SHIFT)
    value = q.to(tl.float32) * number(direction + D_SCALE) - tl.where(q < 0, shift * -1.0, shift)
    return tl.where(q == 0, 0.0, value)


@triton.jit
def planes(packed, stride, COUNT: tl.constexpr, mask, ALIGNED: tl.constexpr):
    """Elements of `COUNT` planes, int32, the lowest byte at `packed`."""
    word = fetch(packed, mask, ALIGNED).to(tl.int32)
    for i in tl.static_range(1, COUNT):
        word = word | (fetch(packed + i * stride, mask, ALIGNED).to(tl.int32) << (8 * i))
    return word


@triton.jit
def factor_sum(p, direction, matrix, row, place, mask, ALIGNED: tl.constexpr):
    """``p + sum of a_j[row] * b_j[column]``, at elements that lie `place` after the first of a row of a matrix."""
    rank = tl.load(direction + D_RANK)
    m, n = tl.load(direction + D_M).to(place.dtype), tl.load(direction + D_N).to(place.dtype)
    rows = place // n
    column = place - rows * n
    rows += row.to(place.dtype)
    matrices = rows // m
    rows -= matrices * m
    matrices = (matrix + matrices) * rank  # int64
    a = tl.load(direction + D_A).to(tl.pointer_type(tl.float32)) + (matrices * m + rows)
    b = tl.load(direction + D_B).to(tl.pointer_type(tl.float32)) + (matrices * n + column)
    for _ in range(rank.to(tl.int32)):
        p = p + fetch(a, mask, ALIGNED) * fetch(b, mask, ALIGNED)
        a += m
        b += n
    return p


@triton.jit
def near_sum(p, direction, start, local, mask, ALIGNED: tl.constexpr):
    """`factor_sum` at elements from `start` on, which are of one row or of two that follow each other."""
    rank = tl.load(direction + D_RANK).to(tl.int32)
    m, n = tl.load(direction + D_M), tl.load(direction + D_N)
    last = tl.load(direction + D_ROWS) - 1  # nothing is read beyond the last row: elements there are masked
    row = tl.minimum(start // n, last)
    column = start - row * n
    following = tl.minimum(row + 1, last)
    matrix, next_matrix = row // m, following // m
    after = local >= (n - column).to(tl.int32)
    offset = (column + matrix * (rank * n)).to(tl.int32)
    next_offset = (column - n + next_matrix * (rank * n)).to(tl.int32)
    places = local + tl.where(after, next_offset, offset)
    a = tl.load(direction + D_A).to(tl.pointer_type(tl.float32))
    b = tl.load(direction + D_B).to(tl.pointer_type(tl.float32))
    a_next = a + (next_matrix * rank * m + following - next_matrix * m)
    a += matrix * rank * m + row - matrix * m
    for _ in range(rank):
        p = p + tl.where(after, tl.load(a_next), tl.load(a)) * fetch(b + places, mask, ALIGNED)
        a += m
        a_next += m
        b += n
    return p
