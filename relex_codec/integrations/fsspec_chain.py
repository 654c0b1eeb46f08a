"""What a chain of fsspec's filesystems (``relex://...::simplecache::s3://...``) means for opening a file."""

from __future__ import annotations

from typing import Any

from relex_codec.storage.urls import OWN_OPTIONS


def unchained(fo: str, protocol: str | None, options: dict[str, Any] | None) -> tuple[str, dict[str, Any] | None]:
    """Return the URL, and its options, of what fsspec gives the first filesystem of a chain as three arguments.

    Where the file itself is behind a chain (``simplecache::s3://``), the options of each link are nested in those of
    the link before, which come back by protocol, as `relex_codec.open` takes them.
    """
    if protocol is None:
        return fo, options
    path, name, own = fo, protocol, dict(options or {})
    links: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    while "target_protocol" in own:
        below, rest = own.pop("fo", path), own.pop("target_options", None)
        links.append(name if path == below else _link(name, path))  # a cache has the path of what it keeps
        found[name], name = own, own.pop("target_protocol")
        path, own = below, dict(rest or {})
    links.append(_link(name, path))
    if not found:
        return links[0], options
    found[name] = own
    settings = {key: link.pop(key) for link in found.values() for key in (OWN_OPTIONS,) if key in link}
    return "::".join(links), found | settings


def _link(protocol: str, path: str) -> str:
    return path if "://" in path else f"{protocol}://{path}"  # paths of HTTP are whole URLs
