"""Factors of a direction as numbers and as the bits of their stream (FORMAT.md section 7). Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import F32


@dataclass(frozen=True, slots=True)
class Factors:
    """The factors of a stack of matrices: float32 values of stored BF16.

    Attributes:
        a: float32 [H, r, m]; b: float32 [H, r, n'].
    """

    a: Any
    b: Any


def stream(factors: Factors) -> npt.NDArray[np.uint16]:
    """Return the factors as BF16 bits in the order of FORMAT.md section 7, flat."""
    count = factors.a.shape[0]
    both = np.concatenate([factors.a.reshape(count, -1), factors.b.reshape(count, -1)], axis=1)
    return (both.reshape(-1).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def from_stream(bits: npt.NDArray[np.uint16], shape: tuple[int, ...], rank: int) -> Factors:
    """Inverse of `stream` for a tensor of `shape`."""
    m, n = shape[-2:]
    values = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(-1, rank * (m + n))
    count = len(values)
    a = np.ascontiguousarray(values[:, : rank * m]).reshape(count, rank, m)
    b = _apart(count, rank, n)
    b[...] = values[:, rank * m :].reshape(count, rank, n)
    return Factors(a, b)


def _apart(count: int, rank: int, n: int) -> F32:
    """Return float32 [count, rank, n] whose rows begin at lines of the cache, and not all in the same sets of it.

    Rows of 4096 numbers side by side, as a kernel reads them, would push each other out: 4.3 ns instead of 2.6 for
    eight products of 16 elements.
    """
    pitch = n if n < 512 else -(-n // 1024) * 1024 + 144  # 4096 bytes are a turn of the sets; 576 are 9 lines
    room = np.empty(count * rank * pitch + 16, np.float32)
    skip = -room.ctypes.data % 64 // 4
    rows: F32 = room[skip : skip + count * rank * pitch].reshape(count, rank, pitch)[:, :, :n]
    return rows
