"""Files of results: what cannot be written is refused before the work, and a failure leaves none of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from relex_codec.cli import plot, report
from relex_codec.errors import InvalidArgument
from relex_codec.report import numbers
from relex_codec.report.written import new_files, write_new


def test_what_is_there_stays(tmp_path: Path) -> None:
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    Path(old).write_bytes(b"mine")
    with pytest.raises(InvalidArgument, match="it exists; -f"):
        write_new({new: b"1", old: b"2"}, overwrite=False)
    assert [one.name for one in tmp_path.iterdir()] == ["old"] and Path(old).read_bytes() == b"mine"
    write_new({new: b"1", old: b"2"}, overwrite=True)
    assert (Path(new).read_bytes(), Path(old).read_bytes()) == (b"1", b"2")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> None:
        with new_files([str(tmp_path / "a"), str(tmp_path / "b")], overwrite=False) as (a, _):
            a.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "name", "needs"), [(plot, "x.png", "matplotlib"), (report, "x.html", "bokeh")])
def test_commands_refuse_before_they_work(
    command: object,
    name: str,
    needs: str,
    zoo_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(needs)

    def never(*_: object) -> None:
        raise AssertionError("it worked before it looked")

    monkeypatch.setattr(numbers, "collect", never)
    (tmp_path / name).write_bytes(b"mine")
    call = command.command.callback  # type: ignore[attr-defined]
    options = {"base": None, "as_json": False, "overwrite": False}
    options |= {"tensor": None, "what": (), "width": None, "dpi": 150} if command is plot else {"title": None}
    with pytest.raises(InvalidArgument, match="it exists"):
        call(file=str(zoo_file("micro")), output=str(tmp_path / name), **options)
    with pytest.raises(InvalidArgument, match="cannot write"):
        call(file=str(zoo_file("micro")), output=str(tmp_path / "no" / name), **options)
