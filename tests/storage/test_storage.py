"""Ranged reads, locally and through fsspec."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import given
from hypothesis import strategies as st

from relex_codec.errors import CheckpointError, Corrupt, InvalidArgument, Truncated
from relex_codec.storage.coalesce import merge
from relex_codec.storage.config import split
from relex_codec.storage.open import Item, list_directory, open_source
from relex_codec.storage.remote import RemoteSource
from relex_codec.storage.source import LocalSource
from relex_codec.storage.urls import is_url, join, local_path, normal, public

DATA = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def nothing_is_tried_again(monkeypatch):
    monkeypatch.setenv("RELEX_RETRY_SECONDS", "0")


# Planning


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60)).map(lambda t: (t[0], t[0] + t[1])), max_size=12),
    st.integers(0, 40),
    st.integers(1, 100),
)
def test_a_plan_serves_every_range_once_and_keeps_its_bounds(ranges, gap, limit):
    plan = merge(ranges, gap, limit)
    served = sorted(i for read in plan for i in read.members)
    assert served == [i for i, (a, b) in enumerate(ranges) if a < b]
    for read in plan:
        members = sorted(ranges[i] for i in read.members)
        assert (read.start, read.end) == (members[0][0], max(end for _, end in members))
        longest = max(end - start for start, end in members)
        assert read.end - read.start <= max(limit, longest)
        reach = members[0][1]
        for start, end in members[1:]:
            assert start - reach <= gap
            reach = max(reach, end)
    starts = [read.start for read in plan]
    assert starts == sorted(starts)


def test_plans():
    assert merge([]) == []
    assert [(r.start, r.end, r.members) for r in merge([(50, 60), (0, 10), (12, 20)], gap=2)] == [
        (0, 20, (1, 2)),
        (50, 60, (0,)),
    ]
    assert [(r.start, r.end) for r in merge([(0, 10), (10, 20), (20, 30)], gap=5, limit=20)] == [(0, 20), (20, 30)]
    assert [(r.start, r.end) for r in merge([(0, 100), (10, 20)], gap=0, limit=5)] == [(0, 100)]


# Names


@pytest.mark.parametrize(
    ("path", "url"),
    [("s3://b/x", True), ("memory://x", True), ("simplecache::s3://b/x", True), ("/a/b", False), ("a/b:c", False),
     ("file:///a", False), ("local:///a", False), ("C:\\x", False), ("~/x", False)],
)  # fmt: skip
def test_urls_are_told_from_paths(path, url):
    assert is_url(path) is url


@pytest.mark.parametrize(
    ("path", "lower"),
    [("S3://Bucket/Key", "s3://Bucket/Key"), ("HTTPS://Host/X?u=HTTP://Y", "https://Host/X?u=HTTP://Y"),
     ("SimpleCache::S3://B/X", "simplecache::s3://B/X"), ("zip://In::HF://Org/X.zip", "zip://In::hf://Org/X.zip"),
     ("Dir://In::Folder", "dir://In::Folder"), ("/A/B::C", "/A/B::C"), ("/A/S3://b", "/A/S3://b"), ("C:\\X", "C:\\X")],
)  # fmt: skip
def test_schemes_are_in_lower_case_and_nothing_else(path, lower):
    assert normal(path) == lower


def test_schemes_may_be_in_upper_case(tmp_path, memory):
    (tmp_path / "x").write_bytes(DATA)
    memory.pipe_file("/D/x", DATA)
    assert not is_url("FILE:///a") and local_path("FILE:///A") == "/A" and is_url("HF://Org/Name")
    for url in (f"FILE://{tmp_path}/x", "Memory://D/x", "SimpleCache::MEMORY://D/x"):
        with open_source(url) as source:
            assert source.read(1, 9) == DATA[1:9]
    assert list_directory("MEMORY://D") == [Item("x", False, len(DATA))]


def test_names_inside_directories(tmp_path):
    assert join("s3://bucket/run", "a") == "s3://bucket/run/a"
    assert join("s3://bucket/run/", "a") == "s3://bucket/run/a"
    assert join("simplecache::s3://b/x", "a") == "simplecache::s3://b/x/a"
    assert join("zip://in::s3://b/x.zip", "a") == "zip://in/a::s3://b/x.zip"
    assert join("hf://org/name@main", "a") == "hf://org/name@main/a"
    assert join(tmp_path, "a") == str(tmp_path / "a")
    assert join("file:///x", "a") == "/x/a"
    assert local_path("~/x") == os.path.expanduser("~/x")


def test_passwords_are_not_shown():
    assert public("https://me:secret@host/x?sig=abc#f") == "https://host/x"
    assert public("hf://org/name@main") == "hf://org/name@main"
    assert public("s3://b/x?versionId=1") == "s3://b/x?versionId=1"


# Reading


@pytest.fixture(params=["held", "reopened", "file URL", "memory", "cached"])
def source(request, tmp_path, memory):
    (tmp_path / "x").write_bytes(DATA)
    memory.pipe_file("/d/x", DATA)
    opened = {
        "held": lambda: open_source(tmp_path / "x"),
        "reopened": lambda: open_source(str(tmp_path / "x"), hold=False),
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


@pytest.mark.parametrize("hold", [True, False])
def test_a_local_file_that_shrinks(tmp_path, hold):
    path = tmp_path / "x"
    path.write_bytes(DATA)
    with open_source(path, hold=hold, error=CheckpointError) as source:
        os.truncate(path, 100)
        with pytest.raises((Truncated, CheckpointError), match=r"ends at byte 100|changed while"):
            source.read(0, 101)
        with pytest.raises((Truncated, CheckpointError)):
            source.read_into(50, memoryview(bytearray(100)))


def test_a_local_file_that_is_replaced(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(DATA)
    held, reopened = open_source(path), open_source(path, hold=False, error=CheckpointError)
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


def test_no_descriptor_is_left(tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    sources = [open_source(tmp_path / "x", hold=False) for _ in range(50)]
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


def test_a_missing_backend_is_named(monkeypatch):
    def fail(*args, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(InvalidArgument, match="cannot open s3://b/x: ImportError: Install s3fs"):
        open_source("s3://b/x")


class Odd(MemoryFileSystem):
    """A memory filesystem whose answers are wrong in a way chosen by each test."""

    protocol = "odd"
    cachable = False
    answer = staticmethod(lambda data, start, end: data[start:end])
    calls: list[tuple[int, int]]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("odd://").strip("/")

    def cat_file(self, path, start=None, end=None, **options):
        Odd.calls.append((start, end))
        return Odd.answer(super().cat_file(path), start, end)


@pytest.fixture
def odd(memory, monkeypatch):
    fsspec.register_implementation("odd", Odd, clobber=True)
    memory.pipe_file("/x", DATA)
    monkeypatch.setattr(Odd, "calls", [], raising=False)

    def use(answer):
        monkeypatch.setattr(Odd, "answer", staticmethod(answer))
        return open_source("odd://x")

    return use


def test_requests_have_both_ends_and_close_ones_are_merged(odd):
    source = odd(lambda data, start, end: data[start:end])
    ranges = [(200_000, 200_100), (10, 20), (40, 50), (50, 50), (65_000, 65_010)]
    assert source.read_many(ranges) == [DATA[a:b] for a, b in ranges]
    assert sorted(Odd.calls) == [(10, 65_010), (200_000, 200_100)]


def test_answers_of_another_length(odd):
    source = odd(lambda data, start, end: data)
    with pytest.raises(Corrupt, match="server ignored the range: 256000 bytes instead of 10 from 0"):
        source.read(0, 10)
    source = odd(lambda data, start, end: data[start : end - 1])
    with pytest.raises(Truncated, match="9 bytes instead of 10 from 5"):
        source.read(5, 15)
    with pytest.raises(Truncated):
        source.read_many([(0, 10), (200_000, 200_010)])


def test_errors_of_a_backend_are_reported_in_one_line(odd, monkeypatch):
    def fail(data, start, end):
        raise TimeoutError("no answer\nfrom the server")

    source = odd(fail)
    with pytest.raises(InvalidArgument, match="odd://x cannot be read: TimeoutError: no answer from the server"):
        source.read(0, 10)
    monkeypatch.setattr(Odd, "cat_ranges", lambda self, paths, *a, **k: [OSError("returned")] * len(paths))
    with pytest.raises(InvalidArgument, match="returned"):
        source.read(0, 10)
    monkeypatch.setattr(Odd, "cat_ranges", lambda self, paths, *a, **k: [])
    with pytest.raises(InvalidArgument, match="0 answers to 1"):
        source.read(0, 10)
    monkeypatch.setattr(Odd, "info", lambda self, path, **k: {"name": path, "type": "file", "size": None})
    with pytest.raises(InvalidArgument, match="known size"):
        open_source("odd://x")


def test_distant_ranges_are_read_concurrently(odd):
    together = threading.Barrier(3, timeout=20)

    def wait(data, start, end):
        together.wait()
        return data[start:end]

    ranges = [(0, 10), (100_000, 100_010), (200_000, 200_010)]
    assert odd(wait).read_many(ranges) == [DATA[a:b] for a, b in ranges]


class HubFile(AbstractBufferedFile):
    """A file that is read through a buffer, as those of the Hub are."""

    def _fetch_range(self, start, end):
        self.fs.calls.append((start, end))
        return DATA[start:end]


class Hub(AbstractFileSystem):
    protocol = "hf"
    cachable = False

    def info(self, path, **options):
        return {"name": path, "type": "file", "size": len(DATA)}

    def _open(self, path, mode="rb", cache_type="readahead", **options):
        return HubFile(self, path, mode, cache_type=cache_type)


def test_the_hub_is_not_read_ahead():
    filesystem = Hub()
    filesystem.calls = []
    source = RemoteSource(filesystem, "org/name/x", shown="hf://org/name/x")
    assert source.read(5, 15) == DATA[5:15]
    ranges = [(10, 20), (100_000, 100_020), (200_000, 200_040)]
    assert source.read_many(ranges) == [DATA[a:b] for a, b in ranges]
    assert sorted(filesystem.calls) == [(5, 15), *ranges]


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


def test_a_file_on_any_other_filesystem_that_is_replaced(memory):
    memory.pipe_file("/d/x", DATA)
    source = open_source("memory://d/x", error=CheckpointError)
    assert source.read(0, 10) == DATA[:10]
    memory.pipe_file("/d/x", DATA[::-1])
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        source.read(0, 10)
    memory.pipe_file("/d/x", DATA[:5])
    with pytest.raises((CheckpointError, Truncated), match=r"changed while|5 bytes"):
        source.read(0, 10)


class Failing(MemoryFileSystem):
    """A memory filesystem that fails so many times."""

    protocol = "failing"
    cachable = False
    left = 0
    calls = 0

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("failing://").strip("/")

    def cat_file(self, path, start=None, end=None, **options):
        type(self).calls += 1
        if type(self).left:
            type(self).left -= 1
            raise ConnectionResetError("gone")
        return super().cat_file(path, start, end)


@pytest.mark.parametrize(("protocol", "calls"), [("failing", 3), ("gs", 1)])
def test_filesystems_that_try_again_by_themselves_are_not_asked_again(memory, monkeypatch, protocol, calls):
    monkeypatch.setenv("RELEX_RETRY_SECONDS", "30")
    monkeypatch.setattr(Failing, "protocol", protocol)
    monkeypatch.setattr(Failing, "calls", 0)
    memory.pipe_file("/x", DATA)
    source = RemoteSource(Failing(), "/x", shown=f"{protocol}://x", settings=split(None)[0])
    monkeypatch.setattr(Failing, "left", 2)
    if calls == 1:
        with pytest.raises(InvalidArgument, match="gone"):
            source.read(0, 10)
    else:
        assert source.read(0, 10) == DATA[:10]
    assert Failing.calls == calls


def test_a_commit_of_the_hub_is_not_looked_at_again():
    filesystem = Hub()
    refreshed = []
    filesystem.calls = []
    details = {"name": "x", "type": "file", "size": 100}
    filesystem.info = lambda path, refresh=False, **options: refreshed.append(refresh) or details
    commit = "0123456789abcdef" * 2 + "01234567"
    RemoteSource(filesystem, f"org/name@{commit}/x", shown="hf://x").read(0, 10)
    assert not any(refreshed)
    RemoteSource(filesystem, "org/name@main/x", shown="hf://x").read(0, 10)
    assert sum(refreshed) == 2  # a branch may move: before and after


@pytest.mark.parametrize("cache", ["simplecache", "filecache"])  # blockcache leaves its files open
def test_caches_of_fsspec_above_a_web_server_that_lists_nothing(own_web, tmp_path, cache):
    data = bytes(range(256)) * 1000
    own_web.put("d/x", data)
    options = {cache: {"cache_storage": str(tmp_path)}}
    with open_source(f"{cache}::{own_web.url('d/x')}", options) as source:
        assert source.size == len(data)
        assert source.read(100_000, 200_000) == data[100_000:200_000]
