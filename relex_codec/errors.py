"""Every error this package raises on purpose.

::

    RelexError
    ├── InvalidArgument (ValueError)     what the caller asked for cannot be
    │   └── MissingFile (FileNotFoundError)          ... because a path that the caller gave does not exist
    ├── CheckpointError                  a run or base that cannot be read: missing shards, other shapes, a pickle
    │   └── MissingCheckpoint (FileNotFoundError)    ... because a path that the caller gave does not exist
    ├── BaseMismatch                     the base is not the one the file was made from
    ├── Unsupported                      a newer format version or an unknown feature; names the release that reads it
    ├── Truncated (EOFError)             the file or an answer ends early
    └── Corrupt                          a checksum, a bound or a structural rule fails; names the entry

In brackets: the built-in error that it also is, for code that knows nothing of this package. A message is one line that
says what was found, what was expected and what to do.
"""

from __future__ import annotations

import errno

__all__ = [
    "BaseMismatch",
    "CheckpointError",
    "Corrupt",
    "InvalidArgument",
    "MissingCheckpoint",
    "MissingFile",
    "RelexError",
    "Truncated",
    "Unsupported",
    "missing",
]


class RelexError(Exception):
    """Base class of all errors that relex-codec raises on purpose."""


class InvalidArgument(RelexError, ValueError):
    """What the caller asked for cannot be: a step outside a tier, an unknown quality, an unknown tensor."""


class CheckpointError(RelexError):
    """A run or base that cannot be read: missing shards, other shapes or names, a pickle, non-finite weights."""


class BaseMismatch(RelexError):
    """The base given is not the one that the file was made from; the message names the first differing tensor."""


class Unsupported(RelexError):
    """A newer format version or an unknown feature; the message names the release that reads the file."""


class Truncated(RelexError, EOFError):
    """A file, or a storage server's answer, ends early."""


class Corrupt(RelexError):
    """A checksum, a bound or a structural rule of the format fails; the message names the entry."""


class MissingFile(InvalidArgument, FileNotFoundError):
    """A path that the caller gave does not exist.

    Attributes:
        errno: ``ENOENT``, as of the error that `open` raises. ``strerror`` is None: ``str`` gives the whole message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.ENOENT


class MissingCheckpoint(CheckpointError, FileNotFoundError):
    """A checkpoint or base that the caller named does not exist; attributes as of `MissingFile`."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.ENOENT


def missing(error: type[RelexError], message: str) -> RelexError:
    """Return the `error` for a path that does not exist, which is a ``FileNotFoundError`` too where one is known."""
    kinds: dict[type[RelexError], type[RelexError]] = {
        InvalidArgument: MissingFile,
        CheckpointError: MissingCheckpoint,
    }
    return kinds.get(error, error)(message)
