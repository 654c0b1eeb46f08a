"""Progress: a bar on a terminal and in notebooks, a line a minute in a log, nothing where nothing was asked for."""

from __future__ import annotations

import io
import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from relex_codec.core import progress
from relex_codec.core.progress import LogLines, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(enabled: bool = True, unit: str = "B") -> None:
    with progress_bar("encode", 1000, unit=unit, enabled=enabled) as bar:
        bar.update(400)
        bar.set_description("decode")
        bar.update(600)


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    work()
    assert "decode: 100%" in shown.getvalue() and "1.00k/1.00k" in shown.getvalue()
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    work(enabled=False)
    assert shown.getvalue() == ""


def test_a_log_has_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
    work()
    assert shown.getvalue() == ""  # it took less
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    before = threading.active_count()
    with progress_bar("encode", 10**12) as bar:
        bar.update(25 * 10**10)
        until = time.monotonic() + 30
        while shown.getvalue().count("\n") < 2 and time.monotonic() < until:
            time.sleep(0.01)
    lines = shown.getvalue().splitlines()
    assert len(lines) >= 2
    assert set(lines) == {"encode: 25 %, 250 GB of 1 TB in 1 min, about 1 min left"}
    assert threading.active_count() == before
    with progress_bar("encode", 10, enabled=False):
        time.sleep(0.1)
    assert shown.getvalue().splitlines() == lines


@pytest.mark.parametrize(
    ("done", "unit", "seconds", "line"),
    [
        (0, "B", 60, "encode: 0 %, 0 B of 2 kB in 1 min"),
        (500, "B", 60, "encode: 25 %, 500 B of 2 kB in 1 min, about 3 min left"),
        (100, "B", 3600, "encode: 5 %, 100 B of 2 kB in 1 h 00 min, about 19 h 00 min left"),
        (2000, "B", 7265, "encode: 100 %, 2 kB of 2 kB in 2 h 01 min"),
        (1500, "step", 180, "encode: 75 %, 1,500 of 2,000 steps in 3 min, about 1 min left"),
    ],
)
def test_lines(done: int, unit: str, seconds: float, line: str) -> None:
    lines = LogLines("encode", 2000, unit)
    lines.update(done)
    assert lines.line(seconds) == line
    lines.set_postfix(reward="0.5")
    assert lines.line(seconds) == f"{line}, reward 0.5"


def test_a_log_that_nobody_reads_any_more_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        tries = 0

        def write(self, text: str) -> int:
            self.tries += 1
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", closed := Closed())
    monkeypatch.setattr(progress, "LINE_EVERY", 0.01)
    with progress_bar("encode", 10):
        time.sleep(0.2)
    assert closed.tries == 1


def test_notebooks_get_the_bar_that_tqdm_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their stderr is no terminal; without widgets tqdm falls back to text."""
    import tqdm.auto

    made: list[dict[str, Any]] = []
    monkeypatch.setattr(tqdm.auto, "tqdm", lambda **options: made.append(options))
    fake = ModuleType("IPython")
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for config, expected in (({"IPKernelApp": {}}, 1), ({"TerminalIPythonApp": {}}, 0)):
        made.clear()
        shell = SimpleNamespace(config=config)
        monkeypatch.setattr(fake, "get_ipython", lambda shell=shell: shell, raising=False)
        bar = progress_bar("encode", 10)
        assert len(made) == expected and isinstance(bar, LogLines) == (not expected)
    assert made == []
