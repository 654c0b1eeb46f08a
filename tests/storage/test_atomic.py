"""Files and directories are written completely or not at all."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from relex_codec.errors import InvalidArgument
from relex_codec.storage import local_writer
from relex_codec.storage.local_directory import AtomicDirectory
from relex_codec.storage.local_writer import AtomicFile

DATA = bytes(range(256)) * 1000


def leftovers(path):
    return sorted(name for name in os.listdir(path) if ".tmp-" in name)


def test_a_file_appears_when_complete(tmp_path):
    path = tmp_path / "run.relex"
    with AtomicFile(path) as file:
        assert file.write(bytes(8)) == 8
        file.write(memoryview(b"tail"))
        assert file.tell() == 12
        file.write(b"!")
        [temporary] = leftovers(tmp_path)
        assert temporary.startswith(".")
        assert not temporary.endswith((".relex", ".safetensors"))
        assert not path.exists()
    assert path.read_bytes() == bytes(8) + b"tail!"
    assert os.listdir(tmp_path) == ["run.relex"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def write_and_fail(path, error):
    with AtomicFile(path) as file:
        file.write(DATA)
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_file_that_fails_leaves_what_was_there(tmp_path, error, old):
    path = tmp_path / "x.relex"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error):
        write_and_fail(path, error)
    assert (path.read_bytes() if path.exists() else None) == old
    assert leftovers(tmp_path) == []


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_new(path):
    with AtomicFile(path) as file:
        file.write(b"new")


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk(tmp_path, monkeypatch, call):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    monkeypatch.setattr(local_writer.os, call, full)
    with pytest.raises(InvalidArgument, match=r"cannot write .*x: No space left on device.*") as caught:
        write_new(path)
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_partial_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(local_writer.os, "write", lambda fd, data: write(fd, data[:1000]))
    with AtomicFile(tmp_path / "x") as file:
        file.write(DATA)
    assert (tmp_path / "x").read_bytes() == DATA


def test_targets_that_cannot_be(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in [
        ("s3://bucket/x", "must be a local path"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "none" / "x", "directory does not exist"),
        ("", "empty path"),
    ]:
        with pytest.raises(InvalidArgument, match=message), AtomicFile(path):
            pass
    assert os.listdir(tmp_path) == ["pipe"]


def test_links_are_followed_and_long_names_fit(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with AtomicFile(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    name = "ü" * 124 + ".relex"  # 254 bytes
    with AtomicFile(tmp_path / name) as file:
        file.write(b"1")
    assert (tmp_path / name).read_bytes() == b"1"


def test_a_directory_appears_when_complete(tmp_path):
    target = tmp_path / "above" / "out"
    with AtomicDirectory(target) as directory:
        with directory.file("model.safetensors") as file:
            file.write(b"1")
        assert not target.exists()
        assert len(leftovers(tmp_path / "above")) == 1
    assert os.listdir(target) == ["model.safetensors"]
    assert leftovers(tmp_path / "above") == []
    empty = tmp_path / "empty"
    empty.mkdir()
    with AtomicDirectory(f"{empty}/") as directory, directory.file("a") as file:
        file.write(b"1")
    assert os.listdir(empty) == ["a"]


def write_directory(path, then=lambda: None):
    with AtomicDirectory(path) as directory:
        with directory.file("a") as file:
            file.write(b"1")
        then()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_directory_that_fails_is_removed(tmp_path, error):
    def fail():
        raise error

    with pytest.raises(error):
        write_directory(tmp_path / "out", fail)
    assert os.listdir(tmp_path) == []


def test_directories_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    for path, message in [
        (tmp_path / "full", "exists and is not empty"),
        (tmp_path / "file", "not a directory"),
        (tmp_path / "file" / "below", r"Not a directory|File exists"),
        ("memory://x", "must be a local path"),
    ]:
        with pytest.raises(InvalidArgument, match=message), AtomicDirectory(path):
            pass
    with pytest.raises(InvalidArgument, match="exists and is not empty"):
        write_directory(tmp_path / "out", lambda: write_directory(tmp_path / "out"))
    monkeypatch.setattr(local_writer.os, "write", full)
    with pytest.raises(InvalidArgument, match=r"cannot write \S*/new/a: No space left"):
        write_directory(tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["file", "full", "out"]
