"""A command of the user's that scores a checkpoint: how it is called, and which number is its score."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from relex_codec.core.text import on_one_line
from relex_codec.errors import InvalidArgument

from .sweep import ScoreFailed

CHECKPOINT: Final = "{checkpoint}"
STEP: Final = "{step}"
_QUOTED: Final = re.compile(r"""["'][^"' ]*\{checkpoint\}|\{checkpoint\}[^"' ]*["']""")
_NUMBER: Final = re.compile(
    r"(?<![^\s:=,;()\[\]{}|<>\"'])([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|nan|inf(?:inity)?))%?"
    r"(?=[.!]?(?:[\s:=,;()\[\]{}|<>\"']|$))",
    re.IGNORECASE,
)
"""Numbers that stand for themselves: not those in names of files, versions or dates."""
PATIENCE: Final = 5.0
"""Seconds that a command has to end when it is told to."""
SHOWN: Final = 200


def check_command(command: str) -> None:
    """Refuse a command that names no checkpoint.

    Raises:
        InvalidArgument: it does not.
    """
    if CHECKPOINT not in command:
        raise InvalidArgument(
            f"the command has no {CHECKPOINT}, where the path of the checkpoint goes: 'python score.py {CHECKPOINT}'"
        )


def filled(command: str, checkpoint: str, step: float) -> str:
    """Return a command as the shell gets it: the path is quoted for it where that is needed.

    Raises:
        InvalidArgument: the path needs quotes, and the command has some around it.

    Examples:
        >>> filled("python score.py {checkpoint} --tag s{step}", "/tmp/a b/checkpoint", 800.0)
        "python score.py '/tmp/a b/checkpoint' --tag s800"
    """
    path = shlex.quote(checkpoint)
    if path != checkpoint and _QUOTED.search(command):
        raise InvalidArgument(
            f"the path {checkpoint} is quoted for the shell; leave out the quotes around {CHECKPOINT}"
        )
    return command.replace(CHECKPOINT, path).replace(STEP, f"{step:.17g}")


def last_number(text: str) -> float | None:
    """Return the last number of a text that stands for itself; None where there is none.

    Examples:
        >>> last_number("loss 0.3\\nscore: 0.655 /tmp/step-800"), last_number("65.5%"), last_number("qwen2.5 v0.1.2")
        (0.655, 65.5, None)
    """
    found = _NUMBER.findall(text)
    return float(found[-1]) if found else None


def score_with(command: str, checkpoint: str, step: float) -> float:
    """Run a command on a checkpoint, and return the last number that it prints.

    What it says on stderr goes where ours does. It, and what it has started, ends with this process, even by SIGKILL.

    Raises:
        ScoreFailed: it ends with another status than 0, or prints no number.
        InvalidArgument: it cannot be called.
    """
    line = filled(command, checkpoint, step)
    process = subprocess.Popen(
        line, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        with _watched(process):
            said = process.communicate()[0].decode(errors="replace")
    except BaseException:
        _end(process)
        raise
    lines = [one for one in said.splitlines() if one.strip()]
    shown = f", after {on_one_line(lines[-1].strip())[:SHOWN]!r}" if lines else ""
    if process.returncode < 0:
        raise ScoreFailed(f"the command was ended by {_signal_name(-process.returncode)}{shown}")
    if process.returncode:
        raise ScoreFailed(f"the command ended with status {process.returncode}{shown}")
    number = last_number(said)
    if number is None:
        raise ScoreFailed("the command printed no number" + (shown or ", nor anything else"))
    return number


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command with all that it has started, which has a group of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def _watched(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Have a command ended, with all that it has started, if this process is killed meanwhile.

    A shell waits for the end of a pipe whose other end only this process has. Linux could send a signal to a child
    whose parent dies, but only to the child: the shell that runs the command, not what it has started.
    """
    group = process.pid
    line = f"read _; kill -s TERM -- -{group}; sleep {PATIENCE:g}; kill -s KILL -- -{group}"
    watcher = subprocess.Popen(
        ["/bin/sh", "-c", line],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        watcher.kill()  # before its pipe is closed, as it should leave alone what runs on
        watcher.wait()
        assert watcher.stdin is not None
        watcher.stdin.close()


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
