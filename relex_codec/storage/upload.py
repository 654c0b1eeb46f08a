"""A place on an fsspec filesystem that files are uploaded to: checked first, complete when shown, tidied up after."""

from __future__ import annotations

import inspect
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Final, TypeVar

from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.errors import InvalidArgument, RelexError

from .condition import ANYTHING, Condition
from .config import split_options
from .explain import message_of, upload_error
from .failures import is_refused_condition, status_of
from .open import filesystem_of
from .retry import RetriesExhausted, call_with_retries
from .stores.base import ObjectVersion
from .stores.registry import store_for
from .urls import Options, PathLike, normalized, options_for, without_secrets

T = TypeVar("T")
OBJECT_STORES: Final = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss"})
"""Where an upload appears when it is complete, and where moving is copying."""
READ_ONLY: Final = frozenset({"http", "https", "data", "github", "git", "gist", "zip", "tar", "libarchive", "reference",
                              "relex"})  # fmt: skip
PART: Final = 8 << 20
"""Bytes of a part of an upload: s3fs has ten of them under way, and each twice in memory."""
PARTS_LIMIT: Final = 9_000
"""Parts of one upload: S3 takes 10,000."""
PARTS_AT_A_TIME: Final = 10
"""Parts, of 4 MiB, that adlfs may have under way; by itself it has 128."""
UPLOADS: Final = 4
"""Files that are uploaded at the same time; of those that are uploaded in several parts at a time, one."""
_TEMPORARY: Final = ".relex.tmp-"
"""How temporary names begin."""
COMPARED: Final = 64 << 10
"""Bytes at either end of a file that tell whether an object is the one that was sent."""
GRACE: Final = 20.0
"""Seconds that an interrupted upload has to tidy up."""


class _Stranded(InvalidArgument):
    """The old file is gone, and the new one under its temporary name."""


