"""Models on the Hub: which commit a revision means, which branches there are, and what the local cache has."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

from relex_codec.core.filenames import CONFIG, INDEX, SINGLE
from relex_codec.errors import CheckpointError, InvalidArgument, RelexError
from relex_codec.storage.config import split_options
from relex_codec.storage.explain import explain_hub_failure, is_answer_of_hub
from relex_codec.storage.retry import RetriesExhausted, call_with_retries
from relex_codec.storage.urls import Options, PathLike, join_path, options_for

from .client import HubClient
from .paths import Model, parse_model_url

T = TypeVar("T")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def require_huggingface_hub(path: PathLike) -> None:
    """Raise InvalidArgument if the package that reads the Hub is not installed."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InvalidArgument(
            f"{os.fspath(path)} needs huggingface_hub: pip install 'relex-codec[hub]', or give a directory"
        )


def cached_model_directory(model: Model) -> str | None:
    """Return the directory of the local cache that has weights and configuration of a model, if there is one."""
    from huggingface_hub import try_to_load_from_cache

    if model.below.endswith(".safetensors"):
        return None
    below = f"{model.below}/" if model.below else ""
    for name in (SINGLE, INDEX):
        try:
            found = try_to_load_from_cache(model.repo, below + name, revision=model.revision)
        except ValueError:  # not a name that the Hub allows
            return None
        if isinstance(found, str) and os.path.exists(join_path(os.path.dirname(found), CONFIG)):
            return os.path.dirname(found)
    return None


def pinned_to_commit(path: PathLike, storage_options: Options = None) -> str:
    """Return a URL of a model with its revision replaced by the commit that it means now; anything else as it is.

    Where the Hub cannot be reached, or shall not be, the local cache says which commit a revision was when it was
    downloaded.

    Raises:
        CheckpointError: there is no such repository or revision, or it is neither reached nor in the cache.
        InvalidArgument: huggingface_hub is not installed.
    """
    model = parse_model_url(path)
    if model is None or (model.revision is not None and _COMMIT.fullmatch(model.revision)):
        return os.fspath(path)
    in_cache = _cached_commit(model)
    max_seconds = 0.0 if in_cache is not None else None  # who has it here does not wait for a Hub that is not reached
    try:
        commit = _ask_hub(path, storage_options, lambda client: client.commit(model.repo, model.revision), max_seconds)
    except _HubNotReached as e:
        if in_cache is None:
            raise CheckpointError(str(e)) from None
        commit = in_cache
    return str(model._replace(revision=commit))


def list_branches(path: PathLike, storage_options: Options = None) -> list[str]:
    """Return the names of the branches of a model's repository.

    Raises:
        CheckpointError: there is no such repository, or it is not reached.
        InvalidArgument: the URL is not one of a model, or huggingface_hub is not installed.
    """
    model = parse_model_url(path)
    if model is None:
        raise InvalidArgument(f"{os.fspath(path)} is not a model of the Hub, expected hf://org/name@revision")
    try:
        return _ask_hub(path, storage_options, lambda client: client.branches(model.repo))
    except _HubNotReached as e:
        raise CheckpointError(str(e)) from None


class _HubNotReached(Exception):
    """The Hub is not reached, or shall not be; the message is for the user."""


def _ask_hub(
    path: PathLike, storage_options: Options, ask: Callable[[HubClient], T], max_seconds: float | None = None
) -> T:
    """Return what the Hub of `path` answers, asked again for `max_seconds`, by default for as long as is configured.

    Raises:
        _HubNotReached: it did not answer.
        CheckpointError: it answered that there is nothing.
    """
    require_huggingface_hub(path)
    options = options_for(path, storage_options)
    config, plain = split_options(options)
    client = HubClient(plain.get("endpoint"), plain.get("token"), config.timeout)
    policy = config.retry if max_seconds is None else replace(config.retry, max_seconds=max_seconds)
    try:
        return call_with_retries(lambda: ask(client), policy)
    except Exception as e:  # which HTTP client it uses, and thus raises from, depends on the release
        gave_up = isinstance(e, RetriesExhausted)
        failure = e.__cause__ if gave_up and isinstance(e.__cause__, Exception) else e
        model = parse_model_url(path)
        assert model is not None
        message = explain_hub_failure(os.fspath(path), model, failure, client.endpoint) + (f" ({e})" if gave_up else "")
        raise (CheckpointError(message) if is_answer_of_hub(failure) else _HubNotReached(message)) from None


def refuse_offline(path: PathLike, error: type[RelexError] = CheckpointError) -> None:
    """Raise `error` if a model is to be read from the Hub, and HF_HUB_OFFLINE is set: trying would help nobody."""
    model = parse_model_url(path)
    if model is None or importlib.util.find_spec("huggingface_hub") is None:
        return
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        raise error(explain_hub_failure(os.fspath(path), model, errors.OfflineModeIsEnabled()))


def _cached_commit(model: Model) -> str | None:
    folder = cached_model_directory(model)
    if folder is None:
        return None
    parts = folder.split(os.sep)
    at = len(parts) - 1 - (model.below.count("/") + 1 if model.below else 0)
    return parts[at] if _COMMIT.fullmatch(parts[at]) else None
