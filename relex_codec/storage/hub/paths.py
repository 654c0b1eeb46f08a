"""Models on the Hub: ``hf://org/name[@revision][/below]`` as text, what the local cache has, commits, and why not."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

from relex_codec.core.filenames import CONFIG, INDEX, SINGLE
from relex_codec.core.text import one_line
from relex_codec.errors import CheckpointError, InvalidArgument, RelexError
from relex_codec.storage.config import split
from relex_codec.storage.retry import GaveUp, until_it_passes
from relex_codec.storage.urls import Options, PathLike, join, normal, options_for

from .client import HubClient

T = TypeVar("T")
SCHEME: Final = "hf://"
_MODEL: Final = re.compile(
    r"hf://(?:models/)?(?P<repo>(?!(?:datasets|spaces|buckets)/)[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<below>.*))?"
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_TELLING: Final = frozenset({
    "GatedRepoError", "RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError", "OfflineModeIsEnabled",
    "ConnectError", "ConnectTimeout",
})  # fmt: skip
"""Classes of failures that `why` says more of than they do themselves."""
_LOG_IN: Final = "log in with `hf auth login` or set HF_TOKEN"


class Model(NamedTuple):
    """A model of the Hub at a revision, or a folder or file of it."""

    repo: str
    revision: str | None
    """A branch, tag or commit; None is the branch main."""
    below: str

    def __str__(self) -> str:
        revision = self.revision
        if revision is not None and not re.fullmatch(r"refs/(?:pr|convert)/[^/]+", revision):
            revision = quote(revision, safe="")
        at = f"@{revision}" if revision is not None else ""
        return f"{SCHEME}{self.repo}{at}" + (f"/{self.below}" if self.below else "")


def is_hub(path: PathLike) -> bool:
    """Return whether a path is on the Hub."""
    return normal(path).startswith(SCHEME)


def parse(path: PathLike) -> Model | None:
    """Return what a URL of a model means, or None for what is not one: paths, other URLs, data sets."""
    match = _MODEL.fullmatch(normal(path).rstrip("/"))
    if match is None:
        return None
    revision = match["revision"]
    return Model(match["repo"], unquote(revision) if revision else None, match["below"] or "")


def require(path: PathLike) -> None:
    """Raise InvalidArgument if the package that reads the Hub is not installed."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InvalidArgument(
            f"{os.fspath(path)} needs huggingface_hub: pip install 'relex-codec[hub]', or give a directory"
        )


def cached(model: Model) -> str | None:
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
        if isinstance(found, str) and os.path.exists(join(os.path.dirname(found), CONFIG)):
            return os.path.dirname(found)
    return None


def pinned(path: PathLike, storage_options: Options = None) -> str:
    """Return a URL of a model with its revision replaced by the commit that it means now; anything else as it is.

    Where the Hub cannot be reached, or shall not be, the local cache says which commit a revision was when it was
    downloaded.

    Raises
    ------
    CheckpointError
        There is no such repository or revision, or it is neither reached nor in the cache.
    InvalidArgument
        huggingface_hub is not installed.
    """
    model = parse(path)
    if model is None or (model.revision is not None and _COMMIT.fullmatch(model.revision)):
        return os.fspath(path)
    kept = _cached_commit(model)
    patience = 0.0 if kept is not None else None  # who has it here does not wait for a Hub that is not reached
    try:
        commit = _asked(path, storage_options, lambda client: client.commit(model.repo, model.revision), patience)
    except _Unanswered as e:
        if kept is None:
            raise CheckpointError(str(e)) from None
        commit = kept
    return str(model._replace(revision=commit))


def branches(path: PathLike, storage_options: Options = None) -> list[str]:
    """Return the names of the branches of a model's repository.

    Raises
    ------
    CheckpointError
        There is no such repository, or it is not reached.
    InvalidArgument
        The URL is not one of a model, or huggingface_hub is not installed.
    """
    model = parse(path)
    if model is None:
        raise InvalidArgument(f"{os.fspath(path)} is not a model of the Hub, expected hf://org/name@revision")
    try:
        return _asked(path, storage_options, lambda client: client.branches(model.repo))
    except _Unanswered as e:
        raise CheckpointError(str(e)) from None


class _Unanswered(Exception):
    """The Hub is not reached, or shall not be."""


