"""Files and directories at URLs are there completely, or in a way that nothing takes for complete."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relex_codec.errors import InvalidArgument
from relex_codec.storage.local_directory import AtomicDirectory
from relex_codec.storage.local_writer import AtomicFile
from relex_codec.storage.outputs import UploadedDirectory, UploadedFile, output_directory, output_file
from relex_codec.storage.upload import PART, UploadTarget, put_options
from relex_codec.storage.urls import options_for
from support.clock import count_attempts_as_seconds
from support.faulty import Faulty, waiting

pytestmark = pytest.mark.usefixtures("scratch")
DATA = bytes(range(256)) * 1000


def put(url: str, data: bytes = DATA, options: Any = None) -> None:
    with output_file(url, options) as file:
        assert file.write(data[:10]) == 10
        assert file.tell() == 10
        file.write(memoryview(data)[10:])
        assert os.path.isdir(file.scratch)


def put_all(url: str, names: list[str], options: Any = None) -> None:
    with output_directory(url, options) as directory:
        for name in names:
            with directory.file(name) as file:
                file.write(DATA)
            assert not os.path.exists(file.path) or isinstance(directory, AtomicDirectory)


def found(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- What passes ----


def test_an_upload_that_fails_for_a_moment_is_tried_again(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    upload, failures = type(memory).put_file, [ConnectionResetError(104, "Connection reset"), TimeoutError()]

    def put_file(self: Any, *arguments: Any, **options: Any) -> None:
        if failures:
            raise failures.pop()
        upload(self, *arguments, **options)

    monkeypatch.setattr(type(memory), "put_file", put_file)
    put("memory://a/x", options={"relex": {"retry_seconds": 60}})
    assert memory.cat_file("/a/x") == DATA and not failures
    failures += [ConnectionResetError(104, "Connection reset")] * 1000
    count_attempts_as_seconds(monkeypatch)
    for seconds in (0, 3):
        left = len(failures)
        with pytest.raises(InvalidArgument, match="cannot write memory://a/y: Connection reset"):
            put("memory://a/y", options={"relex": {"retry_seconds": seconds}})
        assert left - len(failures) == max(1, seconds)
    failures[:] = [PermissionError(13, "Permission denied")] * 2
    with pytest.raises(InvalidArgument, match="Permission denied"):
        put("memory://a/y", options={"relex": {"retry_seconds": 60}})
    assert len(failures) == 1
    assert not memory.exists("/a/y")


def test_a_failed_upload_leaves_the_old_file_under_the_name_itself(
    memory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in object stores, where there is no temporary name, and a file appears when all of it is there."""
    (tmp_path / "new").write_bytes(DATA)
    memory.pipe_file("/b/x", b"the old run, the only copy")
    target = UploadTarget("memory://b/x", {"relex": {"retry_seconds": 0}})
    target.scheme = "s3"
    upload = type(memory).put_file

    def refused(self: Any, *arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "quota exceeded")

    def cut(self: Any, path: str, name: str, **options: Any) -> None:
        self.pipe_file(name, DATA[:10])

    monkeypatch.setattr(type(memory), "put_file", refused)
    with pytest.raises(InvalidArgument, match="quota exceeded"):
        target.upload([(str(tmp_path / "new"), target.name)])
    assert memory.cat_file("/b/x") == b"the old run, the only copy"
    monkeypatch.setattr(type(memory), "put_file", cut)
    with pytest.raises(InvalidArgument, match=r"10 bytes arrived of 256,000"):
        UploadTarget("memory://b/y").upload([(str(tmp_path / "new"), "/b/y")])
    assert not memory.exists("/b/y")
    monkeypatch.setattr(type(memory), "put_file", upload)
    again = UploadTarget("memory://b/x")
    again.scheme = "s3"
    again.upload([(str(tmp_path / "new"), again.name)])
    assert memory.cat_file("/b/x") == DATA


# ---- What is written ----


def test_paths_choose_how(tmp_path: Path) -> None:
    assert isinstance(output_file(tmp_path / "x"), AtomicFile)
    assert isinstance(output_file(f"file://{tmp_path}/x"), AtomicFile)
    assert isinstance(output_file("memory://x/y"), UploadedFile)
    assert isinstance(output_directory(tmp_path / "x"), AtomicDirectory)
    assert isinstance(output_directory("memory://x/y"), UploadedDirectory)


