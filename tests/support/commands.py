"""The command line: within this process, or in one of its own where the process is what is tested."""

from __future__ import annotations

import atexit
import io
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import pytest

ELSEWHERE = tempfile.mkdtemp(prefix="tests-elsewhere-")
"""An empty directory where subprocesses start: ``python -c`` puts its working directory first on the import path, and
in the checkout that would hide the package that is installed."""
atexit.register(shutil.rmtree, ELSEWHERE, ignore_errors=True)

MAIN = "from relex_codec.cli.main import main; main()"
Done = subprocess.CompletedProcess[str]


def cli(*arguments: object) -> Done:
    """Run a command within this process, which saves a second of imports; its streams are no terminals."""
    from relex_codec.cli.main import main

    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    command = ["relex-codec", *map(str, arguments)]
    handler = signal.getsignal(signal.SIGTERM)
    code: int | str | None = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            signal.signal(signal.SIGTERM, handler)
    assert isinstance(code, int), code
    out, err = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(command, code, out, err)


def process(arguments: Sequence[object]) -> list[str]:
    """What starts a command in a process of its own."""
    return [sys.executable, "-c", MAIN, *map(str, arguments)]


def cli_process(*arguments: object) -> Done:
    """Run a command in a process of its own, as a shell does."""
    return subprocess.run(process(arguments), capture_output=True, text=True, cwd=ELSEWHERE)


def failed(done: Done, *words: str) -> None:
    """Check that a command failed with one line that has these words."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("not in the file: ")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert all(word in lines[0] for word in words), lines[0]
