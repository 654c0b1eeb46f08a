"""Decode kernels: FORMAT.md section 8 for a run of elements, one signature, the same bits from each.

``numpy_cpu`` runs on the CPU, ``torch_ops`` on any torch device. A kernel takes codes as they are packed in a piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..dtypes import F32
from ..format import Packing
from ..packing import Bytes


@dataclass(frozen=True, slots=True)
class Factors:
    """The factors of a stack of matrices: float32 values of stored BF16.

    Attributes:
        a: float32 [H, r, m]; b: float32 [H, r, n'].
    """

    a: F32
    b: F32


@dataclass(frozen=True, slots=True)
class Term:
    """One direction over the elements ``start .. start + count`` of a tensor, which are one piece.

    Attributes:
        coefficient: g, float32.
        factors: of the whole tensor, or None.
        packing: of the remainder.
        packed: the piece's bytes; empty for packing ``none``.
        step, shift: float32, of the quantiser.
    """

    coefficient: np.float32
    factors: Factors | None
    packing: Packing
    packed: Bytes
    step: np.float32
    shift: np.float32
