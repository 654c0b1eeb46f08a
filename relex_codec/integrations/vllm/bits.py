"""Bits of tensors: how many differ, where, and digests of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

import torch

_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def unequal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return where two tensors of one shape and dtype differ in a bit: booleans of that shape."""
    kind = _INTEGERS[a.element_size()]
    return a.detach().view(kind) != b.detach().view(kind)


def differing(a: torch.Tensor, b: torch.Tensor) -> int:
    """Return how many elements of two tensors of one shape and dtype differ in a bit."""
    return int(unequal(a, b).sum())


def sha256(tensors: Iterable[torch.Tensor]) -> str:
    """Return the SHA-256 of the bits of tensors, one after another, in hexadecimal."""
    found = hashlib.sha256()
    for tensor in tensors:
        bits: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found.update(bits)
    return found.hexdigest()
