"""Which engine does the work, as the user chose it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Final

from relex_codec.core.threads import cpu_count
from relex_codec.errors import InvalidArgument

from .local import LocalEngine
from .protocol import Engine, Place

UNIT_SHARE: Final = 192 << 20
"""Bytes of the budget for each unit that is done at the same time."""
THREAD_SHARE: Final = 32 << 20
"""Bytes of the budget for each thread: it needs a tenth, but what threads free is not at once another's to use."""
AUTO, LOCAL, PROCESSES, RAY = "auto", "local", "processes", "ray"
ENGINES: Final = (AUTO, LOCAL, PROCESSES, RAY)
MANY: Final = 5
"""Workers from which they are processes where the user does not say. A thread that encodes holds Python's lock for a
sixth of its processor time (samples of 100 M weights x 16 steps), so about six of them are all that go on at the same
time; up to four, threads lose less than it costs to start processes: two threads took a quarter less processor time
for 3.2 GB than two processes."""
PROCESSES_FROM: Final = 2 << 30
"""Bytes of checkpoints from which they are: each takes 2 s of processor time to start, as much as 250 MB to encode."""


@dataclass(frozen=True)
class Work:
    """What is to be done, as far as an engine has to know.

    Attributes:
        budget: bytes of memory, in all.
        units: how many there are.
        need: returns the bytes that the largest unit needs at least, by the number of its threads.
        scratch: where scratch files go.
        weights: returns the bytes of all weights that could be in memory together, in a place.
    """

    budget: int
    units: int
    need: Callable[[int], int]
    scratch: str
    weights: Callable[[Place], int]


@dataclass(frozen=True)
class EngineChoice:
    """An engine.

    Attributes:
        name: one of `ENGINES`.
        workers: units at the same time; None: as many as there are processors.
        address: of the Ray cluster, as `ray.init` takes it, or ``local``; only for ``ray``.

    Raises:
        InvalidArgument: there is no such engine, or no worker, or it is not one that has an address.
    """

    name: str = AUTO
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise InvalidArgument(f"engine is {self.name!r}, expected one of {', '.join(ENGINES)}")
        if self.workers is not None and self.workers < 1:
            raise InvalidArgument(f"workers is {self.workers}, expected at least 1")
        if self.address is not None and self.name != RAY:
            raise InvalidArgument(f"address is {self.address!r}, which is for the engine {RAY!r}, not {self.name!r}")
        if self.name == RAY and find_spec("ray") is None:
            raise InvalidArgument("the engine 'ray' needs Ray, which is not installed: pip install 'relex-codec[ray]'")

    def of(self, size: int) -> EngineChoice:
        """Return it with the engine that is taken for so many bytes of checkpoints, where the user left that open."""
        if self.name != AUTO:
            return self
        many = (self.workers or cpu_count()) >= MANY and size >= PROCESSES_FROM
        return replace(self, name=PROCESSES if many else LOCAL)

    @property
    def is_local(self) -> bool:
        """Whether units are done in this process."""
        return self.name == LOCAL

    @property
    def is_remote(self) -> bool:
        """Whether units may be done on other machines."""
        return self.name == RAY

    def start(self, work: Work, directory: str) -> Engine:
        """Return the engine, as a context manager.

        Args:
            directory: where results go.
        """
        if self.is_local:
            return LocalEngine(local_place(work, self.workers), directory)
        if self.is_remote:
            from .ray import RayEngine, RayOptions

            return RayEngine(RayOptions(self.address, self.workers), work.budget, directory)
        from .processes import ProcessEngine

        workers, place = process_places(work, self.workers)
        return ProcessEngine(place, workers, directory)


def local_place(work: Work, workers: int | None = None) -> Place:
    """Return the memory and the threads that units are done with in this process."""
    processors = cpu_count()
    units = max(1, min(workers or processors, work.units, work.budget // UNIT_SHARE, work.budget // work.need(1)))
    threads = processors // units if units > 1 else processors + 1  # one reads while the others compute
    if workers is not None:
        threads = max(1, workers // units)
    threads = max(1, min(threads, work.budget // THREAD_SHARE // units))
    rough = Place(work.scratch, work.budget, threads, units, expected=0)
    return Place(work.scratch, work.budget, threads, units, expected=work.weights(rough))


def process_places(work: Work, workers: int | None = None) -> tuple[int, Place]:
    """Return how many processes there are, and the memory and the threads of each."""
    processors = cpu_count()
    count = max(1, min(workers or processors, work.units, work.budget // UNIT_SHARE, work.budget // work.need(1)))
    budget = work.budget // count
    threads = max(1, min((processors if workers is None else workers) // count, budget // THREAD_SHARE))
    return count, Place(work.scratch, budget, threads)
