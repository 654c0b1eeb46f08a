"""Blobs in Azure."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from relex_codec.storage.config import StorageConfig

from .base import Answer, ObjectReplaced, ObjectStore, ObjectVersion, RequestRefused, object_size, raise_for_condition


def is_supported_adlfs(filesystem: Any) -> bool:
    """Tell whether this release of adlfs, and of the client below it, has what `AzureStore` calls."""
    client = getattr(filesystem, "service_client", None)
    return all(hasattr(client, name) for name in ("_pipeline", "api_version", "get_blob_client"))


class AzureStore(ObjectStore):
    """A blob in Azure, through the pipeline (credentials, signatures, connections) of adlfs's client.

    Not through ``download_blob``, which asks three times for what breaks off, with a second in between, and cuts what
    is longer than 32 MB into several requests.
    """

    has_versions = True

    def __init__(self, filesystem: Any, name: str, config: StorageConfig) -> None:
        super().__init__(filesystem, name, config)
        self._container, self._blob, self._version_id = filesystem.split_path(name)

    @property
    def _once(self) -> dict[str, Any]:
        """Options of every request: the client tries three times more by itself; what the caller set stays."""
        given = getattr(self.filesystem, "_timeout_kwargs", {})
        own = {"connection_timeout": self.config.timeout, "read_timeout": self.config.timeout}
        return {"retry_total": 0, **{name: given.get(name, seconds) for name, seconds in own.items()}}

    def get(self, start: int, end: int, version: ObjectVersion | None) -> Answer:
        if not self._blob:
            raise IsADirectoryError("a container is not a file")
        return self._run(self._get, start, end, version)

    async def _get(self, start: int, end: int, version: ObjectVersion | None) -> Answer:
        condition = {"If-Match": version.etag} if version and version.etag else {}
        # not "Range": the client leaves that out of its signatures, which servers do not
        async with self._answer("GET", {"x-ms-range": f"bytes={start}-{end - 1}", **condition}) as answer:
            headers, length = answer.headers, _length(answer.headers)
            size = object_size(headers.get("Content-Range"), answer.status_code, length, start, end)
            found = _version_of(size, headers)
            if version is not None and not version.matches(found):
                raise ObjectReplaced
            return Answer(await answer.read(), found)

    def head(self) -> ObjectVersion | None:
        return self._run(self._head) if self._blob else None

    async def _head(self) -> ObjectVersion | None:
        async with self._answer("HEAD", {}) as answer:
            length = _length(answer.headers)
            return None if length is None else _version_of(length, answer.headers)

    def listing(self) -> list[dict[str, Any]] | None:
        return self._run(self._list) if self._container else None

    async def _list(self) -> list[dict[str, Any]]:
        root = f"{self._blob.rstrip('/')}/" if self._blob else None
        container = self.filesystem.service_client.get_container_client(self._container)
        found = []
        async for item in container.walk_blobs(name_starts_with=root, include=["metadata"], **self._once):
            # names below it are one item, which ends with a slash; some programs put an empty blob there as well
            metadata = {name.lower(): value for name, value in (item.get("metadata") or {}).items()}
            folder = item.name.endswith("/") or "true" in (metadata.get("hdi_isfolder"), metadata.get("is_directory"))
            found.append({
                "name": f"{self._container}/{item.name}",
                "type": "directory" if folder else "file",
                "size": 0 if folder else item.size,
            })  # fmt: skip
        if not found and self._blob:
            version = await self._head()  # raises where there is nothing
            found.append({"name": self.name, "type": "file", "size": version.size if version else 0})
        return found

    def conditional_upload(self, version: ObjectVersion | None) -> tuple[Any, dict[str, Any]]:
        from azure.core import MatchConditions

        if version is None:
            return self.filesystem, {"overwrite": False}
        return self.filesystem, {"etag": version.etag, "match_condition": MatchConditions.IfNotModified}

    @asynccontextmanager
    async def _answer(self, method: str, headers: Mapping[str, str]) -> AsyncIterator[Any]:
        """Send one request; what is raised for a refusal carries what the server says of it."""
        from azure.core.rest import HttpRequest  # adlfs has it loaded

        service = self.filesystem.service_client
        request = HttpRequest(
            method,
            service.get_blob_client(self._container, self._blob).url,
            params={"versionid": self._version_id} if self._version_id else {},
            headers={"x-ms-version": service.api_version, "Accept-Encoding": "identity", **headers},
        )
        answer = (await service._pipeline.run(request, stream=True, **self._once)).http_response
        try:
            if answer.status_code >= 400:
                # releases of 2023 have read it here already, and an empty one cannot be read twice
                message = _error_message(answer.content if answer.is_stream_consumed else await answer.read())
                raise_for_condition(answer.status_code, None)
                raise RequestRefused(answer.status_code, message, answer.headers.get("x-ms-error-code", ""))
            yield answer
        finally:
            await answer.close()


def _error_message(body: bytes) -> str:
    """Return the message in the body of an error, without the lines that number request and time."""
    plain = body.decode(errors="replace")
    found = re.search(r"<Message>(.*?)(\n|</Message>)", plain)
    return found[1] if found else plain


def _length(headers: Mapping[str, str]) -> int | None:
    length = headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _version_of(size: int, headers: Mapping[str, str]) -> ObjectVersion:
    return ObjectVersion(size, headers.get("ETag") or None, headers.get("Last-Modified") or None)
