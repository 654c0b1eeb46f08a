"""What dead processes left under temporary names goes; what living ones hold, and what is not ours, stays."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relex_codec.errors import InvalidArgument
from relex_codec.storage import leftovers
from relex_codec.storage.condition import ABSENT
from relex_codec.storage.leftovers import BESIDE, IN_TMPDIR, ScratchDirectory, remove_leftovers
from relex_codec.storage.local_directory import AtomicDirectory
from relex_codec.storage.local_writer import AtomicFile
from support.commands import ELSEWHERE

HOLDING = """
    import sys, time
    from relex_codec.storage.leftovers import ScratchDirectory
    from relex_codec.storage.local_directory import AtomicDirectory
    from relex_codec.storage.local_writer import AtomicFile
    what, path = sys.argv[1:]
    made = ScratchDirectory() if what == "scratch" else (AtomicFile if what == "file" else AtomicDirectory)(path)
    with made:
        if what == "directory":
            with made.file("half") as out:
                out.write(b"1")
        print("ready", flush=True)
        time.sleep(60)
"""


@contextmanager
def holding(what: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes to `path`, and would not end by itself."""
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDING), what, str(path)], stdout=subprocess.PIPE, text=True,
        cwd=ELSEWHERE,
    )  # fmt: skip
    try:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        yield worker
    finally:
        worker.kill()
        worker.communicate()


def write(what: str, path: Path) -> None:
    if what == "file":
        with AtomicFile(path) as file:
            file.write(b"new")
    elif what == "directory":
        with AtomicDirectory(path) as directory, directory.file("new") as out:
            out.write(b"1")
    else:
        with ScratchDirectory():
            pass


@pytest.mark.parametrize("what", ["file", "directory", "full directory", "scratch"])
def test_of_the_dead_and_of_the_living(what: str, tmp_path: Path, scratch: Path) -> None:
    place, target = tmp_path / "place", tmp_path / "place" / "out"
    place.mkdir()
    if what == "full directory":  # into which it is written
        target.mkdir()
        what, watched = "directory", target
    else:
        watched = scratch if what == "scratch" else place
    names = IN_TMPDIR if what == "scratch" else BESIDE
    with holding(what, target) as worker:
        [held] = [name for name in os.listdir(watched) if names.fullmatch(name)]
        remove_leftovers(str(watched), names)
        if watched == target:
            with pytest.raises(InvalidArgument, match=r"another process is writing there"):
                write(what, target)
        else:
            write(what, target.with_name("other"))
        assert held in os.listdir(watched)
        worker.send_signal(signal.SIGKILL)
        worker.wait(30)
        assert held in os.listdir(watched)
        write(what, target)
    assert not [name for name in os.listdir(watched) if names.fullmatch(name)]
    if what == "directory":
        assert os.listdir(target) == ["new"]


def test_what_is_not_known_to_be_dead_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(leftovers, "_machine", lambda: "0" * 8)
        path, fd = leftovers.make_file(str(tmp_path / "x"), 0o600)
        os.close(fd)
    with monkeypatch.context() as patch:  # a network file system: the lock may be that of another machine
        patch.setattr(leftovers, "_is_local", lambda folder: False)
        remove_leftovers(str(tmp_path))
    assert os.path.exists(path)

    def without_locks(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", without_locks)
        with AtomicFile(tmp_path / "y") as file:
            file.write(b"1")
    assert os.path.exists(path) and (tmp_path / "y").read_bytes() == b"1"
    others = [".x.tmp-123-0123abcd", ".x.tmp-relex-1-0123abcd", "x.tmp-relex-1-0123456789abcdef", "relex-1"]
    for name in others:
        (tmp_path / name).touch()
    linked = Path(f"{path}0")  # no name of ours either
    linked.touch()
    remove_leftovers(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "y", linked.name])


