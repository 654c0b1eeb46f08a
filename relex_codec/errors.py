"""Every error this package raises on purpose.

::

    RelexError
    ├── InvalidArgument      what the caller asked for cannot be
    ├── CheckpointError      a run or base that cannot be read: missing shards, other shapes, a pickle
    ├── BaseMismatch         the base is not the one the file was made from
    ├── Unsupported          a newer format version or an unknown feature; names the release that reads it
    ├── Truncated            the file or an answer ends early
    └── Corrupt              a checksum, a bound or a structural rule fails; names the entry

A message is one line that says what was found, what was expected and what to do.
"""

from __future__ import annotations

__all__ = [
    "BaseMismatch",
    "CheckpointError",
    "Corrupt",
    "InvalidArgument",
    "RelexError",
    "Truncated",
    "Unsupported",
]


class RelexError(Exception):
    """Base class of all errors that relex-codec raises on purpose."""


class InvalidArgument(RelexError):
    """What the caller asked for cannot be: a step outside a tier, an unknown quality, an unknown tensor."""


class CheckpointError(RelexError):
    """A run or base that cannot be read: missing shards, other shapes or names, a pickle, non-finite weights."""


class BaseMismatch(RelexError):
    """The base given is not the one that the file was made from; the message names the first differing tensor."""


class Unsupported(RelexError):
    """A newer format version or an unknown feature; the message names the release that reads the file."""


class Truncated(RelexError):
    """A file, or a storage server's answer, ends early."""


class Corrupt(RelexError):
    """A checksum, a bound or a structural rule of the format fails; the message names the entry."""
