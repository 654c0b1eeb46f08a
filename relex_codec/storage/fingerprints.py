"""What tells that files have changed: their names, sizes, and times or ETags, without reading them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from relex_codec.errors import CheckpointError, RelexError

from .open import filesystem_of
from .urls import Options, PathLike, is_url, local_path, without_secrets

_VERSIONS: Final = (
    "ETag", "etag", "generation", "content_md5", "md5Hash", "LastModified", "last_modified", "updated", "mtime",
    "blob_id", "size",
)  # fmt: skip
"""What file systems call that which changes with a file, the surest first."""
Fingerprint = dict[str, list[str | int]]
"""By the name of each file, its size and what else changes with it."""


def fingerprint(
    path: PathLike,
    storage_options: Options = None,
    wanted: Callable[[str], bool] = lambda name: True,
    *,
    error: type[RelexError] = CheckpointError,
) -> Fingerprint:
    """Return the fingerprint of a file, or of the files of a directory.

    Args:
        path: local, or a URL.
        storage_options: for fsspec.
        wanted: which files of a directory count, by name.

    Raises:
        error: it cannot be listed.
    """
    if is_url(path):
        filesystem, name = filesystem_of(path, storage_options, error=error)
        try:
            filesystem.invalidate_cache()
            found = filesystem.ls(name.rstrip("/"), detail=True)
        except Exception as e:
            raise error(f"cannot list {without_secrets(path)}: {e}") from None
        rows = {str(one["name"]).rstrip("/").rpartition("/")[2]: one for one in found if one["type"] == "file"}
        return {name: [int(one.get("size") or 0), _version(one)] for name, one in sorted(rows.items()) if wanted(name)}
    place = local_path(path)
    try:
        if not os.path.isdir(place):
            return {os.path.basename(place): _local(os.stat(place))}
        with os.scandir(place) as entries:
            files = sorted((entry.name, entry.stat()) for entry in entries if entry.is_file() and wanted(entry.name))
    except OSError as e:
        raise error(f"cannot list {place}: {e.strerror}") from None
    return {name: _local(status) for name, status in files}


def difference(before: Fingerprint, now: Fingerprint) -> str | None:
    """Say in what two fingerprints differ; None: in nothing.

    Examples:
        >>> difference({"a": [5, 1], "b": [7, 1]}, {"a": [5, 1], "b": [8, 2]})
        'b has 8 bytes, 7 before'
        >>> difference({"a": [5, 1]}, {"a": [5, 2]}), difference({"a": [5, 1]}, {})
        ('a was written again', 'a is gone')
    """
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if new is None:
            return f"{name} is gone"
        if old is None:
            return f"{name} is new"
        return f"{name} was written again" if old[0] == new[0] else f"{name} has {new[0]} bytes, {old[0]} before"
    return None


def _local(status: os.stat_result) -> list[str | int]:
    return [status.st_size, status.st_mtime_ns]


def _version(entry: dict[str, Any]) -> str:
    return next((f"{key} {entry[key]}" for key in _VERSIONS if entry.get(key)), "")