def test_a_link_is_no_leftover(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("1")
    path, fd = leftovers.make_file(str(tmp_path / "x"), 0o600)
    os.close(fd)
    os.unlink(path)
    os.symlink("precious", path)
    remove_leftovers(str(tmp_path))
    assert (tmp_path / "precious").read_text() == "1"


def test_one_that_is_taken_before_it_is_held_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, times = leftovers._hold, []

    def late(fd: int, path: str) -> bool:
        if not times:
            remove_leftovers(str(tmp_path))  # another process, between the two calls
            assert not os.path.exists(path)
        times.append(path)
        return hold(fd, path)

    monkeypatch.setattr(leftovers, "_hold", late)
    write("file", tmp_path / "x")
    assert len(times) == 2 and os.listdir(tmp_path) == ["x"]
    times.clear()
    write("directory", tmp_path / "d")
    assert len(times) == 2 + 1 and os.listdir(tmp_path / "d") == ["new"]  # and one for the file in it


def test_killed_between_two_files_that_appear(tmp_path: Path) -> None:
    """The directory existed; what was put into it goes, what was there in the meantime stays."""
    target = tmp_path / "out"
    target.mkdir()
    code = """
        import os, signal, sys
        from relex_codec.storage.local_directory import AtomicDirectory
        link, left = os.link, [3]
        def killing(*arguments):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            link(*arguments)
        with AtomicDirectory(sys.argv[1]) as directory:
            os.mkdir(os.path.join(directory.path, "step"))
            for name in ("a", "b", "step/c", "step/d", "model.safetensors.index.json"):
                with directory.file(name) as out:
                    out.write(b"1")
            os.link = killing
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(target)], cwd=ELSEWHERE)
    assert done.returncode == -signal.SIGKILL
    left = sorted(os.listdir(target))
    assert len(left) == 4 and left[1:] == ["a", "b", "step"]
    write("directory", target)
    assert os.listdir(target) == ["new"]


def test_a_scratch_directory_is_private_and_can_be_kept(scratch: Path) -> None:
    with ScratchDirectory() as folder:
        assert os.stat(folder.path).st_mode & 0o777 == 0o700
        assert os.path.dirname(folder.path) == tempfile.gettempdir() == str(scratch)
        (Path(folder.path) / "x").write_text("1")
        kept = folder.keep()
    assert os.listdir(scratch) == [os.path.basename(kept)] and os.listdir(kept) == ["x"]
    remove_leftovers(str(scratch), IN_TMPDIR)
    assert os.listdir(kept) == ["x"]


def test_local_file_systems_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/proc/self/mountinfo"):
        pytest.skip("no /proc/self/mountinfo")
    assert not leftovers._is_local("/proc")
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        "2 1 0:5 / /net\\040work rw shared:1 - nfs4 server:/x rw\n"
        "3 2 0:6 / /net\\040work/disk rw - xfs /dev/sdb rw\n"
    )
    opened = open
    monkeypatch.setattr("builtins.open", lambda path, mode: opened(mounts, mode))
    places = ["/", "/net work", "/net work/x", "/net workers", "/net work/disk/a"]
    assert [leftovers._is_local(place) for place in places] == [True, False, False, True, True]


def test_many_at_once(tmp_path: Path) -> None:
    """Those that clean up beside those that write."""
    code = """
        import sys
        from relex_codec.storage.local_writer import AtomicFile
        for number in range(150):
            with AtomicFile(f"{sys.argv[1]}/{sys.argv[2]}") as out:
                out.write(b"1")
    """
    workers = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(i)], cwd=ELSEWHERE)
        for i in range(3)
    ]
    until = time.monotonic() + 60
    while any(worker.poll() is None for worker in workers) and time.monotonic() < until:
        remove_leftovers(str(tmp_path))
    assert [worker.wait(10) for worker in workers] == [0, 0, 0]
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"]


def test_files_in_a_scratch_directory_do_not_wait_for_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own process holds that; ten seconds went by until the file was put into place all the same."""

    def slept(seconds: float) -> None:
        raise AssertionError("somebody waits for a lock")

    with ScratchDirectory() as scratch:
        monkeypatch.setattr("relex_codec.storage.local_writer.time.sleep", slept)
        with AtomicFile(os.path.join(scratch.path, "x"), condition=ABSENT) as file:
            file.write(b"x")
        assert os.listdir(scratch.path) == ["x"]
