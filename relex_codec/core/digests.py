"""Digests of pieces: the first bytes of their SHA-256."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .dtypes import Bits

DIGEST: Final = 16
"""Bytes of a digest."""
Digests = npt.NDArray[np.uint8]


def digest(piece: Any) -> bytes:
    """Return the digest of the bytes of a piece: the first 16 bytes of their SHA-256."""
    return hashlib.sha256(piece).digest()[:DIGEST]


EXACT_DIGEST: Final = 8
"""Bytes of the digest of a part at a step."""


def part_digest(bits: Bits) -> bytes:
    """Return the digest of a part's elements at a step."""
    return digest(np.ascontiguousarray(bits))[:EXACT_DIGEST]
