"""What units have found out, by tensor and by group of frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relex_codec.engines.driver import Done
from relex_codec.engines.unit_files import OpenFiles, UnitFile
from relex_codec.format.manifest import TensorEntry

from .tables import EncodedTensor
from .unit_results import get_groups, get_tensor

if TYPE_CHECKING:
    from relex_codec.exact.segment_writer import CodedGroup


class Results:
    """What units have found out.

    Args:
        files: through which their results are read.
    """

    def __init__(self, files: OpenFiles) -> None:
        self._files = files
        self._tensors: dict[int, tuple[UnitFile, dict[str, Any]]] = {}
        self._groups: dict[int, tuple[UnitFile, list[dict[str, Any]]]] = {}

    def add(self, done: Done) -> None:
        """Take the result of a unit."""
        self.take(done.number, UnitFile(done.path, self._files))

    def take(self, number: int, unit: UnitFile) -> None:
        """Take the result of a unit, by its place among all."""
        for row in unit.document["tensors"]:
            self._tensors[row["number"]] = unit, row
        self._groups[number] = unit, unit.document["groups"]

    def tensor(self, number: int, entry: TensorEntry) -> EncodedTensor:
        """Return a tensor by its number.

        Args:
            entry: what the manifest says of it.
        """
        return get_tensor(*self._tensors[number], entry)

    def row(self, number: int) -> tuple[UnitFile, dict[str, Any]]:
        """Return what is said of a tensor by its number, and the result that it is in."""
        return self._tensors[number]

    def groups(self) -> list[CodedGroup]:
        """Return all groups of frames, in the order of the units."""
        found: list[CodedGroup] = []
        for number in sorted(self._groups):
            unit, rows = self._groups[number]
            if rows:
                found += get_groups(unit, rows)
        return found
