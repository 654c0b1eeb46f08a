"""Text of others in messages: quoted, on one line, without anything that a terminal would obey."""

from __future__ import annotations

import re
from typing import Final

_UNPRINTABLE: Final = re.compile(r"[^\n]")


def printable(text: str) -> str:
    """Return `text` as a terminal may see it: whatever is neither printable nor the end of a line is escaped.

    Escape sequences clear screens and set titles, and what turns the direction of writing shows other words than there
    are. Commands print through this, and what is of others goes through `on_one_line` before, as it could forge lines.

    Example:
        >>> printable("red\\x1b[31m, turned \\u202e, ä, and\\nanother line")
        'red\\\\x1b[31m, turned \\\\u202e, ä, and\\nanother line'
    """
    return _UNPRINTABLE.sub(_escaped, text)


def on_one_line(text: str) -> str:
    """Return `text` as `printable`, ends of lines escaped too."""
    return printable(text).replace("\n", "\\n")


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else repr(character)[1:-1]


def quote(text: object, limit: int = 120) -> str:
    """Return `text` quoted for a one-line message: control characters escaped, shortened in the middle."""
    shown = repr(text)
    return shown if len(shown) <= limit else f"{shown[: limit // 2]}...{shown[-limit // 4 :]}"


def one_line(e: BaseException) -> str:
    """Return the message of any exception as one line."""
    text = e.strerror if isinstance(e, OSError) and e.strerror else f"{type(e).__name__}: {e}"
    text = " ".join(str(text).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
