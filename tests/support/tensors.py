"""Tensors as the tests write them: a pair of the safetensors dtype and an array of the bits (unsigned integers of the
element's width) with the tensor's shape. Nothing of the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


Tensor = tuple[str, Array]


WIDTH = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


def bf16(values: Any) -> Tensor:
    """Return a BF16 tensor: float32 values rounded to nearest even (finite values only)."""
    u = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return "BF16", ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def f16(values: Any) -> Tensor:
    """Return an F16 tensor."""
    return "F16", np.ascontiguousarray(values, np.float16).view(np.uint16)


def f32(values: Any) -> Tensor:
    """Return an F32 tensor."""
    return "F32", np.ascontiguousarray(values, np.float32).view(np.uint32)


def random_bits(dtype: str, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Return a tensor of random bits: for floats, any value including NaNs; 0 or 1 for BOOL."""
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, WIDTH[dtype]), np.uint8)
    if dtype == "BOOL":
        bits &= 1
    return dtype, bits.reshape(-1).view(f"<u{WIDTH[dtype]}").reshape(tuple(shape))


def bits_of(tensor: torch.Tensor) -> Array:
    """The bits of a tensor as unsigned integers."""
    width = tensor.element_size()
    signed = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width]
    return tensor.detach().contiguous().reshape(-1).view(signed).numpy().view(f"u{width}")
