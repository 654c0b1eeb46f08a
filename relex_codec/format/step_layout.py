"""Which tensors and files a step has: a layout of the manifest, joined with the tensors of the file."""

from __future__ import annotations

from collections.abc import Sequence

from .manifest import FileEntry, Manifest
from .tensor_record import TensorRecord


class StepLayout:
    """What a checkpoint of the run is made of.

    Args:
        number: of the layout in the manifest.
        tensors: all of the file.

    Attributes:
        shards: names of the files of weights.
        indexed: whether there is an index.
        tensors: those of the layout, in the file's order.
        files: those that are no weights, by name, with their numbers in the manifest.
    """

    def __init__(self, manifest: Manifest, number: int, tensors: Sequence[TensorRecord]) -> None:
        layout = manifest.layouts[number]
        self.number, self.shards, self.indexed = number, layout.shards, layout.indexed
        placed = [(shard, tensor) for shard, tensor in zip(layout.tensors, tensors, strict=True) if shard is not None]
        self.tensors = [tensor for _, tensor in placed]
        self._shards = {tensor.number: shard for shard, tensor in placed}
        self._by_name = {tensor.name: tensor for tensor in self.tensors}
        self.files: dict[str, tuple[int, FileEntry]] = {
            manifest.files[file].name: (file, manifest.files[file]) for file in layout.files
        }

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a tensor of that name."""
        return name in self._by_name

    def get(self, name: str) -> TensorRecord | None:
        """Return the tensor of a name, or None."""
        return self._by_name.get(name)

    def shard_of(self, tensor: TensorRecord) -> int:
        """Return the number of the shard that a tensor of the layout is in."""
        return self._shards[tensor.number]
