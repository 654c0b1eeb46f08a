"""Killing a process at a chosen call to the operating system that changes files, in a fork that shares all imports."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from relex_codec.errors import RelexError

CALLS: Final = (
    "open", "write", "pwrite", "ftruncate", "fsync", "close", "link", "rename", "replace", "unlink", "mkdir", "rmdir",
    "fchmod", "fchown",
)  # fmt: skip
"""Functions of `os` that writing is made of."""


class Counter:
    """Counts calls, and kills the process before or after one of them."""

    def __init__(self, at: int = -1, *, after: bool = False) -> None:
        self.count, self.at, self.after = 0, at, after
        for name in CALLS:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            number, self.count = self.count, self.count + 1
            if number == self.at and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return function(*arguments, **options)
            finally:  # also where it fails
                if number == self.at:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call


def in_fork(work: Callable[[], object], at: int = -1, *, after: bool = False) -> tuple[int, int]:
    """Run `work` in a forked process, killed at call number `at`: return its exit code, and how many calls it made.

    Its exit code is -9 where it was killed, 0 where it ended well, 1 where it refused, 3 where it raised another error,
    which goes to stderr.
    """
    out, into = os.pipe()
    child = os.fork()
    if not child:
        code = 3
        write, end = os.write, os._exit
        try:
            counter = Counter(at, after=after)
            work()
            write(into, counter.count.to_bytes(8, "little"))
            code = 0
        except RelexError:
            code = 1
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.stderr.flush()
        finally:
            end(code)
    os.close(into)
    with os.fdopen(out, "rb") as file:
        count = int.from_bytes(file.read(), "little")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), count
