"""The recording in the README: its commands run, in their order, and print lines like those that it shows."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("transformers")

from relex_codec.demo import grpo
from relex_codec.demo.run_demo import BASE

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recording_tool", REPOSITORY / "tools" / "recording.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def starts(lines: list[str]) -> list[str]:
    """How lines begin: their first word, with numbers hidden; continued lines are left out."""
    return [re.sub(r"[\d.,]+", "#", line.split()[0]) for line in lines if line[:1].strip()]


def test_its_commands_run_and_print_what_it_shows(tool: ModuleType, tmp_path: Path) -> None:
    shown = tool.transcript(tool.PICTURE.read_text(encoding="utf-8"))
    assert [command for command, _ in shown] == tool.commands(400)
    shutil.copytree(BASE, tmp_path / "BASE")
    grpo.train(tmp_path / "BASE", tmp_path / "RUN", 2, questions=4)
    again = tool.played(tmp_path, 2)
    assert [command for command, _ in again] == tool.commands(2)
    for (command, printed), (_, lines) in zip(again, shown, strict=True):
        assert len(printed) > 0 or command.startswith(("cp ", "rm "))
        if "du -sh" in command:
            continue  # 1.2G or 13M
        assert starts(printed)[:1] == starts(lines)[:1], command
        found, drawn = set(starts(printed)), set(starts(lines))
        # A longer run wraps more lines: of what `head` cuts there is less then, and of what it does not, more.
        assert found <= drawn or drawn <= found, command
    assert again[-1][1] == ["the same bytes"]
    assert sorted(path.name for path in (tmp_path / "RUN").glob("global_*")) == ["global_step_1", "global_step_2"]


def test_what_is_drawn_is_read_back(tool: ModuleType) -> None:
    found = [("a < b", ["x & y", "z" * (tool.COLUMNS + 5)]), ("c", [])]
    svg = tool.drawing(found)
    assert tool.transcript(svg) == [("a < b", ["x & y", "z" * tool.COLUMNS, "z" * 5]), ("c", [])]


def test_it_is_small_and_says_nothing_of_the_machine(tool: ModuleType) -> None:
    text = tool.PICTURE.read_text(encoding="utf-8")
    assert len(text) < 50_000
    assert not re.search(r"/(tmp|home|root|work|Users)/", text)
