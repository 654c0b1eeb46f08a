"""Opening, reading and listing: local files and fsspec's alike."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from relex_codec.errors import CheckpointError, InvalidArgument, Truncated
from relex_codec.storage.open import Item, list_directory, open_source
from relex_codec.storage.source import LocalSource

DATA = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def nothing_is_retried(monkeypatch):
    monkeypatch.setenv("RELEX_RETRY_SECONDS", "0")


@pytest.fixture(params=["held", "reopened", "file URL", "memory", "cached"])
def source(request, tmp_path, memory):
    (tmp_path / "x").write_bytes(DATA)
    memory.pipe_file("/d/x", DATA)
    opened = {
        "held": lambda: open_source(tmp_path / "x"),
        "reopened": lambda: open_source(str(tmp_path / "x"), keep_open=False),
        "file URL": lambda: open_source(f"file://{tmp_path}/x", {"ignored": 1}),
        "memory": lambda: open_source("memory://d/x"),
        "cached": lambda: open_source("simplecache::memory://d/x", {"simplecache": {"cache_storage": str(tmp_path)}}),
    }[request.param]()
    with opened:
        yield opened


def test_ranges(source):
    assert source.size == len(DATA)
    assert source.read(0, len(DATA)) == DATA
    assert source.read(5, 5) == b""
    assert source.read(len(DATA), len(DATA)) == b""
    ranges = [(100_000, 100_010), (3, 9), (0, 4), (200_000, 200_000), (255_990, 256_000)]
    found = source.read_many(ranges)
    assert found == [DATA[a:b] for a, b in ranges]
    assert all(type(part) is bytes for part in found)
    assert source.read_many([]) == []
    out = bytearray(1000)
    source.read_into(77, memoryview(out))
    assert out == DATA[77:1077]


def test_reads_beyond_the_end_and_backwards(source):
    with pytest.raises(Truncated, match="256000 bytes, expected at least 256001"):
        source.read(0, len(DATA) + 1)
    with pytest.raises(Truncated):
        source.read_many([(0, 1), (1 << 40, (1 << 40) + 1)])
    with pytest.raises(Truncated):
        source.read_into(len(DATA) - 1, memoryview(bytearray(2)))
    with pytest.raises(ValueError, match="not a range"):
        source.read(5, 4)
    with pytest.raises(ValueError, match="not a range"):
        source.read(-5, 4)


def test_threads_share_a_source(source):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: source.read(i, i + 500), range(0, 100_000, 997)))
    assert found == [DATA[i : i + 500] for i in range(0, 100_000, 997)]


@pytest.mark.parametrize("keep_open", [True, False])
def test_a_local_file_that_shrinks(tmp_path, keep_open):
    path = tmp_path / "x"
    path.write_bytes(DATA)
    with open_source(path, keep_open=keep_open, error=CheckpointError) as source:
        os.truncate(path, 100)
        with pytest.raises((Truncated, CheckpointError), match=r"ends at byte 100|changed while"):
            source.read(0, 101)
        with pytest.raises((Truncated, CheckpointError)):
            source.read_into(50, memoryview(bytearray(100)))


def test_a_local_file_that_is_replaced(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(DATA)
    held, reopened = open_source(path), open_source(path, keep_open=False, error=CheckpointError)
    (tmp_path / "y").write_bytes(DATA[::-1])
    os.utime(tmp_path / "y", ns=(1, 1))  # clocks of file systems are coarse
    os.replace(tmp_path / "y", path)
    assert held.read(0, 5) == DATA[:5]
    with pytest.raises(CheckpointError, match="changed while"):
        reopened.read(0, 5)
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        reopened.read(0, 5)
    held.close()
    held.close()
    with pytest.raises(InvalidArgument, match="closed"):
        held.read(0, 5)


@pytest.mark.parametrize("kind", ["shorter", "longer", "directory", "pipe"])
def test_what_replaces_a_local_file_is_not_mistaken_for_it(tmp_path, kind):
    if kind in ("directory", "pipe") and os.name != "posix":
        pytest.skip("Windows opens no directories, and has no pipes among files")
    path = tmp_path / "x"
    path.write_bytes(DATA)
    with open_source(path, keep_open=False, error=CheckpointError) as source:
        path.unlink()
        if kind == "directory":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.write_bytes(DATA[:100] if kind == "shorter" else DATA + DATA)
        with pytest.raises(CheckpointError, match="changed while"):
            source.read(0, 200)
        with pytest.raises(CheckpointError):
            source.read_into(0, memoryview(bytearray(200)))


def test_no_descriptor_is_left(tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    sources = [open_source(tmp_path / "x", keep_open=False) for _ in range(50)]
    for source in sources:
        source.read(0, 10)
    with open_source(tmp_path / "x"):
        pass
    with pytest.raises(InvalidArgument):
        open_source(tmp_path)
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


def test_large_reads_are_put_together(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(DATA)
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 999), at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:1001]], at))
    with open_source(tmp_path / "x") as source:
        assert source.read(7, 200_000) == DATA[7:200_000]


def test_what_cannot_be_opened(tmp_path, memory):
    os.mkfifo(tmp_path / "pipe")
    for path, message in [
        (tmp_path / "none", "does not exist"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        ("memory://none", "does not exist"),
        ("nosuchscheme://x", "nosuchscheme"),
    ]:
        for error in (InvalidArgument, CheckpointError):
            with pytest.raises(error, match=message) as caught:
                open_source(path, error=error)
            assert "\n" not in str(caught.value)
    memory.makedirs("/dir/sub")
    with pytest.raises(InvalidArgument, match="not a file"):
        open_source("memory://dir")


def test_a_missing_library_is_named(monkeypatch):
    def fail(*args, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(InvalidArgument, match="cannot open s3://b/x: ImportError: Install s3fs"):
        open_source("s3://b/x")


def test_directories(tmp_path, memory):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_bytes(b"123")
    (tmp_path / "link").symlink_to("b")
    (tmp_path / "dangling").symlink_to("nowhere")
    found = list_directory(tmp_path)
    assert [(item.name, item.is_dir) for item in found] == [("a.txt", False), ("b", True), ("link", True)]
    assert found[0].size == 3
    memory.pipe_file("/run/b/x", b"1")
    memory.pipe_file("/run/a.txt", b"123")
    for url in ("memory://run", "memory://run/"):
        assert list_directory(url) == [Item("a.txt", False, 3), Item("b", True, 0)]
    for path in (tmp_path / "none", tmp_path / "a.txt", "memory://none", "memory://run/a.txt"):
        with pytest.raises(CheckpointError, match=r"not exist|not a directory"):
            list_directory(path, error=CheckpointError)


def test_local_source_by_itself(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with LocalSource(tmp_path / "x") as source:
        assert source.size == 0
        assert source.read(0, 0) == b""
