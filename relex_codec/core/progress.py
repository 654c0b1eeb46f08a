"""Progress of long work on stderr: a bar on a terminal or in a notebook, a line a minute in a log."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Protocol

from .sizes import spell_bytes
from .text import printable

LINE_EVERY: Final = 60.0
"""Seconds between lines where there is no terminal."""


class Progress(Protocol):
    """A context manager that is told what has been done; tqdm's bars are of this kind."""

    def __enter__(self) -> Any: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...
    def update(self, n: int = 1, /) -> Any:
        """Count `n` more as done."""

    def set_description(self, desc: str, /) -> Any:
        """Say what is being done now."""

    def set_postfix(self, **values: Any) -> Any:
        """Show further values; none removes them."""


def progress_bar(what: str, total: int, *, unit: str = "B", leave: bool = True, enabled: bool = True) -> Progress:
    """Return something that shows progress, as a context manager.

    Args:
        what: is being done, in a word.
        total: bytes, or whatever `unit` says, in all.
        unit: of `total`; ``B`` is shown in kB, MB and so on.
        leave: whether a bar stays when the work is done.
        enabled: otherwise nothing is shown at all.
    """
    notebook = "IPython" in sys.modules and _in_notebook()
    enabled = enabled and (notebook or _open())
    if enabled and not notebook and not sys.stderr.isatty():
        return LogLines(what, total, unit)
    if notebook:
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    bar: Progress = tqdm(
        total=total, desc=what, unit=unit, unit_scale=unit == "B", leave=leave, disable=not enabled, file=sys.stderr
    )
    return bar


def note(message: str) -> None:
    """Write a line to stderr, above a bar if there is one, without anything that a terminal would obey.

    Where nobody can read it any more, the work goes on.
    """
    from tqdm import tqdm

    if _open():
        with suppress(OSError):
            tqdm.write(printable(message), file=sys.stderr)


class LogLines:
    """Progress as lines of a log: one a minute, none for what takes less.

    A thread writes them, so that there is a sign of life while a single tensor takes several minutes.
    """

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done, self._values = 0, ""
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True, name="relex-progress")

    def __enter__(self) -> LogLines:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join(1)  # it may be writing to a pipe that nobody reads

    def update(self, n: int = 1, /) -> None:
        """Count `n` more as done."""
        with self._lock:  # several threads restore
            self._done += n

    def set_description(self, desc: str, /) -> None:
        """Say what is being done now."""
        self._what = desc

    def set_postfix(self, **values: Any) -> None:
        """Show further values; none removes them."""
        self._values = "".join(f", {name} {value}" for name, value in values.items())

    def line(self, seconds: float) -> str:
        """Return the line after so many seconds."""
        share = self._done / self._total if self._total else 1.0
        left = f", about {_duration(seconds / share - seconds)} left" if 0 < share < 1 else ""
        amount = (
            f"{spell_bytes(self._done)} of {spell_bytes(self._total)}"
            if self._unit == "B"
            else f"{self._done:,} of {self._total:,} {self._unit}s"
        )
        return f"{self._what}: {100 * share:.0f} %, {amount} in {_duration(seconds)}{left}{self._values}"

    def _run(self) -> None:
        while not self._ended.wait(LINE_EVERY):
            try:
                sys.stderr.write(f"{self.line(time.monotonic() - self._began)}\n")
                sys.stderr.flush()
            except (OSError, ValueError):  # whoever read it has gone, or it was closed
                return


def _open() -> bool:
    """Tell whether there is a stderr: daemons, and ``2>&-``, have none."""
    return sys.stderr is not None and not sys.stderr.closed


def _in_notebook() -> bool:
    """Tell whether this is the kernel of a notebook; its stderr is no terminal, but bars can be shown."""
    shell = getattr(sys.modules["IPython"], "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{max(minutes, 1)} min"
