"""The notebook runs, and still prints what it is committed with; numbers that training decides may differ."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

import nbformat

REPOSITORY = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"[+-]?\d[\d,.]*(?:e[+-]\d+)?")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebook_tool", REPOSITORY / "tools" / "notebook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(cell: Any) -> list[str]:
    """What a cell printed and returned, in which numbers count only if they are the same on every machine."""
    found = []
    for output in cell.get("outputs", []):
        assert output.get("name") != "stderr" and output.output_type != "error", output
        text = output.text if "text" in output else "".join(f"{kind}: {output.data[kind]}" for kind in output.data)
        if "image/png" in output.get("data", {}):
            text = "a picture"
        found.append(NUMBER.sub("#", re.sub(" +", " ", text)) if "measured" in cell.metadata.get("tags", []) else text)
    return found


@pytest.mark.slow
# Two of jupyter's own, with Python's and pyzmq's newest.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_prints_what_it_is_committed_with(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed, again = (nbformat.read(tool.NOTEBOOK, as_version=4) for _ in range(2))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    again = tool.cleaned(tool.executed(again, str(tmp_path)))
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert len(cells) >= 10 and sum("measured" not in cell.metadata.get("tags", []) for cell in cells) >= 5
    assert [printed(cell) for cell in again.cells] == [printed(cell) for cell in committed.cells]


def test_the_notebook_is_committed_as_the_tool_leaves_it(tool: ModuleType) -> None:
    """Run from the first cell to the last, with nothing in it that says where."""
    text = tool.NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|home|root|work|Users)/", text)
    notebook = nbformat.reads(text, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert nbformat.writes(tool.cleaned(notebook)) + "\n" == text
    assert sum("image/png" in o.get("data", {}) for cell in notebook.cells for o in cell.get("outputs", [])) == 1
