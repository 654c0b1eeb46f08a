"""Encoding a run of adapters: nothing of it is in the base."""

from __future__ import annotations

from relex_codec.checkpoints.checkpoint import TensorInfo, TensorReader
from relex_codec.core.dtypes import Bits


class NoBase(TensorReader):
    """Stands for the base where a run starts from nothing in it.

    Args:
        path: of the base, for messages.
    """

    def __init__(self, path: str) -> None:
        self.path, self.tensors, self.shards = path, dict[str, TensorInfo](), ()

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Refuse: there are no tensors; see `TensorReader.read_into`."""
        self.check_range(name, lo, out.size)
