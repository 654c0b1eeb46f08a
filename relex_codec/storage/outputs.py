"""Where results go: local paths and fsspec URLs, written alike and under the same promise.

Local ones are written by local_writer.py. For a URL, a file is made in a local temporary directory and then uploaded in
one piece: object stores show an object when all of it is there, and on other file systems it gets a temporary name and
is moved. A directory is uploaded file by file, each removed here when it is there, so that no copy of a whole model is
made; its user writes the file that makes it loadable last. Whatever goes wrong, an interruption by the user included,
removes again what was uploaded.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from relex_codec.errors import InvalidArgument, RelexError

from .condition import ANYTHING, Condition, Overtaken
from .explain import write_error
from .local_writer import AtomicDirectory, AtomicFile, exists_error
from .upload import OBJECT_STORES, UploadTarget
from .urls import Options, PathLike, is_url, local_path


def output_file(
    path: PathLike, storage_options: Options = None, condition: Condition = ANYTHING
) -> AtomicFile | UploadedFile:
    """Return a file to be written, as a context manager: it appears when it is complete, or not at all.

    Args:
        path: local, or a URL.
        storage_options: for fsspec; not used for local paths.
        condition: what may be replaced.

    Raises:
        InvalidArgument: nothing can be written there.
    """
    return UploadedFile(path, storage_options, condition) if is_url(path) else AtomicFile(path, condition=condition)


def file_exists(path: PathLike, storage_options: Options = None) -> bool:
    """Tell whether there is a file under the name of an output; False at a URL where nothing may be listed.

    Raises:
        InvalidArgument: nothing can be written there.
    """
    if not is_url(path):
        return os.path.isfile(local_path(path))
    target = UploadTarget(path, storage_options)
    with suppress(InvalidArgument):  # some may write, but not list
        return target.exists() == "file"
    return False


def output_directory(path: PathLike, storage_options: Options = None) -> AtomicDirectory | UploadedDirectory:
    """Return a directory to be written, as a context manager; arguments and errors are those of `output_file`.

    Locally it appears when it is complete. At a URL its files appear one by one, so write the one that makes it a
    checkpoint last.
    """
    return UploadedDirectory(path, storage_options) if is_url(path) else AtomicDirectory(path)


class UploadedFile:
    """A context manager that writes a file to a URL, with the interface of `AtomicFile`.

    Where the upload fails, the file is kept here, and the message says where: hours of work may be in it. Who
    interrupts it wants nothing to be left, here as there.

    Attributes:
        condition: what may be replaced; compared on entering, and again when the file is uploaded.

    Raises:
        InvalidArgument: the target is a directory or cannot be written, the condition does not hold, or there is no
            room for the file in the temporary directory. Raised when made, on entering, while writing, or on leaving.
    """

    def __init__(self, url: PathLike, storage_options: Options = None, condition: Condition = ANYTHING) -> None:
        self.condition = condition
        self._target = UploadTarget(url, storage_options)
        self.path = self._target.shown
        self.scratch = ""
        self._file: AtomicFile

    def __enter__(self) -> UploadedFile:
        target = self._target
        folder, _, name = target.name.rpartition("/")
        if (not folder.strip("/") and target.scheme in OBJECT_STORES) or not name:
            raise InvalidArgument(f"cannot write {self.path}: it names no file; add the name of one")
        kind = None
        with suppress(InvalidArgument):  # some may write, but not list
            kind = target.exists()
        if kind == "directory":
            raise InvalidArgument(f"cannot write {self.path}: it exists and is a directory")
        if kind == "file" and self.condition.absent:
            raise exists_error(self.path)
        target.check(folder)
        self.scratch = tempfile.mkdtemp(prefix="relex-")
        self._local = os.path.join(self.scratch, name)
        self._file = AtomicFile(self._local, shown=f"{self.path} by way of {self.scratch}").__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        keep = False
        try:
            self._file.__exit__(kind, *exc)
            if kind is None:
                try:
                    self._target.upload([(self._local, self._target.name)], condition=self.condition)
                except RelexError as e:
                    if isinstance(e, Overtaken) and not self.condition.absent:
                        raise  # made of a file that is no longer there
                    keep = True
                    raise InvalidArgument(f"{e}; the file itself is complete: upload {self._local}") from None
        finally:
            if not keep:
                shutil.rmtree(self.scratch, ignore_errors=True)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`, all of it, and return its length."""
        return self._file.write(data)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._file.tell()


class UploadedDirectory:
    """A context manager that writes a directory to a URL; files go through `file` or `upload`.

    Unlike a local directory, the files appear one by one: the one that makes the others a checkpoint goes last.

    Raises:
        InvalidArgument: the target exists and is not empty, or cannot be written.
    """

    def __init__(self, url: PathLike, storage_options: Options = None) -> None:
        self._target = UploadTarget(url, storage_options)
        self.shown = self._target.shown
        self.path = ""
        """A local directory for temporary files."""
        self._uploaded: list[str] = []
        self._made: set[str] = set()
        """Directories; object stores have none, and s3fs takes an empty bucket for one that may be removed."""

    def __enter__(self) -> UploadedDirectory:
        target = self._target
        kind = target.exists()
        if kind is not None:
            what = "not empty; choose another place" if kind == "directory" else "not a directory"
            raise InvalidArgument(f"cannot write {self.shown}: it exists and is {what}")
        if target.moves_into_place:
            with target.reported():
                if not target.filesystem.isdir(target.name):
                    self._made.add(target.name)
                    target.filesystem.makedirs(target.name, exist_ok=True)
        target.check(target.name)
        self.path = tempfile.mkdtemp(prefix="relex-")
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is not None:
                self._target.remove(self._uploaded, self._made)
        finally:
            shutil.rmtree(self.path, ignore_errors=True)

    def file(self, name: str) -> _PartOfDirectory:
        """Return a file of the directory, to be used as a context manager; it is uploaded on leaving."""
        return _PartOfDirectory(self, name)

    def upload(self, files: Iterable[tuple[str, str]], *, keep: bool = False) -> None:
        """Upload local files, ``(path, name below the target)`` each; unless they are kept, remove them here."""
        jobs = [(path, f"{self._target.name}/{name}") for path, name in files]
        self._uploaded += [name for _, name in jobs]
        if self._target.moves_into_place:
            for folder in {name.rpartition("/")[0] for _, name in jobs} - self._made - {self._target.name}:
                self._made.add(folder)
                with self._target.reported():
                    self._target.filesystem.makedirs(folder, exist_ok=True)
        self._target.upload(jobs, (lambda _: None) if keep else os.unlink)

    @contextmanager
    def local(self) -> Iterator[None]:
        """Turn an error of the operating system about the temporary files into InvalidArgument."""
        try:
            yield
        except OSError as e:
            raise write_error(f"{self.shown} by way of {self.path}", e) from None


class _PartOfDirectory(AtomicFile):
    """A file of a `UploadedDirectory`: written here, uploaded, removed here."""

    def __init__(self, directory: UploadedDirectory, name: str) -> None:
        super().__init__(
            os.path.join(directory.path, name.replace("/", "-")),
            shown=f"{directory.shown}/{name} by way of {directory.path}",
        )
        self._directory, self._name = directory, name

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        super().__exit__(kind, *exc)
        if kind is None:
            self._directory.upload([(self.path, self._name)])
