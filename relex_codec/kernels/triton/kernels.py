"""The Triton kernels: FORMAT.md sections 7 and 8 on a tile of elements. plan.py plans, launch.py launches.

For each element and step, every operation rounded to float32 on its own:

    x = w0 + p_1 * g_1 + ... + p_k * g_k                                from left to right, g_d of direction d
    p = a_1[row] * b_1[column] + ... + (q * scale - sign(q) * shift)    from left to right, after +0

where q is a digit of a byte of the codes. For packing ``float32`` the last term is the value itself.

``planar`` decodes contiguous elements: a program takes bytes of one block and decodes all digits of each, so that it
reads codes and origin, and writes targets, side by side. ``general`` decodes any window into targets of any strides
with any directions: it takes elements in the order of the window and looks up the code of each.

No product may be contracted with a sum: launch with ``enable_fp_fusion=False``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import (
    ANY,
    BLOCK,
    D_M,
    D_N,
    D_PACKED,
    D_PACKING,
    D_PER_BYTE,
    D_PIECE_BYTES,
    D_RADIX,
    D_ZERO,
    DIRECTION_FIELDS,
    J_CALL,
    J_COLUMNS,
    J_COUNT,
    J_DIRECTIONS,
    J_ELEMENT_0,
    J_FIRST_PIECE,
    J_HI,
    J_LO,
    J_ORIGIN,
    J_PITCH,
    J_SIZE,
    J_START,
    J_WIDTH,
    JOB_FIELDS,
    PIECE,
    T_WORDS,
    elements,
    factor_sum,
    fetch,
    narrow,
    near_sum,
    number,
    planes,
    quantised,
    widen,
)

LARGE = tl.constexpr(1 << 30)
PIECE_BITS = tl.constexpr(18)
MOST_DIGITS = tl.constexpr(5)


# ---- Contiguous elements ----


@triton.jit
def codes(direction, piece, inside, i, mask, PACKING: tl.constexpr, K: tl.constexpr, ALIGNED: tl.constexpr):
    """The bytes of a tile, if their digits are those of the tile; else something that is not used."""
    if K > 1 and (PACKING >= 2 and PACKING <= 4):
        FULL: tl.constexpr = PIECE // (BLOCK * K)
        PIECE_BYTES: tl.constexpr = FULL * BLOCK + (PIECE - FULL * BLOCK * K + K - 1) // K
        packed = elements(direction + D_PACKED, "U8", ALIGNED) + piece * PIECE_BYTES + inside // K
        found = fetch(packed + i, mask, ALIGNED).to(tl.int32)
    else:
        found = i
    return found


@triton.jit
def planar_value(
    direction, byte, piece, inside, local, length, start, first, width, mask,
    J: tl.constexpr, CLASS: tl.constexpr, K: tl.constexpr, NEAR: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """p of section 8 at the elements `local` of a block, which are digit `J` of the tile's bytes."""
    PACKING: tl.constexpr = CLASS & 7
    p = tl.zeros(local.shape, tl.float32)
    if CLASS & 8 and NEAR:
        before = J * width + first
        p = near_sum(p, direction, start + before, local - before, mask, ALIGNED)
    elif CLASS & 8:
        rows = start // tl.load(direction + D_N)
        matrix = rows // tl.load(direction + D_M)
        place = local + (start - rows * tl.load(direction + D_N)).to(tl.int32)
        p = factor_sum(p, direction, matrix, rows - matrix * tl.load(direction + D_M), place, mask, ALIGNED)
    if PACKING == 1:
        packed = elements(direction + D_PACKED, "U8", ALIGNED) + piece * (4 * PIECE) + inside
        p = p + planes(packed + local, length, 4, mask, ALIGNED).to(tl.float32, bitcast=True)
    elif PACKING == 6:
        packed = elements(direction + D_PACKED, "U8", ALIGNED) + piece * (2 * PIECE) + inside
        p = p + quantised(planes(packed + local, length, 2, mask, ALIGNED), 32767, direction)
    elif PACKING == 5:
        packed = elements(direction + D_PACKED, "U8", ALIGNED) + piece * PIECE + inside
        p = p + quantised(planes(packed + local, length, 1, mask, ALIGNED), 127, direction)
    elif PACKING >= 2:
        RADIX: tl.constexpr = 3 if PACKING == 2 else 5 if PACKING == 3 else 16
        ZERO: tl.constexpr = (RADIX - 1) // 2
        for _ in tl.static_range(J):
            byte = byte // RADIX
        p = p + quantised(byte % RADIX, ZERO, direction)
    return p


