"""The compiled loop of the CPU kernel over jobs, rows and spans: one pass over base, codes and result.

Arrays come as addresses, jobs and directions as rows of integers (tables.py names the columns), so that one compiled
function decodes any number of tensors of any mixture of dtypes and packings. launch.py fills the rows and keeps what
they point to; nothing here checks anything.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from relex_codec.format.constants import BLOCK, BYTE, FLOAT32, NIBBLE, PIECE, QUINARY, TERNARY, WORD

from . import tables as t
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
from .llvm_ops import load_f32
from .llvm_ops import load_i64 as field

_TERNARY, _QUINARY, _NIBBLE, _BYTE = (int(p.id) for p in (TERNARY, QUINARY, NIBBLE, BYTE))
_WORD, _FLOAT32 = int(WORD.id), int(FLOAT32.id)
_PER_BYTE: Final = np.array([0, 0, 5, 3, 2, 1, 0], np.int64)
_FACTORS: Final = np.zeros((7, 5), np.uint32)
for _packing in (TERNARY, QUINARY):
    _FACTORS[_packing.id, : _packing.per_byte] = [t.digit_factor(_packing, j) for j in range(_packing.per_byte)]
_ITEMSIZE: Final = np.array([2, 2, 4], np.int64)


@loop
def _sum_factors(direction: Any, start: Any, count: Any, p: Any) -> None:
    """Set p to the sum of the factors' products for the elements from `start` on, matrix row by matrix row."""
    rank, m = field(direction, t.RANK), field(direction, t.M)
    n, pitch = field(direction, t.N), field(direction, t.PITCH_B)
    if rank < 4:
        zero(p, count)
    done = 0
    while done < count and rank:
        row, column = (start + done) // n, (start + done) % n
        matrix, row = row // m, row % m
        length = min(n - column, count - done)
        a = field(direction, t.A) + 4 * (matrix * rank * m + row)
        b = field(direction, t.B) + 4 * (matrix * rank * pitch + column)
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
    kind = field(direction, t.PACKING)
    done = 0
    while done < count and kind:
        element, at = start + done, p + 4 * done
        if kind in (_WORD, _FLOAT32):
            piece = element // PIECE
            plane = min(PIECE, size - piece * PIECE)
            length = min(count - done, (piece + 1) * PIECE - element)
            planes = 2 if kind == _WORD else 4
            packed = field(direction, t.PACKED) + (piece - first // PIECE) * PIECE * planes + element - piece * PIECE
            if kind == _WORD:
                add_words(packed, packed + plane, known, at, length)
            else:
                add_floats(packed, plane, at, length)
        else:
            packed, j, length = _locate(field(direction, t.PACKED), _PER_BYTE[kind], first, size, element)
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
    _add_remainder(direction, known, field(job, t.FIRST), field(job, t.SIZE), element, count, p)


@loop
def _decode_plain(
    job: Any, directions: Any, constants: Any, g: Any, element: Any, origin: Any, p: Any, x: Any, out: Any, count: Any
) -> None:
    """Decode a span, operation by operation, for any dtypes and number of directions; of an only one, p is known."""
    kind, wanted = field(job, t.ORIGIN_DTYPE), field(job, t.DTYPE)
    if kind == wanted and field(job, t.COUNT) == 1:
        if kind == t.BF16:
            finish_bf16(origin, p, load_f32(g, field(job, t.FROM)), out, count)
        elif kind == t.F16:
            finish_f16(origin, p, load_f32(g, field(job, t.FROM)), out, count)
        else:
            finish_f32(origin, p, load_f32(g, field(job, t.FROM)), out, count)
        return
    if kind == t.BF16:
        convert_bf16(origin, x, count)
    elif kind == t.F16:
        convert_f16(origin, x, count)
    else:
        convert_f32(origin, x, count)
    for d in range(field(job, t.FROM), field(job, t.FROM) + field(job, t.COUNT)):
        if field(job, t.COUNT) > 1:
            _sum(directions + 8 * t.DIRECTION * d, constants + 4 * t.KNOWN * d, job, element, count, p)
        add_product(p, load_f32(g, d), x, count)
    if wanted == t.BF16:
        round_bf16(x, out, count)
    elif wanted == t.F16:
        round_f16(x, out, count)
    else:
        round_f32(x, out, count)


def decode(
    jobs: Any, directions: Any, constants: Any, targets: Any, coefficients: Any, work: Any, buffers: Any,
    number_of_directions: Any, steps: Any, items: Any, tiny: Any,
) -> int:  # fmt: skip
    """Decode ranges of elements of several jobs: ``out = narrow(w0 + p_1 * g_1 + ... + p_k * g_k)``.

    p is ``a_1[row] * b_1[column] + ... + (q * scale - sign(q) * shift)``, summed from left to right, and each operation
    is rounded to float32 (FORMAT.md section 8). Where there are factors, columns are taken in tiles, so that the right
    factors of a tile stay in the first cache while its rows are decoded.

    It is called as `machine_code.decode`.

    Args:
        jobs, directions: addresses of int64 [J, 16], [D, 8].
        constants: of float32 [D, 6], those of `tables.remainder_constants`, and the scale.
        targets: of int64 [J, S, 3].
        coefficients: of float32 [S, D].
        work: of int64 [W, 3]: job, and the elements that are decoded of it.
        buffers: of 3 * `SPAN` float32, at the beginning of a line of the cache.
        number_of_directions, steps, items: D, S, W.
        tiny: the smallest subnormal float32.

    Returns:
        0, with nothing done, on a thread that takes subnormal numbers for zeros; else 1.
    """
    if tiny * np.float32(1) == 0:
        return 0
    p, x, buffer = buffers, buffers + 4 * t.SPAN, buffers + 8 * t.SPAN
    for w in range(items):
        item = work + 8 * t.WORK * w
        number = field(item, 0)
        job, places = jobs + 8 * t.JOB * number, targets + 8 * t.TARGET * steps * number
        lo, hi = max(field(item, 1), field(job, t.LO)), min(field(item, 2), field(job, t.HI))
        origin_size, size = _ITEMSIZE[field(job, t.ORIGIN_DTYPE)], _ITEMSIZE[field(job, t.DTYPE)]
        first = field(job, t.FROM)
        only, known = directions + 8 * t.DIRECTION * first, constants + 4 * t.KNOWN * first
        kind, rank = field(only, t.PACKING), field(only, t.RANK)
        fused = (
            field(job, t.COUNT) == 1 and field(job, t.ORIGIN_DTYPE) == t.BF16 and field(job, t.DTYPE) == t.BF16
            and _TERNARY <= kind <= _BYTE and (rank > 0 or load_f32(known, 5) > 0)
        )  # fmt: skip
        tile = max(1, field(job, t.COLUMNS))
        if rank:
            tile = max(
                t.MIN_TILE, 2 * t.SPAN // rank
            )  # the right factors of a tile stay in the first cache, row by row
        top = max(0, (lo - field(job, t.COLUMN)) // field(job, t.WIDTH) - field(job, t.ROW))
        for left in range(0, field(job, t.COLUMNS), tile):
            for i in range(top, field(job, t.ROWS)):
                begin = (field(job, t.ROW) + i) * field(job, t.WIDTH) + field(job, t.COLUMN)
                if begin >= hi:
                    break
                element, end = max(begin + left, lo), min(begin + min(left + tile, field(job, t.COLUMNS)), hi)
                while element < end:
                    count, packed, digit = min(t.SPAN, end - element), 0, 0
                    if fused:
                        packed, digit, there = _locate(
                            field(only, t.PACKED), _PER_BYTE[kind], field(job, t.FIRST), field(job, t.SIZE), element
                        )
                        count = min(count, there)
                        if rank:
                            _sum_factors(only, element, count, p)
                    elif field(job, t.COUNT) == 1:
                        _sum(only, known, job, element, count, p)
                    column = element - begin
                    skipped = field(job, t.AT) + i * field(job, t.PITCH) + column
                    origin = field(job, t.ORIGIN) + origin_size * skipped
                    for s in range(steps):
                        at, row = places + 8 * t.TARGET * s, coefficients + 4 * number_of_directions * s
                        stride = field(at, t.COLUMN_STRIDE)
                        place = field(at, t.ADDRESS) + size * (i * field(at, t.ROW_STRIDE) + column * stride)
                        out, g = place if stride == 1 else buffer, load_f32(row, first)
                        if not fused:
                            _decode_plain(job, directions, constants, row, element, origin, p, x, out, count)
                        elif rank:
                            _decode_summed(kind, packed, digit, known, origin, p, g, out, count)
                        else:
                            _decode_fused(kind, packed, digit, known, origin, g, out, count)
                        if stride != 1:
                            spread(buffer, place, stride, size, count)
                    element += count
    return 1