def _asked(path: PathLike, storage_options: Options, ask: Callable[[HubClient], T], patience: float | None = None) -> T:
    """Return what the Hub of `path` answers, asked again for `patience` seconds, or those of the settings.

    Raises:
        _Unanswered: as its name says; with the message for the user.
        CheckpointError: it answered that there is nothing.
    """
    require(path)
    options = options_for(path, storage_options)
    settings, plain = split(options)
    client = HubClient(plain.get("endpoint"), plain.get("token"), settings.timeout)
    try:
        return until_it_passes(lambda: ask(client), settings.retry_seconds if patience is None else patience)
    except Exception as e:  # which HTTP client it uses, and thus raises from, depends on the release
        last = e.__cause__ if isinstance(e, GaveUp) and isinstance(e.__cause__, Exception) else e
        model = parse(path)
        assert model is not None
        said = why(os.fspath(path), model, last, client.endpoint) + (f" ({e})" if isinstance(e, GaveUp) else "")
        raise (CheckpointError(said) if _is_answer(last) else _Unanswered(said)) from None


def refuse_offline(path: PathLike, error: type[RelexError] = CheckpointError) -> None:
    """Raise `error` if a model is to be read from the Hub, and HF_HUB_OFFLINE is set: trying would help nobody."""
    model = parse(path)
    if model is None or importlib.util.find_spec("huggingface_hub") is None:
        return
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        raise error(why(os.fspath(path), model, errors.OfflineModeIsEnabled()))


def answered(path: PathLike, e: BaseException | None) -> str | None:
    """Return what a failure to read `path` means and what to do, where the Hub says it; None: there is no more to say.

    That takes no request: the Hub gives its reasons with each refusal.
    """
    model = parse(path)
    if model is None or not isinstance(e, Exception) or _TELLING.isdisjoint(c.__name__ for c in type(e).__mro__):
        return None
    return why(os.fspath(path), model, e)


def why(shown: str, model: Model, e: Exception, endpoint: str | None = None) -> str:
    """Return what an exception of huggingface_hub about the URL `shown` means and what to do, in one line."""
    from huggingface_hub import errors

    if isinstance(e, errors.GatedRepoError):
        page = f"{endpoint or _hub_of(e)}/{model.repo}"
        return f"{shown} is gated: accept its terms at {page}, then {_LOG_IN}"
    if isinstance(e, errors.RepositoryNotFoundError):
        return f"{shown} cannot be read: no repository {model.repo}, or it is private; check the name, or {_LOG_IN}"
    if isinstance(e, errors.RevisionNotFoundError):
        return f"{shown} cannot be read: {model.repo} has no revision {model.revision!r}; check its name"
    if isinstance(e, ValueError) and not isinstance(e, errors.HfHubHTTPError):
        return f"{shown} cannot be read: {one_line(e)}; expected hf://org/name[@revision]"
    revision = f" --revision {model.revision}" if model.revision else ""
    here = f"download it first (`hf download {model.repo}{revision}`), or give a local path"
    if isinstance(e, errors.OfflineModeIsEnabled):
        return f"{shown} is not completely in the local cache, and HF_HUB_OFFLINE is set: unset it, {here}"
    if _is_answer(e) or isinstance(e, errors.HfHubHTTPError):
        return f"{shown} cannot be read: {one_line(e)}"
    hub = endpoint or _hub_of(e)
    return f"{shown} is not completely in the local cache, and {hub} is not reached ({one_line(e)}): {here}"


def _is_answer(e: Exception) -> bool:
    """Whether the Hub itself said so: then the cache is not asked instead."""
    from huggingface_hub import errors

    if isinstance(e, errors.HfHubHTTPError):
        return e.response is None or e.response.status_code < 500
    return isinstance(e, ValueError)


def _cached_commit(model: Model) -> str | None:
    folder = cached(model)
    if folder is None:
        return None
    parts = folder.split(os.sep)
    at = len(parts) - 1 - (model.below.count("/") + 1 if model.below else 0)
    return parts[at] if _COMMIT.fullmatch(parts[at]) else None


def _hub_of(e: Exception) -> str:
    """Return the Hub that an exception is about, as far as it tells."""
    from huggingface_hub import constants

    for carrier in ("response", "request"):
        with suppress(Exception):  # some clients raise where there is none
            parts = urlsplit(str(getattr(e, carrier).url))
            if parts.scheme and parts.netloc:
                return f"{parts.scheme}://{parts.netloc}"
    return str(constants.ENDPOINT)
