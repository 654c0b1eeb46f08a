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
    """Base class of all errors that relex-codec raises on purpose.

    Examples:
        >>> try:
        ...     relex_codec.open("nothing.relex")
        ... except relex_codec.RelexError as error:
        ...     print(error)
        nothing.relex does not exist; check the path
    """


class InvalidArgument(RelexError, ValueError):
    """What the caller asked for cannot be: a step outside a tier, an unknown quality, an unknown tensor.

    Examples:
        >>> run.tensor("model.norm.weight", step=800, tier="exact")
        Traceback (most recent call last):
        relex_codec.errors.InvalidArgument: tier 'exact' has the stored steps only, not 800; the nearest is 40
    """


class CheckpointError(RelexError):
    """A run or base that cannot be read: missing shards, other shapes or names, a pickle, non-finite weights.

    Examples:
        >>> import os
        >>> os.remove("ckpts/global_step_50/model.safetensors")
        >>> relex_codec.append("run.relex", ["ckpts/global_step_50"])
        Traceback (most recent call last):
        relex_codec.errors.CheckpointError: checkpoint ckpts/global_step_50 has no weights: ...
    """


class BaseMismatch(RelexError):
    """The base given is not the one that the file was made from; the message names the first differing tensor.

    Examples:
        >>> relex_codec.open("run.relex", base="ckpts/global_step_50").tensor("model.embed_tokens.weight", 60)
        Traceback (most recent call last):
        relex_codec.errors.BaseMismatch: base ckpts/global_step_50 does not match: tensor ... differs ...
    """


class Unsupported(RelexError):
    """A newer format version or an unknown feature; the message names the release that reads the file.

    Examples:
        >>> from pathlib import Path
        >>> with relex_codec.Recorder("new.journal", base="base/") as recorder:
        ...     recorder.add(10, "ckpts/global_step_10")
        >>> marker = Path("new.journal/journal.json")
        >>> size = marker.write_text(marker.read_text().replace('"version": 1', '"version": 2'))
        >>> relex_codec.encode("new.journal", "new.relex", base="base/")
        Traceback (most recent call last):
        relex_codec.errors.Unsupported: ...journal.json says version 2, this release reads 1; use a newer one
    """


class Truncated(RelexError, EOFError):
    """A file, or a storage server's answer, ends early.

    Examples:
        >>> from pathlib import Path
        >>> size = Path("short.relex").write_bytes(Path("run.relex").read_bytes()[:1000])
        >>> relex_codec.open("short.relex")
        Traceback (most recent call last):
        relex_codec.errors.Truncated: short.relex ends at byte 1000, inside its header, which ends at byte 1240
    """


class Corrupt(RelexError):
    """A checksum, a bound or a structural rule of the format fails; the message names the entry.

    Examples:
        >>> from pathlib import Path
        >>> data = bytearray(Path("run.relex").read_bytes())
        >>> data[-9] ^= 1  # one bit
        >>> size = Path("damaged.relex").write_bytes(data)
        >>> relex_codec.open("damaged.relex").verify()
        Traceback (most recent call last):
        relex_codec.errors.Corrupt: damaged.relex: a blob of relex.data.frames, ..., does not match its checksum: ...
    """


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