class UploadTarget:
    """A URL that is to be written to.

    Raises:
        InvalidArgument: it is of a kind that cannot be written to.
    """

    def __init__(self, url: PathLike, storage_options: Options = None) -> None:
        text = os.fspath(url)
        self.shown = without_secrets(text)
        self.scheme = normalized(text).partition("://")[0]
        if "::" in text:
            raise InvalidArgument(f"cannot write {self.shown}: it is a chain; give the URL of the place itself")
        if self.scheme == "hf":
            raise InvalidArgument(
                f"cannot write {self.shown}: each file would be a commit of its own; write to a local path, and send "
                "that with `hf upload`"
            )
        if self.scheme in READ_ONLY:
            raise InvalidArgument(f"cannot write {self.shown}: {self.scheme}:// is for reading; give another place")
        options = options_for(text, storage_options)
        self._config, _ = split_options(options)
        self.filesystem, name = filesystem_of(text, options, error=InvalidArgument)
        self.name = name.rstrip("/")
        self._cancelled = threading.Event()
        self._in_parts = threading.Lock()

    @property
    def moves_into_place(self) -> bool:
        """Whether files are uploaded under a temporary name first, and then moved."""
        return self.scheme not in OBJECT_STORES

    def check(self, folder: str) -> None:
        """Write an empty file into `folder` and remove it: what is not allowed shall fail now, not after hours."""
        name = _temporary(folder)
        with self.reported():
            self.filesystem.pipe_file(name, b"")
        with suppress(Exception):  # some may add files, but not remove them
            self.remove_file(name)

    def exists(self) -> str | None:
        """Return ``file`` or ``directory`` if there is something; an empty directory is nothing."""
        with self.reported():
            try:
                found = self._listed()
            except Exception as e:
                if isinstance(e, FileNotFoundError | NotADirectoryError) or status_of(e) == 404:
                    return None
                raise
        names = {str(entry["name"]).strip("/"): entry["type"] for entry in found}
        names = {name: kind for name, kind in names.items() if not _is_temporary(name)}  # of who was killed
        kind = names.pop(self.name.strip("/"), None)  # ls of a file is the file; stores have markers of directories
        return "directory" if names else "file" if kind == "file" and not self._is_marker() else None

    def _listed(self) -> Any:
        # not adlfs's where it can be avoided: of a directory that has a marker it shows nothing else
        store = store_for(self.filesystem, self.name, self._config)
        found = self._with_retries(store.listing)
        if found is None:
            self.filesystem.invalidate_cache(self.name)
            found = self.filesystem.ls(self.name, detail=True)
        return found

    def upload(
        self,
        files: Iterable[tuple[str, str]],
        on_file: Callable[[str, str], Any] = lambda *_: None,
        condition: Condition = ANYTHING,
    ) -> None:
        """Upload local files, ``(path, name)`` each, several at a time.

        Args:
            files: the name is one on the filesystem.
            on_file: called with path and name when the file is there, from one of several threads.
            condition: what may be replaced under each name.

        Raises:
            Overtaken: the condition does not hold; what is there was left as it is.
            InvalidArgument: a file cannot be written; others may have been. An interruption stops all of them.
        """
        files = list(files)
        jobs, failures, lock, ended = iter(files), list[BaseException](), threading.Lock(), threading.Semaphore(0)

        def work() -> None:
            try:
                while not self._cancelled.is_set():
                    with lock:
                        job = next(jobs, None)
                    if job is None:
                        return
                    self._upload(*job, condition)
                    on_file(*job)
            except BaseException as error:
                failures.append(error)
                self._cancelled.set()
            finally:
                ended.release()

        # Neither a pool, which an interruption would wait for to the end, nor `join`, which takes a thread for ended
        # once it was interrupted (Python 3.11).
        workers = min(UPLOADS, len(files))
        for _ in range(workers):
            threading.Thread(target=work, daemon=True).start()
        left = workers
        try:
            for _ in range(workers):
                ended.acquire()
                left -= 1
        except BaseException:
            self._cancelled.set()
            until = time.monotonic() + GRACE
            for _ in range(left):
                ended.acquire(timeout=max(0.0, until - time.monotonic()))
            raise
        if failures:
            raise failures[0]

    def files_below(self) -> list[str]:
        """Return the files below, each as it is called from here; `exists` says that there are some."""
        root = self.name.strip("/") + "/"
        with self.reported():
            self.filesystem.invalidate_cache(self.name)
            found = [str(name).strip("/") for name in self.filesystem.find(self.name)]
        return [name.removeprefix(root) for name in found if name.startswith(root) and not _is_temporary(name)]

    def remove(self, names: Iterable[str], folders: Iterable[str]) -> None:
        """Remove files as far as that is possible, and directories, deepest first."""

        def one(name: str) -> None:
            with suppress(Exception):
                self.remove_file(name)

        parallel_map(one, names, IO_THREADS)
        for folder in sorted(folders, key=len, reverse=True):
            with suppress(Exception):
                self.filesystem.rmdir(folder)

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Turn what the filesystem raises into InvalidArgument that names the target."""
        try:
            yield
        except RelexError:
            raise
        except Exception as e:  # libraries raise what they like
            raise upload_error(self.shown, e) from None

    def _upload(self, path: str, name: str, condition: Condition) -> None:
        first = _temporary(name.rpartition("/")[0]) if self.moves_into_place else name
        known = not self.moves_into_place and not condition.holds_always
        """Whether the storage itself says that all of it arrived, and in the place of what."""
        arrived = False
        with self.reported():
            size = os.path.getsize(path)
            try:
                if known:
                    self._put_if(path, name, condition)
                else:
                    self._put(path, first)
                    arrived = True
                    self.filesystem.invalidate_cache(first)
                    found = self.filesystem.info(first)["size"]
                    if found != size:
                        raise InvalidArgument(
                            f"cannot write {self.shown}: {found:,} bytes arrived of {size:,}; try again"
                        )
                if first != name:
                    if not condition.holds_always:
                        condition.check(self._version_of(name), self.shown)
                    self._move(first, name)
            except _Stranded:
                raise
            except BaseException:
                with suppress(Exception):
                    # what is under the name itself is the old file, and stays, until the new one has arrived
                    if first != name or (arrived and self.filesystem.info(name)["size"] != size):
                        self.remove_file(first)
                raise

    def _put(self, path: str, name: str, filesystem: Any = None, **conditions: Any) -> None:
        """Upload one file, all of it again after what the filesystem itself tries for a part of it."""
        from fsspec.callbacks import Callback

        filesystem = filesystem or self.filesystem
        size = os.path.getsize(path)
        # s3fs aborts an upload of several parts when something is raised; a killed one stays there, unseen
        callback = Callback(hooks={"cancel": self._raise_if_cancelled})
        options = {**put_options(filesystem, size), **conditions}

        def put() -> None:
            self._raise_if_cancelled()
            filesystem.put_file(path, name, callback=callback, **options)

        concurrent = size >= 2 * PART and hasattr(filesystem, "max_concurrency")
        with self._in_parts if concurrent else nullcontext():
            self._with_retries(put)

    def _put_if(self, path: str, name: str, condition: Condition) -> None:
        """Upload one file to an object store, if what is there may be replaced: looked at here, and by the storage."""
        found = self._version_of(name)
        if condition.absent and found is not None and found.size == 0:
            condition = Condition(version=found)  # a marker of a directory
        condition.check(found, self.shown)
        filesystem, keywords = store_for(self.filesystem, name, self._config).conditional_upload(condition.version)
        try:
            self._put(path, name, filesystem, **keywords)
        except Exception as e:
            if status_of(e) == 501:  # the storage knows no such conditions
                self._put(path, name)
            elif not is_refused_condition(e):
                raise
            # it may have arrived, and only the answer not, so that it was sent again
            elif not self._is_there(path, name):
                raise condition.overtaken(self.shown) from None
        self.filesystem.invalidate_cache(name)

    def _version_of(self, name: str) -> ObjectVersion | None:
        """Return the version of the file of that name; None where there is none, or where one may not look."""
        store = store_for(self.filesystem, name, self._config)
        try:
            return self._with_retries(store.head)
        except Exception as e:
            if isinstance(e, FileNotFoundError | PermissionError) or status_of(e) in (401, 403, 404):
                return None
            raise

    def _is_there(self, path: str, name: str) -> bool:
        """Tell whether a file is there as it is here: by its size, its header with all checksums, and its end."""
        size = os.path.getsize(path)
        with suppress(Exception), open(path, "rb") as file:
            store = store_for(self.filesystem, name, self._config)
            version = store.head()
            if version is None or version.size != size:
                return False
            for start in (0, max(0, size - COMPARED)):
                file.seek(start)
                here = file.read(COMPARED)
                if store.get(start, start + len(here), version).data != here:
                    return False
            return True
        return False

    def _with_retries(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns, tried again while that may help, for as long as the config say."""
        try:
            return call_with_retries(attempt, self._config.retry)
        except RetriesExhausted as e:
            raise e.__cause__ or e from None

    def _raise_if_cancelled(self, *_: Any, **__: Any) -> None:
        if self._cancelled.is_set():
            raise RuntimeError("interrupted")

    def _move(self, first: str, name: str) -> None:
        try:
            self.filesystem.mv(first, name)
        except Exception:
            if not self.filesystem.exists(name):
                raise
            self.remove_file(name)  # some do not move over a file
            try:
                self._with_retries(lambda: self.filesystem.mv(first, name))
            except Exception as e:
                raise _Stranded(f"cannot write {self.shown}: {message_of(e)}; all of it is there, as {first}") from None

    def remove_file(self, name: str) -> None:
        """Remove a file; raises what the filesystem does."""
        try:
            self.filesystem.rm_file(name)
        except NotImplementedError:
            self.filesystem.rm(name)

    def _is_marker(self) -> bool:
        """Whether an empty object stands for a directory."""
        return not self.moves_into_place and self.filesystem.info(self.name).get("size") == 0


def _temporary(folder: str) -> str:
    """Return a name that nothing takes for a checkpoint or a file of weights."""
    return f"{folder}/{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"


def _is_temporary(name: str) -> bool:
    return name.rpartition("/")[2].startswith(_TEMPORARY)


def put_options(filesystem: Any, size: int) -> dict[str, int]:
    """Return the keywords that an upload of so many bytes takes.

    They bound what it holds in memory, and let it go over what is there, where the filesystem has keywords for that.
    """
    known = inspect.signature(getattr(filesystem, "_put_file", filesystem.put_file)).parameters
    found: dict[str, Any] = {"overwrite": True} if "overwrite" in known else {}  # not adlfs's default in 2023
    if "chunksize" in known:
        found["chunksize"] = max(PART, -(-size // PARTS_LIMIT // (1 << 20)) << 20)
    elif "max_concurrency" in known:
        found["max_concurrency"] = PARTS_AT_A_TIME
    return found
