"""What is asked of the engine: which file, step and tier; from `--model-loader-extra-config`, a path, or an update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from relex_codec.core.text import quote
from relex_codec.decoding.tiers import TIERS, as_step
from relex_codec.errors import InvalidArgument

SCHEME: Final = "relex:"
"""What a path for ``reload_weights`` begins with: ``relex:step=200``, ``relex:step=200&tier=line``."""

_PATH: Final = ("step", "tier", "file", "base")
"""What such a path, and an update, may have."""


@dataclass(frozen=True)
class Request:
    """A step of a file, and how the file is read.

    Attributes:
        file: path or URL of the ``.relex`` file.
        step: the step.
        tier: as `Run.tensor`.
        base: as `relex_codec.open`; None is the model that vLLM was started with where that is a directory here, and
            else where the file says.
        storage_options: as `relex_codec.open`.
        resident: hold base and packed directions in memory, from where steps are decoded without reading.
        device: torch device that they are held on and decoded on.
    """

    file: str
    step: float
    tier: str = "auto"
    base: str | None = None
    storage_options: Mapping[str, Any] | None = field(default=None, hash=False)
    resident: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not isinstance(self.file, str) or not self.file:
            raise InvalidArgument(f"'file' is {quote(self.file)}, expected path or URL of a .relex file")
        object.__setattr__(self, "step", as_step(self.step))
        if self.tier not in TIERS:
            raise InvalidArgument(f"'tier' is {quote(self.tier)}, expected one of {', '.join(TIERS)}")
        if not isinstance(self.resident, bool):
            raise InvalidArgument(f"'resident' is {quote(self.resident)}, expected true or false")

    def changed(self, asked: Mapping[str, Any], where: str) -> Request:
        """Return the request with another step, and perhaps another tier, file or base.

        Without a tier it is ``auto``, whatever it was before.

        Args:
            where: what `asked` comes from, for messages.

        Raises:
            InvalidArgument: there is no step in it, or something that nobody knows.
        """
        _refuse_unknown(asked, _PATH, where)
        if asked.get("step") is None:
            raise InvalidArgument(f"{where} has no step; write it as {SCHEME}step=200")
        given = {key: value for key, value in asked.items() if value is not None}
        if "file" in given and given["file"] != self.file and "base" not in given:
            given["base"] = self.base
        return replace(self, **{"tier": "auto", **given})


def from_config(extra: object) -> Request:
    """Return the request of ``model_loader_extra_config``.

    Raises:
        InvalidArgument: it lacks file or step, or has something that nobody knows.

    Examples:
        >>> from_config({"file": "run.relex", "step": 800}).tier
        'auto'
    """
    example = '{"file": "run.relex", "step": 800}'
    if not isinstance(extra, Mapping):
        raise InvalidArgument(f"--model-loader-extra-config is {quote(extra)}, expected the like of {example}")
    _refuse_unknown(extra, [one.name for one in fields(Request)], "--model-loader-extra-config")
    for name in ("file", "step"):
        if extra.get(name) is None:
            raise InvalidArgument(f"--model-loader-extra-config has no {name!r}, expected the like of {example}")
    return Request(**extra)


def from_path(path: str) -> dict[str, str]:
    """Return what a path says, to be given to `Request.changed`.

    Raises:
        InvalidArgument: it is not written as a query: ``relex:step=200&tier=line``.

    Examples:
        >>> from_path("relex:step=200&tier=line")
        {'step': '200', 'tier': 'line'}
    """
    query = path.removeprefix(SCHEME)
    try:
        found = parse_qsl(query, strict_parsing=True)
    except ValueError:
        found = []
    if not found or len(dict(found)) < len(found):
        raise InvalidArgument(f"weights_path is {quote(path)}, expected the like of {SCHEME}step=200&tier=line")
    return dict(found)


def as_path(asked: Mapping[str, Any]) -> str:
    """Return the path that `from_path` reads.

    Examples:
        >>> as_path({"step": 200, "tier": None})
        'relex:step=200'
    """
    return SCHEME + urlencode({key: value for key, value in asked.items() if value is not None})


def _refuse_unknown(given: Mapping[str, Any], known: Any, where: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InvalidArgument(f"{where} has {quote(unknown[0])}, expected some of {', '.join(known)}")
