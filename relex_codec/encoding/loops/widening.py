"""Bits to float32 and back, for the loops of this folder."""

from __future__ import annotations

from typing import Final

import numpy as np

from relex_codec.core.dtypes import F32, Bits
from relex_codec.core.jit import compiled
from relex_codec.kernels.cpu.llvm_ops import narrow_bf16, narrow_f16, widen_bf16, widen_f16, widen_f32

KINDS: Final = {"BF16": 0, "F16": 1, "F32": 2}
"""What the loops call a dtype."""


@compiled
def widen(bits: Bits, kind: int, out: F32) -> None:
    """Set `out` to the values of bits."""
    if kind == 0:
        for j in range(len(out)):
            out[j] = widen_bf16(np.uint16(bits[j]))
    elif kind == 1:
        for j in range(len(out)):
            out[j] = widen_f16(np.uint16(bits[j]))
    else:
        for j in range(len(out)):
            out[j] = widen_f32(np.uint32(bits[j]))


@compiled
def widen_less(bits: Bits, kind: int, other: F32, out: F32) -> None:
    """Set `out` to the values of bits, less those of `other`."""
    if kind == 0:
        for j in range(len(out)):
            out[j] = widen_bf16(np.uint16(bits[j])) - other[j]
    elif kind == 1:
        for j in range(len(out)):
            out[j] = widen_f16(np.uint16(bits[j])) - other[j]
    else:
        for j in range(len(out)):
            out[j] = widen_f32(np.uint32(bits[j])) - other[j]


@compiled
def round_to(kind: int, values: F32) -> None:
    """Round values to what a dtype holds (FORMAT.md section 8)."""
    if kind == 0:
        for j in range(len(values)):
            values[j] = widen_bf16(narrow_bf16(values[j]))
    elif kind == 1:
        for j in range(len(values)):
            values[j] = widen_f16(narrow_f16(values[j]))
