"""How a command ends before its time: signals, and what the machine has not enough of."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

from relex_codec.core.text import one_line, quote
from relex_codec.storage.explain import SHORTAGES

SIGNALS: Final = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
"""Signals that end a command, and what it says then; where a terminal closes, the last one comes."""
HINTS: Final = {
    **SHORTAGES,
    errno.ENOSPC: "; free some space",
    errno.EDQUOT: "; free some space",
    errno.ENOMEM: "; give it less to do at a time (--memory), or more memory",
}


class Ended:
    """The first of `SIGNALS` that came; none yet: ``number`` is 0."""

    number = 0

    @property
    def message(self) -> str:
        """What the command says."""
        return f"{SIGNALS[signal.Signals(self.number).name]}; nothing incomplete was left"


@contextmanager
def ended_by_signals() -> Iterator[Ended]:
    """Let the first signal end what runs in the context as an exception, with its cleaning up, and the second at once.

    What the second cuts off stays, for the next command that writes to the same place to remove. Signals that are
    ignored, as by nohup, stay so.
    """
    ended = Ended()

    def end(number: int, frame: Any) -> NoReturn:
        if ended.number:
            with suppress(OSError):
                os.write(2, b"Error: ended at once; the next command that writes there removes what is left\n")
            os._exit(128 + number)
        ended.number = number
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shortage(error: BaseException) -> str | None:
    """Return what the machine has not enough of, or refuses, in one line; None: the error is another one."""
    if isinstance(error, MemoryError):
        said = str(error).removesuffix(".")  # numpy says how much it wanted
        return f"not enough memory{f': {said}' if said else ''}{HINTS[errno.ENOMEM]}"
    if isinstance(error, OSError):
        if error.errno == errno.ENOENT and error.filename is None and not _has_directory():
            return "the current directory was removed; change to another one"
        place = "" if error.filename is None else f": {quote(error.filename)}"
        return f"{one_line(error)}{place}{HINTS.get(error.errno or 0, '')}"
    words = one_line(error)
    if (isinstance(error, RuntimeError) and "can't allocate memory" in words) or (  # torch
        isinstance(error, ImportError) and "failed to map segment" in words
    ):
        return f"not enough memory{HINTS[errno.ENOMEM]}"
    if isinstance(error, RuntimeError) and "can't start new thread" in words:
        return "the system allows no more threads; allow more (`ulimit -u`), or more memory"
    return None


def _has_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def open_standard_streams() -> None:
    """Give streams that the caller closed (``2>&-``) their numbers, so that no file of ours gets one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def drop_stdout() -> None:
    """Let go of what stdout did not take: Python would try again as it ends."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
