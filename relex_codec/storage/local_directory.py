"""Local directories whose files appear when all of them are complete.

One that does not exist yet is written beside its place and renamed. Into one that exists, which may be a mount point,
the working directory, or one below a directory that others own, files are written below a temporary name in it, and
moved when all are complete: it stays the directory that it was, with its owner and mode. Names appear as links first,
so that after a kill between two of them the next process can tell which are ours, and take them back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from relex_codec.core.filenames import completes, looks_like_weights
from relex_codec.core.text import one_line
from relex_codec.errors import InvalidArgument

from .access import keep_access
from .explain import write_error
from .leftovers import files_below, make_directory, remove_leftovers, remove_tree, temporary_beside, temporary_names
from .local_writer import AtomicFile, give_name, sync_directory, target_of
from .urls import PathLike


class AtomicDirectory:
    """A context manager that writes a local directory; files go to `path`, or through `file`.

    Args:
        path: the target: absent (directories above it are made) or an empty directory.
        replaced: None, or the names of the files of weights that are going to be written: then the directory need not
            be empty. Files of the same names as those written are replaced, others stay.

    Attributes:
        path: of the temporary directory; files written there appear in the target. Known on entering.

    Raises:
        InvalidArgument: the target exists and is not empty, is a URL, or cannot be written; or, with `replaced`, it has
            further files that a loader could take for the weights.
    """

    def __init__(self, path: PathLike, *, replaced: Collection[str] | None = None) -> None:
        self.target = target_of(path)
        self.shown = os.fspath(path)
        self.path = ""
        self._fd = -1
        self._replaced = replaced
        self._existed = False

    def __enter__(self) -> AtomicDirectory:
        with self.reported():
            self._existed = os.path.lexists(self.target)
            if self._existed:
                if not os.path.isdir(self.target):
                    raise InvalidArgument(f"cannot write {self.shown}: it exists and is not a directory")
                remove_leftovers(self.target)
                self._refuse_existing()
            else:
                os.makedirs(os.path.dirname(self.target), exist_ok=True)
                remove_leftovers(os.path.dirname(self.target))
            self.path, self._fd = make_directory(self.target, inside=self._existed)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            with self.reported():
                if kind is None:
                    for path, _, _ in os.walk(self.path):
                        sync_directory(path)
                    self._refuse_existing()  # someone may have filled it in the meantime
                    if self._existed:
                        self._move_into_place()
                    else:
                        os.rename(self.path, self.target)
                        sync_directory(os.path.dirname(self.target))
        finally:
            fd, self._fd = self._fd, -1
            with suppress(OSError):
                os.close(fd)
            remove_tree(self.path)  # gone, if it was renamed

    def file(self, name: str) -> AtomicFile:
        """Return a file of the directory, which may be in one below it, to be used as a context manager."""
        path = os.path.join(self.path, name)
        with self.reported():
            os.makedirs(os.path.dirname(path), exist_ok=True)
        return AtomicFile(path, shown=os.path.join(self.shown, name))

    def _refuse_existing(self) -> None:
        own = os.path.basename(self.path)
        try:
            found = [name for name in os.listdir(self.target) if name != own]
        except FileNotFoundError:
            return
        others = [name for name in temporary_names(self.target) if name != own]
        if others:
            raise InvalidArgument(
                f"cannot write {self.shown}: another process is writing there, or was killed on another machine: wait "
                f"for it, or remove {others[0]}"
            )
        if os.path.ismount(self.target):
            found = [name for name in found if name != "lost+found"]  # every new file system has it
        if self._replaced is not None:
            refuse_other_weights(self.shown, self._replaced, self._listed)
        elif found:
            raise not_empty_error(self.shown)

    def _listed(self, folder: str) -> list[str]:
        with suppress(FileNotFoundError, NotADirectoryError):
            return os.listdir(os.path.join(self.target, folder))
        return []

    def _move_into_place(self) -> None:
        """Let all files appear under their names, or none; those that make them a checkpoint last."""
        names = sorted(files_below(self.path), key=lambda name: (completes(name), name))
        folders = sorted({name[:at] for name in names for at, letter in enumerate(name) if letter == os.sep})
        if self._replaced is not None:
            for name in filter(completes, self._replaced):  # until all is new, nothing shall be taken for complete
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.target, name))
        placed, made = list[str](), list[str]()
        try:
            for folder in folders:
                with suppress(FileExistsError):
                    os.mkdir(os.path.join(self.target, folder))
                    made.append(folder)
            for name in names:
                new, place = os.path.join(self.path, name), os.path.join(self.target, name)
                if self._replaced is not None:
                    _keep_access(new, place)
                    os.replace(new, place)
                elif not give_name(new, place):
                    raise not_empty_error(self.shown)
                placed.append(name)
            for folder in ("", *folders):
                sync_directory(os.path.join(self.target, folder))
            # from here on all of it is there, and nothing is taken back
            done = temporary_beside(os.path.join(self.target, os.path.basename(self.target)))
            os.rename(self.path, done)
            self.path = done
        except BaseException as error:
            for name in reversed(placed):
                with suppress(OSError):
                    os.unlink(os.path.join(self.target, name))
            for folder in reversed(made):
                with suppress(OSError):
                    os.rmdir(os.path.join(self.target, folder))
            if isinstance(error, OSError) and self._replaced is not None:
                raise InvalidArgument(
                    f"cannot write {self.shown}: {one_line(error)}; of what was to be replaced, something may be gone"
                ) from None
            raise

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Turn an error of the operating system into InvalidArgument that names the target."""
        try:
            yield
        except OSError as e:
            raise write_error(self.shown, e) from None


def not_empty_error(shown: str) -> InvalidArgument:
    """Return the error for a directory that was to be absent or empty."""
    return InvalidArgument(
        f"cannot write {shown}: it exists and is not empty; choose another place, or replace files of the same names "
        "with -f (in Python overwrite=True)"
    )


def refuse_other_weights(shown: str, names: Collection[str], listed: Callable[[str], Collection[str]]) -> None:
    """Refuse directories with files that stay, and that a loader could take for the weights instead of the new ones.

    Args:
        shown: what messages call the output.
        names: of the files of weights that are going to be written, from there.
        listed: gives the names in a directory.

    Raises:
        InvalidArgument: there is such a file.
    """
    for folder in sorted({os.path.dirname(name) for name in names}):
        for name in sorted(listed(folder)):
            path = os.path.join(folder, name) if folder else name
            if looks_like_weights(name) and path not in names:
                raise InvalidArgument(
                    f"cannot write {shown}: it has {path}, which would stay and could be taken for the weights; remove "
                    "it, or choose another place"
                )


def _keep_access(new: str, old: str) -> None:
    fd = os.open(new, os.O_RDONLY | os.O_CLOEXEC)
    try:
        keep_access(fd, old)
    finally:
        os.close(fd)