def test_memory(memory: Any, scratch: Path) -> None:
    put("memory://a/run.relex")
    put("memory://a/run.relex", DATA[:99])  # over what is there
    put_all("memory://out/", ["one", "two"])
    assert {name: len(memory.cat_file(name)) for name in memory.find("/")} == {
        "/a/run.relex": 99,
        "/out/one": len(DATA),
        "/out/two": len(DATA),
    }
    assert waiting(scratch) == []


@pytest.mark.parametrize("moves_over", [True, False])
def test_a_file_system_that_moves(tmp_path: Path, scratch: Path, moves_over: bool) -> None:
    Faulty.moves_over = moves_over
    (tmp_path / "there").mkdir()
    for data in (DATA, DATA[:77]):
        put(f"faulty://{tmp_path}/there/x", data)
        assert (tmp_path / "there" / "x").read_bytes() == data
    put_all(f"faulty://{tmp_path}/new/deep", ["a", "b"])
    assert found(tmp_path) == ["new/deep/a", "new/deep/b", "there/x"]
    names = [name for kind, name in Faulty.calls if kind == "put"]
    assert len(names) == 4
    assert all(os.path.basename(name).startswith(".relex.tmp-") for name in names)


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # aiohttp, of what gcsfs and adlfs do
def test_object_stores(bucket: Any, scratch: Path) -> None:
    options = bucket.options
    large = np.random.default_rng(0).bytes(2 * PART + 12345)  # in three parts
    put(bucket.url("deep/run.relex"), large, options)
    put(bucket.url("top.relex"), DATA, options)
    put_all(bucket.url("out/"), ["one", "two"], options)
    names = bucket.filesystem.find(bucket.name)
    assert [name.partition("/")[2] for name in names] == ["deep/run.relex", "out/one", "out/two", "top.relex"]
    assert bucket.filesystem.cat_file(f"{bucket.name}/deep/run.relex") == large
    # adlfs sends up to 64 MB in one piece
    part = {"s3": "partNumber", "gs": "upload_id", "az": "deep/run.relex"}[bucket.server.scheme]
    parts = [seen.path for seen in bucket.proxy.seen if part in seen.path and seen.method in ("PUT", "POST")]
    assert len(parts) == (1 if bucket.server.scheme == "az" else 3)
    put(bucket.url("top.relex"), DATA[:50], options)
    assert bucket.filesystem.cat_file(f"{bucket.name}/top.relex") == DATA[:50]
    assert waiting(scratch) == []


def test_a_marker_of_a_directory_is_no_file(bucket: Any) -> None:
    bucket.put("step-1/", b"")
    put_all(bucket.url("step-1"), ["one"], bucket.options)
    with pytest.raises(InvalidArgument, match="exists and is not empty"):
        put_all(bucket.url("step-1"), ["two"], bucket.options)


# ---- What is refused before any work ----


def never(url: str, options: Any = None, *, folder: bool = False) -> None:
    with output_directory(url, options) if folder else output_file(url, options):
        raise AssertionError("entered")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://host/x.relex", "https:// is for reading"),
        ("http://me:secret@host/x.relex?sig=1", "cannot write http://host/x.relex: http:// is for reading"),
        ("hf://org/name/x.relex", "a commit of its own; .*hf upload"),
        ("github://a:b@/x", "is for reading"),
        ("simplecache::memory://a/x", "it is a chain; give the URL of the place itself"),
        ("nosuch://a/x", "nosuch"),
    ],
)
def test_what_cannot_be_written_is_refused_when_made(url: str, message: str) -> None:
    for make in (output_file, output_directory):
        with pytest.raises(InvalidArgument, match=message):
            make(url)


