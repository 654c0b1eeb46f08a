"""Where results go: local paths and fsspec URLs, written alike and under the same promise.

Local ones are written by local_writer.py and local_directory.py. For a URL, a file is made in a local temporary
directory and then uploaded in one piece: object stores show an object when all of it is there, and on other file
systems it gets a temporary name and is moved. A directory is uploaded file by file, each removed here when it is there,
so that no copy of a whole model is made; its user writes the file that makes it loadable last. Whatever goes wrong, an
interruption by the user included, removes again what was uploaded.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from relex_codec.core.filenames import completes
from relex_codec.errors import InvalidArgument, RelexError

from .condition import ANYTHING, Condition, Overtaken
from .explain import write_error
from .leftovers import ScratchDirectory
from .local_directory import AtomicDirectory, not_empty_error, refuse_other_weights
from .local_writer import AtomicFile, exists_error
from .source import closed_on_error
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


def output_directory(
    path: PathLike, storage_options: Options = None, *, replaced: Collection[str] | None = None
) -> AtomicDirectory | UploadedDirectory:
    """Return a directory to be written, as a context manager; arguments and errors are those of `output_file`.

    Locally it appears when it is complete. At a URL its files appear one by one, so write the one that makes it a
    checkpoint last.

    Args:
        replaced: as `AtomicDirectory`.
    """
    if is_url(path):
        return UploadedDirectory(path, storage_options, replaced=replaced)
    return AtomicDirectory(path, replaced=replaced)


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
        self._folder = ScratchDirectory()
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
        self._name = name
        with local_errors(f"{self.path} by way of the temporary directory"), closed_on_error(self._folder):
            self.scratch = self._folder.path
            shown = f"{self.path} by way of {self.scratch}"
            self._file = AtomicFile(os.path.join(self.scratch, name), shown=shown).__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            self._file.__exit__(kind, *exc)
            if kind is None:
                try:
                    local = os.path.join(self.scratch, self._name)
                    self._target.upload([(local, self._target.name)], condition=self.condition)
                except RelexError as e:
                    if isinstance(e, Overtaken) and not self.condition.absent:
                        raise  # made of a file that is no longer there
                    kept = os.path.join(self._folder.keep(), self._name)
                    raise InvalidArgument(f"{e}; the file itself is complete: upload {kept}") from None
        finally:
            self._folder.__exit__(None, None, None)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`, all of it, and return its length."""
        return self._file.write(data)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._file.tell()


class UploadedDirectory:
    """A context manager that writes a directory to a URL; files go through `file` or `upload`.

    Unlike a local directory, the files appear one by one: the one that makes the others a checkpoint goes last.

    Args:
        url, storage_options: as `output_directory`.
        replaced: as `AtomicDirectory`. Before anything is replaced, what makes old files a checkpoint goes: no mixture
            of old and new is taken for one, however this ends.

    Raises:
        InvalidArgument: as `AtomicDirectory`.
    """

    def __init__(
        self, url: PathLike, storage_options: Options = None, *, replaced: Collection[str] | None = None
    ) -> None:
        self._target = UploadTarget(url, storage_options)
        self.shown = self._target.shown
        self._replaced = replaced
        self._folder = ScratchDirectory()
        self.path = ""
        """A local directory for temporary files."""
        self._uploaded: list[str] = []
        self._made: set[str] = set()
        """Directories; object stores have none, and s3fs takes an empty bucket for one that may be removed."""

    def __enter__(self) -> UploadedDirectory:
        target = self._target
        kind = target.exists()
        if kind == "file":
            raise InvalidArgument(f"cannot write {self.shown}: it exists and is not a directory")
        if kind == "directory" and self._replaced is None:
            raise not_empty_error(self.shown)
        try:
            self._prepare(kind == "directory")
        except BaseException:
            target.remove([], self._made)
            raise
        return self

    def _prepare(self, exists: bool) -> None:
        target = self._target
        if target.moves_into_place:
            with target.reported():
                if not target.filesystem.isdir(target.name):
                    self._made.add(target.name)
                    target.filesystem.makedirs(target.name, exist_ok=True)
        target.check(target.name)
        if exists and self._replaced is not None:
            self._prepare_replacing(self._replaced)
        with local_errors(f"{self.shown} by way of the temporary directory"), closed_on_error(self._folder):
            self.path = self._folder.path

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is not None:
                self._target.remove(self._uploaded, self._made)
        finally:
            self._folder.__exit__(None, None, None)

    def _prepare_replacing(self, names: Collection[str]) -> None:
        found = self._target.files_below()

        def listed(folder: str) -> list[str]:
            parts = (name.rpartition("/") for name in found)
            return [name for place, _, name in parts if place == folder]

        refuse_other_weights(self.shown, names, listed)
        for name in filter(completes, set(found) & set(names)):
            with self._target.reported():
                self._target.remove_file(f"{self._target.name}/{name}")

    def file(self, name: str) -> _PartOfDirectory:
        """Return a file of the directory, to be used as a context manager; it is uploaded on leaving."""
        return _PartOfDirectory(self, name)

    def upload(self, files: Iterable[tuple[str, str]], *, keep: bool = False) -> None:
        """Upload local files, ``(path, name below the target)`` each; unless they are kept, remove them here."""
        jobs = [(path, f"{self._target.name}/{name}") for path, name in files]
        if self._replaced is None:  # what is there under these names can only be what was begun here
            self._uploaded += [name for _, name in jobs]
        if self._target.moves_into_place:
            for folder in {name.rpartition("/")[0] for _, name in jobs} - self._made - {self._target.name}:
                with self._target.reported():
                    self._target.filesystem.makedirs(folder, exist_ok=True)
                while folder not in self._made and folder != self._target.name:  # and those that it lies in
                    self._made.add(folder)
                    folder = folder.rpartition("/")[0]

        def there(path: str, name: str) -> None:
            if self._replaced is not None:
                self._uploaded.append(name)
            if not keep:
                os.unlink(path)

        self._target.upload(jobs, there)

    def local(self) -> AbstractContextManager[None]:
        """Turn an error of the operating system about the temporary files into InvalidArgument."""
        return local_errors(f"{self.shown} by way of {self.path}")


@contextmanager
def local_errors(shown: str) -> Iterator[None]:
    """Turn an error of the operating system about a temporary file into InvalidArgument that names the target."""
    try:
        yield
    except OSError as e:
        raise write_error(shown, e) from None


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
