"""A work directory: the results of units that are finished, kept over kills, for the same command to go on with.

It holds ``plan.json``, which says what the results were made of and with, ``lock``, and one file for each unit. A
result appears when it is complete, and is checked before it is used again. At a URL the same is kept there, and a copy
of what is needed is on this machine.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final

from relex_codec.core.progress import note
from relex_codec.engines.protocol import SUFFIX, result_path
from relex_codec.engines.unit_files import OpenFiles, UnitFile
from relex_codec.errors import Corrupt, InvalidArgument
from relex_codec.storage.explain import write_error
from relex_codec.storage.leftovers import ScratchDirectory, remove_tree
from relex_codec.storage.local_writer import AtomicFile
from relex_codec.storage.open import list_directory, open_source
from relex_codec.storage.outputs import output_file
from relex_codec.storage.upload import UploadTarget
from relex_codec.storage.urls import Options, PathLike, is_url, local_path, options_for, without_secrets

from .work_identity import Identity
from .work_owner import OWNER, owner_document, refuse_owner

PLAN: Final = "plan.json"
LOCK: Final = "lock"
REFRESH: Final = 60.0
"""Seconds after which a process says again that it works at a URL, when it has finished a unit."""


class WorkDirectory:
    """A work directory, as a context manager.

    Args:
        place: local path, or URL.
        identity: what its results are made of and with.
        storage_options: for fsspec.
        keep: whether it stays when the work is done.

    Attributes:
        path: of the local directory that results are in.

    Raises:
        InvalidArgument: another process works in it, it holds something else, or what it was begun with is not what is
            given now. Raised on entering.
    """

    def __init__(
        self, place: PathLike, identity: Identity, storage_options: Options = None, *, keep: bool = False
    ) -> None:
        self._place, self._identity, self._options, self._keep = os.fspath(place), identity, storage_options, keep
        self.shown = without_secrets(place)
        self.path = ""
        self._fd = -1
        self._local = ScratchDirectory() if is_url(place) else None
        self._there: set[str] = set()
        self._owned = 0.0
        """When this process last said that it works there."""

    def __enter__(self) -> WorkDirectory:
        try:
            if self._local is None:
                self.path = os.path.realpath(local_path(self._place))
                os.makedirs(self.path, exist_ok=True)
                self._lock()
            else:
                self._local.__enter__()
                self.path = self._local.path
                self._fetch_names()
                self._own()
            self._begin()
        except OSError as e:
            self._let_go()
            raise write_error(self.shown, e) from None
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._keep:
                self._remove()
                return
            if kind is not None and self.path:
                note(f"what is finished stays in {self.shown}: the same command goes on from there")
            if self._local is not None:
                with suppress(Exception):  # what it ended with is told; the next process sees that this one has gone
                    target = UploadTarget(self._place, self._options)
                    target.remove_file(f"{target.name}/{OWNER}")
        finally:
            self._let_go()

    def kept(self, keys: Sequence[str]) -> dict[str, str]:
        """Return where the results of units are that are finished, by their keys; damaged ones are removed."""
        found = {}
        files = OpenFiles()
        try:
            for key in keys:
                path = result_path(self.path, key)
                if self._local is not None and key + SUFFIX in self._there:
                    self._download(key + SUFFIX, path)
                if os.path.exists(path) and self._is_whole(path, files):
                    found[key] = path
        finally:
            files.close()
        return found

    def add(self, path: str) -> None:
        """Keep a result that an engine has put into `path`, where that is not enough."""
        if self._local is not None:
            with open(path, "rb") as file, output_file(self._url(os.path.basename(path)), self._options) as there:
                while data := file.read(1 << 22):
                    there.write(data)
            self._there.add(os.path.basename(path))
            if time.monotonic() - self._owned > REFRESH:
                self._write(OWNER, owner_document())

    def _is_whole(self, path: str, files: OpenFiles) -> bool:
        try:
            UnitFile(path, files).check()
        except Corrupt as e:
            note(f"{e}; it is done again")
            files.close()
            os.unlink(path)
            return False
        return True

    def _begin(self) -> None:
        """Compare what is there with what is to be done, or say what is to be done."""
        text = self._read_plan()
        if text is not None:
            try:
                before = json.loads(text)
            except ValueError:
                raise self._not_one() from None
            if not isinstance(before, dict) or not {"options", "inputs"} <= before.keys():
                raise self._not_one()
            remedy = "give what was given before, or another --work-dir, or remove this one"
            self._identity.refuse_other(before, f"work directory {self.shown}", remedy)
            for name in os.listdir(self.path):
                if name.endswith(".part"):  # of workers that were killed
                    with suppress(OSError):
                        os.unlink(os.path.join(self.path, name))
            return
        rest = self._there - {OWNER} if self._local is not None else set(os.listdir(self.path)) - {LOCK}
        if any(not name.startswith(".") for name in rest):
            raise self._not_one()
        data = json.dumps(self._identity.document(), indent=1).encode()
        if self._local is not None:
            self._write(PLAN, data)
        else:
            with AtomicFile(os.path.join(self.path, PLAN)) as file:
                file.write(data)

    def _read_plan(self) -> bytes | None:
        if self._local is None:
            with suppress(FileNotFoundError), open(os.path.join(self.path, PLAN), "rb") as file:
                return file.read()
            return None
        if PLAN not in self._there:
            return None
        place = os.path.join(self.path, PLAN)
        self._download(PLAN, place)
        with open(place, "rb") as file:
            return file.read()

    def _lock(self) -> None:
        place = os.path.join(self.path, LOCK)
        self._fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._fd), os.stat(place)):
                raise BlockingIOError  # the process that had it has just removed the directory
        except BlockingIOError:
            raise InvalidArgument(
                f"another process works in {self.shown}: wait until it is done, or give another --work-dir"
            ) from None
        except OSError:
            pass  # not every file system has locks

    def _not_one(self) -> InvalidArgument:
        return InvalidArgument(f"{self.shown} is no work directory, and not empty: give another --work-dir")

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        if self._local is not None:
            self._local.__exit__(None, None, None)

    # -- at a URL ----------------------------------------------------------------------------------------------------

    def _url(self, name: str) -> str:
        return f"{self._place.rstrip('/')}/{name}"

    def _own(self) -> None:
        """Refuse a directory that another process works in, and say that this one does."""
        if OWNER in self._there:
            place = os.path.join(self.path, OWNER)
            self._download(OWNER, place)
            with open(place, "rb") as file:
                refuse_owner(file.read(), self.shown)
        self._write(OWNER, owner_document())

    def _write(self, name: str, data: bytes) -> None:
        with output_file(self._url(name), self._options) as file:
            file.write(data)
        self._there.add(name)
        if name == OWNER:
            self._owned = time.monotonic()

    def _fetch_names(self) -> None:
        with suppress(InvalidArgument):  # nothing is there yet
            self._there = {item.name for item in list_directory(self._place, self._options) if not item.is_dir}

    def _download(self, name: str, path: str) -> None:
        with open_source(self._url(name), options_for(self._place, self._options)) as source, open(path, "wb") as file:
            for at in range(0, source.size, 1 << 24):
                file.write(source.read(at, min(source.size, at + (1 << 24))))

    def _remove(self) -> None:
        if self._local is None:
            remove_tree(self.path)
            return
        target = UploadTarget(self._place, self._options)
        for name in sorted(self._there | {PLAN}, key=lambda name: name == PLAN):
            target.remove_file(f"{target.name}/{name}")
