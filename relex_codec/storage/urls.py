"""Local paths and fsspec URLs as text: telling them apart, going into them, showing them, the options of each. No I/O.

fsspec is only asked for its protocols, where options are given by protocol.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from relex_codec.errors import InvalidArgument

PathLike = str | os.PathLike[str]
Options = dict[str, Any] | None
"""``storage_options`` of fsspec."""
OWN_OPTIONS: Final = "relex"
"""Of ``storage_options``: what is meant for this package and not for fsspec."""
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_BEFORE_PATH: Final = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_ALIASES: Final = (("s3", "s3a"), ("gs", "gcs"), ("az", "abfs", "abfss", "adl"), ("http", "https"))
"""Protocols that are one to fsspec."""


def normalized(path: PathLike) -> str:
    """Return `path` with its schemes in lower case, as fsspec knows them: ``S3://Bucket`` is ``s3://Bucket``."""
    text = os.fspath(path)
    if _SCHEME.match(text) is None:
        return text
    first, *links = text.split("::")
    if "://" not in first:
        first = first.lower()  # SimpleCache::s3://; such a word further on may be a path
    return "::".join(_BEFORE_PATH.sub(lambda scheme: scheme[0].lower(), link) for link in (first, *links))


def is_url(path: PathLike) -> bool:
    """Return whether `path` is for fsspec (``s3://...``, ``simplecache::s3://...``) rather than a local path."""
    text = normalized(path)
    return _SCHEME.match(text) is not None and not text.startswith(("file://", "local://"))


def local_path(path: PathLike) -> str:
    """Return a local path as the operating system takes it: ``file://`` removed, ``~`` expanded."""
    text = re.sub(r"^(file|local)://", "", normalized(path))
    return os.path.expanduser(text)


def join_path(path: PathLike, name: str) -> str:
    """Return the path or URL of `name` inside directory `path`; in chained URLs, inside the first one with a path."""
    if not is_url(path):
        return os.path.join(local_path(path), name)
    links = os.fspath(path).split("::")
    at = next((i for i, link in enumerate(links) if "://" in link), 0)
    links[at] += name if links[at].endswith("/") else f"/{name}"
    return "::".join(links)


def without_secrets(path: PathLike) -> str:
    """Return `path` without what must not end up in messages and files: passwords, and the queries of HTTP URLs."""
    return "::".join(map(_link_without_secrets, os.fspath(path).split("::")))


def _link_without_secrets(link: str) -> str:
    if not link.lower().startswith(("http://", "https://")):
        return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/@]*:[^/]*@", r"\1", link)
    try:
        parts = urlsplit(link)
    except ValueError:  # no URL: http://[
        return re.sub(r"^(https?://)[^/]*@", r"\1", re.sub(r"(?s)[?#].*", "", link), flags=re.IGNORECASE)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def options_for(path: PathLike, options: Options) -> Options:
    """Return the options for one of several URLs: of options by protocol, ``{"s3": {...}, "hf": {...}}``, its own.

    Other options are those of every URL, and so is what is for this package; chained URLs choose among them themselves.
    """
    if options is not None and not isinstance(options, dict):
        raise InvalidArgument(f"storage_options is {options!r:.80}, expected a dict")
    if not options or not is_url(path) or "::" in os.fspath(path):
        return options
    from fsspec import available_protocols  # type: ignore[import-untyped, unused-ignore]  # here: 0.2 seconds

    known = frozenset(available_protocols())
    others = {key: value for key, value in options.items() if key != OWN_OPTIONS}
    if not others or not all(isinstance(value, dict) and key in known for key, value in others.items()):
        return options
    protocol = normalized(path).partition("://")[0]
    same = next((names for names in _ALIASES if protocol in names), (protocol,))
    own = {key: value for name in same for key, value in others.get(name, {}).items()}
    return {**own, OWN_OPTIONS: options[OWN_OPTIONS]} if OWN_OPTIONS in options else own
