"""Factors of a direction as numbers and as the bits that are stored (FORMAT.md section 7). Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import F32


@dataclass(frozen=True, slots=True)
class Factors:
    """The factors of a stack of H matrices of m rows and n' columns: float32 values of stored BF16.

    Element (row, column) of matrix h is the sum over j of ``a[h, j, row] * b[h, j, column]``.

    Attributes:
        a: float32 [H, r, m]: numpy's, or torch's on a device.
        b: float32 [H, r, n'].
    """

    a: Any
    b: Any


def stream(factors: Factors) -> npt.NDArray[np.uint16]:
    """Return the factors as BF16 bits, flat: for each matrix all of its a, then all of its b.

    Args:
        factors: whose values are BF16 already: their lower bits are cut off.
    """
    count = factors.a.shape[0]
    both = np.concatenate([factors.a.reshape(count, -1), factors.b.reshape(count, -1)], axis=1)
    return (both.reshape(-1).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def from_stream(bits: npt.NDArray[np.uint16], shape: tuple[int, ...], rank: int) -> Factors:
    """Return the factors whose bits are given: the inverse of `stream`.

    Args:
        bits: uint16, flat.
        shape: of the tensor, [..., m, n'].
        rank: r, at least 1.
    """
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
    buffer = np.empty(count * rank * pitch + 16, np.float32)
    skip = -buffer.ctypes.data % 64 // 4
    rows: F32 = buffer[skip : skip + count * rank * pitch].reshape(count, rank, pitch)[:, :, :n]
    return rows
