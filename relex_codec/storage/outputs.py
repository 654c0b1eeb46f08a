"""Where results go: local paths and fsspec URLs, written alike."""

from __future__ import annotations

from .local_writer import AtomicDirectory, AtomicFile
from .outgoing import UploadedDirectory, UploadedFile
from .urls import Options, PathLike, is_url


def output_file(path: PathLike, storage_options: Options = None) -> AtomicFile | UploadedFile:
    """Return a file to be written, as a context manager: it appears when it is complete, or not at all.

    Parameters
    ----------
    path : str or path
    storage_options : dict, optional
        For fsspec; not used for local paths.

    Raises
    ------
    InvalidArgument
        Nothing can be written there.
    """
    return UploadedFile(path, storage_options) if is_url(path) else AtomicFile(path)


def output_directory(path: PathLike, storage_options: Options = None) -> AtomicDirectory | UploadedDirectory:
    """Return a directory to be written, as a context manager; arguments and errors are those of `output_file`.

    Locally it appears when it is complete. At a URL its files appear one by one, so write the one that makes it a
    checkpoint last.
    """
    return UploadedDirectory(path, storage_options) if is_url(path) else AtomicDirectory(path)