@triton.jit
def planar(
    units, table, call, steps,
    ORIGIN: tl.constexpr, DTYPE: tl.constexpr, K: tl.constexpr, DIRECTIONS: tl.constexpr, CLASSES: tl.constexpr,
    TILE: tl.constexpr, NEAR: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Decode blocks of contiguous elements: ``target = narrow(w0 + p_1 * g_1 + ...)`` at each step.

    `units` has for each block the place of the job's row in the table, and the block's number.

    Args:
        K: digits of a byte; of each direction, or 1.
        CLASSES: of each direction four bits, the first lowest: number of the packing, and `FACTORS_FLAG`, 8.
        NEAR: rows of the matrices that have factors are at least `TILE` long.
        ALIGNED: blocks are full, all of their elements are decoded, and all addresses are multiples of 16.
    """
    TILES: tl.constexpr = BLOCK // TILE
    SPAN: tl.constexpr = BLOCK * K
    BLOCKS: tl.constexpr = (PIECE + SPAN - 1) // SPAN
    unit = tl.program_id(0) // TILES
    job = table + tl.load(units + 2 * unit)
    block = tl.load(units + 2 * unit + 1)
    first = (tl.program_id(0) % TILES) * TILE
    i = first + tl.arange(0, TILE)

    piece = (block // BLOCKS).to(tl.int64)
    inside = (block % BLOCKS) * SPAN
    start = (tl.load(job + J_FIRST_PIECE) + piece) * PIECE
    length = tl.minimum(tl.load(job + J_SIZE) - start, PIECE).to(tl.int32)
    start += inside
    if ALIGNED:
        length = tl.multiple_of(length, 16)
        width = BLOCK
        lo = 0
        hi = SPAN
    else:
        width = (tl.minimum(length - inside, SPAN) + (K - 1)) // K
        lo = tl.maximum(tl.load(job + J_LO) - start, 0).to(tl.int32)
        hi = tl.minimum(tl.load(job + J_HI) - start, length - inside).to(tl.int32)

    directions = job + JOB_FIELDS
    bytes_of = ()
    for d in tl.static_range(DIRECTIONS):
        direction = directions + d * DIRECTION_FIELDS
        bytes_of = bytes_of + (codes(direction, piece, inside, i, i < width, (CLASSES >> (4 * d)) & 7, K, ALIGNED),)
    origin = elements(job + J_ELEMENT_0, ORIGIN, ALIGNED) + start
    origins = ()
    for j in tl.static_range(K):
        local = j * width + i
        mask = (i < width) & (local >= lo) & (local < hi)
        origins = origins + (widen(fetch(origin + local, mask, ALIGNED), ORIGIN),)
    values = ()  # of the first direction: the only one, as a rule
    for j in tl.static_range(K):
        local = j * width + i
        mask = (i < width) & (local >= lo) & (local < hi)
        p = planar_value(
            directions, bytes_of[0], piece, inside, local, length, start, first, width, mask,
            j, CLASSES & 15, K, NEAR, ALIGNED
        )  # fmt: skip
        values = values + (p,)

    row = call + tl.load(job + J_CALL) * steps
    for _ in range(steps):
        target = elements(row, DTYPE, ALIGNED) + start
        g = number(row + T_WORDS)
        for j in tl.static_range(K):
            local = j * width + i
            mask = (i < width) & (local >= lo) & (local < hi)
            x = origins[j] + values[j] * g
            for d in tl.static_range(1, DIRECTIONS):
                p = planar_value(
                    directions + d * DIRECTION_FIELDS, bytes_of[d], piece, inside, local, length, start, first, width,
                    mask, j, (CLASSES >> (4 * d)) & 15, K, NEAR, ALIGNED
                )  # fmt: skip
                x = x + p * number(row + T_WORDS + d)
            if ALIGNED:
                tl.store(target + local, narrow(x, DTYPE))
            else:
                tl.store(target + local, narrow(x, DTYPE), mask=mask)
        row += T_WORDS + DIRECTIONS


# ---- Any window ----


@triton.jit
def looked_up(packed, position, length, k, radix, mask, DIGITS: tl.constexpr):
    """The digits at positions of a piece of blocks; a byte has `k`, at most `DIGITS`."""
    block = position // BLOCK // k
    span = k * BLOCK
    within = position - block * span
    width = (tl.minimum(length - block * span, span) + (k - 1)) // k
    digit = tl.zeros(position.shape, tl.int32)
    for i in tl.static_range(1, DIGITS):
        digit += (within >= i * width).to(tl.int32)
    byte = tl.load(packed + block * BLOCK + (within - digit * width), mask=mask, other=0).to(tl.int32)
    for i in tl.static_range(1, DIGITS):
        byte = tl.where(digit >= i, byte // radix, byte)
    return byte % radix


@triton.jit
def general_value(direction, start, later, first, piece, position, length, mask, CLASS: tl.constexpr):
    """p of section 8 at elements `later` ones after `start`, at positions of pieces that are counted from `first`."""
    PACKING: tl.constexpr = CLASS & 7 if CLASS >= 0 else ANY
    p = tl.zeros(later.shape, tl.float32)
    if CLASS < 0 or CLASS & 8:  # where CLASS tells nothing, the rank may be 0
        m, n = tl.load(direction + D_M), tl.load(direction + D_N)
        row = start // n
        place = later + (start - row * n).to(later.dtype)
        p = factor_sum(p, direction, row // m, row - row // m * m, place, mask, False)
    size = tl.load(direction + D_PIECE_BYTES)
    packed = elements(direction + D_PACKED, "U8", False) + first * size + piece * size.to(piece.dtype)
    if PACKING == ANY:
        packing = tl.load(direction + D_PACKING)
        if packing == 1:
            p = p + planes(packed + position, length, 4, mask, False).to(tl.float32, bitcast=True)
        elif packing == 6:
            p = p + quantised(planes(packed + position, length, 2, mask, False), 32767, direction)
        elif packing > 1:
            k, radix = tl.load(direction + D_PER_BYTE).to(tl.int32), tl.load(direction + D_RADIX).to(tl.int32)
            digit = looked_up(packed, position, length, k, radix, mask, MOST_DIGITS)
            p = p + quantised(digit, tl.load(direction + D_ZERO).to(tl.int32), direction)
    elif PACKING == 1:
        p = p + planes(packed + position, length, 4, mask, False).to(tl.float32, bitcast=True)
    elif PACKING == 6:
        p = p + quantised(planes(packed + position, length, 2, mask, False), 32767, direction)
    elif PACKING > 1:
        K: tl.constexpr = 5 if PACKING == 2 else 3 if PACKING == 3 else 2 if PACKING == 4 else 1
        RADIX: tl.constexpr = 3 if PACKING == 2 else 5 if PACKING == 3 else 16 if PACKING == 4 else 256
        ZERO: tl.constexpr = (RADIX - 1) // 2
        p = p + quantised(looked_up(packed, position, length, K, RADIX, mask, K), ZERO, direction)
    return p


@triton.jit
def general(
    units, table, call, steps,
    ORIGIN: tl.constexpr, DTYPE: tl.constexpr, CLASS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Decode elements in the order of a window, by the formula of ``planar``.

    `units` has for each tile of the window the place of the job's row in the table, and the tile's number.

    Args:
        CLASS: of the only direction as in ``planar``, or `SEVERAL`.
        WIDE: the elements of a tile, or the columns or rows of matrices with factors, need numbers of 64 bits.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    job = table + tl.load(units + 2 * tl.program_id(0))
    first = tl.load(units + 2 * tl.program_id(0) + 1).to(tl.int64) * TILE
    lane = tl.arange(0, TILE)
    columns = tl.load(job + J_COLUMNS)
    row_0 = first // columns
    column_0 = first - row_0 * columns
    # What is left of the first row, then whole rows: division in 32 bits, however long a row is.
    left = tl.minimum(columns - column_0, LARGE).to(tl.int32)
    short = tl.minimum(columns, LARGE).to(tl.int32)
    beyond = tl.maximum(lane - left, 0)
    rows = beyond // short
    i = tl.where(lane < left, 0, rows + 1).to(INDEX)  # and j: counted from those of the tile's first element
    j = tl.where(lane < left, lane.to(INDEX), (beyond - rows * short).to(INDEX) - column_0.to(INDEX))

    width = tl.load(job + J_WIDTH)
    start = tl.load(job + J_START) + row_0 * width + column_0
    later = i * width.to(INDEX) + j
    lo, hi = tl.load(job + J_LO) - start, tl.load(job + J_HI) - start
    first_piece = (start >> PIECE_BITS) - tl.load(job + J_FIRST_PIECE)
    rest = tl.load(job + J_SIZE) - (start >> PIECE_BITS << PIECE_BITS)
    if not WIDE:
        lo, hi = tl.maximum(tl.minimum(lo, LARGE), -LARGE), tl.maximum(tl.minimum(hi, LARGE), -LARGE)
        rest = tl.minimum(rest, LARGE)
    mask = (lane < tl.minimum(tl.load(job + J_COUNT) - first, TILE).to(tl.int32)) & (later >= lo.to(INDEX))
    mask = mask & (later < hi.to(INDEX))
    position = (start & (PIECE - 1)).to(INDEX) + later
    piece = position >> PIECE_BITS
    length = tl.minimum(rest.to(INDEX) - (piece << PIECE_BITS), PIECE).to(tl.int32)
    position = (position & (PIECE - 1)).to(tl.int32)

    pitch = tl.load(job + J_PITCH)
    origin = elements(job + J_ORIGIN, ORIGIN, False) + (row_0 * pitch + column_0)
    w0 = widen(tl.load(origin + (i * pitch.to(INDEX) + j), mask=mask, other=0), ORIGIN)
    directions = job + JOB_FIELDS
    p0 = general_value(directions, start, later, first_piece, piece, position, length, mask, CLASS)
    direction_count = tl.load(job + J_DIRECTIONS).to(tl.int32)
    row = call + tl.load(job + J_CALL) * steps
    for _ in range(steps):
        x = w0 + p0 * number(row + T_WORDS)
        if CLASS == ANY:
            for d in range(1, direction_count):
                direction = directions + d * DIRECTION_FIELDS
                p = general_value(direction, start, later, first_piece, piece, position, length, mask, CLASS)
                x = x + p * number(row + T_WORDS + d)
        down, right = tl.load(row + 1), tl.load(row + 2)
        target = elements(row, DTYPE, False) + (row_0 * down + column_0 * right)
        tl.store(target + (i.to(tl.int64) * down + j.to(tl.int64) * right), narrow(x, DTYPE), mask=mask)
        row += T_WORDS + direction_count
