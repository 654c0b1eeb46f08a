"""How a file refers to its base: what is written into it, and where that is on the machine that reads it. No requests.

What names a place on this machine means nothing elsewhere, and says more than its owner wants to be known: a file has
the URL of a base, ``hf://org/name@commit`` for one in the cache of the Hub, and a path from its own directory for any
other. So a file and its base may be moved together.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import PurePath
from typing import Final

from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument
from relex_codec.storage.hub.paths import Model, parse_model_url
from relex_codec.storage.urls import PathLike, is_url, local_path, normalized, without_secrets

_CACHED: Final = re.compile(r".*/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/(.+))?")
"""A model in the cache of the Hub, by the path of its files."""


def uri_of_base(base: PathLike, file: PathLike) -> str | None:
    """Return how `file` shall refer to `base`: no user, no password, no absolute path.

    Returns:
        None where it cannot: a base on this machine, of a file elsewhere.

    Raises:
        InvalidArgument: as `checked_uri`.

    Examples:
        >>> uri_of_base("models/base", "runs/x.relex")
        '../models/base'
        >>> uri_of_base("/cache/models--Qwen--Qwen3-8B/snapshots/" + 40 * "a", "x.relex")
        'hf://Qwen/Qwen3-8B@aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'
    """
    if is_url(base):
        return checked_uri(without_secrets(normalized(base)))
    path = os.path.abspath(local_path(base))
    for place in (path, os.path.realpath(path)):
        if match := _CACHED.fullmatch(PurePath(place).as_posix()):
            url = str(Model(f"{match[1]}/{match[2]}", match[3], match[4] or ""))
            if parse_model_url(url) is not None:
                return url
    if is_url(file):
        return None
    folder, name = os.path.split(path)
    try:
        found = os.path.relpath(os.path.join(os.path.realpath(folder), name), _folder(file))
    except ValueError:  # on another drive
        return None
    found = PurePath(found).as_posix()
    return checked_uri(found if found.startswith(".") else f"./{found}")


def checked_uri(uri: str) -> str:
    """Return `uri`, if a file can hold it.

    Raises:
        InvalidArgument: it is no UTF-8: Linux takes any bytes as names of files.
    """
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(
            f"a file cannot refer to its base as {quote(uri)}, which is no UTF-8: rename it, or say something else "
            "with --base-uri ('' for nothing)"
        ) from None
    return uri


def place_of_base(uri: str, file: PathLike) -> str:
    """Return the path or URL that `uri` means in `file`: one that is relative begins where the file is.

    A file that is reached through a link is looked at where it is, and then where the link is.
    """
    if not is_relative(uri):
        return uri
    if is_url(file):
        scheme, _, rest = os.fspath(file).partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(rest), uri))}"
    beside_link = os.path.realpath(os.path.dirname(os.path.abspath(local_path(file))))
    places = [os.path.normpath(os.path.join(folder, uri)) for folder in (_folder(file), beside_link)]
    return next(filter(os.path.exists, places), places[0])


def is_relative(uri: str) -> bool:
    """Tell whether a reference to a base is a path from the file's own directory."""
    return not is_url(uri) and not uri.startswith(("~", "file://", "local://", "\\")) and not os.path.isabs(uri)


def carried_over(uri: str | None, old: PathLike, new: PathLike) -> str | None:
    """Return how the file `new`, made from the file `old`, shall refer to the base that `uri` is in `old`."""
    if uri is None or not is_relative(uri) or os.fspath(old) == os.fspath(new):
        return uri
    return uri_of_base(place_of_base(uri, old), new)


def _folder(file: PathLike) -> str:
    return os.path.dirname(os.path.realpath(local_path(file)))
