"""What goes wrong between a reader and a server: what passes is tried again, what does not is said at once."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec.errors import CheckpointError, Corrupt, InvalidArgument, RelexError, Truncated
from relex_codec.storage.header_cache import HEADER_CACHE
from relex_codec.storage.open import list_directory, open_source
from relex_codec.storage.prefetch import PrefetchingSource
from relex_codec.storage.source import Source
from support.checkpoints import write_checkpoint, write_run
from support.clock import count_attempts_as_seconds
from support.servers.counting import Answer, CountingServer, Files, proxy_of
from support.servers.fixtures import LIBRARIES, Bucket, bucket_on, web_on
from support.tensors import bf16
from support.versions import FSSPEC

pytestmark = pytest.mark.usefixtures("nothing_kept")
DATA = bytes(range(256)) * 1024  # four times what opening reads
LOW, HIGH = 100_000, 200_000
PASSING = ["reset", "cut", "short", "500", "502", "503", "429", "slow_down", "stall"]


class Place:
    """An object at a server, how to open it, and with which method it is asked for its version alone."""

    def __init__(
        self,
        proxy: CountingServer,
        url: str,
        options: dict[str, Any],
        put: Callable[[bytes], None],
        looks: str = "HEAD",
    ) -> None:
        self.proxy, self.url, self.put, self.options, self.looks = proxy, url, put, options, looks
        put(DATA)

    def open(self, error: type[RelexError] = InvalidArgument, **settings: Any) -> Source:
        return open_source(self.url, {**self.options, "relex": settings}, error=error)

    def opened(self, retry_seconds: float | None = None, **settings: Any) -> Source:
        """Open and forget the requests of that; failed reads are made again for `retry_seconds`.

        Opening has time: on a busy machine it may take longer than the timeout that a test wants to see.
        """
        found = self.open(**settings)
        assert isinstance(found, PrefetchingSource)
        if retry_seconds is not None:
            found.inner._config = dataclasses.replace(found.inner._config, retry_seconds=retry_seconds)
        self.proxy.clear()
        return found

    def requests_seen(self, expected: int) -> int:
        """Return how many requests there were, after waiting for those that a reader has given up, but are on the way.

        The server notes a request before it answers; on a busy machine that may be after the timeout of the reader.
        """
        until = time.monotonic() + 30
        while len(self.proxy.seen) < expected and time.monotonic() < until:
            time.sleep(0.01)
        return len(self.proxy.seen)


@contextmanager
def place_at(kind: str, request: pytest.FixtureRequest) -> Iterator[Place]:
    if kind in LIBRARIES:
        with bucket_on(request.getfixturevalue("stores")(kind)) as bucket:
            put, looks = functools.partial(bucket.put, "x"), bucket.server.looks
            yield Place(bucket.proxy, bucket.url("x"), bucket.options, put, looks)
    elif kind in ("hub", "hub_storage"):
        hub = request.getfixturevalue("hub")
        repository = hub.add("org/name")
        name = "x" if kind == "hub" else "x.relex"  # answered by the Hub itself, or by the storage it redirects to
        with proxy_of("127.0.0.1", int(hub.url.rpartition(":")[2])) as storage:
            hub.storage_url = f"{storage.url}/storage"
            server = hub.server if kind == "hub" else storage
            yield Place(server, f"hf://org/name/{name}", {}, lambda data: repository.commit({name: data}))
    else:
        with web_on(kind, request.getfixturevalue("nginx_server")) as web:
            yield Place(web.proxy, web.url("x"), {}, lambda data: web.put("x", data))


REPLACEABLE = [*LIBRARIES, "nginx", "own"]
PROXIED = [name for name in REPLACEABLE if name not in ("s3rver", "nginx")] + ["hub", "hub_storage"]
"""One of each protocol: a fault is made by the proxy, and what stands behind it does not matter."""


@pytest.fixture(params=[*REPLACEABLE, "hub", "hub_storage"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_at(request.param, request) as found:
        yield found


@pytest.fixture(params=PROXIED)
def proxied(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Where what fails is the connection, not the server."""
    with place_at(request.param, request) as found:
        yield found


