"""What object stores have each in their own way: names, listings, timeouts, releases of their libraries."""

from __future__ import annotations

import json
import threading
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from relex_codec.core.cancellation import Cancelled, CancelScope
from relex_codec.errors import InvalidArgument
from relex_codec.storage.config import StorageConfig
from relex_codec.storage.open import list_directory, open_source
from relex_codec.storage.stores.azure import AzureStore
from relex_codec.storage.stores.fsspec_store import FsspecStore
from relex_codec.storage.stores.gcs import GCSStore
from relex_codec.storage.stores.registry import store_for
from support.servers.counting import Answer
from support.servers.fixtures import Bucket, bucket_on

pytestmark = pytest.mark.usefixtures("nothing_kept")
DATA = bytes(range(256)) * 1024
ODD = "a folder/ü/100%25 + 1=1&x.bin"


def test_names_that_urls_have_to_quote(bucket: Bucket) -> None:
    bucket.put(ODD, DATA)
    for _ in range(2):  # and once more as known
        with open_source(bucket.url(ODD), bucket.options) as source:
            assert source.size == len(DATA) and source.read(100_000, 100_010) == DATA[100_000:100_010]
    folder, _, name = ODD.rpartition("/")
    assert list_directory(bucket.url(folder), bucket.options) == [(name, False, len(DATA))]
    assert list_directory(bucket.url("a folder"), bucket.options) == [("ü", True, 0)]


@pytest.fixture
def google(stores: Any) -> Any:
    with bucket_on(stores("emulator")) as found:
        yield found


@pytest.fixture
def azure(stores: Any) -> Any:
    with bucket_on(stores("azurite")) as found:
        yield found


def test_all_pages_of_a_listing(google: Bucket) -> None:
    for i in range(5):
        google.put(f"run/{i}", bytes(i))
    inner = google.proxy.answer

    def one_at_a_time(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        found = inner(method, path, headers, body)
        at = int(parse_qs(urlsplit(path).query).get("pageToken", ["0"])[0])
        items = json.loads(found.body)["items"]
        page = {"items": items[at : at + 1]} | ({"nextPageToken": str(at + 1)} if at < 4 else {})
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(page).encode())

    google.proxy.answer = one_at_a_time
    assert list_directory(google.url("run"), google.options) == [(str(i), False, i) for i in range(5)]
    assert len(google.proxy.seen) == 5


def test_what_stands_for_a_directory_is_one(bucket: Bucket) -> None:
    bucket.put("run/", b"")
    bucket.put("run/global_step_1/", b"")
    bucket.put("run/global_step_1/x", b"1")
    assert list_directory(bucket.url("run"), bucket.options) == [("global_step_1", True, 0)]


def test_blobs_that_programs_of_hadoop_put_for_directories(azure: Bucket) -> None:
    azure.put("run/global_step_1/x", b"1")
    azure.filesystem.pipe_file(f"{azure.name}/run/global_step_1", b"")
    azure.filesystem.setxattrs(f"{azure.name}/run/global_step_1", hdi_isfolder="true")
    assert list_directory(azure.url("run"), azure.options) == [("global_step_1", True, 0)]


@pytest.mark.parametrize("store", ["emulator", "azurite"])
def test_nothing_is_sent_of_an_object_that_was_replaced(stores: Any, store: str) -> None:
    with bucket_on(stores(store)) as bucket:
        bucket.put("x", DATA)
        with open_source(bucket.url("x"), bucket.options) as source:
            bucket.put("x", DATA[::-1])
            bucket.proxy.clear()
            with pytest.raises(InvalidArgument, match="changed while it was being read"):
                source.read(100_000, 200_000)
            assert [seen.status for seen in bucket.proxy.seen] == [412]


@pytest.mark.parametrize("store", ["emulator", "azurite"])
def test_timeouts_that_the_caller_gave_the_library_hold(stores: Any, store: str) -> None:
    own = {"emulator": {"requests_timeout": 0.2}, "azurite": {"read_timeout": 0.2}}[store]
    with bucket_on(stores(store)) as bucket:
        bucket.put("x", DATA)
        settings = {"relex": {"timeout": 30, "retry_seconds": 0}}
        with open_source(bucket.url("x"), {**bucket.options, **own, **settings}) as source:
            bucket.proxy.fail("stall")
            began = time.monotonic()
            with pytest.raises(InvalidArgument, match="try again later"):
                source.read(100_000, 200_000)
            assert time.monotonic() - began < 10


def test_a_request_that_nobody_waits_for_is_taken_back(bucket: Bucket) -> None:
    bucket.put("x", DATA)
    with open_source(bucket.url("x"), bucket.options) as source:
        bucket.proxy.fail("stall")
        scope = CancelScope()
        threading.Timer(0.3, scope.cancel).start()
        began = time.monotonic()
        with pytest.raises(Cancelled):
            scope.bind(source.read)(100_000, 200_000)
        assert time.monotonic() - began < 10
        assert source.read(100_000, 200_000) == DATA[100_000:200_000]


class Like:
    """A filesystem with the attributes of another one, but for some."""

    def __init__(self, other: Any, *without: str) -> None:
        self._other, self._without = other, without

    def __getattr__(self, name: str) -> Any:
        if name in self._without:
            raise AttributeError(name)
        return getattr(self._other, name)


@pytest.mark.parametrize(
    ("store", "missing"), [("google", "_get_headers"), ("google", "_set_session"), ("azure", "service_client")]
)
def test_releases_that_lack_what_is_needed_are_read_as_any_filesystem(
    request: pytest.FixtureRequest, store: str, missing: str
) -> None:
    bucket = request.getfixturevalue(store)
    bucket.put("x", DATA)
    name = f"{bucket.name}/x"
    own = GCSStore if store == "google" else AzureStore
    assert type(store_for(bucket.filesystem, name, StorageConfig())) is own
    found = store_for(Like(bucket.filesystem, missing), name, StorageConfig())
    assert type(found) is FsspecStore and found.retries_internally
    assert found.get(10, 20, None).data == DATA[10:20]
