"""Files of models on the Hub."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from relex_codec.errors import Corrupt
from relex_codec.storage.config import StorageConfig
from relex_codec.storage.failures import status_of
from relex_codec.storage.hub.client import HubAnswer, HubClient
from relex_codec.storage.hub.paths import Model, parse_model_url

from .base import Answer, ObjectReplaced, ObjectStore, ObjectVersion, object_size, protocols, raise_for_condition


class HubStore(ObjectStore):
    """A file of a model, by the address that the Hub gives it.

    The first answer says which commit its revision is. What is asked later is asked of that commit, so that the file
    stays the same while it is being read and its branch moves on.
    """

    has_versions = True

    def __init__(self, filesystem: Any, name: str, config: StorageConfig, model: Model) -> None:
        super().__init__(filesystem, name, config)
        self._model = model
        self._client = HubClient(filesystem.endpoint, filesystem.token, config.timeout)

    @property
    def identity(self) -> Hashable:
        # not the filesystem's, of which there is one for each thread
        return self._client.endpoint, self._client.token

    def listing(self) -> list[dict[str, Any]] | None:
        found = self._client.tree(self._model.repo, self._model.revision, self._model.below)
        root = self.name.rstrip("/")
        return [{**entry, "name": f"{root}/{entry['path'].rpartition('/')[2]}"} for entry in found]

    def get(self, start: int, end: int, version: ObjectVersion | None) -> Answer:
        if not self._model.below:
            raise IsADirectoryError("a model is not a file")

        def inspect(answer: HubAnswer) -> tuple[ObjectVersion, HubAnswer]:
            size = object_size(answer.headers.get("Content-Range"), answer.status, answer.length, start, end)
            found = _version_of(size, answer)
            if version is not None and not version.matches(found):
                raise ObjectReplaced
            if answer.linked_size not in (None, size):
                raise Corrupt(f"the storage has {size} bytes of a file of {answer.linked_size}")
            return found, answer

        try:
            found, data = self._ask("GET", {"Range": f"bytes={start}-{end - 1}"}, inspect)
        except Exception as e:
            raise_for_condition(status_of(e), e)
            from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

            if version is not None and isinstance(e, EntryNotFoundError | RevisionNotFoundError):
                raise ObjectReplaced from e  # the history that the commit was in was written anew
            raise
        return Answer(data, found)

    def head(self) -> ObjectVersion | None:
        if not self._model.below:
            return None

        def inspect(answer: HubAnswer) -> tuple[ObjectVersion | None, HubAnswer]:
            size = answer.length if answer.linked_size is None else answer.linked_size
            return None if size is None else _version_of(size, answer), answer

        version: ObjectVersion | None = self._ask("HEAD", {}, inspect)[0]
        return version

    def _ask(self, method: str, headers: dict[str, str], inspect: Any) -> Any:
        model = self._model
        (found, answer), data = self._client.request(
            method, self._client.url(model.repo, model.revision, model.below), headers, inspect
        )
        if answer.commit:
            self._model = model._replace(revision=answer.commit)
        return found, data


def _version_of(size: int, answer: HubAnswer) -> ObjectVersion:
    return ObjectVersion(size, answer.etag or answer.commit)


def model_of(filesystem: Any, name: str) -> Model | None:
    """Return the model that a name on a filesystem is of, or that it is; None for every other filesystem and name."""
    if "hf" not in protocols(filesystem) or not hasattr(filesystem, "endpoint"):
        return None
    return parse_model_url(f"hf://{name}")
