"""All files below a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relex_codec.errors import CheckpointError, MissingCheckpoint
from relex_codec.storage import tree
from relex_codec.storage.open import list_directory
from relex_codec.storage.tree import ListedFile, Tree, list_files
from support.filesystems import upload

FILES = {"a/b/c/deep": 5, "a/x": 3, "top": 1, "z/1": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in FILES.items():
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_bytes(bytes(size))
    (tmp_path / "here" / "empty").mkdir()
    return tmp_path / "here"


def test_files_and_sizes(folder: Path, memory: Any) -> None:
    upload(memory, folder, "/there")
    for place in (folder, f"{folder}/", f"file://{folder}", "memory://there"):
        found = list_files(place)
        assert found.complete
        assert sorted(found.files) == [ListedFile(name, size) for name, size in FILES.items()]


def test_links_are_followed_out_of_the_directory_and_once(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "inner" / "f").write_bytes(b"12")
    (outside / "back").symlink_to(folder)
    for name in ("out", "out_again"):
        (folder / name).symlink_to(outside)
    (folder / "last").symlink_to("a")
    (folder / "loop").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    (folder / "file").symlink_to(folder / "top")
    (folder / "nowhere").symlink_to("nothing")
    found = list_files(folder)
    assert sorted(found.files) == sorted([ListedFile(n, s) for n, s in (FILES | {"file": 1, "out/inner/f": 2}).items()])


def test_no_more_directories_than_asked_for(folder: Path) -> None:
    assert list_files(folder, limit=1) == Tree([ListedFile("top", 1)], False)
    found = list_files(folder, limit=4)
    assert not found.complete
    assert {file.path for file in found.files} == {"top", "a/x", "z/1"}
    assert list_files(folder, limit=6).complete


def test_what_cannot_be_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingCheckpoint):
        list_files(folder / "nothing", error=CheckpointError)

    def refused(path: Any, *more: Any, **options: Any) -> Any:
        if str(path).endswith("/b"):
            raise CheckpointError("no permission")
        if str(path).endswith("/z"):
            raise MissingCheckpoint("it vanished")
        return list_directory(path, *more, **options)

    monkeypatch.setattr(tree, "list_directory", refused)
    found = list_files(folder, error=CheckpointError)
    assert not found.complete
    assert {file.path for file in found.files} == {"top", "a/x"}
