"""Filling files of weights with stored steps, in this process or on an engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relex_codec.core.dtypes import ITEMSIZE, Bits
from relex_codec.engines.choice import EngineChoice
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.storage.local_writer import write_at
from relex_codec.storage.outputs import local_errors
from relex_codec.storage.prefetch import PlannedRange

from .export import Shard, nbytes
from .replay_units import replayed_by_units
from .run_reader import RunReader

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo

Places = dict[int, list[tuple[str, int]]]
"""File and byte where each tensor begins, under each of its names, by its number."""


@dataclass(frozen=True)
class FillTask:
    """Files to be filled, which are there, in a form that another process can begin.

    Attributes:
        file: opened; its copy in another process opens it there.
        layouts: where tensors go.
        steps: what the paths of the files of a step begin with, and its number among `layouts`, by its own number.
        shown: what messages call the output.
    """

    file: RunReader
    layouts: tuple[Places, ...]
    steps: dict[int, tuple[str, int]]
    shown: str

    @classmethod
    def of(
        cls, file: RunReader, shards: Mapping[int, Sequence[Shard]], place: Callable[[int], str], shown: str
    ) -> FillTask:
        """Return that of the shards of each step.

        Args:
            place: returns what the paths of the files of a step begin with.
        """
        index = file.container.index
        layouts: list[Places] = []
        known: dict[int, int] = {}
        """Number among `layouts`, by the identity of the shards, which many steps share."""
        for own in shards.values():
            if id(own) in known:
                continue
            known[id(own)] = len(layouts)
            layouts.append({})
            for shard in own:
                at = len(shard.head)
                for tensor in shard.tensors:
                    layouts[-1].setdefault(index.target(tensor).number, []).append((shard.name, at))
                    at += nbytes(tensor)
        steps = {number: (_absolute(place(number)), known[id(own)]) for number, own in shards.items()}
        return cls(file, tuple(layouts), steps, shown)

    def begin(self) -> FilledShards:
        """Look whether the files are here.

        Raises:
            InvalidArgument: they are not.
        """
        prefix = next(iter(self.steps.values()))[0]
        if not os.path.isdir(os.path.dirname(prefix)):
            raise InvalidArgument(
                f"cannot write {self.shown}: this machine does not have it; with the engine 'ray', give a directory "
                "that all machines have"
            )
        return FilledShards(self)


def _absolute(prefix: str) -> str:
    """Return the beginning of a path, which may end in a separator, from the root on."""
    return os.path.join(os.path.abspath(os.path.dirname(prefix)), os.path.basename(prefix))


class FilledShards:
    """Writes replayed parts to their places."""

    def __init__(self, task: FillTask) -> None:
        self.decoder, self.numbers = task.file.decoder, task.steps.keys()
        self._task = task

    def use(self, parts: Sequence[PartInfo], number: int, found: Sequence[Bits]) -> int:
        """Write parts of a step; return how many bytes that were."""
        prefix, layout = self._task.steps[number]
        places = self._task.layouts[layout]
        pieces: dict[str, list[tuple[int, Bits]]] = {}
        written = 0
        for part, bits in zip(parts, found, strict=True):
            for name, begin in places.get(part.tensor, ()):
                pieces.setdefault(name, []).append((begin + part.piece * f.PIECE * ITEMSIZE[part.dtype], bits))
                written += bits.nbytes
        with local_errors(self._task.shown):
            for name, rows in pieces.items():
                write_at(prefix + name, rows)
        return written

    def planned(self) -> Callable[[Sequence[PartInfo]], list[PlannedRange]]:
        """Return what tells, of parts one after another, what replaying them reads."""
        return self.decoder.fetcher.replay_plan(self.decoder.exact, self.numbers)

    def told(self) -> dict[str, Any]:
        """Return nothing: what is done is in the files."""
        return {}


def fill(task: FillTask, choice: EngineChoice, on_bytes: Callable[[int], Any]) -> None:
    """Fill the files.

    Args:
        on_bytes: called with how many bytes have been written since the last call, by one thread at a time.

    Raises:
        InvalidArgument: they cannot be written.
        Corrupt: the file is damaged; the message names the tensor or the byte.
    """
    from relex_codec.exact.replay import replay_all  # numba is only needed here

    filling, lock = task.begin(), threading.Lock()
    tensors = {number for places in task.layouts for number in places}
    choice = choice.of(_bytes(task))
    if not choice.is_local:
        for told in replayed_by_units(choice, task, filling.decoder, len(task.steps), tensors):
            on_bytes(told["bytes"])
        return

    def use(parts: Sequence[PartInfo], number: int, found: Sequence[Bits]) -> None:
        written = filling.use(parts, number, found)
        with lock:
            on_bytes(written)

    replay_all(
        filling.decoder.exact, filling.numbers, filling.decoder.part_origin, use, tensors=tensors,
        plan=filling.planned(), threads=choice.workers,
    )  # fmt: skip


def _bytes(task: FillTask) -> int:
    """Return the bytes of all files together."""
    index = task.file.container.index
    each = [sum(nbytes(index.tensors[number]) * len(rows) for number, rows in one.items()) for one in task.layouts]
    return sum(each[layout] for _, layout in task.steps.values())
