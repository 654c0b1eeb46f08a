"""Recording the checkpoints that a trainer writes, as they appear; those that are archived and verified may be deleted.

The order of things is what makes it safe: a step is committed to the journal, read back and compared with its
checkpoint, noted as verified with the sizes and times of its files, and only then are these files deleted, if that was
asked for, if they are still the same, and if a later checkpoint is archived as well. Whatever ends the process between
any two of these, the next one goes on from there.
"""

from __future__ import annotations

import fnmatch
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from relex_codec.checkpoints.base_model import open_base
from relex_codec.checkpoints.discovery import find_run
from relex_codec.checkpoints.files import find_files
from relex_codec.checkpoints.naming import MARKERS
from relex_codec.checkpoints.safetensors import open_checkpoint
from relex_codec.core.filenames import INDEX
from relex_codec.core.progress import note
from relex_codec.errors import CheckpointError, InvalidArgument, Truncated
from relex_codec.journal.reader import Journal
from relex_codec.journal.series import JournalSeries
from relex_codec.storage.local_writer import AtomicFile
from relex_codec.storage.urls import Options, PathLike, is_url, local_path

from .memory import same_tensors
from .recorder import Recorder

NOTES: Final = "watch.json"
"""File of the journal's directory that says which checkpoints are verified."""
SETTLED: Final = 5.0
"""Seconds for which the files of a checkpoint must have been at rest, unless a marker says that it is complete."""
PATIENCE: Final = 60.0
"""Seconds at rest after which an incomplete step is left out, if a later one is complete."""
LATE_AGAIN: Final = 20
"""How many times as long as looking for steps that came late it takes until that is done again."""
Files = dict[str, list[int]]
"""Size and time of change of each file of weights, by its path."""


class Watched(NamedTuple):
    """What came of watching.

    Attributes:
        journal: its path.
        steps: all that it has.
        deleted: steps whose weight files were deleted.
        left_out: steps that became complete after a later one was archived.
    """

    journal: str
    steps: list[int]
    deleted: list[int]
    left_out: list[int]


