"""Remote files: requests, answers, and filesystems that have their ways."""

from __future__ import annotations

import threading

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from relex_codec.errors import CheckpointError, Corrupt, InvalidArgument, Truncated
from relex_codec.storage.config import split_options
from relex_codec.storage.open import open_source
from relex_codec.storage.remote import RemoteSource
from support.versions import FSSPEC

DATA = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def nothing_is_retried(monkeypatch):
    monkeypatch.setenv("RELEX_RETRY_SECONDS", "0")


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


def test_errors_of_a_filesystem_are_reported_in_one_line(odd, monkeypatch):
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


@pytest.mark.skipif(FSSPEC < (2025, 11), reason="older releases of fsspec read ahead whatever they are told")
def test_the_hub_is_not_read_ahead():
    filesystem = Hub()
    filesystem.calls = []
    source = RemoteSource(filesystem, "org/name/x", shown="hf://org/name/x")
    assert source.read(5, 15) == DATA[5:15]
    ranges = [(10, 20), (100_000, 100_020), (200_000, 200_040)]
    assert source.read_many(ranges) == [DATA[a:b] for a, b in ranges]
    assert sorted(filesystem.calls) == [(5, 15), *ranges]


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
    source = RemoteSource(Failing(), "/x", shown=f"{protocol}://x", config=split_options(None)[0])
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
