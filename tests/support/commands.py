"""The command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile

ELSEWHERE = tempfile.gettempdir()
"""Where subprocesses start: ``python -c`` puts its working directory first on the import path, and in the checkout that
would hide the package that is installed."""


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from relex_codec.cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ELSEWHERE)


def failed(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert all(word in lines[0] for word in words), lines[0]
