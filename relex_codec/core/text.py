"""Text of others in messages: quoted, on one line, without anything that a terminal would obey."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from itertools import zip_longest
from typing import Final

_UNPRINTABLE: Final = re.compile(r"[^\n]")


def printable(text: str) -> str:
    """Return `text` as a terminal may see it: whatever is neither printable nor the end of a line is escaped.

    Escape sequences clear screens and set titles, and what turns the direction of writing shows other words than there
    are. Commands print through this, and what is of others goes through `on_one_line` before, as it could forge lines.

    Examples:
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


def labelled(rows: Iterable[tuple[str, str]], columns: int = 0) -> str:
    """Return labels with what they say, one below the other.

    Args:
        columns: a line that would be longer goes on in the next one, below where it began; 0: lines are as long as
            they are.

    Examples:
        >>> print(labelled([("base", "../base"), ("trust", "here at steps 265 to 555")], columns=27))
        base   ../base
        trust  here at steps 265 to
               555
    """
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    lines = []
    for name, value in rows:
        room = max(columns - width - 2, 20) if columns else 0
        parts = _wrapped(value, room) if columns else [value]
        lines += [f"{label:<{width}}  {part}".rstrip() for label, part in zip_longest([name], parts, fillvalue="")]
    return "\n".join(lines)


def _wrapped(text: str, room: int) -> list[str]:
    """Return text in lines of at most so many characters, where it has spaces; those in it stay as they are."""
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False, drop_whitespace=True) or [""]


def quote(text: object, limit: int = 120) -> str:
    """Return `text` quoted for a one-line message: control characters escaped, shortened in the middle."""
    shown = repr(text)
    return shown if len(shown) <= limit else f"{shown[: limit // 2]}...{shown[-limit // 4 :]}"


def one_line(e: BaseException) -> str:
    """Return the message of any exception as one line."""
    text = e.strerror if isinstance(e, OSError) and e.strerror else f"{type(e).__name__}: {e}"
    text = " ".join(str(text).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
