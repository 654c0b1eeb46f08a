"""Bits to torch tensors and back. Imported only where torch is needed."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from relex_codec.errors import InvalidArgument

from .dtypes import Bits

DTYPES: Final = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
if hasattr(torch, "float8_e8m0fnu"):
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu


def signed(bits: Bits) -> npt.NDArray[Any]:
    """Return the same bits as signed integers, which torch has operations for."""
    return bits.view(f"i{bits.dtype.itemsize}")


def as_tensor(bits: Bits, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a CPU tensor of safetensors dtype `dtype` over the memory of `bits`, which is one-dimensional.

    Raises:
        InvalidArgument: this torch has no such dtype.
    """
    if dtype not in DTYPES:
        raise InvalidArgument(f"torch {torch.__version__} has no dtype for {dtype}")
    if not bits.size:  # torch would give it a stride of 0, which its views do not take
        return torch.empty(shape, dtype=DTYPES[dtype])
    owned = bits if bits.flags.writeable else np.array(bits)
    return torch.from_numpy(signed(owned)).view(DTYPES[dtype]).reshape(shape)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a CPU tensor of any shape, in row-major order."""
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
