"""Having units done by an engine, in any order that their needs allow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, cast

from .protocol import Engine, Unit


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
