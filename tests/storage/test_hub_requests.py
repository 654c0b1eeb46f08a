"""What reading from the Hub costs in requests, which commit they go to, and who is shown the token."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

import relex_codec
from relex_codec.checkpoints.base_model import open_base
from relex_codec.errors import CheckpointError, Corrupt, InvalidArgument
from relex_codec.storage.config import StorageConfig
from relex_codec.storage.header_cache import HEADER_CACHE
from relex_codec.storage.hub import client
from relex_codec.storage.hub.revisions import list_branches, pinned_to_commit
from relex_codec.storage.open import filesystem_of, list_directory, open_source
from relex_codec.storage.stores.hub import HubStore
from relex_codec.storage.stores.registry import store_for
from support.checkpoints import checkpoint_files
from support.hub_server import SIGNATURE, Hub, end_sessions
from support.tensors import bf16

pytestmark = pytest.mark.usefixtures("nothing_kept")
DATA = bytes(range(256)) * 1024  # four times what opening reads
BASE = {name: np.random.default_rng(i).standard_normal((200, 900)) * 0.1 for i, name in enumerate("abcd")}


def at(step: int) -> dict[str, Any]:
    return {name: bf16(value * (1 + 0.01 * step)) for name, value in BASE.items()}


@dataclass
class Published:
    """A run and its base of two shards, at the Hub and here."""

    hub: Hub
    local: Path
    commit: str
    """Of the file."""
    base: str


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub_run")
    for step in (1, 2, 3):
        write(root / "run" / f"step_{step}", checkpoint_files(at(step)))
    write(root / "base", checkpoint_files(at(0), shards=2))
    return root


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.fixture
def published(hub: Hub, run_folder: Path, tmp_path: Path) -> Published:
    base = hub.add("org/base", checkpoint_files(at(0), shards=2))
    relex_codec.encode(run_folder / "run", tmp_path / "x.relex", base="hf://org/base", quality="raw")
    made = hub.add("org/name", {"run.relex": (tmp_path / "x.relex").read_bytes()})
    made.branches["a/b"] = made.branches["refs/pr/1"] = made.branches["main"]
    hub.server.clear()
    HEADER_CACHE.clear()
    return Published(hub, tmp_path / "x.relex", made.branches["main"], base.branches["main"])


def asked(hub: Hub) -> list[str]:
    """Methods and paths since the last call, storage without its names of files, sorted where they came at once."""
    found = [
        "storage" if seen.path.startswith("/storage/") else f"{seen.method} {unquote(seen.path)}"
        for seen in hub.server.seen
    ]
    hub.server.clear()
    return found


@pytest.fixture
def file(hub: Hub) -> str:
    """One file, called as large files are."""
    hub.add("org/name", {"x.relex": DATA})
    return "hf://org/name/x.relex"


# What it costs


@pytest.mark.parametrize("revision", ["", "@main", "@a%2Fb", "@refs/pr/1", "@refs%2Fpr%2F1", "@commit"])
def test_opening_a_run_and_one_tensor(published: Published, revision: str) -> None:
    hub, at_commit = published.hub, f"GET /org/name/resolve/{published.commit}/run.relex"
    revision = revision.replace("commit", published.commit)
    with relex_codec.open(f"hf://org/name{revision}/run.relex") as run:
        first = f"GET /org/name/resolve/{unquote(revision[1:]) or 'main'}/run.relex"
        assert asked(hub) == [first, "storage"]
        run.info()
        assert asked(hub) == []
        run._reader.base_reader()
        found = asked(hub)
        base = f"/org/base/resolve/{published.base}"
        shards = [f"GET {base}/model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        listing, index = f"GET /api/models/org/base/tree/{published.base}", f"GET {base}/model.safetensors.index.json"
        assert sorted(found) == sorted([listing, index, *shards, "storage", "storage"])
        bits = run._reader.bits("b", 2)
        assert sorted(asked(hub)) == sorted([shards[0], at_commit, "storage", "storage"])
    with relex_codec.open(published.local) as local:
        assert np.array_equal(bits, local._reader.bits("b", 2))


def test_a_base_on_a_branch_is_looked_up_once(published: Published) -> None:
    open_base("hf://org/base@main")
    found = asked(published.hub)
    assert found[:2] == [
        "GET /api/models/org/base/revision/main?expand=sha",
        f"GET /api/models/org/base/tree/{published.base}",
    ]
    assert len(found) == 7 and found.count("storage") == 2
    assert all(path == "storage" or published.base in path for path in found[2:])
    # one file needs no looking up: its first answer tells
    assert len(open_base("hf://org/base@main/model-00001-of-00002.safetensors").shards) == 1
    assert asked(published.hub) == ["GET /org/base/resolve/main/model-00001-of-00002.safetensors", "storage"]


def test_opening_again_is_one_request_without_a_body(hub: Hub, file: str) -> None:
    open_source(file).close()
    asked(hub)
    opened = []

    def again() -> None:
        opened.append(open_source(file))

    for thread in (threading.Thread(target=again), threading.Thread(target=again)):  # other threads know it as well
        thread.start()
        thread.join()
    assert asked(hub) == ["HEAD /org/name/resolve/main/x.relex"] * 2
    assert [source.read_cached(0, 9) for source in opened] == [DATA[:9]] * 2 and asked(hub) == []
    hub.repositories["org/name"].commit({"x.relex": DATA[::-1]})
    assert open_source(file).read(0, 9) == DATA[::-1][:9]


def test_small_files_by_way_of_the_cache_of_the_hub(hub: Hub) -> None:
    hub.resolve_cache = True
    commit = hub.add("org/name", {"x": DATA}).commit({"x": DATA})
    for _ in range(2):  # GET, then HEAD
        with open_source("hf://org/name/x") as source:
            assert source.size == len(DATA)
            asked(hub)
            assert source.read(100_000, 100_009) == DATA[100_000:100_009]
            place = f"GET /org/name/resolve/{commit}/x"
            assert asked(hub) == [place, f"{place}?cached=/"]


def test_listing_is_one_request_a_page(hub: Hub) -> None:
    hub.add("org/name", {**{f"f{i}": b"1" * i for i in range(7)}, "d/e/x": b"", "d/y": b"22"})
    assert [(item.name, item.is_dir, item.size) for item in list_directory("hf://org/name@main/d/")] == [
        ("e", True, 0),
        ("y", False, 2),
    ]
    assert asked(hub) == ["GET /api/models/org/name/tree/main/d"]
    hub.page = 3
    assert [item.name for item in list_directory("hf://org/name")] == ["d", *(f"f{i}" for i in range(7))]
    assert len(asked(hub)) == 3
    for path in ("hf://org/name/none", "hf://org/name/f1"):
        with pytest.raises(CheckpointError, match="does not exist"):
            list_directory(path, error=CheckpointError)


def test_what_is_no_model_is_read_through_its_filesystem(hub: Hub) -> None:
    def is_of_the_hub(url: str) -> bool:
        return isinstance(store_for(*filesystem_of(url, None, error=InvalidArgument), StorageConfig()), HubStore)

    assert all(map(is_of_the_hub, ("hf://org/name/x", "hf://models/org/name@v1/x", "hf://org/name")))
    assert not any(map(is_of_the_hub, ("hf://datasets/org/name/x", "hf://spaces/org/name@a/x")))


# The commit


def test_a_branch_that_moves_on_is_read_where_it_was(hub: Hub, file: str) -> None:
    with open_source(file) as source:
        hub.repositories["org/name"].commit({"x.relex": DATA[::-1]})
        assert source.read(100_000, 200_000) == DATA[100_000:200_000]
        hub.repositories["org/name"].branches.clear()
        assert source.read(100_000, 200_000) == DATA[100_000:200_000]
    hub.repositories["org/name"].commit({"x.relex": DATA[::-1]})
    with open_source(file) as source:
        assert source.read(100_000, 200_000) == DATA[::-1][100_000:200_000]


def test_a_checkpoint_is_read_at_one_commit(published: Published) -> None:
    checkpoint = open_base("hf://org/base")
    published.hub.repositories["org/base"].commit({**checkpoint_files(at(5), shards=2), "config.json": b"later"})
    assert np.array_equal(checkpoint.read("d"), at(0)["d"][1].reshape(-1))
    assert checkpoint.read_file("config.json") != b"later"


@pytest.mark.parametrize("data", [DATA[::-1], DATA[:-1], DATA[:200]])
def test_a_commit_that_has_another_file_after_all(hub: Hub, file: str, data: bytes) -> None:
    with open_source(file, error=CheckpointError) as source:
        for files in hub.repositories["org/name"].commits.values():
            files["x.relex"] = data
        with pytest.raises(CheckpointError, match="changed while it was being read"):
            source.read(1000, 200_000)


def test_a_commit_that_is_gone(hub: Hub, file: str) -> None:
    with open_source(file) as source:
        hub.repositories["org/name"].commits.clear()
        with pytest.raises(InvalidArgument, match="changed while it was being read"):
            source.read(1000, 200_000)


def test_a_storage_that_has_something_else(hub: Hub, file: str) -> None:
    inner = hub.server.answer
    hub.server.answer = lambda method, path, *rest: changed(inner(method, path, *rest))

    def changed(answer: Any) -> Any:
        linked = {"X-Linked-Size": "7"} if answer.status == 302 else {}
        return answer._replace(headers={**answer.headers, **linked})

    with pytest.raises(Corrupt, match=f"the storage has {len(DATA)} bytes of a file of 7"):
        open_source(file)


def test_a_server_that_ignores_ranges_is_not_listened_to(hub: Hub, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    inner = client._body

    def body(answer: Any) -> bytes:
        read.append(inner(answer))
        return read[-1]

    monkeypatch.setattr(client, "_body", body)
    hub.server.fail("no_range", 2, lambda method, path: path.startswith("/storage/"))
    with pytest.raises(Corrupt, match="the server ignored the range"):
        open_source(file)
    assert max(map(len, read)) < 1000  # the word of the redirect


def test_a_storage_that_refuses_ranges_beyond_the_end(hub: Hub) -> None:
    hub.add("org/name", {"x.relex": DATA[:1000]})
    hub.server.fail("416", 1, lambda method, path: path.startswith("/storage/"))
    with open_source("hf://org/name/x.relex") as source:
        assert source.size == 1000 and source.read(0, 1000) == DATA[:1000]


def test_redirects_without_end(hub: Hub) -> None:
    hub.moved["org/name"] = "org/name"
    with pytest.raises(Corrupt, match="the Hub redirected 10 times"):
        open_source("hf://org/name/x")
    assert len(asked(hub)) == 10


# The token


def test_the_token_stays_at_the_hub(hub: Hub) -> None:
    hub.add("org/name", {"x.relex": DATA}, token="hf_mine")
    hub.moved["org/old"] = "org/name"
    options = {"token": "hf_mine"}
    for _ in range(2):  # GET, then HEAD
        with open_source("hf://org/old/x.relex", options) as source:
            assert source.read(100_000, 200_000) == DATA[100_000:200_000]
    list_directory("hf://org/name", options)
    pinned_to_commit("hf://org/name", options)
    list_branches("hf://org/name", options)
    to_storage = [seen for seen in hub.server.seen if seen.path.startswith("/storage/")]
    assert len(to_storage) == 3 and len(hub.server.seen) > 10
    for seen in hub.server.seen:
        assert seen.headers.get("authorization") == (None if seen in to_storage else "Bearer hf_mine"), seen


@pytest.mark.parametrize("fault", ["403", "reset", "cut", "503"])
def test_signed_urls_are_not_shown(hub: Hub, file: str, fault: str) -> None:
    source = open_source(file, {"relex": {"retry_seconds": 0}})
    hub.server.fail(fault, 1, lambda method, path: path.startswith("/storage/"))
    with pytest.raises(InvalidArgument, match=r"localhost:\d+") as caught:
        source.read(100_000, 200_000)
    assert SIGNATURE not in str(caught.value) and "/storage/" not in str(caught.value)


def test_clients_that_show_urls_are_not_quoted() -> None:
    url = f"https://cdn.test/x?signature={SIGNATURE}"
    with pytest.raises(client.StorageFailed) as caught, client._naming_storage(url):
        raise ConnectionError(f"no answer from {url} (or from /x?signature={SIGNATURE})")
    assert str(caught.value) == "cdn.test: ConnectionError: no answer from https://cdn.test/x (or from /x)"


# Refusals and faults


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://org/none/x.relex", "no repository org/none"),
        ("hf://org/name@v9/x.relex", "org/name has no revision 'v9'"),
        ("hf://org/name/none.relex", "hf://org/name/none.\\w+ does not exist"),
        ("hf://org/gated/x.relex", "is gated: accept its terms at .*/org/gated, then log in"),
    ],
)
def test_a_refusal_is_one_request(hub: Hub, file: str, url: str, message: str) -> None:
    hub.add("org/gated", {"x.relex": DATA}, gate="secret")
    with pytest.raises(InvalidArgument, match=message):
        relex_codec.open(url)
    assert len(asked(hub)) == 1
    with pytest.raises(CheckpointError, match=message):
        open_base(url.replace(".relex", ".safetensors"))
    assert len(asked(hub)) == 1


@pytest.mark.parametrize("fault", ["503", "429", "reset", "cut"])
def test_listing_and_looking_up_are_tried_again(hub: Hub, file: str, fault: str) -> None:
    commit = hub.repositories["org/name"].branches["main"]
    for call, expected in (
        (lambda options: [item.name for item in list_directory("hf://org/name", options)], ["x.relex"]),
        (lambda options: pinned_to_commit("hf://org/name", options), f"hf://org/name@{commit}"),
        (lambda options: list_branches("hf://org/name", options), ["main"]),
    ):
        hub.server.fail(fault)
        assert call({"relex": {"retry_seconds": 30}}) == expected
        assert len(asked(hub)) == 2
        hub.server.fail(fault, 1000)
        with pytest.raises((CheckpointError, InvalidArgument)):
            call({"relex": {"retry_seconds": 0}})
        assert len(asked(hub)) == 1
        hub.server.fail(fault, 1000)
        with pytest.raises((CheckpointError, InvalidArgument), match=r"\(\d+ attempts in \d s\)"):
            call({"relex": {"retry_seconds": 0.4}})
        asked(hub)


def test_an_answer_that_is_no_json(hub: Hub, file: str) -> None:
    hub.server.fail("200", 2)
    with pytest.raises(Corrupt, match="answered with something else than JSON"):
        list_directory("hf://org/name")
    with pytest.raises((CheckpointError, Corrupt), match="answered with something else than JSON"):
        pinned_to_commit("hf://org/name")


def test_the_session_of_the_user(hub: Hub, file: str) -> None:
    """What is set up in huggingface_hub, as for a proxy, holds here too."""
    from huggingface_hub import utils

    factory = getattr(utils, "set_client_factory", None)
    if factory is None:
        pytest.skip("before release 1.0 of huggingface_hub")
    default = utils._http.default_client_factory

    def with_header() -> Any:
        client = default()
        client.headers["X-Mine"] = "1"
        return client

    factory(with_header)
    try:
        open_source(file).close()
    finally:
        factory(default)
        end_sessions()
    assert [seen.headers.get("x-mine") for seen in hub.server.seen] == ["1", "1"]


@pytest.mark.parametrize("place", ["/storage/", "/org/name/resolve/"])
def test_ctrl_c_while_the_hub_stalls(published: Published, place: str) -> None:
    hub = published.hub
    program = """
import relex_codec
with relex_codec.open("hf://org/name/run.relex", storage_options={"relex": {"timeout": 50}}) as run:
    run._reader.base_reader()
    print("ready", flush=True)
    input()
    run.state_dict(2)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        hub.server.clear()
        hub.server.fail("stall", 100, lambda method, path: path.startswith(place))
        process.stdin.write(b"\n")
        process.stdin.flush()
        until = time.monotonic() + 30
        while not hub.server.seen and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, said = process.communicate(timeout=20)
        assert time.monotonic() - began < 8
        assert b"KeyboardInterrupt" in said and process.returncode != 0
    finally:
        process.kill()
        process.wait()
