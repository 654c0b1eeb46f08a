"""Journals at URLs: what is said of them, read of them and made of them is what is of local ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import relex_codec
from relex_codec import CheckpointError, InvalidArgument, Truncated
from relex_codec.cli.main import group
from relex_codec.encoding.append import append
from relex_codec.journal.reader import is_journal
from relex_codec.run import recorded
from support.runs import Made
from support.servers.fixtures import Bucket


@pytest.fixture(scope="module")
def journal(zoo_run: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("urls") / "j"
    with relex_codec.Recorder(path, base=zoo_run.base_path, base_uri="../base") as recorder:
        for step in zoo_run.steps[:3]:
            recorder.add(step, zoo_run.run / f"global_step_{step}")
    return path


@pytest.fixture
def there(memory: Any, journal: Path, zoo_run: Made, scratch: Path) -> str:
    """The journal and its base, at URLs."""
    for name, folder in (("j", journal), ("base", zoo_run.base_path)):
        for path in folder.iterdir():
            if path.is_file():
                memory.pipe_file(f"/runs/{name}/{path.name}", path.read_bytes())
    return "memory://runs/j"


def test_what_is_read_is_what_is_local(there: str, journal: Path, zoo_run: Made, tmp_path: Path, scratch: Path) -> None:
    assert is_journal(there) and is_journal(there + "/") and not is_journal("memory://runs/base")
    assert recorded.describe(there) == {**recorded.describe(journal), "path": there}
    assert recorded.verify(there) == recorded.verify(journal)
    assert recorded.verify(there, zoo_run.base_path) == recorded.verify(journal)
    step = zoo_run.steps[1]
    recorded.save(there, tmp_path / "a", step)  # its base is beside it
    recorded.save(journal, tmp_path / "b", step, base=zoo_run.base_path)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert a == b and json.loads(a["relex.json"])["file"] == "j"  # not what it was fetched as
    for name, run in (("a", there), ("b", journal)):
        relex_codec.encode(run, tmp_path / f"{name}.relex", base=zoo_run.base_path, exact=True, base_uri="base")
    assert (tmp_path / "a.relex").read_bytes() == (tmp_path / "b.relex").read_bytes()
    assert not list(scratch.iterdir())


def test_only_tables_are_fetched_for_what_is_said(there: str, memory: Any, scratch: Path) -> None:
    """Of the differences, all but their size is left alone: bytes that would be found wrong are not looked at."""
    name = "/runs/j/0000-00000.data"
    raw = bytearray(memory.cat_file(name))
    raw[-200] ^= 1
    memory.pipe_file(name, bytes(raw))
    assert recorded.describe(there)["steps"] == [1, 2, 5]
    with pytest.raises(relex_codec.Corrupt) as caught:
        recorded.verify(there)
    assert there in str(caught.value) and str(scratch) not in str(caught.value)


def test_what_cannot_be(there: str, memory: Any, zoo_run: Made, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"memory://runs/j has no step 4, it has 1:5"):
        recorded.save(there, tmp_path / "x", 4)
    relex_codec.encode(zoo_run.run, tmp_path / "x.relex", base=zoo_run.base_path, steps="1:2", exact=True)
    with pytest.raises(InvalidArgument, match="is a journal, expected checkpoints"):
        append(tmp_path / "x.relex", [there])
    with pytest.raises(InvalidArgument, match="a journal is a local directory"):
        relex_codec.Recorder(there, base=zoo_run.base_path)
    memory.pipe_file("/runs/j/0000-00000.data", memory.cat_file("/runs/j/0000-00000.data")[:-1])
    with pytest.raises(Truncated, match=r"memory://runs/j/0000-00000\.steps: step 5 ends"):
        recorded.describe(there)
    memory.rm_file("/runs/j/0000-00000.data")
    with pytest.raises(CheckpointError, match="does not exist"):
        recorded.describe(there)
    memory.pipe_file("/runs/page/journal.json", b"<html>no such page</html>")  # servers that know every name
    assert not is_journal("memory://runs/page")


def test_a_journal_on_an_object_store(moto_bucket: Bucket, journal: Path, zoo_run: Made, tmp_path: Path) -> None:
    moto_bucket.upload(journal, "runs/j")
    where, options = moto_bucket.url("runs/j"), moto_bucket.options
    assert recorded.describe(where, options)["steps"] == [1, 2, 5]
    relex_codec.encode(where, tmp_path / "x.relex", base=zoo_run.base_path, exact=True, storage_options={"s3": options})
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert run.steps == [1, 2, 5]


def test_the_commands_read_urls(there: str, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        found = CliRunner().invoke(group, arguments, catch_exceptions=False)
        assert not found.exit_code, found.output
        return found.stdout

    assert json.loads(said("info", there, "--json"))["path"] == there
    assert "all 3 steps" in said("verify", there)
    assert "step 2, bit for bit" in said("decode", there, "--step", "2", "-o", str(tmp_path / "x"))
