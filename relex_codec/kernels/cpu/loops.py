"""The compiled loop of the CPU kernel over jobs, rows and spans: one pass over base, codes and result.

Arrays come as addresses, jobs and directions as rows of integers (columns are named below), so that one compiled
function decodes any number of tensors of any mixture of dtypes and packings. launch.py fills the rows and keeps what
they point to; nothing here checks anything.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from relex_codec.core.jit import compiled
from relex_codec.format.constants import BLOCK, BYTE, FLOAT32, NIBBLE, PIECE, QUINARY, TERNARY, WORD

from .inner_loops import (
    add_byte,
    add_eight,
    add_floats,
    add_four,
    add_high,
    add_low,
    add_pair,
    add_product,
    add_quinary,
    add_ternary,
    add_words,
    begin_eight,
    begin_four,
    convert_bf16,
    convert_f16,
    convert_f32,
    finish_bf16,
    finish_f16,
    finish_f32,
    fused_byte,
    fused_high,
    fused_low,
    fused_quinary,
    fused_ternary,
    loop,
    round_bf16,
    round_f16,
    round_f32,
    spread,
    summed_byte,
    summed_high,
    summed_low,
    summed_quinary,
    summed_ternary,
    zero,
)
from .llvm_ops import digit_factor, load_f32

SPAN: Final = 4096
"""Elements of the longest span: those of a digit of a block. Buffers of so many fit the first cache."""
MIN_TILE: Final = 256
"""Fewest columns that are decoded at a time, row after row, where there are factors."""

LINE: Final = 64
"""Bytes of a line of the cache; vectors that lie across two are read at half the speed."""

ORIGIN, AT, PITCH, WIDTH, ROW, ROWS, COLUMN, COLUMNS, LO, HI, FIRST, SIZE, FROM, COUNT, ORIGIN_DTYPE, DTYPE = range(16)
"""Columns of a job; FROM and COUNT say which directions are its own."""
PACKED, PACKING, RANK, A, B, M, N, PITCH_B = range(8)
"""Columns of a direction: addresses of codes and factors, number of the packing, r, m, n', floats from b_j to b_j+1."""
ADDRESS, ROW_STRIDE, COLUMN_STRIDE = range(3)
"""Columns of a target, strides in elements."""
CODES: Final = {"BF16": 0, "F16": 1, "F32": 2}
BF16, F16 = CODES["BF16"], CODES["F16"]

_TERNARY, _QUINARY, _NIBBLE, _BYTE = (int(p.id) for p in (TERNARY, QUINARY, NIBBLE, BYTE))
_WORD, _FLOAT32 = int(WORD.id), int(FLOAT32.id)
_PER_BYTE: Final = np.array([0, 0, 5, 3, 2, 1, 0], np.int64)
_FACTORS: Final = np.zeros((7, 5), np.uint32)
for _packing in (TERNARY, QUINARY):
    _FACTORS[_packing.id, : _packing.per_byte] = [digit_factor(_packing, j) for j in range(_packing.per_byte)]
_ITEMSIZE: Final = np.array([2, 2, 4], np.int64)


@loop
def _sum_factors(direction: Any, start: Any, count: Any, p: Any) -> None:
    """Set p to the sum of the factors' products for the elements from `start` on, matrix row by matrix row."""
    rank, m, n, pitch = direction[RANK], direction[M], direction[N], direction[PITCH_B]
    if rank < 4:
        zero(p, count)
    done = 0
    while done < count and rank:
        row, column = (start + done) // n, (start + done) % n
        matrix, row = row // m, row % m
        length = min(n - column, count - done)
        a = direction[A] + 4 * (matrix * rank * m + row)
        b = direction[B] + 4 * (matrix * rank * pitch + column)
        at, j = p + 4 * done, 0
        while j + 4 <= rank:
            left, right = a + 4 * j * m, b + 4 * j * pitch
            if j + 8 <= rank:
                if j:
                    add_eight(left, m, right, pitch, at, length)
                else:
                    begin_eight(left, m, right, pitch, at, length)
                j += 8
            else:
                if j:
                    add_four(left, m, right, pitch, at, length)
                else:
                    begin_four(left, m, right, pitch, at, length)
                j += 4
        while j < rank:
            add_pair(load_f32(a, j * m), b + 4 * j * pitch, at, length)
            j += 1
        done += length


