"""Files of models on the Hub."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from relex_codec.errors import Corrupt
from relex_codec.storage.config import Settings
from relex_codec.storage.failures import status_of
from relex_codec.storage.hub.client import HubClient, Told
from relex_codec.storage.hub.paths import Model, parse_model_url

from .base import Answer, ObjectStore, ObjectVersion, Replaced, protocols, raise_for_condition, whole_size


class HubStore(ObjectStore):
    """A file of a model, by the address that the Hub gives it.

    The first answer says which commit its revision is. What is asked later is asked of that commit, so that the file
    stays the same for who reads it while its branch moves on.
    """

    tells = True

    def __init__(self, filesystem: Any, name: str, settings: Settings, model: Model) -> None:
        super().__init__(filesystem, name, settings)
        self._model = model
        self._client = HubClient(filesystem.endpoint, filesystem.token, settings.timeout)

    @property
    def identity(self) -> Hashable:
        # not the filesystem's, of which there is one for each thread
        return self._client.endpoint, self._client.token

    def listing(self) -> list[dict[str, Any]] | None:
        found = self._client.tree(self._model.repo, self._model.revision, self._model.below)
        root = self.name.rstrip("/")
        return [{**entry, "name": f"{root}/{entry['path'].rpartition('/')[2]}"} for entry in found]

    def get(self, start: int, end: int, mark: ObjectVersion | None) -> Answer:
        if not self._model.below:
            raise IsADirectoryError("a model is not a file")

        def look(told: Told) -> tuple[ObjectVersion, Told]:
            size = whole_size(told.headers.get("Content-Range"), told.status, told.length, start, end)
            found = _mark_of(size, told)
            if mark is not None and not mark.same(found):
                raise Replaced
            if told.linked_size not in (None, size):
                raise Corrupt(f"the storage has {size} bytes of a file of {told.linked_size}")
            return found, told

        try:
            found, data = self._ask("GET", {"Range": f"bytes={start}-{end - 1}"}, look)
        except Exception as e:
            raise_for_condition(status_of(e), e)
            from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

            if mark is not None and isinstance(e, EntryNotFoundError | RevisionNotFoundError):
                raise Replaced from e  # the history that the commit was in was written anew
            raise
        return Answer(data, found)

    def head(self) -> ObjectVersion | None:
        if not self._model.below:
            return None

        def look(told: Told) -> tuple[ObjectVersion | None, Told]:
            size = told.length if told.linked_size is None else told.linked_size
            return None if size is None else _mark_of(size, told), told

        mark: ObjectVersion | None = self._ask("HEAD", {}, look)[0]
        return mark

    def _ask(self, method: str, headers: dict[str, str], look: Any) -> Any:
        model = self._model
        (found, told), data = self._client.request(
            method, self._client.url(model.repo, model.revision, model.below), headers, look
        )
        if told.commit:
            self._model = model._replace(revision=told.commit)
        return found, data


def _mark_of(size: int, told: Told) -> ObjectVersion:
    return ObjectVersion(size, told.etag or told.commit)


def model_of(filesystem: Any, name: str) -> Model | None:
    """Return the model that a name on a filesystem is of, or that it is; None for every other filesystem and name."""
    if "hf" not in protocols(filesystem) or not hasattr(filesystem, "endpoint"):
        return None
    return parse_model_url(f"hf://{name}")
