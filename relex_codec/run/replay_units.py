"""Replaying stored steps on an engine: what `restore` and `verify --against` have done in other processes.

A unit is some parts of tensors at all steps that are wanted. It is not one step: frames lead from one step to another,
so whoever restores one decodes about as many frames as lead to all of its neighbours, and steps one by one would cost
several times as much. What becomes of the parts is done where they are replayed: they are compared with a checkpoint
that is read there, or written to their places in files. Only counts come back.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol

from relex_codec.core.dtypes import ITEMSIZE, Bits
from relex_codec.core.threads import cpu_count
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.engines.choice import UNIT_SHARE, EngineChoice, Work
from relex_codec.engines.driver import run_units
from relex_codec.engines.unit_files import OpenFiles, UnitFile
from relex_codec.storage.leftovers import ScratchDirectory
from relex_codec.storage.prefetch import PlannedRange

if TYPE_CHECKING:
    from relex_codec.engines.protocol import Place
    from relex_codec.engines.unit_files import UnitWriter
    from relex_codec.exact.segments import PartInfo

UNITS: Final = 64
"""How many units there are, if they are of a sensible size."""
SMALLEST_UNIT: Final = 64 << 20
LARGEST_UNIT: Final = 4 << 30
"""Bytes of weights at all steps that a unit has: handing one over costs milliseconds, and a lost one is done again."""
MEMORY: Final = UNIT_SHARE
"""Bytes that a unit takes at most: a batch of parts and its lists, and what is read ahead."""


class Replaying(Protocol):
    """What replayed parts are given to, in the process where they are replayed."""

    @property
    def decoder(self) -> TensorDecoder:
        """Of the file."""

    @property
    def numbers(self) -> Collection[int]:
        """Of the stored steps that are wanted, from 1 on."""

    def use(self, parts: Sequence[PartInfo], number: int, found: Sequence[Bits]) -> int:
        """Take parts at a step; return how many bytes of weights that were."""

    def planned(self) -> Callable[[Sequence[PartInfo]], list[PlannedRange]]:
        """Return what tells, of parts one after another, what replaying and using them will read, in order."""

    def told(self) -> dict[str, Any]:
        """Return what was found out since the last call, as JSON has it."""


class ReplayTask(Protocol):
    """What is to be replayed, and what for. It can be pickled."""

    def begin(self) -> Replaying:
        """Open what is needed, in whatever process."""


@dataclass(frozen=True)
class ReplayUnit:
    """Some parts at all steps that are wanted.

    Attributes:
        number: among all units.
        task: pickled; it is begun once in a process.
        batches: parts that are replayed together.
        input_bytes: of their elements at all steps.
    """

    number: int
    task: bytes
    batches: tuple[tuple[PartInfo, ...], ...]
    input_bytes: int

    @property
    def key(self) -> str:
        """Its number."""
        return f"parts-{self.number:06}"

    def memory(self, threads: int) -> int:
        """Return how many bytes of memory it needs at most."""
        return threads * MEMORY

    def run(self, place: Place, out: UnitWriter) -> None:
        """Replay the parts; the result says what was found out, and how many bytes that were."""
        from relex_codec.exact.replay import replay_all  # numba is only needed here

        replaying, used = _begun(self.task), []
        replaying.told()  # of a unit that failed

        def use(parts: Sequence[PartInfo], number: int, found: Sequence[Bits]) -> None:
            used.append(replaying.use(parts, number, found))

        replay_all(
            replaying.decoder.exact, replaying.numbers, replaying.decoder.part_origin, use, plan=replaying.planned(),
            found=[list(parts) for parts in self.batches], threads=place.threads,
        )  # fmt: skip
        out.document.update(replaying.told(), bytes=sum(used))


@lru_cache(maxsize=1)
def _begun(task: bytes) -> Replaying:
    found: ReplayTask = pickle.loads(task)
    return found.begin()


def replayed_by_units(
    choice: EngineChoice, task: ReplayTask, decoder: TensorDecoder, steps: int, tensors: Collection[int]
) -> Iterator[dict[str, Any]]:
    """Have a task done by an engine; yields what each unit has found out, and its ``bytes``, as they are done.

    Args:
        choice: an engine that is not this process.
        steps: how many are replayed.
        tensors: numbers of those that are replayed.

    Raises:
        RelexError: what a unit ended with.
    """
    units = _units(pickle.dumps(task), decoder, steps, tensors)
    if not units:
        return
    with ScratchDirectory() as scratch, closing(OpenFiles()) as files:
        budget = (choice.workers or cpu_count()) * MEMORY
        work = Work(budget, len(units), units[0].memory, scratch.path, lambda place: 0)
        with choice.start(work, scratch.path) as engine:
            for done in run_units(engine, enumerate(units)):
                yield UnitFile(done.path, files).document
                os.unlink(done.path)


def _units(task: bytes, decoder: TensorDecoder, steps: int, tensors: Collection[int]) -> list[ReplayUnit]:
    """Cut parts into units of about the same size."""
    from relex_codec.exact.replay import batches  # numba is only needed here

    rows = [tuple(parts) for parts in batches(decoder.exact, tensors)]
    sizes = [steps * sum(part.elements * ITEMSIZE[part.dtype] for part in parts) for parts in rows]
    most = min(max(SMALLEST_UNIT, sum(sizes) // UNITS), LARGEST_UNIT)
    units: list[ReplayUnit] = []
    begin = size = 0
    for at, more in enumerate(sizes):
        size += more
        if size >= most or at + 1 == len(sizes):
            units.append(ReplayUnit(len(units), task, tuple(rows[begin : at + 1]), size))
            begin, size = at + 1, 0
    return units
