"""A checkpoint in memory."""

from __future__ import annotations

from relex_codec.checkpoints.checkpoint import TensorInfo, TensorReader
from relex_codec.core.dtypes import Bits

from .tensors import Tensor


class InMemory(TensorReader):
    """Weights by name; `elements` counts what is read of them."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.path, self.weights, self.elements = "memory", weights, 0
        self.tensors = {name: TensorInfo(name, dtype, bits.shape) for name, (dtype, bits) in weights.items()}

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        self.check_range(name, lo, out.size)
        self.elements += out.size
        out[:] = self.weights[name][1].reshape(-1)[lo : lo + out.size]
