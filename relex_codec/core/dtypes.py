"""Dtypes by their safetensors names, and the bit-level conversions of FORMAT.md section 8.

numpy has no bfloat16, and not every float32 -> bfloat16 conversion rounds (Triton's interpreter truncates), so floats
travel as arrays of their bits (``uint16`` or ``uint32``) and are rounded with integer arithmetic.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.unsignedinteger[Any]]
"""Elements as unsigned integers of their width."""

F32 = npt.NDArray[np.float32]

ITEMSIZE: Final[dict[str, int]] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes an element, for every safetensors dtype of whole bytes."""

FLOATS: Final = frozenset({"BF16", "F16", "F32"})
"""The dtypes that directions apply to; tensors of all others are stored exactly."""

ALL_FLOATS: Final = FLOATS | {dtype for dtype in ITEMSIZE if dtype.startswith("F8_")} | {"F64", "C64"}
"""The dtypes of numbers that training moves: where no line goes through them, there is nothing between two steps."""

NAN: Final = {"BF16": 0x7FC0, "F16": 0x7E00, "F32": 0x7FC00000}
"""The one NaN that decoding returns for each float dtype."""


def bits_dtype(dtype: str) -> np.dtype[Any]:
    """Return the little-endian unsigned integer dtype that holds one element of safetensors dtype `dtype`."""
    return np.dtype(f"<u{ITEMSIZE[dtype]}")


def to_float32(bits: Bits, dtype: str) -> F32:
    """Convert the bits of BF16, F16 or F32 elements to float32, exactly; a view for F32."""
    if dtype == "BF16":
        wide: F32 = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return wide
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    return bits.view(np.float32)


def from_float32(x: F32, dtype: str) -> Bits:
    """Round float32 to the bits of `dtype` as FORMAT.md section 8 says: nearest even, one NaN, overflow to infinity."""
    if dtype == "BF16":
        u = x.view(np.uint32)
        rounded = u >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += u  # wraps for NaNs only, which are replaced below
        rounded >>= np.uint32(16)
        bits: Bits = rounded.astype(np.uint16)
    elif dtype == "F16":
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            bits = x.astype(np.float16).view(np.uint16)
    else:
        bits = x.view(np.uint32).copy()
    nan = np.isnan(x)
    if nan.any():
        bits[nan] = NAN[dtype]
    return bits


def as_dtype(bits: Bits, have: str, want: str) -> Bits:
    """Return bits of dtype `have` as those of `want`, rounded (FORMAT.md section 8, kind ``same``)."""
    return bits if have == want else from_float32(to_float32(bits, have), want)


Bytes = npt.NDArray[np.uint8]
