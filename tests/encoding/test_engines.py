"""Engines: the file is the same byte for byte, workers that die are replaced, and none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import relex_codec
from relex_codec.encoding import unit_plan
from relex_codec.engines.choice import EngineChoice
from relex_codec.engines.local import LocalEngine
from relex_codec.engines.processes import ATTEMPTS, ProcessEngine
from relex_codec.engines.protocol import Engine, Place, WorkerLost
from relex_codec.engines.unit_files import OpenFiles, UnitFile, UnitWriter
from relex_codec.errors import CheckpointError, Corrupt, InvalidArgument
from support import bands

MEMORY = 1 << 28


@dataclass(frozen=True)
class Told:
    """A unit that does what it is told."""

    key: str
    what: str = "write"
    note: str = ""
    input_bytes: int = 1
    needs: tuple[str, ...] = ()

    def memory(self, threads: int) -> int:
        return 1

    def run(self, place: Place, out: UnitWriter) -> None:
        with suppress(FileNotFoundError), open(self.note, "a") as file:
            file.write(f"{os.getpid()}\n")
        if self.what == "refuse":
            raise CheckpointError(f"{self.key} cannot be read")
        if self.what == "fault":
            raise ZeroDivisionError(self.key)
        if self.what == "die" or (self.what == "die once" and len(Path(self.note).read_text().split()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "sleep":
            time.sleep(60)
        out.document["budget"], out.document["data"] = place.budget, out.data(self.key.encode())


def engine(kind: str, root: Path, workers: int = 2) -> Engine:
    if kind == "local":
        return LocalEngine(Place(str(root), MEMORY, 1, workers), str(root))
    return ProcessEngine(Place(str(root), MEMORY // workers, 1), workers, str(root))


@pytest.mark.parametrize("kind", ["local", "processes"])
def test_units_are_done_and_errors_are_told(kind: str, tmp_path: Path) -> None:
    with engine(kind, tmp_path) as one:
        for unit in (Told("a"), Told("b", "refuse"), Told("c", "fault"), Told("d")):
            one.submit(unit)
        ended = {finished.key: finished for finished in (one.finished() for _ in range(4))}
    files = OpenFiles()
    for key in "ad":
        unit = UnitFile(str(ended[key].path), files)
        unit.check()
        assert unit.data(unit.document["data"]) == key.encode()
        assert unit.document["budget"] == MEMORY // (2 if kind == "processes" else 1)
    files.close()
    assert isinstance(ended["b"].error, CheckpointError) and str(ended["b"].error) == "b cannot be read"
    assert isinstance(ended["c"].error, ZeroDivisionError)
    assert sorted(os.listdir(tmp_path)) == ["a.unit", "d.unit"]


@pytest.mark.slow
def test_what_a_dead_worker_did_is_done_again(tmp_path: Path) -> None:
    once, always = tmp_path / "once", tmp_path / "always"
    for file in (once, always):
        file.touch()
    with engine("processes", tmp_path) as one:
        one.submit(Told("once", "die once", str(once)))
        one.submit(Told("always", "die", str(always)))
        one.submit(Told("third"))
        ended = {finished.key: finished.error for finished in (one.finished() for _ in range(3))}
    assert ended["once"] is None and ended["third"] is None
    assert isinstance(ended["always"], WorkerLost)
    assert "always was killed by SIGKILL, 3 times in a row" in str(ended["always"])
    assert len(set(once.read_text().split())) == 2
    assert len(set(always.read_text().split())) == ATTEMPTS


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_worker_outlives_its_parent(number: signal.Signals, tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        from test_engines import *
        with engine("processes", Path({str(tmp_path)!r})) as one:
            one.submit(Told("a", "sleep", {str(tmp_path / "note")!r}))
            one.submit(Told("b", "sleep", {str(tmp_path / "note")!r}))
            one.finished()
    """
    (tmp_path / "note").touch()
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.DEVNULL)
    workers = waited_for(lambda: found if len(found := (tmp_path / "note").read_text().split()) == 2 else None)
    parent.send_signal(number)
    parent.wait(30)
    waited_for(lambda: not any(os.path.exists(f"/proc/{worker}") and not is_zombie(worker) for worker in workers))


def waited_for(condition: Any) -> Any:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in a minute")


def is_zombie(number: str) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_damaged_results_are_told(tmp_path: Path) -> None:
    with engine("local", tmp_path) as one:
        one.submit(Told("a"))
        path = Path(str(one.finished().path))
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        check_is_damaged(path)
        path.write_bytes(whole[:at])
        check_is_damaged(path)


def check_is_damaged(path: Path) -> None:
    with closing(OpenFiles()) as files, pytest.raises(Corrupt, match="is damaged"):
        UnitFile(str(path), files).check()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bands.make(tmp_path_factory.mktemp("engines"))


def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_plan, "WHOLE", 4 << 20)
    monkeypatch.setattr(unit_plan, "SMALLEST_UNIT", 1 << 20)
    monkeypatch.setattr(unit_plan, "LARGEST_UNIT", 4 << 20)


@pytest.mark.parametrize("exact", [True, False])
def test_every_engine_writes_the_same_file(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    def encoded(name: str, **options: Any) -> bytes:
        path = tmp_path / f"{name}.relex"
        relex_codec.encode(
            made / "run", path, base=made / "base", base_uri="base", exact=exact, embed_base=True, observe=30, **options
        )
        if exact:
            relex_codec.append(path, [made / "later"], base=made / "base", engine=options["engine"])
        return path.read_bytes()

    expected = encoded("whole", engine="local", workers=1)
    small_units(monkeypatch)
    assert encoded("bands", engine="local", workers=3) == expected
    assert encoded("little", engine="local", memory="64MB") == expected
    assert encoded("processes", engine="processes", workers=2) == expected


def test_append_with_refit_is_the_same(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.relex"
    relex_codec.encode(made / "run", file, base=made / "base", exact=True)
    relex_codec.append(file, [made / "later"], base=made / "base", refit=True, output=tmp_path / "one.relex")
    small_units(monkeypatch)
    for kind in ("local", "processes"):
        other = tmp_path / f"{kind}.relex"
        relex_codec.append(file, [made / "later"], base=made / "base", refit=True, output=other, engine=kind)
        assert other.read_bytes() == (tmp_path / "one.relex").read_bytes()


def test_arguments() -> None:
    with pytest.raises(InvalidArgument, match="engine is 'gpu', expected one of auto, local, processes"):
        EngineChoice("gpu")
    with pytest.raises(InvalidArgument, match="workers is 0, expected at least 1"):
        EngineChoice("local", 0)
    assert EngineChoice("auto", 5).of(1 << 40).name == "processes"
    assert EngineChoice("auto", 4).of(1 << 40).name == "local"
    assert EngineChoice("auto", 5).of(1 << 20).name == "local"
    assert EngineChoice("processes", 1).of(1 << 20).name == "processes"
