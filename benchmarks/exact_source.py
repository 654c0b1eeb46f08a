"""A run on disk as arrays of bits, for codecs that take whole checkpoints of bf16 values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint16]  # bf16 values as they are stored
Read = Callable[[int], Bits]  # 0 is the base, i the i-th stored step


class Tensor(NamedTuple):
    """A tensor in the array that `Source.read` returns: `size` values from `begin` on."""

    name: str
    begin: int
    size: int


class Source:
    """The base and the steps of a run on disk, mapped when they are read.

    Args:
        folder: holds base/model.safetensors and run/<anything>_<step>/model.safetensors, all tensors bf16, in equal
            layout.
        limit: how many steps, from the first; default all.
        every: keep the steps whose number is a multiple of this.

    Attributes:
        folder: as given.
        numbers: the steps' numbers, ascending.
        tensors: what a checkpoint holds, in the order of the file.
        parameters: values of one checkpoint.
    """

    def __init__(self, folder: Path, limit: int | None = None, every: int = 1) -> None:
        found = {int(path.name.rsplit("_", 1)[1]): path / "model.safetensors" for path in (folder / "run").iterdir()}
        self.folder = folder
        self.numbers = tuple(sorted(number for number in found if number % every == 0)[:limit])
        self._files = [folder / "base" / "model.safetensors", *(found[number] for number in self.numbers)]
        self._layout = _layout(self._files[0])[1]
        self.tensors = [Tensor(name, begin // 2, int(np.prod(shape))) for begin, name, shape in self._layout]
        self.parameters = self.read(0).size

    @property
    def bytes(self) -> int:
        """Bytes of the values of all steps."""
        return 2 * self.parameters * len(self.numbers)

    def read(self, position: int) -> Bits:
        """Return all values of a checkpoint, the base at 0, in the order of the file (a read-only map).

        Raises:
            ValueError: its tensors do not lie as the base's do.
        """
        file = self._files[position]
        start, layout = _layout(file)
        if layout != self._layout:
            raise ValueError(f"{file}: names, shapes or order of the tensors differ from those of the base")
        return np.asarray(np.memmap(file, "<u2", "r", offset=start))

    def warm(self) -> None:
        """Read all files, so that they are in the page cache."""
        for file in self._files:
            with open(file, "rb") as handle:
                while handle.read(1 << 22):
                    pass


def _layout(file: Path) -> tuple[int, list[tuple[int, str, tuple[int, ...]]]]:
    """Return where the data of a safetensors file begins, and (begin, name, shape) of its tensors."""
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header: dict[str, Any] = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    if any(entry["dtype"] != "BF16" for entry in header.values()):
        raise ValueError(f"{file}: not all tensors are bf16")
    layout = sorted((e["data_offsets"][0], name, tuple(e["shape"])) for name, e in header.items())
    return 8 + length, layout


def ordered(values: Bits) -> Bits:
    """Map bit patterns of bf16 to integers in the order of the values, one to one."""
    return np.where(values & 0x8000, ~values, values | 0x8000)


def from_ordered(values: Bits) -> Bits:
    """Invert `ordered`."""
    return np.where(values & 0x8000, values & 0x7FFF, ~values)
