"""Models on the Hub as text: ``hf://org/name[@revision][/below]``. No I/O."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

from relex_codec.storage.urls import PathLike, normalized

SCHEME: Final = "hf://"
_MODEL: Final = re.compile(
    r"hf://(?:models/)?(?P<repo>(?!(?:datasets|spaces|buckets)/)[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<below>.*))?"
)


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
    return normalized(path).startswith(SCHEME)


def parse_model_url(path: PathLike) -> Model | None:
    """Return what a URL of a model means, or None for what is not one: paths, other URLs, data sets.

    Examples:
        >>> parse_model_url("hf://org/name@v1/sub/folder")
        Model(repo='org/name', revision='v1', below='sub/folder')
        >>> parse_model_url("s3://bucket/name") is None
        True
    """
    match = _MODEL.fullmatch(normalized(path).rstrip("/"))
    if match is None:
        return None
    revision = match["revision"]
    return Model(match["repo"], unquote(revision) if revision else None, match["below"] or "")
