"""The engine of Ray, as far as it can be tried without Ray: what tasks run, and what is said where it is missing."""

from __future__ import annotations

import pickle
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

import relex_codec
from relex_codec.engines.choice import EngineChoice
from relex_codec.engines.failures import Failure
from relex_codec.engines.ray_task import do_unit, remote_unit
from relex_codec.engines.unit_files import OpenFiles, UnitFile
from relex_codec.errors import CheckpointError, InvalidArgument
from support.commands import cli, failed
from support.ray_units import Fails, Plain

BUDGET = 64 << 20


def test_a_task_returns_the_bytes_of_the_result(tmp_path: Path, scratch: Path) -> None:
    unit = Plain("p", tmp_path / "log")
    kind, data, _ = remote_unit()(relex_codec.__version__, None, pickle.dumps(unit), BUDGET, 1)
    assert kind == "done"
    (tmp_path / "p.unit").write_bytes(data)
    with closing(OpenFiles()) as files:
        read = UnitFile(str(tmp_path / "p.unit"), files)
        read.check()
        assert read.document["key"] == "p"
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("error", [CheckpointError("cut off"), ZeroDivisionError("by zero")])
def test_a_task_returns_what_a_unit_fails_with(error: Exception, tmp_path: Path, scratch: Path) -> None:
    kind, *failure = do_unit(pickle.dumps(Fails("f", tmp_path / "log", error=error)), BUDGET, 1)
    assert kind == "failed"
    found = Failure(*failure).error("there")
    assert type(found) is type(error) and str(found) == str(error)
    known = isinstance(error, CheckpointError)
    assert (found.__cause__ is None) == known and ("ray_units.py" in str(found.__cause__)) == (not known)
    assert not list(scratch.iterdir())


def test_an_error_that_cannot_be_pickled_still_says_what_it_is() -> None:
    class Local(CheckpointError):
        pass

    found = Failure.of(Local("cut off")).error("there")
    assert isinstance(found, relex_codec.RelexError) and str(found) == "cut off"


def test_a_task_refuses_units_of_another_version() -> None:
    kind, what, _ = remote_unit()("9.9.9", None, b"no unit of ours", BUDGET, 1)
    assert (kind, what) == ("other", f"relex-codec is {relex_codec.__version__}")


def test_a_task_says_that_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "relex_codec._version", None)
    assert remote_unit()("9.9.9", None, b"", BUDGET, 1)[:2] == ("other", "relex-codec is not installed")


def test_a_task_does_not_import_from_where_the_command_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    remote_unit()("9.9.9", str(tmp_path), b"", BUDGET, 1)
    assert str(tmp_path) not in sys.path


def test_an_address_is_for_ray() -> None:
    with pytest.raises(InvalidArgument, match="address is 'auto', which is for the engine 'ray', not 'processes'"):
        EngineChoice("processes", address="auto")


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_ray_is_missing(tmp_path: Path) -> None:
    done = cli("encode", tmp_path, "-o", tmp_path / "x.relex", "--base", tmp_path, "--engine", "ray")
    failed(done, "pip install 'relex-codec[ray]'")
