"""Going over a directory that is not empty: what is replaced, what stays, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relex_codec.core.filenames import INDEX
from relex_codec.errors import InvalidArgument
from relex_codec.storage.local_directory import AtomicDirectory
from relex_codec.storage.outputs import output_directory
from support.faulty import Faulty
from support.versions import FSSPEC

pytestmark = pytest.mark.usefixtures("scratch")
NAMES = ["a.safetensors", "b.safetensors", INDEX]


@pytest.fixture(params=["local", "moving", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, memory: Any) -> tuple[str, Callable[[], dict[str, bytes]]]:
    """Where a directory is, and what gives its files."""
    folder = tmp_path / "out"

    def files() -> dict[str, bytes]:
        if request.param == "memory":
            return {name.removeprefix("/out/"): memory.cat_file(name) for name in memory.find("/out")}
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    urls = {"local": str(folder), "moving": f"faulty://{folder}", "memory": "memory://out"}
    return urls[request.param], files


def put(url: str, content: bytes, names: list[str] = NAMES, replaced: list[str] | None = None) -> None:
    with output_directory(url, replaced=replaced) as directory:
        for name in (*names, "config.json"):
            if isinstance(directory, AtomicDirectory):
                os.makedirs(os.path.dirname(os.path.join(directory.path, name)), exist_ok=True)
                Path(directory.path, name).write_bytes(content)
            else:
                Path(directory.path, "x").write_bytes(content)
                directory.upload([(os.path.join(directory.path, "x"), name)])


def test_names_are_replaced_and_others_stay(place: tuple[str, Callable[[], dict[str, bytes]]]) -> None:
    url, files = place
    put(url, b"old", [*NAMES, "notes.txt"])
    with pytest.raises(InvalidArgument, match=r"is not empty; choose another place, or replace .* -f"):
        put(url, b"new")
    assert set(files().values()) == {b"old"}
    put(url, b"new", replaced=NAMES)
    assert files() == {**dict.fromkeys((*NAMES, "config.json"), b"new"), "notes.txt": b"old"}
    put(url, b"newer", replaced=[*NAMES, "c.safetensors"])  # a directory that was whole, or was not
    assert files()["b.safetensors"] == b"newer"


@pytest.mark.parametrize("other", ["model.safetensors", "pytorch_model.bin", "x.bin.index.json", "adapter.SAFETENSORS"])
def test_further_weights_are_refused(place: tuple[str, Callable[[], dict[str, bytes]]], other: str) -> None:
    url, files = place
    put(url, b"old", [*NAMES, other])
    before = files()
    with pytest.raises(InvalidArgument, match=rf"it has {other}, which would stay and could be taken"):
        put(url, b"new", replaced=NAMES)
    assert files() == before
    steps = [f"step_1/{name}" for name in NAMES]
    put(url, b"new", steps, steps)  # whose own directories have no such files
    assert files() == {**before, **dict.fromkeys((*steps, "config.json"), b"new")}
    with pytest.raises(InvalidArgument, match=r"it has step_1/b.safetensors, which"):
        put(url, b"newer", steps[:1], steps[:1])


def test_nothing_is_taken_for_complete_on_the_way(
    place: tuple[str, Callable[[], dict[str, bytes]]], monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    """What fails halfway leaves no index, and no file that was not there under its name, but what is not ours."""
    url, files = place
    put(url, b"old", [*NAMES, "notes.txt"])
    if "://" not in url:
        replace = os.replace

        def failing(source: str, target: str) -> None:
            assert not (Path(url) / INDEX).exists()
            if target.endswith("b.safetensors"):
                raise OSError(5, "Input/output error")
            replace(source, target)

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(InvalidArgument, match=r"Input/output error; of what was to be replaced, something may be"):
            put(url, b"new", replaced=NAMES)
    elif url.startswith("memory"):
        upload, sent = type(memory).put_file, list[str]()

        def put_file(self: Any, path: str, name: str, **options: Any) -> None:
            assert not self.exists(f"/out/{INDEX}")
            sent.append(name)
            if len(sent) == 2:
                raise OSError(28, "No space left on device")
            upload(self, path, name, **options)

        monkeypatch.setattr(type(memory), "put_file", put_file)
        with pytest.raises(InvalidArgument, match="No space left"):
            put(url, b"new", replaced=NAMES)
    else:
        Faulty.fault, Faulty.spared = "error", 1
        with pytest.raises(InvalidArgument, match="No space left"):
            put(url, b"new", replaced=NAMES)
    monkeypatch.undo()
    Faulty.reset()
    left = files()
    assert INDEX not in left and left["notes.txt"] == b"old"
    assert left.get("b.safetensors") == b"old" and "a.safetensors" not in left
    put(url, b"new", replaced=NAMES)
    assert files()[INDEX] == b"new"


def test_temporary_files_of_the_dead_are_nothing(memory: Any) -> None:
    memory.pipe_file("/out/.relex.tmp-1-0123abcd", b"")
    put("memory://out", b"new")
    assert sorted(memory.find("/out")) == [
        f"/out/{name}" for name in (".relex.tmp-1-0123abcd", *sorted([*NAMES, "config.json"]))
    ]


def test_a_file_is_no_directory(tmp_path: Path, memory: Any) -> None:
    (tmp_path / "out").write_text("thesis")
    memory.pipe_file("/out", b"thesis")
    faulty = [f"faulty://{tmp_path}/out"] if FSSPEC >= (2024, 6) else []  # older ones: "File exists"
    for url in (str(tmp_path / "out"), *faulty, "memory://out"):
        with pytest.raises(InvalidArgument, match="it exists and is not a directory"):
            put(url, b"new", replaced=NAMES)


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    put(str(tmp_path / "out"), b"old")
    (tmp_path / "out" / "a.safetensors").chmod(0o600)
    put(str(tmp_path / "out"), b"new", replaced=NAMES)
    assert (tmp_path / "out" / "a.safetensors").stat().st_mode & 0o777 == 0o600
