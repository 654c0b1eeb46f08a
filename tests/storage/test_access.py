"""A replaced file keeps owner, mode and access list, and a directory that exists stays the one that it is."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from relex_codec.storage import access
from relex_codec.storage.local_directory import AtomicDirectory
from relex_codec.storage.local_writer import AtomicFile
from support.commands import ELSEWHERE

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def write(path: Path) -> None:
    with AtomicFile(path) as file:
        file.write(b"new")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o444, 0o777])
def test_the_mode_stays(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.relex"
    path.write_bytes(b"old")
    path.chmod(kept)
    with AtomicFile(path) as file:
        file.write(b"new")
        [temporary] = [name for name in os.listdir(tmp_path) if name != "x.relex"]
        assert mode(tmp_path / temporary) == 0o600  # nobody reads meanwhile what nobody was to read
    assert (mode(path), path.read_bytes()) == (kept, b"new")


def test_a_mode_that_changes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "x.relex"
    path.write_bytes(b"old")
    path.chmod(0o644)
    with AtomicFile(path) as file:
        path.chmod(0o600)
        file.write(b"new")
    assert mode(path) == 0o600


@needs_root
def test_the_owner_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.relex"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    path.chmod(0o640)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (1234, 2345, 0o640)


def test_rights_of_a_group_that_cannot_be_kept_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.relex"
    path.write_bytes(b"old")
    for before, after in ((0o660, 0o600), (0o664, 0o644), (0o646, 0o646)):
        path.chmod(before)
        status = os.stat_result([0o100000 | before, 0, 0, 1, 1, os.getegid() + 1, 3, 0, 0, 0])
        with monkeypatch.context() as patch:

            def refused(*arguments: object) -> None:
                raise PermissionError(1, "Operation not permitted")

            patch.setattr(access.os, "fchown", refused)
            patch.setattr(access.os, "stat", lambda path, status=status: status)
            with open(path, "rb") as file:
                access.keep_access(file.fileno(), str(path))
        assert mode(path) == after, oct(before)


def test_an_access_list_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.relex"
    path.write_bytes(b"old")
    entries = [(1, 6, 2**32 - 1), (2, 4, 4321), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1)]
    wanted = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, access.ACL, wanted)
        os.setxattr(path, "user.sum", b"of the old bytes")
    except (OSError, AttributeError) as error:
        pytest.skip(f"no access lists here: {error}")
    write(path)
    assert os.getxattr(path, access.ACL) == wanted
    assert "user.sum" not in os.listxattr(path)


# ---- Directories ----


def fill(path: object, names: tuple[str, ...] = ("model.safetensors", "config.json")) -> None:
    with AtomicDirectory(str(path)) as directory:
        for name in names:
            path = Path(directory.path, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(name)


def test_an_empty_directory_stays_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(folder, 1234, 2345)
    before = folder.stat()
    fill(folder)
    after = folder.stat()
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert all((folder / name).stat().st_nlink == 1 for name in os.listdir(folder))


def test_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(".")
    assert sorted(os.listdir(".")) == sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


BELOW = """
    import os, sys
    from relex_codec.storage.local_directory import AtomicDirectory
    os.setgroups([])
    os.setgid(1234)
    os.setuid(1234)
    assert not os.access(os.path.dirname(sys.argv[1]), os.W_OK)
    with AtomicDirectory(sys.argv[1]) as directory, directory.file("model.safetensors") as file:
        file.write(b"1")
"""


@needs_root
def test_below_a_directory_of_others() -> None:
    with tempfile.TemporaryDirectory() as above:
        os.chmod(above, 0o755)
        folder = Path(above, "mine")
        folder.mkdir()
        os.chown(folder, 1234, 1234)
        subprocess.run([sys.executable, "-c", textwrap.dedent(BELOW), str(folder)], check=True, cwd=ELSEWHERE)
        assert (os.listdir(folder), os.listdir(above)) == (["model.safetensors"], ["mine"])


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"nothing can be mounted: {error}")
    if done.returncode:
        pytest.skip(f"nothing can be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_mount_point(mounted: Path) -> None:
    (mounted / "lost+found").mkdir()
    fill(mounted)
    assert sorted(os.listdir(mounted)) == ["config.json", "lost+found", "model.safetensors"]


def test_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "link", refused)
    fill(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_what_fails_while_files_appear_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    (tmp_path / "out").mkdir()
    link, calls = os.link, []

    def interrupted(*arguments: str) -> None:
        calls.append(arguments)
        if len(calls) == failing:
            raise KeyboardInterrupt
        link(*arguments)

    monkeypatch.setattr(os, "link", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "out", ("a", "step/b", "config.json"))
    assert calls[-1][1].endswith(("a", "b", "config.json")[failing - 1])
    assert os.listdir(tmp_path / "out") == []
