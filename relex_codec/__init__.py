"""relex-codec: one compact file for a whole RLVR training run.

Public names; torch is imported when the first tensor is made, or when a name is asked for that is a class of torch's.
What encodes is imported when it is first used: half of the time of importing the package was for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import (
    BaseMismatch,
    CheckpointError,
    Corrupt,
    InvalidArgument,
    RelexError,
    Truncated,
    Unsupported,
)
from .run.coefficients import Coefficients
from .run.run import Run, open  # noqa: A004 (as in relex_codec.open)
from .run.safe_open import safe_open
from .trust.horizon import Trust

if TYPE_CHECKING:
    from .encoding.append import append
    from .encoding.encode import encode
    from .encoding.parts import merge
    from .integrations.dcp import RelexStorageReader
    from .integrations.transformers import load_model, load_tokenizer
    from .recording.recorder import Recorder
    from .run.resident import Resident

__all__ = [
    "BaseMismatch",
    "CheckpointError",
    "Coefficients",
    "Corrupt",
    "InvalidArgument",
    "Recorder",
    "RelexError",
    "RelexStorageReader",
    "Resident",
    "Run",
    "Truncated",
    "Trust",
    "Unsupported",
    "__version__",
    "append",
    "encode",
    "load_model",
    "load_tokenizer",
    "merge",
    "open",
    "safe_open",
]

_LATER = {
    "Recorder": "recording.recorder",
    "RelexStorageReader": "integrations.dcp",
    "Resident": "run.resident",
    "append": "encoding.append",
    "encode": "encoding.encode",
    "load_model": "integrations.transformers",
    "load_tokenizer": "integrations.transformers",
    "merge": "encoding.parts",
}
"""Names whose modules are imported when they are first used."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATER[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
