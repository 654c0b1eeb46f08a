"""Opening files and listing directories: local paths, and everything that fsspec reaches.

Reads are absolute ranges and the length of every answer is checked, because servers and caches that ignore a Range
header return whole files. How reads are planned is in coalesce.py, how local and remote files are read in source.py and
remote.py, what users can set in config.py, and how files are written in local_writer.py.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from relex_codec.core.text import one_line
from relex_codec.errors import InvalidArgument, RelexError, missing

from .config import StorageConfig, split_options
from .explain import read_error
from .prefetch import PrefetchingSource
from .remote import RemoteSource, request_with_retries, s3fs_options
from .source import LocalSource, Source
from .stores.base import protocols
from .stores.registry import store_for
from .urls import Options, PathLike, is_url, local_path, normalized, without_secrets


class Item(NamedTuple):
    """What a directory holds under one name."""

    name: str
    is_dir: bool
    size: int | None
    """None where the listing does not say, as that of a web server."""


def open_source(
    path: PathLike,
    storage_options: Options = None,
    *,
    keep_open: bool = True,
    error: type[RelexError] = InvalidArgument,
) -> Source:
    """Open a local path or an fsspec URL for ranged reads.

    Args:
        path: local, or a URL.
        storage_options: for fsspec (credentials, endpoints), and under ``relex`` for this package (see config.py); not
            used for local paths.
        keep_open: whether a local file stays open between reads.
        error: raised where the file does not exist or cannot be read.
    """
    if not is_url(path):
        return LocalSource(local_path(path), keep_open=keep_open, error=error)
    filesystem, name, config = _for_reading(path, storage_options, error)
    return PrefetchingSource(RemoteSource(filesystem, name, shown=without_secrets(path), error=error, config=config))


def _for_reading(url: PathLike, options: Options, error: type[RelexError]) -> tuple[Any, str, StorageConfig]:
    """Return the filesystem of `url` that reads are made with, the path in it, and the config that holds.

    It is another instance than writing takes, because it leaves it to this package to try failed requests again.
    """
    config, plain = split_options(options)
    if normalized(url).startswith(("s3://", "s3a://")):
        filesystem, name = filesystem_of(url, s3fs_options(plain, config), error=error)
        filesystem.retries = 1
    else:
        filesystem, name = filesystem_of(url, plain, error=error)
    return filesystem, name, config


def filesystem_of(url: PathLike, storage_options: Options, *, error: type[RelexError]) -> tuple[Any, str]:
    """Return the fsspec filesystem of `url` and the path in it."""
    import fsspec  # type: ignore[import-untyped, unused-ignore]  # here: local files need none of its 0.2 seconds

    _, plain = split_options(storage_options)
    try:
        filesystem, name = fsspec.core.url_to_fs(normalized(url), **plain)
    except ImportError as e:  # the message names the package to install
        raise error(f"cannot open {without_secrets(url)}: {one_line(e)}") from None
    except Exception as e:
        raise read_error(without_secrets(url), e, error) from None
    return filesystem, name


def list_directory(
    path: PathLike, storage_options: Options = None, *, error: type[RelexError] = InvalidArgument
) -> list[Item]:
    """Return what directory `path` holds, sorted by name; links count as what they point to.

    Raises:
        error: `path` does not exist, is not a directory, or cannot be read.
    """
    items = []
    if not is_url(path):
        folder = local_path(path)
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    try:
                        items.append(Item(entry.name, entry.is_dir(), entry.stat().st_size))
                    except OSError:  # a link to nowhere, or gone in between
                        continue
        except OSError as e:
            raise read_error(folder, e, error) from None
        return sorted(items, key=_by_name)
    filesystem, name, config = _for_reading(path, storage_options, error)
    store = store_for(filesystem, name, config)

    def listed() -> Any:
        own = store.listing()
        if own is not None:
            return own
        if "hf" in protocols(filesystem):
            return filesystem.ls(name, detail=True, refresh=True)
        filesystem.invalidate_cache(name)  # a run that is being written has more each time
        return filesystem.ls(name, detail=True)

    listing = request_with_retries(
        listed, without_secrets(path), error, config, retries_internally=store.retries_internally
    )
    root = name.rstrip("/")
    for found in listing:
        full = found["name"].rstrip("/")
        folder = found["type"] == "directory" or found["name"].endswith("/")  # s3fs has markers of folders as files
        if full == root or full.lstrip("/") == root.lstrip("/"):
            if not folder:  # ls of a file is the file itself
                raise error(f"{without_secrets(path)} is not a directory")
            continue  # object stores may keep an object of the directory's own name
        size = found.get("size")
        items.append(Item(full.rpartition("/")[2], folder, None if size is None else int(size)))
    if not items:  # an object store has no empty directories
        raise missing(error, f"{without_secrets(path)} does not exist or is empty; check the URL and the credentials")
    return sorted(set(items), key=_by_name)


def _by_name(item: Item) -> tuple[str, bool]:
    return item.name, item.is_dir
