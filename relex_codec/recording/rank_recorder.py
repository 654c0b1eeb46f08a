"""What one rank records: its parts of the tensors, the step before, and its two files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint
from relex_codec.core.dtypes import FLOATS
from relex_codec.core.text import quote
from relex_codec.errors import Corrupt, InvalidArgument, RelexError
from relex_codec.journal.blobs import Differences
from relex_codec.journal.boxes import Box
from relex_codec.journal.difference import Changes, apply_difference
from relex_codec.journal.format import CHUNK, Head, Part
from relex_codec.journal.origin import BaseStep, digests_of
from relex_codec.journal.reader import Journal, Place
from relex_codec.journal.series import JournalSeries
from relex_codec.journal.writer import RankWriter

from .begin import Begun
from .handover import Handover
from .lots import Batch, Stage
from .memory import Held, changes, coded, different
from .ranks import Ranks, own_parts
from .state import Local, check_same

ROOM: Final = 8
"""Changes that wait to be written take at most this part of what the step before does,"""
LEAST_ROOM: Final = 1 << 26
"""or so many bytes."""


class RankRecorder:
    """Compares the steps of one rank and writes what changed.

    Args:
        begun: where recording goes on.
        base: opened.
        ranks: this one among the others.

    Attributes:
        parts: what this rank records; none before `start`.
        committed: the last step that is on disk.
        started: whether the files are there.
    """

    def __init__(self, begun: Begun, base: SafetensorsCheckpoint, ranks: Ranks) -> None:
        self._begun, self._base, self._ranks = begun, base, ranks
        self.parts: list[Part] = []
        self.committed = begun.after
        self._known: set[str] = set()
        self._writer: RankWriter | None = None
        self._previous: Held | None = None
        self._stage = Stage()
        self._reload = False

    @property
    def started(self) -> bool:
        """Whether the files are there."""
        return self._writer is not None

    def start(self, found: Mapping[str, Local]) -> None:
        """Decide what this rank records, read the step before, and make the files; all ranks call it.

        Raises:
            InvalidArgument: the state is not one of this base, or not of the journal that is gone on with.
        """
        mine = own_parts(found, self._ranks)
        parts = [self._part(local) for local in mine.values()]
        shared = self._ranks.gathered(lambda: [part.name for part in parts if part.base is not None])
        if not any(shared):
            first, there = next(iter(found)), next(iter(self._base.tensors))
            raise InvalidArgument(
                f"the state and base {self._base.path} share no tensor: the state begins with {quote(first)}, the base "
                f"with {quote(there)}; is it the model that training started from?"
            )
        self._writer = self._ranks.all_or_none(lambda: self._files(found, parts))

    def check(self, found: Mapping[str, Local]) -> None:
        """Refuse a state whose tensors are not those of the steps before, as `check_same`."""
        check_same(found, [(part.name, part.dtype, part.box) for part in self.parts], self._known)

    def batches(self, found: Mapping[str, Local]) -> Iterator[Batch]:
        """Yield the parts of a state that was checked."""
        values = [found[part.name].values for part in self.parts]
        return self._stage.batches(self.parts, [value for value in values if value is not None])

    def commit(self, step: int, batches: Iterable[Batch], *, keep: bool = False) -> None:
        """Compare a step and write it; it takes the place of the one before.

        Args:
            keep: the one before stays in memory, for `verify`.
        """
        previous = self.previous()
        self._reload = True  # until it is committed, what is held is neither step
        self._write(step, changes(self.parts, previous, batches, keep))
        self._reload = keep

    def commit_later(self, step: int, batches: Iterable[Batch], pool: Executor) -> Future[None]:
        """Compare a step, which may change when this returns, and write it on another thread.

        Returns:
            What waits for the writing, and raises what goes wrong with it.
        """
        previous = self.previous()
        self._reload = True
        handover: Handover[list[Changes]] = Handover(max(previous.nbytes // ROOM, LEAST_ROOM))

        def write() -> None:
            try:
                self._write(step, handover)
            finally:
                handover.leave()
            self._reload = False

        job = pool.submit(write)
        try:
            for batch in changes(self.parts, previous, batches, keep=False):
                if not handover.put(batch, sum(one.nbytes for one in batch)):
                    job.result()  # which has failed
        except BaseException:
            handover.end(broken=True)
            wait([job])
            raise
        handover.end()
        return job

    def _write(self, step: int, found: Iterable[list[Changes]]) -> None:
        assert self._writer is not None
        blobs = coded(found)
        with _told(step):
            self._writer.write(step, (islice(blobs, part.chunks) for part in self.parts))
        self.committed = step

    def verify(self, step: int, batches: Iterable[Batch], where: str) -> None:
        """Change the step before to what the journal on disk says, and compare that with what is read once more.

        Raises:
            Corrupt: they differ.
        """
        previous = self._previous
        assert previous is not None
        recorded = Journal(self._begun.folder).steps[-1]
        with Differences(recorded.generation) as changes:
            for number, part in enumerate(self.parts):
                place = Place(self._ranks.rank, number, part)
                for chunk, blob in changes.blobs(place, recorded.number, 0, part.chunks):
                    row = previous.bits[number][chunk * CHUNK : (chunk + 1) * CHUNK]
                    apply_difference(blob, row, 0, len(row), part.dtype)
        if (other := different(self.parts, previous, batches)) is not None:
            raise Corrupt(
                f"step {step} of {self._begun.folder} is not what {where} has: tensor {quote(other)} differs; was that "
                "being written?"
            )
        self._reload = False

    def previous(self) -> Held:
        """Return the last committed step, in memory."""
        self._restore()
        assert self._previous is not None
        return self._previous

    def close(self) -> None:
        """Close the files and free the memory."""
        if self._writer is not None:
            self._writer.close()
        self._previous = None
        self._stage = Stage()

    def _files(self, found: Mapping[str, Local], parts: list[Part]) -> RankWriter:
        begun = self._begun
        digests = digests_of(self._base, parts) if begun.after is None else b""
        self.parts, self._known, self._reload, self._previous = parts, set(found), True, None
        self._restore()
        return RankWriter(
            begun.folder, Head(begun.generation, self._ranks.rank, self._ranks.world, begun.after, parts), digests
        )

    def _part(self, local: Local) -> Part:
        there = self._base.tensors.get(local.name)
        if there is None or there.shape != local.box.shape:
            return Part(local.name, local.dtype, local.box, None)
        fits = there.dtype == local.dtype or {there.dtype, local.dtype} <= FLOATS
        return Part(local.name, local.dtype, local.box, there.dtype if fits else None)

    def _restore(self) -> None:
        """Read the last committed step into memory, where something else is held."""
        if not self._reload and self._previous is not None:
            return
        if self._previous is None:
            self._previous = Held(self.parts)
        if self.committed is None:
            self._previous.fill(self.parts, BaseStep(self._base, self.parts))
        else:
            journal = Journal(self._begun.folder)
            self._check_continued(journal)
            series = JournalSeries(journal, self._base, [self.committed])
            self._previous.fill(self.parts, series.checkpoint(0))
        self._reload = False

    def _check_continued(self, journal: Journal) -> None:
        for part in self.parts:
            info = journal.tensors.get(part.name)
            if info is None or (info.dtype, info.shape) != (part.dtype, part.box.shape):
                there = "is not part of it" if info is None else f"is {info.dtype} {list(info.shape)} there"
                raise InvalidArgument(
                    f"cannot go on with {journal.path}: tensor {quote(part.name)}, {part.dtype} "
                    f"{list(part.box.shape)}, {there}; record to another place"
                )
        names = {name for name in journal.tensors if name not in self._known}
        if names:
            raise InvalidArgument(
                f"cannot go on with {journal.path}: the state lacks tensor {quote(min(names))}; record to another place"
            )


@contextmanager
def _told(step: int) -> Iterator[None]:
    """Say which step an error is about."""
    try:
        yield
    except RelexError as error:
        raise type(error)(f"step {step} is not recorded: {error}") from None


def read_later(infos: Mapping[str, TensorInfo]) -> dict[str, Local]:
    """Return tensors that are read from somewhere, whole."""
    here: Any = object()
    return {name: Local(name, info.dtype, Box.whole(info.shape), here, True) for name, info in infos.items()}
