"""relex-codec: one compact file for a whole RLVR training run.

Public names; torch is imported when the first tensor is made.
"""

from .append import append
from .encoder import encode
from .errors import (
    BaseMismatch,
    CheckpointError,
    Corrupt,
    InvalidArgument,
    RelexError,
    Truncated,
    Unsupported,
)
from .handle import safe_open
from .run import Run, open  # noqa: A004 (as in relex_codec.open)
from .version import __version__

__all__ = [
    "BaseMismatch",
    "CheckpointError",
    "Corrupt",
    "InvalidArgument",
    "RelexError",
    "Run",
    "Truncated",
    "Unsupported",
    "__version__",
    "append",
    "encode",
    "open",
    "safe_open",
]
