"""Objects in S3, and in what speaks like it."""

from __future__ import annotations

from typing import Any

from relex_codec.storage.config import StorageConfig
from relex_codec.storage.failures import status_of

from .base import Answer, ObjectReplaced, ObjectStore, ObjectVersion, object_size, raise_for_condition, text_or_none


class S3Store(ObjectStore):
    """An object in S3 or what speaks like it, through the client of s3fs."""

    has_versions = True

    def __init__(self, filesystem: Any, name: str, config: StorageConfig) -> None:
        super().__init__(filesystem, name, config)
        self._bucket, self._key, self._version_id = filesystem.split_path(name)

    @property
    def _object(self) -> dict[str, str]:
        plain = {"Bucket": self._bucket, "Key": self._key}
        return {**plain, "VersionId": self._version_id} if self._version_id else plain

    def get(self, start: int, end: int, version: ObjectVersion | None) -> Answer:
        if not self._key:
            raise IsADirectoryError("a bucket is not a file")
        return self._run(self._get, start, end, version)

    async def _get(self, start: int, end: int, version: ObjectVersion | None) -> Answer:
        condition = {"IfMatch": version.etag} if version and version.etag else {}
        try:
            answer = await self.filesystem._call_s3(
                "get_object", **self._object, Range=f"bytes={start}-{end - 1}", **condition
            )
        except Exception as e:
            raise_for_condition(status_of(e), e)
            raise
        body = answer["Body"]
        try:
            status = answer["ResponseMetadata"]["HTTPStatusCode"]
            size = object_size(answer.get("ContentRange"), status, answer.get("ContentLength"), start, end)
            found = ObjectVersion(size, answer.get("ETag") or None, text_or_none(answer.get("LastModified")))
            if version is not None and not version.matches(found):
                raise ObjectReplaced
            return Answer(await body.read(), found)
        finally:
            body.close()

    def head(self) -> ObjectVersion | None:
        return self._run(self._head) if self._key else None

    async def _head(self) -> ObjectVersion:
        answer = await self.filesystem._call_s3("head_object", **self._object)
        return ObjectVersion(
            int(answer["ContentLength"]), answer.get("ETag") or None, text_or_none(answer.get("LastModified"))
        )

    def conditional_upload(self, version: ObjectVersion | None) -> tuple[Any, dict[str, Any]]:
        # as what goes along with every call, which s3fs sends with the calls that take it: an upload of one part, and
        # the last call of several parts, which has no keyword of its own for that; old clients take it nowhere
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version.etag} if version.etag else {}
        given = self.filesystem
        more = {**given.s3_additional_kwargs, **condition}
        options = {**given.storage_options, "s3_additional_kwargs": more, "skip_instance_cache": True}
        return type(given)(*given.storage_args, **options), {}
