"""The journals of spec/journal: the package and the reference reader agree with their manifest, bit for bit."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from relex_codec.checkpoints.base_model import open_base
from relex_codec.errors import RelexError
from relex_codec.journal.reader import Journal
from relex_codec.journal.series import JournalSeries
from relex_codec.journal.verify import check_base, check_journal
from support.specification import SPEC, ref

ROOT = SPEC / "journal"
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

import reference_journal  # noqa: E402
from journals.make import make  # noqa: E402

MANIFEST: dict[str, Any] = json.loads((ROOT / "manifest.json").read_text())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def named(entry: dict[str, Any]) -> str:
    return Path(entry["path"]).name


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and "journals" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_the_manifest_lists_what_is_there() -> None:
    entries = MANIFEST["valid"] + MANIFEST["invalid"]
    listed = {f"{entry['path']}/{name}": digest for entry in entries for name, digest in entry["files"].items()}
    found = {name: sha256(raw) for name, raw in files_of(ROOT).items() if name not in ("manifest.json", "README.md")}
    assert listed == found
    assert len(MANIFEST["valid"]) == 5 and len(MANIFEST["invalid"]) >= 55


def test_the_scripts_make_the_same_files(tmp_path: Path) -> None:
    if MANIFEST["zstandard"] != zstandard.__version__:
        pytest.skip(f"made with zstandard {MANIFEST['zstandard']}, this is {zstandard.__version__}")
    make(tmp_path)
    there = files_of(ROOT)
    assert files_of(tmp_path) == {name: raw for name, raw in there.items() if name != "README.md"}


@pytest.mark.parametrize("entry", MANIFEST["valid"], ids=named)
def test_valid_journals(entry: dict[str, Any]) -> None:
    folder = ROOT / entry["path"]
    plain = reference_journal.Journal(folder)
    plain.check()
    given = ref.read_safetensors(folder / "base.safetensors")
    journal = Journal(folder)
    check_journal(journal)
    check_base(journal, open_base(folder / "base.safetensors"))
    series = JournalSeries(journal, open_base(folder / "base.safetensors"))
    assert [str(step) for step in series.steps] == [str(one.step) for one in plain.steps] == list(entry["steps"])
    assert series.names == list(plain.tensors)
    for name in series.names:
        rows = series.read(name)
        for index, step in enumerate(series.steps):
            expected = entry["steps"][str(step)][name]
            assert sha256(rows[index].tobytes()) == expected
            assert sha256(series.checkpoint(index).read(name).tobytes()) == expected
        assert sha256(plain.tensor(name, series.steps[-1], given)) == entry["steps"][str(series.steps[-1])][name]


def read_by_package(folder: Path, operation: str) -> None:
    journal = Journal(folder)
    if operation != "open":
        check_journal(journal)
    if operation == "read":
        series = JournalSeries(journal, open_base(folder / "base.safetensors"))
        for name in series.names:
            series.read(name)


def read_by_reference(folder: Path, operation: str) -> None:
    journal = reference_journal.Journal(folder)
    if operation != "open":
        journal.check()
    if operation == "read":
        base = ref.read_safetensors(folder / "base.safetensors")
        for name in journal.tensors:
            journal.tensor(name, journal.steps[-1].step, base)


@pytest.mark.parametrize("entry", MANIFEST["invalid"], ids=named)
def test_invalid_journals(entry: dict[str, Any]) -> None:
    with pytest.raises(RelexError) as error:
        read_by_package(ROOT / entry["path"], entry["operation"])
    assert type(error.value).__name__ == entry["error"], error.value
    assert "\n" not in str(error.value)
    with pytest.raises(ref.RelexError) as plain:
        read_by_reference(ROOT / entry["path"], entry["operation"])
    assert type(plain.value).__name__ == entry["error"], plain.value


def test_the_text_shows_the_worked_journal() -> None:
    """Section 7 of JOURNAL.md has the bytes of the file."""
    raw = (ROOT / "valid" / "worked" / "0000-00000.data").read_bytes()
    text = (SPEC / "JOURNAL.md").read_text().split("## 7.")[1]
    rows = re.findall(r"^\| (\d+) \| `([0-9A-F ]+)` \|", text, re.M)
    assert len(rows) == 9
    for at, shown in rows:
        wanted = bytes.fromhex(shown)
        assert raw[int(at) : int(at) + len(wanted)] == wanted, at
    assert len(raw) == 63
