"""Tables that the compiled loops are given, and numbers that they share with what calls them; no numba here."""

from __future__ import annotations

from typing import Final

import numpy as np

from relex_codec.format.constants import Packing

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
JOB, DIRECTION, KNOWN, TARGET, WORK = 16, 8, 6, 3, 3
"""Columns of the tables: of jobs, directions, constants, targets, and of what is to be done."""
CHAINED: Final = (3, 5)
"""Radices of which the value of a digit is looked up, by comparing."""
_NONE: Final = np.float32(0)


def digit_factor(packing: Packing, j: int) -> int:
    """Return the `factor` that `remainder_operation` wants for digit j of a byte of radix R = 3 or 5.

    It is ceil(2^32 / R^(j + 1)). The product of a byte and it, mod 2^32, is what is below digit j + 1 in base R as a
    fraction of 2^32: how often 2^32 / R is in it is the digit. The factor is rounded up by less than 1, so the product
    is too large by less than 256; fractions are multiples of 2^32 / R^5 > 2^20.
    """
    return -(-(1 << 32) // int(packing.radix ** (j + 1))) if packing.radix in CHAINED else 0


def remainder_constants(packing: Packing, scale: np.float32, shift: np.float32) -> list[np.float32]:
    """Return five numbers that `remainder_operation` wants.

    For radix 3 and 5 they are the values of the digits, ``q * scale - sign(q) * shift``; else scale and shift.
    """
    if packing.radix not in CHAINED:
        return [scale, shift, _NONE, _NONE, _NONE]
    q = np.arange(packing.radix, dtype=np.int32) - np.int32(packing.zero)
    with np.errstate(over="ignore", under="ignore"):
        values = q.astype(np.float32) * scale - np.sign(q).astype(np.float32) * shift
    return [*values, *[_NONE] * (5 - packing.radix)]
