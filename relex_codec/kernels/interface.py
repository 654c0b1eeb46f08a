"""Decode kernels: FORMAT.md section 8 over many tensors at once, one interface, the same bits from each.

``reference`` (numpy, slow, one rounded operation a line), ``cpu`` (compiled, fused, on threads), ``triton`` (a CUDA
device, codes unpacked on it) and ``torch_eager`` (any other torch device). Each has a function ``prepare(jobs)``, whose
result decodes: ``decode(coefficients, targets)``. What it is told:

- a `DecodeJob` is some elements of one tensor (a `Window`), with all that decoding them takes but the coefficients;
- ``coefficients`` holds for each job g of each step and direction, float32 [S, k];
- ``targets`` holds for each job S arrays of bits, each of the window's shape, with any strides.

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
        step, shift: of the quantiser.
    """

    factors: Factors | None
    packing: Packing
    packed: Array
    step: np.float32
    shift: np.float32


class Window(NamedTuple):
    """Elements of a tensor seen as a matrix of `width` columns: a rectangle of it, cut off at two elements.

    Element (i, j) of the window is element ``e = (row + i) * width + column + j`` of the tensor in row-major order.
    Only those with ``lo <= e < hi`` are decoded; of the others neither origin nor target is touched.
    """

    width: int
    row: int
    rows: int
    column: int
    columns: int
    lo: int
    hi: int


def flat(lo: int, hi: int) -> Window:
    """Return the window of the elements lo .. hi of a tensor, as one row."""
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
