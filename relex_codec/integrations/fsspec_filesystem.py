"""The fsspec filesystem ``relex``: every step of a run as the files that decoding would write.

``relex://step_800/model.safetensors::s3://bucket/run.relex`` reads a range of a step's weights through anything that
takes an fsspec URL; fsspec finds this class by its entry point. What is served is in run/step_files.py.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, NoReturn

from fsspec.callbacks import NoOpCallback
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike, tokenize

from relex_codec.core.forks import new_lock
from relex_codec.core.text import quote
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.errors import InvalidArgument
from relex_codec.run.run_reader import RunReader
from relex_codec.run.step_files import StepFiles
from relex_codec.storage.local_writer import AtomicFile
from relex_codec.storage.source import closed_on_error
from relex_codec.storage.urls import without_secrets

from .fsspec_chain import unchained
from .fsspec_file import Place, RelexFile, base_found

PROTOCOL: Final = "relex"
_STEP: Final = re.compile(r"step_(-?[0-9]{1,18}(?:\.[0-9]{1,18})?)")
_COMMON: Final = ("use_listings_cache", "listings_expiry_time", "max_paths", "asynchronous", "loop")
"""Options of every filesystem of fsspec."""
_NO_CALLBACK: Final = NoOpCallback()
Info = dict[str, Any]


class _WorkingDirectory:
    """Read from a class: where the process is; None where that was removed."""

    def __get__(self, instance: object, owner: type) -> str | None:
        try:
            return os.getcwd()
        except FileNotFoundError:
            return None


class RelexFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """The steps of one ``.relex`` file, read-only.

    The root lists the stored steps as directories ``step_N``. Any other step that the tier reaches has its directory as
    well, though it is not listed: ``step_800`` beyond the run, ``step_12.5`` between two checkpoints. Files have the
    bytes that ``relex-codec decode`` writes, and reading a range decodes only the pieces of tensors that it touches.

    As with other filesystems of fsspec, an instance is kept and shared by those that ask for the same file, and goes on
    reading the file that it opened; after ``relex-codec append``, `invalidate_cache` opens the new one.

    Args:
        fo: path or fsspec URL of the ``.relex`` file; the rest of a chained URL gives it.
        target_protocol: the protocol of `fo`, if `fo` comes without one.
        target_options: ``storage_options`` of `fo`, and of `base` if that is given.
        base: the base model, if it is not where the file says.
        tier: which one to read, as `Run.tensor`.
        storage_options: what every filesystem of fsspec takes (``use_listings_cache``, ``asynchronous``, ...).

    Attributes:
        url: where the ``.relex`` file is.

    Raises:
        InvalidArgument: no such file, or the file has no such tier.
        Corrupt, Truncated, Unsupported: see `relex_codec.errors`.

    Examples:
        >>> import fsspec
        >>> files = fsspec.filesystem("relex", fo="run.relex")
        >>> files.ls("", detail=False)
        ['step_10', 'step_20', 'step_30', 'step_40']
        >>> files.ls("step_60", detail=False)
        ['step_60/config.json', 'step_60/model.safetensors', 'step_60/tokenizer.json', 'step_60/tokenizer_config.json']
        >>> with fsspec.open("relex://step_60/config.json::run.relex") as f:
        ...     f.read(1)
        b'{'
    """

    protocol = PROTOCOL
    root_marker = ""
    _working_directory = _WorkingDirectory()
    _extra_tokenize_attributes = ("_working_directory",)  # by which fsspec keeps instances: a path may be relative

    def __init__(
        self,
        fo: str = "",
        *,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        base: str | None = None,
        tier: str = "auto",
        **storage_options: Any,
    ) -> None:
        unknown = [name for name in storage_options if name not in _COMMON]
        if unknown:
            raise InvalidArgument(
                f"relex:// has no option {quote(unknown[0])}, expected base or tier; those of the .relex file's own "
                "storage are target_options, or go under its protocol: s3={...}"
            )
        super().__init__(**storage_options)
        if not fo:
            raise InvalidArgument(
                "relex:// needs a file: relex://step_800/model.safetensors::s3://bucket/run.relex, or fo='run.relex'"
            )
        self.url, self._options = unchained(os.fspath(fo), target_protocol, target_options)
        self.base, self.tier = base, tier
        self._opening = new_lock()
        self._files: StepFiles | None = self._open_run()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        found = super()._strip_protocol(path)
        return found if isinstance(found, list) else found.strip("/")

    # ---- Listing ----

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List the stored steps, or the files of a step; a file lists itself."""
        path = self._strip_protocol(path)
        if not path:
            found = [_directory_info(f"step_{step}") for step in self._opened().reader.steps]
        else:
            place = self._place(path)
            if place.name:
                found = [self.info(path)]
            else:
                sizes = sorted(place.sizes().items())
                found = [_file_info(f"{path}/{name}", size, place.tier) for name, size in sizes]
        return found if detail else [info["name"] for info in found]

    def info(self, path: str, **kwargs: Any) -> Info:
        """Return name, size and type; of files also the tier that they are read from.

        Raises:
            FileNotFoundError: there is no such step or file; the message says why.
        """
        path = self._strip_protocol(path)
        if not path:
            return _directory_info("")
        place = self._place(path)
        if not place.name:
            return _directory_info(path)
        size = place.size()
        if size is None:
            raise FileNotFoundError(
                errno.ENOENT, f"{quote(place.name)} is no file of a step of {without_secrets(self.url)}"
            )
        return _file_info(path, size, place.tier)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Tell whether there is such a step or file; a failure to find out is no answer and is raised."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: str) -> bool:
        """Tell whether there is such a file, as `exists` does."""
        try:
            return bool(self.info(path)["type"] == "file")
        except FileNotFoundError:
            return False

    def ukey(self, path: str) -> str:
        """Return a key that differs between files, and between runs."""
        return str(tokenize(self.url, self.base, self.info(path)))

    def invalidate_cache(self, path: str | None = None) -> None:
        """Open the file anew when it is next read."""
        with self._opening:
            self._files = None  # and not closed: others may be reading
        super().invalidate_cache(path)

    # ---- Reading ----

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return the bytes of a file between two positions, which are those of a Python slice."""
        place, size = self._file(path)
        low, high, _ = slice(start, end).indices(size)
        return place.read(low, max(low, high))

    def cat_ranges(
        self, paths: Any, starts: Any, ends: Any, max_gap: int | None = None, on_error: str = "return", **kwargs: Any
    ) -> list[Any]:
        """Return the bytes of each range, reading several at a time; arguments are those of fsspec."""
        if max_gap is not None:
            raise NotImplementedError("max_gap: ranges are merged below, where the .relex file is read")
        if not isinstance(paths, list):
            raise TypeError(f"paths is {type(paths).__name__}, expected a list")
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(starts) == len(ends):
            raise ValueError(f"{len(paths)} paths, {len(starts)} starts and {len(ends)} ends, expected as many of each")

        def one(work: tuple[str, int | None, int | None]) -> Any:
            try:
                return self.cat_file(*work)
            except Exception as error:
                if on_error == "return":
                    return error
                raise

        return parallel_map(one, zip(paths, starts, ends, strict=True), IO_THREADS)

    def get_file(
        self, rpath: str, lpath: Any, callback: Any = _NO_CALLBACK, outfile: Any = None, **kwargs: Any
    ) -> None:
        """Write a file to a local path, tensor by tensor; it appears when it is complete."""
        if outfile is None and not isfilelike(lpath) and self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        place, size = self._file(rpath)
        callback.set_size(size)
        with _writing(lpath if outfile is None else outfile) as out:
            for data in place.stream():
                out.write(data)
                callback.relative_update(len(data))

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_type: str = "none",
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> RelexFile:
        if mode != "rb":
            self._refuse()
        place, size = self._file(path)
        return RelexFile(
            self, path, mode, block_size or "default", cache_type=cache_type, cache_options=cache_options, size=size,
            place=place,
        )  # fmt: skip

    # ---- Writing, of which there is none ----

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: what is here comes from the file and cannot be changed.

        Raises:
            OSError: always (``EROFS``).
        """
        raise OSError(
            errno.EROFS, "relex:// is read-only: nothing there can be made, changed or removed; see relex-codec append"
        )

    mkdir = makedirs = rmdir = rm = rm_file = _rm = cp_file = touch = pipe_file = put_file = mv = _refuse

    # ---- Below ----

    def _opened(self) -> StepFiles:
        with self._opening:
            if self._files is None:
                with base_found():
                    self._files = self._open_run()
            return self._files

    def _open_run(self) -> StepFiles:
        reader = RunReader(self.url, base=self.base, storage_options=self._options)
        with closed_on_error(reader):
            reader.tier(reader.steps[0], self.tier)  # that there is such a tier
        return StepFiles(reader)

    def _place(self, path: str) -> Place:
        """Return what a path below the root means; whether there is such a file is not known by then.

        Raises:
            FileNotFoundError: there is no such step.
        """
        folder, _, name = path.partition("/")
        match = _STEP.fullmatch(folder)
        if match is None:
            raise FileNotFoundError(
                errno.ENOENT, f"{quote(folder)} is no directory of {without_secrets(self.url)}, expected step_N"
            )
        files, step = self._opened(), float(match[1])
        try:
            return Place(files, step, self.tier, files.reader.tier(step, self.tier), name)
        except InvalidArgument as error:
            raise FileNotFoundError(errno.ENOENT, str(error)) from None

    def _file(self, path: str) -> tuple[Place, int]:
        """Return what a file is read from, and its size."""
        path = self._strip_protocol(path)
        info = self.info(path)
        if info["type"] == "directory":
            raise IsADirectoryError(errno.EISDIR, f"{quote(path)} is a directory of {without_secrets(self.url)}")
        return self._place(path), info["size"]


def _directory_info(name: str) -> Info:
    return {"name": name, "size": 0, "type": "directory"}


def _file_info(name: str, size: int, tier: str) -> Info:
    return {"name": name, "size": size, "type": "file", "tier": tier}


@contextmanager
def _writing(target: Any) -> Iterator[BinaryIO | AtomicFile]:
    """Open a local path for writing; what is open already stays as it is."""
    if isfilelike(target):
        yield target
        return
    folder = os.path.dirname(os.path.abspath(target))
    os.makedirs(folder, exist_ok=True)
    with AtomicFile(target) as out:
        yield out