class Watcher:
    """Takes each complete checkpoint below a directory into a journal, in the order of their steps.

    Args:
        directory: of the run, local, as `encode` takes it; it need not have checkpoints yet.
        journal: local path.
        base: the model that training started from.
        until_step: end when this step, or a later one, is archived.
        delete_verified: delete the weight files of a checkpoint that is archived and verified, once a later one is too.
        also: patterns of names of further files beside them that may go, such as ``optimizer.pt``.
        settled: seconds at rest; see `SETTLED`.
        interval: seconds between looks.
        say: called with a line for each thing that happens.
        storage_options: for fsspec, if the base is at a URL.
    """

    def __init__(
        self,
        directory: PathLike,
        journal: PathLike,
        *,
        base: PathLike,
        until_step: int | None = None,
        delete_verified: bool = False,
        also: Sequence[str] = (),
        settled: float = SETTLED,
        interval: float = 2.0,
        say: Callable[[str], None] = note,
        storage_options: Options = None,
    ) -> None:
        if is_url(directory):
            raise InvalidArgument("watch looks at local directories; give one, or encode what is at a URL")
        if also and not delete_verified:
            raise InvalidArgument("--delete-also names what --delete-verified deletes besides weights; give both")
        self._directory, self._journal, self._base = local_path(directory), os.path.abspath(local_path(journal)), base
        self._until, self._delete, self._also = until_step, delete_verified, tuple(also)
        self._settled, self._interval, self._say, self._options = settled, interval, say, storage_options
        self._base_reader = open_base(base, storage_options)
        self._waiting = ""
        self._seen: dict[str, tuple[Files, float]] = {}
        self._recorder = Recorder(journal, base=base, storage_options=storage_options)
        self._verified: dict[int, Files] = self._read_notes()
        self._deleted: list[int] = []
        self._late: set[int] = set()
        self._next_late = 0.0
        self._unsure = set(Journal(self._journal).numbers) - set(self._verified)
        """Steps of the journal that an earlier process may not have verified."""

    def run(self, stop: threading.Event) -> Watched:
        """Look again and again, until `stop` is set or the last step is archived."""
        try:
            while not stop.is_set():
                more = self.look()
                last = self._recorder.last_step
                if self._until is not None and last is not None and last >= self._until:
                    break
                if not more:
                    stop.wait(self._interval)
        finally:
            self._recorder.close()
        self._note_late()
        return Watched(self._journal, Journal(self._journal).numbers, self._deleted, sorted(self._late))

    def look(self) -> bool:
        """Archive the next complete checkpoint, if there is one, and delete what may go; tell whether there was one."""
        self._recheck()
        found = self._next()
        if found is not None:
            step, folder = found
            files = self._files(folder)
            self._recorder.add(step, folder, verify=True)
            if files != self._files(folder):
                raise CheckpointError(f"{folder} changed while it was archived; watch when nothing writes it any more")
            self._note_verified(step, files)
            self._say(f"step {step}: archived and verified ({folder})")
        elif time.monotonic() >= self._next_late:
            self._note_late()
        if self._delete:
            self._delete_old()
        return found is not None

    # -- which is next -----------------------------------------------------------------------------------------------

    def _next(self) -> tuple[int, str] | None:
        """Return the next step that can be archived."""
        last = self._recorder.last_step
        try:
            found = self._find(None if last is None else f"{last + 1}:")
        except (CheckpointError, Truncated) as error:
            self._wait(str(error))
            return None
        except InvalidArgument:  # there is none beyond the last one
            return None
        step, folder = found[0]
        earlier = self._incomplete_before(step)
        if earlier is not None:
            if not self._at_rest(folder, PATIENCE):
                self._wait(earlier)
                return None
            self._say(f"left out: {earlier}")
        elif not self._is_marked(folder) and not self._at_rest(folder, self._settled):
            return None
        self._seen.pop(folder, None)
        return step, folder

    def _find(self, steps: str | None) -> list[tuple[int, str]]:
        return find_run(self._directory, steps=steps, skip_incomplete=True, base=self._base_reader)

    def _incomplete_before(self, step: int) -> str | None:
        """Say what is wrong with an earlier step that is not archived, if there is one."""
        last = self._recorder.last_step
        first = 0 if last is None else last + 1
        if first >= step:
            return None
        try:
            self._find(f"{first}:{step - 1}")
        except (CheckpointError, Truncated) as error:
            return str(error)
        except InvalidArgument:  # there is none
            return None
        return None  # it became complete just now

    def _note_late(self) -> None:
        """Say which steps are complete, and too late for the journal."""
        numbers = Journal(self._journal).numbers
        if not numbers or not numbers[-1]:
            return
        begun = time.monotonic()
        try:
            found = self._find(f"0:{numbers[-1] - 1}")
        except (CheckpointError, InvalidArgument, Truncated):  # there is none, or none that is complete
            found = []
        for step, folder in found:
            if step in self._late or step in numbers:
                continue
            self._late.add(step)
            self._say(
                f"left out: step {step} ({folder}) was complete only after step {numbers[-1]} was archived; it is not "
                "in the journal and never deleted; to have it, watch into another journal"
            )
        self._next_late = begun + LATE_AGAIN * (time.monotonic() - begun)

    def _is_marked(self, folder: str) -> bool:
        """Tell whether a file says that the checkpoint is complete, in its directory or one above it."""
        root = os.path.abspath(self._directory)
        while len(folder := os.path.abspath(folder)) > len(root):
            if any(os.path.exists(os.path.join(folder, marker)) for marker in MARKERS):
                return True
            folder = os.path.dirname(folder)
        return False

    def _at_rest(self, folder: str, seconds: float) -> bool:
        """Tell whether nothing in a directory or below it has changed for some seconds while it was looked at."""
        files: Files = {}
        for place, _, names in os.walk(folder):
            for name in names:
                files |= _stated(os.path.join(place, name))
        before, since = self._seen.get(folder, ({}, 0.0))
        if before != files:
            since = time.monotonic()
        self._seen[folder] = files, since
        return time.monotonic() - since >= seconds

    def _wait(self, message: str) -> None:
        if message != self._waiting:
            self._say(f"waiting: {message}")
        self._waiting = message

    # -- what was archived before ------------------------------------------------------------------------------------

    def _recheck(self) -> None:
        """Look at checkpoints of steps that the journal has: those of an earlier process, and those written again."""
        for step in [step for step, files in self._verified.items() if not _unchanged(files)]:
            del self._verified[step]
            self._unsure.add(step)
        for step in sorted(self._unsure):
            try:
                ((_, folder),) = self._find(str(step))
            except InvalidArgument:  # it is gone
                self._unsure.discard(step)
                continue
            except (CheckpointError, Truncated):  # it is being written, or its weights are gone
                continue
            if self._is_marked(folder) or self._at_rest(folder, self._settled):
                self._compare(step, folder)

    def _compare(self, step: int, folder: str) -> None:
        """Verify a step of the journal with its checkpoint; where they differ, the run went back to before it."""
        files = self._files(folder)
        journal = Journal(self._journal)
        if step not in journal.numbers:
            return
        series = JournalSeries(journal, self._base_reader, [step])
        self._unsure.discard(step)
        if same_tensors(series.checkpoint(0), open_checkpoint(folder)) and files == self._files(folder):
            self._note_verified(step, files)
            self._say(f"step {step}: verified ({folder})")
            return
        self._say(f"step {step}: written again with other weights, so the steps from it on are recorded again")
        self._recorder.close()
        self._recorder = Recorder(self._journal, base=self._base, after=step - 1, storage_options=self._options)
        self._verified = {number: kept for number, kept in self._verified.items() if number < step}
        self._unsure = {number for number in self._unsure if number < step}
        self._write_notes()

    # -- deleting ----------------------------------------------------------------------------------------------------

    def _delete_old(self) -> None:
        """Delete the weight files of all verified checkpoints but the newest."""
        newest = max(self._verified, default=None)
        for step, files in sorted(self._verified.items()):
            if step == newest or not any(map(os.path.exists, files)):
                continue
            if not _unchanged(files):
                continue  # written again: it is looked at next time
            folder = os.path.dirname(next(iter(files)))
            if os.path.realpath(folder) == os.path.realpath(os.fspath(self._base)):
                continue
            names = [os.path.join(folder, INDEX), *(os.path.join(folder, name) for name in self._others(folder))]
            for path in (*files, *names):
                if os.path.exists(path):
                    os.unlink(path)
            self._deleted.append(step)
            self._say(f"step {step}: its weight files are deleted ({folder})")

    def _others(self, folder: str) -> list[str]:
        return [name for name in sorted(os.listdir(folder)) if any(fnmatch.fnmatch(name, one) for one in self._also)]

    # -- notes -------------------------------------------------------------------------------------------------------

    def _files(self, folder: str) -> Files:
        found: Files = {}
        for path in find_files(folder, None, f"checkpoint {folder}").shards.values():
            found |= _stated(os.path.abspath(path))
        return found

    def _note_verified(self, step: int, files: Files) -> None:
        self._verified[step] = files
        self._write_notes()

    def _write_notes(self) -> None:
        document = {"verified": {str(step): files for step, files in self._verified.items()}}
        with AtomicFile(os.path.join(self._journal, NOTES)) as file:
            file.write((json.dumps(document) + "\n").encode())

    def _read_notes(self) -> dict[int, Files]:
        """Return what was verified, as far as it can be read; what cannot is verified again."""
        try:
            with open(os.path.join(self._journal, NOTES), "rb") as file:
                found: dict[str, Any] = json.load(file)["verified"]
            notes = {
                int(step): {str(p): [int(n) for n in s] for p, s in files.items()} for step, files in found.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        there = set(Journal(self._journal).numbers)
        return {step: files for step, files in notes.items() if step in there}


def _stated(path: str) -> Files:
    """Return size and time of a file; nothing where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return {}
    return {path: [found.st_size, found.st_mtime_ns]}


def _unchanged(files: Files) -> bool:
    """Tell whether files are as they were, or gone."""
    return all(_stated(path) in ({}, {path: found}) for path, found in files.items())