def test_targets_that_cannot_be(memory: Any, tmp_path: Path, scratch: Path) -> None:
    memory.pipe_file("/full/x", b"")
    memory.pipe_file("/file", b"1")
    for url, folder, message in [
        ("memory://full", False, "exists and is a directory"),
        ("memory://full", True, "exists and is not empty"),
        ("memory://file", True, "exists and is not a directory"),
        ("memory://", False, "names no file"),
        (f"faulty://{tmp_path}/none/x", False, "No such file or directory; check that the bucket or directory exists"),
    ]:
        with pytest.raises(InvalidArgument, match=message):
            never(url, folder=folder)
    assert memory.find("/") == ["/file", "/full/x"]
    assert found(tmp_path) == []
    assert waiting(scratch) == []


def test_buckets_that_cannot_be(moto_bucket: Any, scratch: Path) -> None:
    options = moto_bucket.options
    for folder in (False, True):
        with pytest.raises(InvalidArgument, match=r"bucket does not exist; check that the bucket or directory exists"):
            never("s3://no-such-bucket/x", options, folder=folder)
    with pytest.raises(InvalidArgument, match="names no file"):
        never(f"s3://{moto_bucket.name}", options)
    moto_bucket.proxy.fail("403", 9, lambda method, path: method == "PUT")
    with pytest.raises(InvalidArgument, match=r"check the credentials and what they allow"):
        never(moto_bucket.url("x.relex"), options)
    assert waiting(scratch) == []


def test_who_may_write_but_neither_list_nor_remove(moto_bucket: Any) -> None:
    moto_bucket.proxy.fail("403", 99, lambda method, path: method in ("DELETE", "POST") or "list-type" in path)
    put(moto_bucket.url("x.relex"), DATA, moto_bucket.options)
    assert moto_bucket.filesystem.cat_file(f"{moto_bucket.name}/x.relex") == DATA


# ---- What fails on the way ----


@pytest.mark.parametrize(
    ("fault", "message"), [("error", "No space left on device"), ("short", "128,000 bytes arrived of 256,000")]
)
def test_a_failed_upload_keeps_the_file_here(tmp_path: Path, scratch: Path, fault: str, message: str) -> None:
    (tmp_path / "x").write_bytes(b"old")
    Faulty.fault = fault
    with pytest.raises(InvalidArgument, match=rf"cannot write faulty://.*{message}.*is complete: upload /") as caught:
        put(f"faulty://{tmp_path}/x")
    kept = str(caught.value).rpartition(" ")[2]
    assert Path(kept).read_bytes() == DATA
    assert (tmp_path / "x").read_bytes() == b"old"
    assert found(tmp_path) == sorted([str(Path(kept).relative_to(tmp_path)), "x"])


def fail_inside(url: str, error: type[BaseException]) -> None:
    with output_file(url) as file:
        file.write(DATA)
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_file_that_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(error):
        fail_inside(f"faulty://{tmp_path}/x", error)
    assert found(tmp_path) == ["x"] and (tmp_path / "x").read_bytes() == b"old"


def test_a_file_that_cannot_be_moved_to_where_the_old_one_was_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "x").write_bytes(b"old")

    def mv(self: Any, *arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Faulty, "mv", mv)
    with pytest.raises(InvalidArgument, match=r"Permission denied; all of it is there, as .*/\.relex\.tmp-") as caught:
        put(f"faulty://{there}/x")
    (name,) = found(there)
    assert name in str(caught.value) and (there / name).read_bytes() == DATA


def test_an_interrupted_upload_leaves_nothing(tmp_path: Path, scratch: Path) -> None:
    Faulty.fault = "interrupt"
    with pytest.raises(KeyboardInterrupt):
        put(f"faulty://{tmp_path}/x")
    assert found(tmp_path) == []
    assert waiting(scratch) == []


@pytest.mark.parametrize(("fault", "error"), [("error", InvalidArgument), ("interrupt", KeyboardInterrupt)])
@pytest.mark.parametrize("there", [True, False])
def test_a_directory_that_fails_is_emptied(
    tmp_path: Path, scratch: Path, fault: str, error: type[BaseException], there: bool
) -> None:
    target = tmp_path / "out"
    if there:
        target.mkdir()
    Faulty.fault, Faulty.spared = fault, 2
    with pytest.raises(error):
        put_all(f"faulty://{target}", ["a", "b", "c"])
    assert target.exists() == there
    assert found(tmp_path) == []
    assert waiting(scratch) == []


