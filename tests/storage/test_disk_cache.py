"""Fetched ranges on disk: used, bounded, shared by processes, and never trusted."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

import relex_codec
from relex_codec.storage.disk_cache import DiskCache, disk_cache_key
from relex_codec.storage.header_cache import HEADER_CACHE
from relex_codec.storage.open import open_source
from support.checkpoints import write_checkpoint, write_run
from support.servers.fixtures import Bucket
from support.tensors import bf16

pytestmark = pytest.mark.usefixtures("nothing_kept")
DATA = os.urandom(300_000)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.range"))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_entries_come_back(tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path / "a" / "b"), 1 << 20)
    assert cache.load("k", 0, 3) is None
    cache.store("k", 0, 3, b"abc")
    assert cache.load("k", 0, 3) == b"abc"
    assert cache.load("k", 0, 2) is None and cache.load("other", 0, 3) is None
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert [path.suffix for path in (tmp_path / "a" / "b").iterdir()] == [".range"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer"])
def test_a_damaged_entry_is_fetched_again(moto_bucket: Bucket, tmp_path: Path, damage: str) -> None:
    moto_bucket.put("x", DATA)
    options = {**moto_bucket.options, "relex": {"cache": str(tmp_path)}}
    with open_source(moto_bucket.url("x"), options) as source:
        assert source.read(100_000, 200_000) == DATA[100_000:200_000]
    (entry,) = entries(tmp_path)
    data = bytearray(entry.read_bytes())
    data[50_000] ^= 1
    entry.write_bytes({"flip": data, "cut": data[:500], "empty": b"", "longer": entry.read_bytes() + b"x"}[damage])
    moto_bucket.proxy.clear()
    for reads in (1, 1):
        with open_source(moto_bucket.url("x"), options) as source:
            assert source.read(100_000, 200_000) == DATA[100_000:200_000]
        assert [seen.method for seen in moto_bucket.proxy.seen].count("GET") == reads
    assert entries(tmp_path) == [entry] and len(entry.read_bytes()) == 100_016


def test_an_entry_that_is_wrong_is_removed(tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path), 1 << 20)
    cache.store("k", 0, 3, b"abc")
    cache.store("k", 3, 6, b"def")
    cache.forget("k", 0, 3)
    cache.forget("k", 0, 4)  # there is none
    assert cache.load("k", 0, 3) is None and cache.load("k", 3, 6) == b"def"


def test_another_version_is_another_entry(moto_bucket: Bucket, tmp_path: Path) -> None:
    options = {**moto_bucket.options, "relex": {"cache": str(tmp_path)}}
    for data in (DATA, DATA[::-1], DATA):
        moto_bucket.put("x", data)
        with open_source(moto_bucket.url("x"), options) as source:
            assert source.read(100_000, 200_000) == data[100_000:200_000]
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("h/x?X-Amz-Signature=1&X-Amz-Date=2", "h/x?X-Amz-Date=3&X-Amz-Signature=4", True),
        ("h/x?versionId=7&X-Amz-Signature=1", "h/x?versionId=7&X-Amz-Signature=2", True),
        ("h/x?versionId=7&X-Amz-Signature=1", "h/x?versionId=8&X-Amz-Signature=1", False),
        ("h/x?Expires=1&Signature=2&Key-Pair-Id=3", "h/x", True),
        ("h/x?sv=2020&sp=r&se=1&sig=a%2B", "h/x?sv=2021&sp=r&se=2&sig=b", True),
        ("h/x?se=1", "h/x?se=2", False),  # nothing is signed here: these say what it is
        ("h/x?id=1", "h/x?id=2", False),
        ("h/x?id=1", "h/x", False),
    ],
)
def test_a_url_that_is_signed_anew_has_the_same_entries(one: str, other: str, same: bool) -> None:
    assert (disk_cache_key(one, "v") == disk_cache_key(other, "v")) is same
    assert disk_cache_key(one, "v") != disk_cache_key(one, "w")


def test_it_is_off_by_default(moto_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    moto_bucket.put("x", DATA)
    with open_source(moto_bucket.url("x"), moto_bucket.options) as source:
        source.read(100_000, 200_000)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("RELEX_CACHE", str(tmp_path / "cache"))
    HEADER_CACHE.clear()
    with open_source(moto_bucket.url("x"), moto_bucket.options) as source:
        source.read(100_000, 200_000)
    assert len(entries(tmp_path / "cache")) == 1


def test_a_step_is_read_from_it(moto_bucket: Bucket, large_file: Path, tmp_path: Path) -> None:
    moto_bucket.put("run.relex", large_file.read_bytes())
    moto_bucket.upload(large_file.parent / "base", "base")
    options = {**moto_bucket.options, "relex": {"cache": str(tmp_path)}}
    found = []
    for _ in range(2):
        HEADER_CACHE.clear()
        moto_bucket.proxy.clear()
        with relex_codec.open(
            moto_bucket.url("run.relex"), base=moto_bucket.url("base"), storage_options=options
        ) as run:
            found.append(run.state_dict(5))
    assert all((found[0][name] == found[1][name]).all() for name in found[0])
    gets = [seen for seen in moto_bucket.proxy.seen if seen.method == "GET" and seen.range]
    assert all(seen.range == "bytes=0-65535" for seen in gets)  # what opening reads, to learn the version


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cached")
    rng = np.random.default_rng(3)
    start, drift = (rng.standard_normal((2, 500, 500), np.float32) * scale for scale in (0.05, 2e-3))
    write_checkpoint(root / "base", {f"w{i}": bf16(start[i]) for i in range(2)})
    write_run(root / "run", [2, 5], lambda step: {f"w{i}": bf16(start[i] + drift[i] * step) for i in range(2)})
    relex_codec.encode(root / "run", root / "run.relex", base=root / "base", quality="raw")
    return root / "run.relex"


def test_the_bound_is_kept_and_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = DiskCache(str(tmp_path), 10_000)
    for i in range(9):
        cache.store("k", i, i + 984, bytes(984))
        path = cache._path("k", i, i + 984)
        os.utime(path, (1000 + i, 1000 + i))
    assert cache.load("k", 0, 984) is not None  # used: now the newest
    for i in range(9, 12):
        cache.store("k", i, i + 984, bytes(984))
        assert size_of(tmp_path) <= 10_000
    kept = [i for i in range(12) if cache.load("k", i, i + 984) is not None]
    assert 0 in kept and 1 not in kept and kept[-3:] == [9, 10, 11]
    cache.store("k", 0, 20_000, bytes(20_000))  # more than the whole cache may hold
    assert cache.load("k", 0, 20_000) is None and size_of(tmp_path) <= 10_000


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    old, new = (tmp_path / f"{letter * 40}.range.{letter * 12}.part" for letter in "ab")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    DiskCache(str(tmp_path), 10_000).store("k", 0, 3, b"abc")
    assert not old.exists() and new.exists()


def test_other_files_in_the_directory_stay(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("thesis.mkv.part", "my.range", f"{'g' * 40}.range")]
    for path in others:
        path.write_bytes(b"x" * 10_000)
        os.utime(path, (time.time() - 7200,) * 2)
    cache = DiskCache(str(tmp_path), 2_000)
    for i in range(9):
        cache.store("k", i, i + 500, bytes(500))
    assert all(path.exists() for path in others)
    assert sum(path.suffix == ".range" for path in tmp_path.iterdir()) <= 3 + 2


def test_a_disk_that_fails_costs_nothing_but_time(moto_bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    moto_bucket.put("x", DATA)
    options = {**moto_bucket.options, "relex": {"cache": str(tmp_path / "file" / "below")}}
    with open_source(moto_bucket.url("x"), options) as source:
        assert source.read(100_000, 200_000) == DATA[100_000:200_000]


def _work(folder: str, seed: int) -> None:
    cache = DiskCache(folder, 200_000)
    for i in range(200):
        number = (i * 7 + seed) % 40
        content = bytes([number]) * 9_000
        found = cache.load("k", number, number + 9_000)
        assert found is None or found == content
        cache.store("k", number, number + 9_000, content)


def test_processes_share_a_directory(tmp_path: Path) -> None:
    workers = [multiprocessing.get_context("spawn").Process(target=_work, args=(str(tmp_path), i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert all(path.suffix == ".range" for path in tmp_path.iterdir())
    assert size_of(tmp_path) <= 200_000 * (1 + 3 / 32) + 3 * 9_016
