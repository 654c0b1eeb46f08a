"""Files on web servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .base import Answer, ObjectReplaced, ObjectStore, ObjectVersion, object_size, raise_for_condition

_NO_HEAD: Final = frozenset({403, 405, 501})
"""Answers of web servers that may be to the method alone: URLs are signed for one."""


class HTTPStore(ObjectStore):
    """A file on a web server, through the session of fsspec's HTTP filesystem."""

    has_versions = True

    def get(self, start: int, end: int, version: ObjectVersion | None) -> Answer:
        return self._run(self._get, start, end, version)

    def _arguments(self, headers: Mapping[str, str]) -> dict[str, Any]:
        plain = dict(self.filesystem.kwargs)
        # a compressed answer would be a range of something else
        own = {**(plain.pop("headers", None) or {}), "Accept-Encoding": "identity", **headers}
        if "timeout" not in plain and "timeout" not in (self.filesystem.client_kwargs or {}):
            import aiohttp  # fsspec has it loaded

            seconds = self.config.timeout
            plain["timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
        return {**plain, "headers": own}

    async def _get(self, start: int, end: int, version: ObjectVersion | None) -> Answer:
        headers = {"Range": f"bytes={start}-{end - 1}", **_conditions(version)}
        session = await self.filesystem.set_session()
        url = self.filesystem.encode_url(self.name)
        async with session.get(url, **self._arguments(headers)) as answer:
            raise_for_condition(answer.status, None)
            answer.raise_for_status()
            size = object_size(answer.headers.get("Content-Range"), answer.status, answer.content_length, start, end)
            found = _version_of(size, answer.headers)
            if version is not None and not version.matches(found):
                raise ObjectReplaced
            return Answer(await answer.read(), found)

    def head(self) -> ObjectVersion | None:
        return self._run(self._head)

    async def _head(self) -> ObjectVersion | None:
        session = await self.filesystem.set_session()
        arguments = {"allow_redirects": True, **self._arguments({})}
        async with session.head(self.filesystem.encode_url(self.name), **arguments) as answer:
            if answer.status in _NO_HEAD:
                return None
            answer.raise_for_status()
            length = answer.headers.get("Content-Length", "")
            return _version_of(int(length), answer.headers) if length.isdigit() else None


def _conditions(version: ObjectVersion | None) -> dict[str, str]:
    """Headers that let a request fail if the object is another one; a weak ETag never matches in them."""
    if version is None:
        return {}
    if version.etag and not version.etag.startswith("W/"):
        return {"If-Match": version.etag}
    return {"If-Unmodified-Since": version.modified} if version.modified else {}


def _version_of(size: int, headers: Mapping[str, str]) -> ObjectVersion:
    return ObjectVersion(size, headers.get("ETag") or None, headers.get("Last-Modified") or None)
