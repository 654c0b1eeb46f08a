"""What units and engines are to each other: two protocols, and what is passed between them."""

from __future__ import annotations

import os
from abc import abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, NamedTuple, Protocol

from relex_codec.core.blas import single_threaded_blas
from relex_codec.core.threads import at_most_threads
from relex_codec.errors import RelexError

from .arena import Arena
from .unit_files import UnitWriter

SUFFIX: Final = ".unit"


class WorkerLost(RelexError):
    """The process or machine that did a unit has gone, more often than is tried again."""


@dataclass(slots=True)
class Place:
    """What units are done with, in one process; nothing of it changes a result.

    Attributes:
        directory: where scratch files are.
        budget: bytes of memory, of all units that are done here at the same time.
        threads: for each unit.
        units: how many are done here at the same time.
        expected: bytes that all weights take which could ever be in memory together, where that is known.
        arena: memory for weights.
    """

    directory: str
    budget: int
    threads: int = 2
    units: int = 1
    expected: int | None = None
    arena: Arena = field(init=False)

    def __post_init__(self) -> None:
        most = self.budget // 8 * 5
        self.arena = Arena(most if self.expected is None else min(most, self.expected))


class Unit(Protocol):
    """A part of the work. It can be pickled."""

    @property
    def key(self) -> str:
        """What it is called: different for all units of an encoding, and part of a file name."""

    @property
    def input_bytes(self) -> int:
        """Bytes of checkpoints that it stands for; for showing progress and for sharing out work."""

    def memory(self, threads: int) -> int:
        """Return how many bytes of memory it needs at least."""

    @abstractmethod
    def run(self, place: Place, out: UnitWriter) -> None:
        """Do it, and write its result.

        Raises:
            RelexError: it cannot be done; doing it again would end alike.
        """


class Finished(NamedTuple):
    """A unit that has ended.

    Attributes:
        key: of the unit.
        path: of its result; None if it failed.
        error: what it ended with.
    """

    key: str
    path: str | None
    error: BaseException | None = None


class Engine(Protocol):
    """Runs units."""

    ahead: int
    """How many units the driver keeps submitted at a time."""

    def __enter__(self) -> Engine: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """End everything that is under way; results that are there stay."""

    def submit(self, unit: Unit) -> None:
        """Have a unit done, after those that were submitted before."""

    def finished(self) -> Finished:
        """Wait for one that has ended, whichever comes first.

        Raises:
            Cancelled: the scope of this thread was cancelled.
        """


def result_path(directory: str, key: str) -> str:
    """Return where the result of a unit is."""
    return os.path.join(directory, key + SUFFIX)


def run_unit(unit: Unit, place: Place, path: str) -> None:
    """Do a unit and write its result to `path`, which appears when it is complete.

    Raises:
        RelexError: it cannot be done.
    """
    temporary = f"{path}.{os.getpid()}.part"
    try:
        with open(temporary, "wb") as file, single_threaded_blas(), at_most_threads(place.threads):
            out = UnitWriter(file)
            unit.run(place, out)
            out.finish()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