@loop
def _locate(packed: Any, per_byte: Any, first: Any, size: Any, element: Any) -> Any:
    """Where the code of an element is: address of its byte, number of its digit, and how many elements follow suit."""
    full = PIECE // (BLOCK * per_byte) * BLOCK + -(-(PIECE % (BLOCK * per_byte)) // per_byte)
    piece = element // PIECE
    inside = element - piece * PIECE
    block = inside // (BLOCK * per_byte)
    inside -= block * BLOCK * per_byte
    there = min(BLOCK * per_byte, min(PIECE, size - piece * PIECE) - block * BLOCK * per_byte)
    width = -(-there // per_byte)
    j = inside // width
    i = inside - j * width
    address = packed + (piece - first // PIECE) * full + block * BLOCK + i
    return address, j, min(width - i, there - inside)


@loop
def _add_remainder(direction: Any, known: Any, first: Any, size: Any, start: Any, count: Any, p: Any) -> None:
    """Add the remainder of the elements from `start` on."""
    kind = direction[PACKING]
    done = 0
    while done < count and kind:
        element, at = start + done, p + 4 * done
        if kind in (_WORD, _FLOAT32):
            piece = element // PIECE
            plane = min(PIECE, size - piece * PIECE)
            length = min(count - done, (piece + 1) * PIECE - element)
            planes = 2 if kind == _WORD else 4
            packed = direction[PACKED] + (piece - first // PIECE) * PIECE * planes + element - piece * PIECE
            if kind == _WORD:
                add_words(packed, packed + plane, known, at, length)
            else:
                add_floats(packed, plane, at, length)
        else:
            packed, j, length = _locate(direction[PACKED], _PER_BYTE[kind], first, size, element)
            length, factor = min(length, count - done), _FACTORS[kind, j]
            if kind == _TERNARY:
                add_ternary(packed, factor, known, at, length)
            elif kind == _QUINARY:
                add_quinary(packed, factor, known, at, length)
            elif kind == _BYTE:
                add_byte(packed, factor, known, at, length)
            elif j == 0:
                add_low(packed, factor, known, at, length)
            else:
                add_high(packed, factor, known, at, length)
        done += length


@loop
def _decode_fused(kind: Any, packed: Any, j: Any, known: Any, origin: Any, g: Any, out: Any, count: Any) -> None:
    """``out = bf16(origin + remainder * g)``, for a direction without factors."""
    factor = _FACTORS[kind, j]
    if kind == _TERNARY:
        fused_ternary(origin, packed, factor, known, 0, g, out, count)
    elif kind == _QUINARY:
        fused_quinary(origin, packed, factor, known, 0, g, out, count)
    elif kind == _BYTE:
        fused_byte(origin, packed, factor, known, 0, g, out, count)
    elif j == 0:
        fused_low(origin, packed, factor, known, 0, g, out, count)
    else:
        fused_high(origin, packed, factor, known, 0, g, out, count)


@loop
def _decode_summed(
    kind: Any, packed: Any, j: Any, known: Any, origin: Any, p: Any, g: Any, out: Any, count: Any
) -> None:
    """``out = bf16(origin + (p + remainder) * g)``, p being the sum of factors."""
    factor = _FACTORS[kind, j]
    if kind == _TERNARY:
        summed_ternary(origin, packed, factor, known, p, g, out, count)
    elif kind == _QUINARY:
        summed_quinary(origin, packed, factor, known, p, g, out, count)
    elif kind == _BYTE:
        summed_byte(origin, packed, factor, known, p, g, out, count)
    elif j == 0:
        summed_low(origin, packed, factor, known, p, g, out, count)
    else:
        summed_high(origin, packed, factor, known, p, g, out, count)


@loop
def _sum(direction: Any, known: Any, job: Any, element: Any, count: Any, p: Any) -> None:
    """Set p to that of a direction."""
    _sum_factors(direction, element, count, p)
    _add_remainder(direction, known, job[FIRST], job[SIZE], element, count, p)


@loop
def _decode_plain(
    job: Any, directions: Any, constants: Any, g: Any, element: Any, origin: Any, p: Any, x: Any, out: Any, count: Any
) -> None:
    """Decode a span, operation by operation, for any dtypes and number of directions; of an only one, p is known."""
    kind, wanted = job[ORIGIN_DTYPE], job[DTYPE]
    if kind == wanted and job[COUNT] == 1:
        if kind == BF16:
            finish_bf16(origin, p, g[job[FROM]], out, count)
        elif kind == F16:
            finish_f16(origin, p, g[job[FROM]], out, count)
        else:
            finish_f32(origin, p, g[job[FROM]], out, count)
        return
    if kind == BF16:
        convert_bf16(origin, x, count)
    elif kind == F16:
        convert_f16(origin, x, count)
    else:
        convert_f32(origin, x, count)
    for d in range(job[FROM], job[FROM] + job[COUNT]):
        if job[COUNT] > 1:
            _sum(directions[d], constants[d], job, element, count, p)
        add_product(p, g[d], x, count)
    if wanted == BF16:
        round_bf16(x, out, count)
    elif wanted == F16:
        round_f16(x, out, count)
    else:
        round_f32(x, out, count)


@compiled
def decode(jobs: Any, directions: Any, constants: Any, targets: Any, coefficients: Any, work: Any, tiny: Any) -> bool:
    """Decode ranges of elements of several jobs: ``out = narrow(w0 + p_1 * g_1 + ... + p_k * g_k)``.

    p is ``a_1[row] * b_1[column] + ... + (q * scale - sign(q) * shift)``, summed from left to right, and each operation
    is rounded to float32 (FORMAT.md section 8). Where there are factors, columns are taken in tiles, so that the right
    factors of a tile stay in the first cache while its rows are decoded.

    Args:
        jobs, directions: int64 [J, 16], [D, 8].
        constants: float32 [D, 6], those of `llvm_ops.remainder_constants`, and the scale.
        targets: int64 [J, S, 3].
        coefficients: float32 [S, D].
        work: int64 [W, 3]: job, and the elements that are decoded of it.
        tiny: the smallest subnormal float32.

    Returns:
        False, with nothing done, on a thread that takes subnormal numbers for zeros.
    """
    if tiny * np.float32(1) == 0:
        return False
    buffers = np.empty(3 * SPAN + LINE, np.float32)
    p = (buffers.ctypes.data + LINE - 1) // LINE * LINE
    x, buffer = p + 4 * SPAN, p + 8 * SPAN
    for w in range(len(work)):
        job, places = jobs[work[w, 0]], targets[work[w, 0]]
        lo, hi = max(work[w, 1], job[LO]), min(work[w, 2], job[HI])
        origin_size, size = _ITEMSIZE[job[ORIGIN_DTYPE]], _ITEMSIZE[job[DTYPE]]
        only, known = directions[job[FROM]], constants[job[FROM]]
        kind, rank = only[PACKING], only[RANK]
        fused = (
            job[COUNT] == 1 and job[ORIGIN_DTYPE] == BF16 and job[DTYPE] == BF16 and _TERNARY <= kind <= _BYTE
            and (rank > 0 or known[5] > 0)
        )  # fmt: skip
        tile = max(1, job[COLUMNS])
        if rank:
            tile = max(MIN_TILE, 2 * SPAN // rank)  # the right factors of a tile stay in the first cache, row by row
        top = max(0, (lo - job[COLUMN]) // job[WIDTH] - job[ROW])
        for left in range(0, job[COLUMNS], tile):
            for i in range(top, job[ROWS]):
                begin = (job[ROW] + i) * job[WIDTH] + job[COLUMN]
                if begin >= hi:
                    break
                element, end = max(begin + left, lo), min(begin + min(left + tile, job[COLUMNS]), hi)
                while element < end:
                    count, packed, digit = min(SPAN, end - element), 0, 0
                    if fused:
                        packed, digit, there = _locate(only[PACKED], _PER_BYTE[kind], job[FIRST], job[SIZE], element)
                        count = min(count, there)
                        if rank:
                            _sum_factors(only, element, count, p)
                    elif job[COUNT] == 1:
                        _sum(only, known, job, element, count, p)
                    column = element - begin
                    origin = job[ORIGIN] + origin_size * (job[AT] + i * job[PITCH] + column)
                    for s in range(len(coefficients)):
                        stride = places[s, COLUMN_STRIDE]
                        place = places[s, ADDRESS] + size * (i * places[s, ROW_STRIDE] + column * stride)
                        out, g = place if stride == 1 else buffer, coefficients[s, job[FROM]]
                        if not fused:
                            _decode_plain(
                                job, directions, constants, coefficients[s], element, origin, p, x, out, count
                            )
                        elif rank:
                            _decode_summed(kind, packed, digit, known, origin, p, g, out, count)
                        else:
                            _decode_fused(kind, packed, digit, known, origin, g, out, count)
                        if stride != 1:
                            spread(buffer, place, stride, size, count)
                    element += count
    return len(buffers) > 0  # always; they must live until here, as only their address was used
