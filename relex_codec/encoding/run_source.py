"""Where a run comes from, in a form that another process can open: what units carry with them instead of weights."""

from __future__ import annotations

import atexit
import pickle
import threading
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, Protocol

from relex_codec.checkpoints.base_model import open_base
from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorReader
from relex_codec.checkpoints.pickled_base import open_base_to_encode
from relex_codec.checkpoints.series import open_series
from relex_codec.errors import InvalidArgument
from relex_codec.run.run_reader import RunReader
from relex_codec.storage.urls import Options

from .adapter_run import NoBase
from .appended_series import AppendedSeries

KEPT: Final = 2
"""Runs that a process keeps open."""
_FOR_LIFE: Final = ExitStack()
"""What a process needs for as long as it lives: copies of journals that are at URLs."""
atexit.register(_FOR_LIFE.close)


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that is open.

    Attributes:
        series: its steps.
        base: what tensors start from that are not in the file; None where everything is.
        file: what further steps are appended to; None for a run of its own.
        further: the steps that are appended.
    """

    series: CheckpointSeries
    base: TensorReader | None = None
    file: RunReader | None = None
    further: CheckpointSeries | None = None


class RunSource(Protocol):
    """Says where a run is. It can be pickled."""

    def open(self) -> OpenRun:
        """Open it, in whatever process."""


@dataclass(frozen=True)
class CheckpointSource:
    """Checkpoints, as `discovery.find_run` finds them.

    Attributes:
        found: steps and paths.
        base: of the run.
        of_adapters: whether nothing starts from the base.
        pickled_base: whether the base may be a pickle.
        storage_options: for fsspec.
    """

    found: tuple[tuple[int, str], ...]
    base: str
    of_adapters: bool
    pickled_base: bool = False
    storage_options: Options = None

    def open(self) -> OpenRun:
        """Open the base; checkpoints are opened when they are needed."""
        may = self.pickled_base
        base = open_base_to_encode(self.base, self.storage_options, embed=may, allow_pickle=may)
        series = open_series(self.found, self.storage_options, base=base, chosen=True, alike=False)
        return OpenRun(series, NoBase(base.path) if self.of_adapters else base)


@dataclass(frozen=True)
class JournalSource:
    """A journal.

    Attributes:
        place: its directory, or URL.
        base: of the run.
        steps: those of the run.
        storage_options: for fsspec, of the base.
    """

    place: str
    base: str
    steps: tuple[int, ...]
    storage_options: Options = None

    def open(self) -> OpenRun:
        """Open both."""
        from relex_codec.journal.remote import journal_at
        from relex_codec.journal.series import JournalSeries  # numba is only needed here

        base = open_base(self.base, self.storage_options)
        journal = _FOR_LIFE.enter_context(journal_at(self.place, self.storage_options))
        return OpenRun(JournalSeries(journal, base, self.steps), base)


@dataclass(frozen=True)
class AppendedSource:
    """A file, and checkpoints of later steps.

    Attributes:
        file: opened; its copy in another process opens it there.
        found: steps and paths of the checkpoints.
        storage_options: for fsspec.
    """

    file: RunReader
    found: tuple[tuple[int, str], ...]
    storage_options: Options = None

    def open(self) -> OpenRun:
        """Open both."""
        names = {tensor.name for tensor in self.file.container.index.tensors}
        further = open_series(self.found, self.storage_options, alike=False, names=names)
        series = AppendedSeries(self.file.decoder, further) if self.file.container.index.has_exact else further
        return OpenRun(series, None, self.file, further)


@dataclass(frozen=True, eq=False)
class OpenHere:
    """A run that is open in this process, and cannot be opened in another one.

    Attributes:
        opened: the run.
    """

    opened: OpenRun = field(repr=False)

    def open(self) -> OpenRun:
        """Return it."""
        return self.opened

    def __reduce__(self) -> str:
        raise InvalidArgument("this run is open in this process only: encode it with the engine 'local'")


class _Kept:
    """The runs that this process has open for its units."""

    def __init__(self) -> None:
        self._runs: OrderedDict[bytes, OpenRun] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, source: RunSource) -> OpenRun:
        if isinstance(source, OpenHere):
            return source.opened
        key = pickle.dumps(source)
        with self._lock:
            run = self._runs.pop(key, None) or source.open()
            self._runs[key] = run
            while len(self._runs) > KEPT:
                self._runs.popitem(last=False)
            return run


_KEPT: Final = _Kept()


def opened(source: RunSource) -> OpenRun:
    """Return a run, which is opened once in a process.

    Raises:
        RelexError: it cannot be opened.
    """
    return _KEPT.get(source)
