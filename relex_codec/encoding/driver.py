"""Having units done by an engine, and finding their results again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from relex_codec.format.manifest import TensorEntry

from .engines.protocol import Engine, Unit
from .tables import EncodedTensor
from .unit_files import OpenFiles, UnitFile
from .unit_results import get_groups, get_tensor

if TYPE_CHECKING:
    from relex_codec.exact.segment_writer import CodedGroup


class Done(NamedTuple):
    """A unit that is done.

    Attributes:
        number: its place among all.
        path: of its result.
    """

    number: int
    unit: Unit
    path: str


class Follower(Protocol):
    """A unit that rests on the results of others."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of these; none: it may be done."""

    def given(self, paths: Mapping[str, str]) -> Unit:
        """Return it with what they have found out, by the paths of their results."""


def run_units(
    engine: Engine, units: Iterable[tuple[int, Unit]], there: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Done]:
    """Have units done, each with its place among all; yields them as they are.

    Where some fail, the first of them, in the order of the units, is what is raised.

    Args:
        there: paths of results that there are already, which others may need.
    """
    waiting, paths = list(units), dict(there)
    under_way: dict[str, tuple[int, Unit]] = {}
    failed: tuple[int, BaseException] | None = None
    while under_way or (waiting and failed is None):
        while waiting and failed is None and len(under_way) < engine.ahead:
            place = _first_ready(waiting, paths)
            if place is None:
                break
            number, unit = waiting.pop(place)
            under_way[unit.key] = number, unit
            needs: tuple[str, ...] = getattr(unit, "needs", ())
            engine.submit(cast(Follower, unit).given(paths) if needs else unit)
        key, path, error = engine.finished()
        number, unit = under_way.pop(key)
        if error is not None:
            failed = min(failed or (number, error), (number, error), key=lambda one: one[0])
        elif path is not None and failed is None:
            paths[key] = path
            yield Done(number, unit, path)
        if failed is not None and all(number > failed[0] for number, _ in under_way.values()):
            break
    if failed is not None:
        raise failed[1]


def _first_ready(waiting: Sequence[tuple[int, Unit]], paths: Mapping[str, str]) -> int | None:
    """Return the place of the first unit that may be done."""
    for place, (_, unit) in enumerate(waiting):
        if all(key in paths for key in getattr(unit, "needs", ())):
            return place
    return None


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
