"""The numpy kernel: one rounded float32 operation at a time, on a piece that fits the cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..dtypes import F32, Bits, from_float32, to_float32
from ..format import FLOAT32, NONE
from ..packing import Codes, from_planes, unpack_codes
from . import Factors, Term


def decode_piece(origin: Bits, origin_dtype: str, dtype: str, terms: Sequence[Term], start: int) -> Bits:
    """Decode the piece that begins at element `start` of a ``moving`` tensor.

    Args:
        origin: bits [x] of `origin_dtype`.
        terms: the tensor's directions in order, over the same elements.

    Returns:
        Bits [x] of `dtype`.

    Raises:
        Corrupt: a code outside its packing's range.
    """
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        x = to_float32(origin, origin_dtype).astype(np.float32)  # a copy, also for F32
        for term in terms:
            p = direction_piece(term, start, len(x))
            p *= term.coefficient
            x += p
    return from_float32(x, dtype)


def direction_piece(term: Term, start: int, count: int) -> F32:
    """Return p of FORMAT.md section 8: the stored direction over one piece, float32 [count]."""
    p = np.zeros(count, np.float32) if term.factors is None else factor_sum(term.factors, start, start + count)
    if term.packing is FLOAT32:
        p += from_planes(term.packed, np.float32)
    elif term.packing is not NONE:
        p += remainder(unpack_codes(term.packed, count, term.packing), term.step, term.shift)
    return p


def remainder(codes: Codes, step: np.float32, shift: np.float32) -> F32:
    """Return ``q * step - sign(q) * shift`` in float32."""
    values = codes.astype(np.float32)
    signs = np.sign(values)
    values *= step
    signs *= shift
    values -= signs
    return values


def factor_sum(factors: Factors, lo: int, hi: int) -> F32:
    """Return the sum of the factors' outer products over the elements ``lo .. hi``, float32 [hi - lo]."""
    _, r, m = factors.a.shape
    columns = factors.b.shape[2]
    rows = np.arange(lo // columns, -(-hi // columns))
    matrix, row = np.divmod(rows, m)
    one = int(matrix[0]) == int(matrix[-1])
    p = np.zeros((len(rows), columns), np.float32)
    product = np.empty_like(p)
    for j in range(r):
        a = factors.a[matrix, j, row][:, None]
        b = factors.b[int(matrix[0]), j][None, :] if one else factors.b[matrix, j]
        np.multiply(a, b, out=product)
        p += product
    skip = lo - int(rows[0]) * columns
    return p.reshape(-1)[skip : skip + hi - lo]