def test_files_of_one_upload_stop_together(tmp_path: Path) -> None:
    names = [str(i) for i in range(40)]
    (tmp_path / "local").write_bytes(DATA)
    Faulty.fault, Faulty.spared = "error", 5

    def write() -> None:
        with UploadedDirectory(f"faulty://{tmp_path}/out") as directory:
            directory.upload([(str(tmp_path / "local"), name) for name in names], keep=True)

    with pytest.raises(InvalidArgument, match="No space left"):
        write()
    assert len([kind for kind, _ in Faulty.calls if kind == "put"]) < 20
    assert found(tmp_path) == ["local"]


def test_a_full_temporary_directory_is_named(memory: Any, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("relex_codec.storage.local_writer.os.write", full)
    with pytest.raises(InvalidArgument, match=rf"cannot write memory://a/x by way of {scratch}.*No space left"):
        put("memory://a/x")
    with pytest.raises(InvalidArgument, match=rf"cannot write memory://a/x by way of {scratch}.*No space left"):
        put_all("memory://a", ["x"])
    assert memory.find("/") == []
    assert waiting(scratch) == []


def test_an_interrupted_upload_of_parts_is_aborted(moto_bucket: Any, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(np.random.default_rng(0).bytes(3 * PART))
    target = UploadTarget(moto_bucket.url("large"), {**moto_bucket.options, "max_concurrency": 1})
    moto_bucket.proxy.latency = 0.2

    def interrupt() -> None:
        while not any("partNumber" in seen.path for seen in moto_bucket.proxy.seen):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    watch = threading.Thread(target=interrupt)
    watch.start()
    with pytest.raises(KeyboardInterrupt):
        target.upload([(str(path), target.name)])
    watch.join()
    call = moto_bucket.filesystem.call_s3
    assert call("list_multipart_uploads", Bucket=moto_bucket.name).get("Uploads", []) == []
    assert moto_bucket.filesystem.find(moto_bucket.name) == []
    assert len([seen for seen in moto_bucket.proxy.seen if "partNumber" in seen.path]) < 3


def test_parts_are_as_many_as_s3_takes() -> None:
    class Filesystem:
        def put_file(self, path: str, name: str, chunksize: int = 0) -> None: ...

    for size in (0, PART, 9_000 * PART, 9_000 * PART + 1, 1 << 40, 5 << 40):
        part = put_options(Filesystem(), size)["chunksize"]
        assert part >= PART and part % (1 << 18) == 0 and part * 10_000 >= size
    assert put_options(Filesystem(), 9_000 * PART) == {"chunksize": PART}


def test_a_failed_upload_of_parts_is_aborted(moto_bucket: Any) -> None:
    moto_bucket.proxy.fail("403", 99, lambda method, path: "partNumber=2" in path)
    with pytest.raises(InvalidArgument, match="check the credentials"):
        put(moto_bucket.url("large"), bytes(2 * PART + 1), moto_bucket.options)
    call = moto_bucket.filesystem.call_s3
    assert call("list_multipart_uploads", Bucket=moto_bucket.name).get("Uploads", []) == []
    assert moto_bucket.filesystem.find(moto_bucket.name) == []


# ---- Options of several URLs ----


def test_options_by_protocol() -> None:
    one = {"key": "a", "client_kwargs": {"region_name": "b"}}
    assert options_for("s3://b/x", one) == one
    assert options_for("s3://b/x", {"client_kwargs": {"c": 1}}) == {"client_kwargs": {"c": 1}}
    by = {"s3": {"key": "a"}, "hf": {"token": "t"}}
    assert options_for("s3://b/x", by) == {"key": "a"}
    assert options_for("hf://org/name", by) == {"token": "t"}
    assert options_for("gs://b/x", by) == {}
    assert options_for("simplecache::s3://b/x", by) == by
    assert options_for("/local", by) == by
    assert options_for("s3://b/x", None) is None
    ours = {"relex": {"retries": 3}}
    assert options_for("s3://b/x", ours) == ours
    assert options_for("s3://b/x", {**by, **ours}) == {"key": "a", **ours}
