"""What one rank records: its parts of the tensors, the step before, and its two files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint
from relex_codec.core.dtypes import FLOATS
from relex_codec.core.text import quote
from relex_codec.errors import Corrupt, InvalidArgument, RelexError
from relex_codec.journal.blobs import Differences
from relex_codec.journal.boxes import Box
from relex_codec.journal.difference import apply_difference
from relex_codec.journal.format import CHUNK, Head, Part
from relex_codec.journal.origin import BaseStep, digests_of
from relex_codec.journal.reader import Journal, Place
from relex_codec.journal.series import JournalSeries
from relex_codec.journal.writer import RankWriter

from .memory import Held, Read, bits_of_values, differences, different
from .ranks import Ranks, own_parts
from .state import Local, check_same


class Begun(NamedTuple):
    """Where recording goes on, as all ranks agree.

    Attributes:
        folder: of the journal.
        after: the step that the next one follows; None: the base.
        base: where that is.
    """

    folder: str
    generation: int
    after: int | None
    base: str


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
        self._spare: Held | None = None
        self._pinned = False
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
        self._pinned = any(getattr(local.values, "is_cuda", False) for local in mine.values())
        self._writer = self._ranks.all_or_none(lambda: self._files(found, parts))

    def check(self, found: Mapping[str, Local]) -> None:
        """Refuse a state whose tensors are not those of the steps before, as `check_same`."""
        check_same(found, [(part.name, part.dtype, part.box) for part in self.parts], self._known)

    def copy(self, found: Mapping[str, Local]) -> None:
        """Copy a state that was checked, so that it may change while `commit_copied` works."""
        self._restore()
        if self._spare is None:
            self._spare = Held(self.parts, self._pinned)
        self._spare.copy([self._values(found, part) for part in self.parts])

    def commit_copied(self, step: int) -> None:
        """Compare and write the step that was copied; the one before is kept until it is committed."""
        previous, spare = self._previous, self._spare
        assert previous is not None and spare is not None and self._writer is not None
        with _told(step):
            changed = differences(self.parts, previous, lambda number, lo, hi: spare.bits[number][lo:hi], True)
            self._writer.write(step, changed)
        self._previous, self._spare, self.committed = spare, previous, step

    def commit_state(self, step: int, found: Mapping[str, Local]) -> None:
        """Compare and write a state that was checked."""
        bits = [bits_of_values(self._values(found, part), part.dtype) for part in self.parts]
        self.commit(step, lambda number, lo, hi: bits[number][lo:hi])

    def commit(self, step: int, read: Read, *, keep: bool = False) -> None:
        """Compare and write a step that is read bit by bit, and takes the place of the one before at once.

        Args:
            keep: the one before stays in memory, for `verify`.
        """
        previous = self.previous()
        assert self._writer is not None
        self._reload = True  # until it is committed, what is held is neither step
        with _told(step):
            self._writer.write(step, differences(self.parts, previous, read, keep))
        self._reload, self.committed = keep, step

    def verify(self, step: int, read: Read, where: str) -> None:
        """Change the step before to what the journal on disk says, and compare that with what is read again.

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
        if (other := different(self.parts, previous, read)) is not None:
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
        self._previous = self._spare = None

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

    def _values(self, found: Mapping[str, Local], part: Part) -> Any:
        return found[part.name].values

    def _restore(self) -> None:
        """Read the last committed step into memory, where something else is held."""
        if not self._reload and self._previous is not None:
            return
        if self._previous is None:
            self._previous = Held(self.parts, self._pinned)
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
