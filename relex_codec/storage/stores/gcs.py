"""Objects in Google Cloud Storage."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

from relex_codec.storage.config import StorageConfig

from .base import (
    Answer,
    ObjectReplaced,
    ObjectStore,
    ObjectVersion,
    RequestRefused,
    object_size,
    raise_for_condition,
    text_or_none,
)

_NEEDED: Final = ("_call", "_set_session", "_get_params", "_get_headers", "url", "base", "split_path")
"""What gcsfs sends its own requests with; its ``_request`` tries each of them up to six times."""


def is_supported_gcsfs(filesystem: Any) -> bool:
    """Tell whether this release of gcsfs has what `GCSStore` calls."""
    return all(hasattr(filesystem, name) for name in _NEEDED)


class GCSStore(ObjectStore):
    """An object in Google Cloud Storage, through session and credentials of gcsfs.

    The version of an object is its generation: every answer has it, and every request can be made to depend on it.
    """

    has_versions = True

    def __init__(self, filesystem: Any, name: str, config: StorageConfig) -> None:
        super().__init__(filesystem, name, config)
        self._bucket, self._key, self._generation = filesystem.split_path(name)

    def get(self, start: int, end: int, version: ObjectVersion | None) -> Answer:
        if not self._key:
            raise IsADirectoryError("a bucket is not a file")
        return self._run(self._get, start, end, version)

    async def _get(self, start: int, end: int, version: ObjectVersion | None) -> Answer:
        # an object that was stored compressed would be a range of something else
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        condition = {"ifGenerationMatch": version.etag if version else None}
        async with self._answer(self.filesystem.url(self.name), condition, headers) as answer:
            size = object_size(answer.headers.get("Content-Range"), answer.status, answer.content_length, start, end)
            found = ObjectVersion(size, answer.headers.get("X-Goog-Generation"), answer.headers.get("Last-Modified"))
            if version is not None and not version.matches(found):
                raise ObjectReplaced
            return Answer(await answer.read(), found)

    def head(self) -> ObjectVersion | None:
        return self._run(self._head) if self._key else None

    async def _head(self) -> ObjectVersion:
        found = await self._json(
            f"/o/{quote(self._key, safe='')}", {"generation": self._generation, "fields": "size,generation"}
        )
        return ObjectVersion(int(found["size"]), text_or_none(found.get("generation")))

    def listing(self) -> list[dict[str, Any]] | None:
        return self._run(self._list) if self._bucket else None

    async def _list(self) -> list[dict[str, Any]]:
        root = f"{self._key.rstrip('/')}/" if self._key else None
        found: list[dict[str, Any]] = []
        token = None
        while True:
            page = await self._json(
                "/o",
                {
                    "prefix": root,
                    "delimiter": "/",
                    "pageToken": token,
                    "fields": "items(name,size),prefixes,nextPageToken",
                },
            )
            for name in page.get("prefixes", ()):
                found.append({"name": f"{self._bucket}/{name}", "type": "directory", "size": 0})
            for item in page.get("items", ()):
                kind = "directory" if item["name"].endswith("/") else "file"
                found.append({"name": f"{self._bucket}/{item['name']}", "type": kind, "size": int(item["size"])})
            token = page.get("nextPageToken")
            if not token:
                break
        if not found and self._key:
            version = await self._head()  # raises where there is nothing
            found.append({"name": self.name, "type": "file", "size": version.size})
        return found

    def conditional_upload(self, version: ObjectVersion | None) -> tuple[Any, dict[str, Any]]:
        generation = "0" if version is None else version.etag
        given = self.filesystem
        filesystem = type(given)(*given.storage_args, **{**given.storage_options, "skip_instance_cache": True})
        plain = filesystem._call

        async def call(*args: Any, **kwargs: Any) -> Any:
            # gcsfs has a keyword for a new object only; this is the request that begins an upload, or is all of it
            if "uploadType" in kwargs and generation is not None:
                kwargs["ifGenerationMatch"] = generation
            return await plain(*args, **kwargs)

        filesystem._call = call
        return filesystem, {}

    async def _json(self, path: str, params: Mapping[str, str | None]) -> dict[str, Any]:
        async with self._answer(f"{self.filesystem.base}b/{quote(self._bucket, safe='')}{path}", params) as answer:
            return dict(json.loads(await answer.read()))

    @asynccontextmanager
    async def _answer(
        self, url: str, params: Mapping[str, str | None], headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Any]:
        """Send one request; what is raised for a refusal carries what the server says of it."""
        import aiohttp  # gcsfs has it loaded

        filesystem = self.filesystem
        seconds = self.config.timeout
        timeout = filesystem.requests_timeout or aiohttp.ClientTimeout(
            total=None, sock_connect=seconds, sock_read=seconds
        )
        session = await filesystem._set_session()
        async with session.get(
            url,
            params=filesystem._get_params(dict(params)),
            headers=filesystem._get_headers(dict(headers or {})),
            timeout=timeout,
        ) as answer:
            if answer.status >= 400:
                message = _error_message(await answer.read())
                raise_for_condition(answer.status, None)
                code = "NoSuchBucket" if answer.status == 404 and "bucket does not exist" in message else ""
                if answer.status in (401, 403) and _found_none(filesystem.credentials):
                    code = "NoGoogleCredentials"
                raise RequestRefused(answer.status, message, code)
            yield answer


def _found_none(credentials: Any) -> bool:
    """Tell whether gcsfs looked for credentials and went on without, rather than being set up to."""
    return getattr(credentials, "token", "") is None and getattr(credentials, "credentials", "") is None


def _error_message(body: bytes) -> str:
    """Return the message in the body of an error: JSON, or plain text where bytes were asked for."""
    plain = body.decode(errors="replace")
    try:
        return str(json.loads(plain)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return plain
