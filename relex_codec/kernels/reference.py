"""The reference kernel: numpy, one rounded float32 operation at a time, piece by piece.

Slow and plain: what the other kernels are compared with. Small reads use it too, as nothing has to be compiled for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from relex_codec.core.dtypes import F32, Bytes, from_float32, to_float32
from relex_codec.errors import InvalidArgument
from relex_codec.format.constants import FLOAT32, NONE, PIECE
from relex_codec.format.factors import Factors
from relex_codec.format.packing import Codes, from_planes, packed_size, unpack_codes

from .interface import FLUSHED, TINY, Array, Coefficients, Decode, DecodeJob, PackedDirection, Targets


def prepare(jobs: Sequence[DecodeJob]) -> Decode:
    """Prepare jobs over numpy arrays; see `relex_codec.kernels.interface` for what they are."""
    jobs = list(jobs)

    def decode(coefficients: Coefficients, targets: Targets) -> None:
        if TINY * np.float32(1) == 0:
            raise InvalidArgument(FLUSHED)
        for job, g, outs in zip(jobs, coefficients, targets, strict=True):
            for start in range(job.window.lo // PIECE * PIECE, job.window.hi, PIECE):
                _decode_piece(job, start, min(start + PIECE, job.size), g, outs)

    return decode


def _decode_piece(job: DecodeJob, start: int, end: int, coefficients: F32, outs: Sequence[Array]) -> None:
    """Decode those elements of the piece ``start .. end`` that lie in the job's window."""
    window = job.window
    elements = np.arange(max(start, window.lo), min(end, window.hi))
    row, column = np.divmod(elements, window.width)
    row, column = row - window.row, column - window.column
    inside = (row >= 0) & (row < window.rows) & (column >= 0) & (column < window.columns)
    row, column = row[inside], column[inside]
    if not len(row):  # then the piece may not be there
        return
    chosen = elements[inside] - start
    w0 = to_float32(job.origin[job.at + row * job.pitch + column], job.origin_dtype)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        directions = [
            direction_piece(d, packed_piece(d, start - job.first, end - start), start, end - start)[chosen]
            for d in job.directions
        ]
        for out, gs in zip(outs, coefficients, strict=True):
            x = w0.astype(np.float32)  # a copy, also for F32
            for p, g in zip(directions, gs, strict=True):
                x += p * g
            out[row, column] = from_float32(x, job.dtype)


def packed_piece(direction: PackedDirection, start: int, count: int) -> Bytes:
    """Return the bytes of the piece of `count` elements that begins `start` elements after the first packed one."""
    planes = max(direction.packing.planes, 1)
    at = start // PIECE * packed_size(PIECE, direction.packing) * planes
    piece: Bytes = direction.packed[at : at + packed_size(count, direction.packing) * planes]
    return piece


def direction_piece(direction: PackedDirection, packed: Bytes, start: int, count: int) -> F32:
    """Return the stored direction over one piece, float32 [count]: p of FORMAT.md section 8.

    ``p = sum over j of a_j[row] * b_j[column]``, and then plus the value (packing ``float32``) or plus `remainder`.

    Args:
        direction: what is stored of it, but for its `packed`.
        packed: uint8, the raw piece.
        start: the piece's first element in the tensor.
        count: number of its elements.
    """
    if direction.factors is None:
        p = np.zeros(count, np.float32)
    else:
        p = factor_sum(direction.factors, start, start + count)
    if direction.packing is FLOAT32:
        p += from_planes(packed, np.float32)
    elif direction.packing is not NONE:
        p += remainder(unpack_codes(packed, count, direction.packing), direction.scale, direction.shift)
    return p


def remainder(codes: Codes, scale: np.float32, shift: np.float32) -> F32:
    """Return ``q * scale - sign(q) * shift`` for codes q, float32: two rounded products, their difference rounded."""
    values = codes.astype(np.float32)
    signs = np.sign(values)
    values *= scale
    signs *= shift
    values -= signs
    return values


def factor_sum(factors: Factors, lo: int, hi: int) -> F32:
    """Return ``sum over j of a_j[row] * b_j[column]`` over the elements ``lo .. hi``, float32 [hi - lo].

    The sum begins with +0 and goes in the order of j; each product and each sum is rounded.
    """
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
