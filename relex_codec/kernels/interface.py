"""What a kernel is told and what it gives: the one interface of all of them.

A kernel is a function ``prepare(jobs)`` (`Prepare`) whose result decodes: ``decode(coefficients, targets)`` (`Decode`).

- A `DecodeJob` is some elements of one tensor (a `Window`), with all that decoding them takes but the coefficients.
- ``coefficients`` holds for each job g of each step and direction, float32 [S, k].
- ``targets`` holds for each job S arrays of bits, each of the window's shape, with any strides; they are written.

For every element and step, in this order and with each operation rounded to float32 (FORMAT.md section 8):

    x = w0                                        # the origin's element
    for each direction:
        p = +0
        for j = 1 .. r:  p = p + a_j[row] * b_j[column]
        p = p + (q * scale - sign(q) * shift)     # packing float32: p + value; packing none: nothing
        x = x + p * g
    target = x, rounded to the tensor's dtype

Arrays are numpy's for ``reference`` and ``cpu`` (bits unsigned), torch's on one device for the others (bits signed,
int16 or int32, as torch has no operations on unsigned ones). Codes are packed as they are in the raw pieces of a file
(section 7), one piece after another; they were checked before (`packing.check_codes`), as kernels trust them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from relex_codec.core.dtypes import F32
from relex_codec.format.constants import Packing
from relex_codec.format.factors import Factors

TINY: Final = np.float32(1e-45)
"""The smallest subnormal: on a thread that takes such numbers for zeros, results would be others."""
FLUSHED: Final = "this thread takes subnormal numbers for zeros (torch.set_flush_denormal?); decoding needs them"
Array = Any
"""A numpy array or a torch tensor."""


@dataclass(frozen=True, slots=True)
class PackedDirection:
    """What is stored of one direction, over whole pieces of a tensor.

    Attributes:
        factors: of the whole tensor, or None.
        packing: of the remainder.
        packed: uint8, flat: the raw pieces one after another, checked; empty for packing ``none``.
        scale, shift: of the quantiser: code q stands for ``q * scale - sign(q) * shift``; 0 where there are no codes.
    """

    factors: Factors | None
    packing: Packing
    packed: Array
    scale: np.float32
    shift: np.float32


class Window(NamedTuple):
    """Elements of a tensor seen as a matrix of `width` columns: a rectangle of it, cut off at two elements.

    Element (i, j) of the window is element ``e = (row + i) * width + column + j`` of the tensor in row-major order.
    Only those with ``lo <= e < hi`` are decoded; of the others neither origin nor target is touched.

    Attributes:
        width: columns of the tensor as a matrix.
        row, column: of the window's first element in it.
        rows, columns: how many the window has.
        lo, hi: numbers of the elements where it is cut off.
    """

    width: int
    row: int
    rows: int
    column: int
    columns: int
    lo: int
    hi: int


def flat(lo: int, hi: int) -> Window:
    """Return the window of the elements lo .. hi of a tensor, as one row.

    Examples:
        >>> flat(10, 14)
        Window(width=14, row=0, rows=1, column=10, columns=4, lo=10, hi=14)
    """
    return Window(max(hi, 1), 0, 1, lo, hi - lo, lo, hi)


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """Some elements of a ``moving`` tensor.

    Attributes:
        origin: bits of `origin_dtype`, one-dimensional and contiguous.
        at, pitch: element (i, j) of the window starts from ``origin[at + i * pitch + j]``.
        origin_dtype, dtype: BF16, F16 or F32; `dtype` is what is written.
        directions: of the tensor, in order; at least one.
        first: the element that the pieces in `packed` begin with, a multiple of ``PIECE``; they reach to the window's
            last element at least, as whole pieces.
        size: number of elements of the whole tensor, which says how long its last piece is.
    """

    origin: Array
    at: int
    pitch: int
    origin_dtype: str
    dtype: str
    directions: Sequence[PackedDirection]
    window: Window
    first: int
    size: int


Coefficients = Sequence[F32]
"""For each job float32 [S, k]."""
Targets = Sequence[Sequence[Array]]
"""For each job S arrays of bits [rows, columns]."""
Decode = Callable[[Coefficients, Targets], None]
Prepare = Callable[[Sequence[DecodeJob]], Decode]
