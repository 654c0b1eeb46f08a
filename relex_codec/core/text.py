"""Text of others in messages: quoted, on one line."""

from __future__ import annotations


def quote(text: object, limit: int = 120) -> str:
    """Return `text` quoted for a one-line message: control characters escaped, shortened in the middle."""
    shown = repr(text)
    return shown if len(shown) <= limit else f"{shown[: limit // 2]}...{shown[-limit // 4 :]}"


def one_line(e: BaseException) -> str:
    """Return the message of any exception as one line."""
    text = e.strerror if isinstance(e, OSError) and e.strerror else f"{type(e).__name__}: {e}"
    text = " ".join(str(text).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