@pytest.fixture(params=REPLACEABLE)
def replaceable(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Where what was opened is gone once it is replaced; a commit of the Hub stays."""
    with place_at(request.param, request) as found:
        yield found


# What passes


@pytest.mark.parametrize("fault", PASSING)
def test_a_failure_that_passes_costs_one_request_more(proxied: Place, fault: str) -> None:
    source = proxied.opened(timeout=1 if fault == "stall" else 30, retry_seconds=60)
    proxied.proxy.fail(fault)
    assert source.read(LOW, HIGH) == DATA[LOW:HIGH]
    assert proxied.proxy.requests == ["GET bytes=100000-199999"] * 2


@pytest.mark.parametrize("fault", PASSING)
def test_a_failure_that_stays_is_reported_as_what_it_is(
    proxied: Place, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = proxied.opened(timeout=0.5 if fault == "stall" else 30, retry_seconds=3)
    proxied.proxy.fail(fault, 1000)
    error = Truncated if fault == "short" else InvalidArgument
    count_attempts_as_seconds(monkeypatch)
    with pytest.raises(error, match=r" \(3 attempts in 3 s\)") as caught:
        source.read(LOW, HIGH)
    assert str(caught.value).startswith(proxied.url) and "\n" not in str(caught.value)
    if fault == "slow_down" and proxied.url.startswith("s3"):
        assert "Please reduce your request rate" in str(caught.value)
    assert proxied.requests_seen(3) == 3


@pytest.mark.parametrize("fault", PASSING)
def test_nothing_below_tries_again_by_itself(proxied: Place, fault: str) -> None:
    # a short timeout only where it is what ends the request
    source = proxied.opened(timeout=0.5 if fault == "stall" else 30, retry_seconds=0)
    proxied.proxy.fail(fault, 1000)
    with pytest.raises(RelexError) as caught:
        source.read(LOW, HIGH)
    assert "attempts" not in str(caught.value)
    assert proxied.requests_seen(1) == 1


@pytest.mark.parametrize("fault", ["reset", "slow_down", "short"])
def test_opening_is_tried_again(place: Place, fault: str) -> None:
    place.proxy.fail(fault)
    with place.open(retry_seconds=30) as source:
        assert (source.size, len(place.proxy.seen)) == (len(DATA), 2)
    place.proxy.clear()
    place.proxy.fail("503")
    with place.open(retry_seconds=30) as source:  # by its version alone, as it is known
        if not place.url.endswith(".relex"):  # of which the Hub tells without its storage
            assert [(seen.method, seen.range) for seen in place.proxy.seen] == [(place.looks, None)] * 2
        assert source.read(0, 10) == DATA[:10]


def test_several_failures_one_after_another(place: Place) -> None:
    source = place.opened(retry_seconds=60)
    for fault in ("reset", "503", "short", "500"):
        place.proxy.fail(fault)
    assert source.read(LOW, HIGH) == DATA[LOW:HIGH]
    assert len(place.proxy.seen) == 5


def test_the_limit_from_the_environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEX_RETRY_SECONDS", "0")
    source = place.opened()
    place.proxy.fail("503")
    with pytest.raises(InvalidArgument, match="RELEX_RETRY_SECONDS"):
        source.read(LOW, HIGH)
    assert len(place.proxy.seen) == 1


# What does not


@pytest.mark.parametrize(
    ("status", "message"), [("403", "check permissions or credentials"), ("404", "does not exist")]
)
def test_what_does_not_pass_is_said_at_once(place: Place, status: str, message: str) -> None:
    source = place.opened(retry_seconds=60)
    place.proxy.fail(status, 1000)
    with pytest.raises(InvalidArgument, match=message) as caught:
        source.read(LOW, HIGH)
    assert str(caught.value).startswith(place.url)
    assert len(place.proxy.seen) == 1
    HEADER_CACHE.clear()
    place.proxy.clear()
    place.proxy.fail(status, 1000)
    with pytest.raises(CheckpointError, match=message):
        place.open(CheckpointError, retry_seconds=60)
    assert len(place.proxy.seen) == 1


def test_a_server_that_ignores_ranges_is_named(place: Place) -> None:
    source = place.opened(retry_seconds=60)
    place.proxy.fail("no_range", 1000)
    with pytest.raises(Corrupt, match="the server ignored the range: 262144 bytes instead of 100000 from 100000") as e:
        source.read(LOW, HIGH)
    assert str(e.value).startswith(place.url)
    assert len(place.proxy.seen) == 1
    HEADER_CACHE.clear()
    with pytest.raises(Corrupt, match="ignored the range: 262144 bytes instead of 65536 from 0"):
        place.open()


def test_small_and_empty_objects(place: Place) -> None:
    place.put(b"abc")
    with place.open() as source:
        assert (source.size, source.read(0, 3), len(place.proxy.seen)) == (3, b"abc", 1)
    HEADER_CACHE.clear()
    place.proxy.fail("no_range")  # all of it, without a word of ranges: just what was asked for
    with place.open() as source:
        assert (source.size, source.read(1, 3)) == (3, b"bc")
    if place.options.get("key") == "S3RVER":
        return  # it breaks the connection where a range of an empty object is asked for
    HEADER_CACHE.clear()
    place.put(b"")
    with place.open() as source:
        assert (source.size, source.read(0, 0)) == (0, b"")


def test_a_missing_bucket(bucket: Bucket) -> None:
    scheme = bucket.server.scheme
    kind = "container" if scheme == "az" else "bucket"
    with pytest.raises(InvalidArgument, match=f"there is no such {kind}; check its name"):
        open_source(f"{scheme}://no-such-bucket-here/x", bucket.options)
    assert len(bucket.proxy.seen) == 1
    bucket.proxy.clear()
    with pytest.raises(InvalidArgument, match="does not exist"):
        open_source(bucket.url("none"), bucket.options)
    assert len(bucket.proxy.seen) == 1
    with pytest.raises(InvalidArgument, match=f"a {kind} is not a file"):
        open_source(f"{scheme}://{bucket.name}", bucket.options)
    for path in ("no-such-bucket-here/x", f"{bucket.name}/none"):
        with pytest.raises(CheckpointError, match=f"no such {kind}|does not exist"):
            list_directory(f"{scheme}://{path}", bucket.options, error=CheckpointError)
    bucket.put("file", b"1")
    with pytest.raises(CheckpointError, match="is not a directory"):
        list_directory(bucket.url("file"), bucket.options, error=CheckpointError)


def without_credentials(bucket: Bucket) -> dict[str, Any]:
    """Options for the servers by which none are found; Azure's are looked for even where nothing listens."""
    if bucket.server.scheme == "az":
        return {"account_name": "x", "account_host": "127.0.0.1:9", "exclude_managed_identity_credential": True}
    return {name: value for name, value in bucket.options.items() if name not in ("key", "secret", "token")}


def test_missing_credentials(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "PATH"):  # nor those of programs for developers
        monkeypatch.setenv(name, str(tmp_path))
    options = without_credentials(bucket)
    bucket.proxy.fail("401", 1000)  # as Google says: gcsfs goes on without
    with pytest.raises(InvalidArgument, match="no credentials were found; set those of the storage") as caught:
        open_source(bucket.url("x"), options)
    assert {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}[bucket.server.scheme] in str(caught.value)
    with pytest.raises(CheckpointError, match="no credentials were found"):
        list_directory(bucket.url(""), options, error=CheckpointError)
    assert len(bucket.proxy.seen) == (2 if bucket.server.scheme == "gs" else 0)


def test_a_missing_account(cloud_environment: None) -> None:
    pytest.importorskip("adlfs")
    with pytest.raises(InvalidArgument, match="no storage account is named; set AZURE_STORAGE_ACCOUNT_NAME"):
        open_source("az://container/x")


def test_signed_urls() -> None:
    """They are signed for one method, and what they are signed with is no one else's business."""
    pytest.importorskip("aiohttp")
    files = Files()
    with files.server() as server:
        inner = server.answer
        server.answer = lambda method, path, *rest: (
            Answer(403, {}, b"") if method == "HEAD" else inner(method, path.split("?")[0], *rest)
        )
        files["/x"] = DATA
        url = f"{server.url}/x?signature=secret"
        for _ in range(2):
            with open_source(url) as source:
                assert source.read(LOW, HIGH) == DATA[LOW:HIGH]
        with open_source(url) as source:
            server.fail("403")
            with pytest.raises(InvalidArgument, match=r"the server answered 403 .*; check permissions") as refused:
                source.read(LOW, HIGH)
        with pytest.raises(InvalidArgument, match="is closed"):
            source.read(LOW, HIGH)
        if FSSPEC < (2025, 10):
            return  # HEAD and GET are tried by turns, and the failure of one is not seen
        HEADER_CACHE.clear()
        server.fail("500")
        with pytest.raises(InvalidArgument, match="the server answered 500") as failed:
            open_source(url, {"relex": {"retry_seconds": 0}})
        assert "secret" not in f"{refused.value} {failed.value}"


def test_nobody_listens() -> None:
    pytest.importorskip("aiohttp")
    with Files().server() as server:
        url = server.url
    with pytest.raises(InvalidArgument, match=r"x cannot be read: .*try again later"):
        open_source(f"{url}/x", {"relex": {"retry_seconds": 0.1}})


# Objects that are replaced


def test_an_object_that_is_replaced_between_reads(replaceable: Place) -> None:
    source = replaceable.open(CheckpointError)
    assert source.read(LOW, HIGH) == DATA[LOW:HIGH]
    replaceable.put(DATA[::-1])
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        source.read(LOW, HIGH)
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        source.read_many([(LOW, LOW + 10), (HIGH, HIGH + 10)])
    with replaceable.open() as again:
        assert again.read(LOW, HIGH) == DATA[::-1][LOW:HIGH]


def test_an_object_that_shrank(replaceable: Place) -> None:
    source = replaceable.open()
    replaceable.put(DATA[:1000])
    with pytest.raises(InvalidArgument, match="changed while it was being read"):
        source.read(LOW, HIGH)


def test_an_object_that_is_replaced_while_a_failed_request_waits(replaceable: Place) -> None:
    source = replaceable.opened(retry_seconds=60)
    inner = replaceable.proxy.answer

    def replace_first(*request: Any) -> Answer:
        replaceable.proxy.answer = inner
        replaceable.put(DATA[::-1])
        return Answer(503, {}, b"")

    replaceable.proxy.answer = replace_first
    with pytest.raises(InvalidArgument, match="changed while it was being read"):
        source.read(LOW, HIGH)


@pytest.mark.parametrize("later", [True, False])
def test_a_server_without_etags(later: bool) -> None:
    if later and FSSPEC < (2025, 10):
        pytest.skip("older releases of fsspec do not tell when a file was modified")
    pytest.importorskip("aiohttp")
    files = Files({"/x": DATA}, etags=False)
    with files.server() as server, open_source(f"{server.url}/x") as source:
        assert source.read(LOW, HIGH) == DATA[LOW:HIGH]
        files["/x"] = DATA[::-1] if later else DATA[:-1]
        if later:
            files.modified["/x"] = 1e9
        with pytest.raises(InvalidArgument, match="changed while it was being read"):
            source.read(LOW, HIGH)


# Whole steps


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("faults")
    rng = np.random.default_rng(3)
    start, drift = (rng.standard_normal((4, 700, 500), np.float32) * scale for scale in (0.05, 2e-3))

    def at(step: int) -> Any:
        return {f"w{i}": bf16(start[i] + drift[i] * step) for i in range(4)}

    write_checkpoint(root / "base", at(0))
    write_run(root / "run", [2, 5], at)
    relex_codec.encode(root / "run", root / "run.relex", base=root / "base", quality="raw")
    return root


@pytest.fixture
def remote_run(moto_bucket: Bucket, run_files: Any) -> Callable[..., relex_codec.Run]:
    moto_bucket.put("run.relex", (run_files / "run.relex").read_bytes())
    moto_bucket.upload(run_files / "base", "base")

    def open_run(**settings: Any) -> relex_codec.Run:
        return relex_codec.open(
            moto_bucket.url("run.relex"),
            base=moto_bucket.url("base"),
            storage_options={**moto_bucket.options, "relex": settings},
        )

    return open_run


def test_a_whole_step_over_a_bad_line(remote_run: Any, moto_bucket: Bucket, run_files: Any) -> None:
    with remote_run(timeout=1, retry_seconds=60) as run:
        run._reader.base_reader()
        for fault in ("reset", "slow_down", "short", "stall"):
            moto_bucket.proxy.fail(fault)
        found = run.state_dict(4)
    with relex_codec.open(run_files / "run.relex", base=run_files / "base") as local:
        assert all((found[name] == value).all() for name, value in local.state_dict(4).items())


def test_a_whole_step_that_fails_leaves_nothing_running(remote_run: Any, moto_bucket: Bucket) -> None:
    with remote_run(retry_seconds=0.2) as run:
        run._reader.base_reader()
        moto_bucket.proxy.fail("503", 1000)
        with pytest.raises(RelexError, match="attempts"):
            run.state_dict(4)
        assert not [t for t in threading.enumerate() if t.name.startswith("relex-prefetch")]
        moto_bucket.proxy.clear()
        assert len(run.state_dict(4)) == 4


def test_a_file_that_is_replaced_during_a_step(remote_run: Any, moto_bucket: Bucket, run_files: Any) -> None:
    other = (run_files / "run.relex").read_bytes()[:-1] + os.urandom(1)
    with remote_run() as run:
        run._reader.base_reader()
        run._reader.bits("w0", 4)
        moto_bucket.put("run.relex", other)
        with pytest.raises(InvalidArgument, match="changed while it was being read"):
            run.state_dict(4)
        moto_bucket.put("run.relex", (run_files / "run.relex").read_bytes())
        run.state_dict(4)  # the same again
        moto_bucket.put("base/model.safetensors", (run_files / "base" / "model.safetensors").read_bytes()[:-1] + b"x")
        with pytest.raises(CheckpointError, match="changed while it was being read"):
            run.state_dict(4)


def test_listing_is_tried_again(bucket: Bucket) -> None:
    bucket.put("a/b", b"1")
    bucket.put("a/below/c", b"12")
    bucket.put("ab", b"1")
    bucket.proxy.fail("503")
    items = list_directory(bucket.url("a"), {**bucket.options, "relex": {"retry_seconds": 30}})
    assert items == [("b", False, 1), ("below", True, 0)] and len(bucket.proxy.seen) == 2
    bucket.proxy.clear()
    bucket.put("a/c", b"1")  # what was listed before is not remembered
    assert [item.name for item in list_directory(bucket.url("a/"), bucket.options)] == ["b", "below", "c"]
    assert [item.name for item in list_directory(bucket.url(""), bucket.options)] == ["a", "ab"]
    assert len(bucket.proxy.seen) == 2
    bucket.proxy.clear()
    bucket.proxy.fail("403", 1000)
    with pytest.raises(InvalidArgument, match="check permissions or credentials"):
        list_directory(bucket.url("a"), bucket.options)
    bucket.proxy.clear()
    bucket.proxy.fail("503", 1000)
    with pytest.raises(InvalidArgument, match="try again later"):
        list_directory(bucket.url("a"), {**bucket.options, "relex": {"retry_seconds": 0}})
    assert len(bucket.proxy.seen) == 1
