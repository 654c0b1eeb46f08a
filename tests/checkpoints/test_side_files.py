"""Files beside the weights: their sizes come from the listing, and their bytes at the price of one request each."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import relex_codec
from relex_codec.checkpoints import weight_files
from relex_codec.checkpoints.safetensors import open_checkpoint
from relex_codec.encoding import pipeline
from relex_codec.errors import CheckpointError, Corrupt
from relex_codec.run.export import SideFiles
from support.checkpoints import checkpoint_files, write_checkpoint, write_run
from support.filesystems import upload
from support.hub_server import Hub
from support.runs import SIDE
from support.servers.counting import Answer
from support.servers.fixtures import Bucket
from support.servers.runs import weights
from support.tensors import bf16

SHAPES = {"a": (30, 20), "norm": (7,)}
SIDES = sorted(SIDE)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A run, its base with several files beside the weights, and ``x.relex``."""
    write_checkpoint(tmp_path / "base", weights(0, SHAPES), side=SIDE)
    write_run(tmp_path / "run", [1, 2], lambda step: weights(step, SHAPES))
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality="raw", exact=True)
    return tmp_path


def contents(made: Path) -> dict[str, bytes]:
    return {name: (made / "base" / name).read_bytes() for name in SIDES}


def sizes(made: Path) -> dict[str, int]:
    return {name: len(data) for name, data in contents(made).items()}


def read_all(files: SideFiles) -> dict[str, bytes]:
    return {name: b"".join(content) for name, content in files.read_all()}


def side_requests(bucket: Bucket) -> list[str]:
    """Names of the files beside the weights that were asked for since the last call."""
    found = [seen.path.rpartition("/")[2] for seen in bucket.proxy.seen]
    bucket.proxy.clear()
    return sorted(name for name in found if name in SIDES)


def all_at_once(bucket: Bucket) -> None:
    """Answer no request for a file beside the weights before all of them are asked for."""
    together = threading.Barrier(len(SIDES), timeout=20)
    inner = bucket.proxy.answer

    def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if method == "GET" and path.rpartition("/")[2] in SIDES:
            together.wait()
        return inner(method, path, headers, body)

    bucket.proxy.answer = answer


@pytest.mark.usefixtures("nothing_kept")
def test_sizes_need_no_request_and_files_one_each_on_s3(moto_bucket: Bucket, made: Path) -> None:
    moto_bucket.upload(made / "base", "base")
    moto_bucket.put("x.relex", (made / "x.relex").read_bytes())
    url, base, options = moto_bucket.url("x.relex"), moto_bucket.url("base"), moto_bucket.options
    with relex_codec.open(url, base=base, storage_options=options) as run:
        run._reader.base_reader()
        moto_bucket.proxy.clear()
        assert run._reader.side_files().sizes() == sizes(made)
        assert moto_bucket.proxy.seen == []
        all_at_once(moto_bucket)
        assert read_all(run._reader.side_files()) == contents(made)
        assert side_requests(moto_bucket) == SIDES


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("how", ["save", "restore", "embed"])
def test_who_wants_all_of_them_asks_at_once(moto_bucket: Bucket, made: Path, tmp_path: Path, how: str) -> None:
    moto_bucket.upload(made / "base", "base")
    base, options = moto_bucket.url("base"), moto_bucket.options
    all_at_once(moto_bucket)
    if how == "embed":
        file = tmp_path / "embedded.relex"
        relex_codec.encode(made / "run", file, base=base, quality="raw", embed_base=True, storage_options=options)
        assert side_requests(moto_bucket) == SIDES
        with relex_codec.open(file) as run:
            assert run._reader.base_embedded and read_all(run._reader.side_files()) == contents(made)
            assert run._reader.side_files().sizes() == sizes(made)
        return
    with relex_codec.open(made / "x.relex", base=base, storage_options=options) as run:
        if how == "save":
            run.save(tmp_path / "out", 2)
        else:
            run.restore(tmp_path / "all")
    assert side_requests(moto_bucket) == SIDES
    for folder in [tmp_path / "out"] if how == "save" else [tmp_path / "all" / f"global_step_{n}" for n in (1, 2)]:
        assert {name: (folder / name).read_bytes() for name in SIDES} == contents(made)


def test_sizes_need_no_request_on_the_hub(hub: Hub, made: Path) -> None:
    hub.add("org/base", checkpoint_files(weights(0, SHAPES), side=SIDE))
    with relex_codec.open(made / "x.relex", base="hf://org/base") as run:
        run._reader.base_reader()
        hub.server.clear()
        assert run._reader.side_files().sizes() == sizes(made)
        assert hub.server.seen == []
        assert read_all(run._reader.side_files()) == contents(made)
        bodies = [request.path.rpartition("/")[2] for request in hub.server.seen if request.sent and request.range]
        assert sorted(bodies) == SIDES


def test_a_listing_without_sizes(memory: Any, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(memory, made / "base", "/base")
    listed = type(memory).ls

    def ls(self: Any, path: str, detail: bool = True, **kwargs: Any) -> Any:
        found = listed(self, path, detail=True, **kwargs)
        return [{**info, "size": None} for info in found] if detail else [info["name"] for info in found]

    monkeypatch.setattr(type(memory), "ls", ls)
    found = open_checkpoint("memory://base")
    assert found.file_sizes() == sizes(made)
    assert dict(zip(SIDES, found.read_files(SIDES), strict=True)) == contents(made)


@pytest.mark.parametrize("change", [b"", b"{}", b'{"version": "1.0", "longer": true}'])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_size_that_is_not_the_listed_one_is_noticed(memory: Any, made: Path, where: str, change: bytes) -> None:
    """Listings of some servers lag behind, and a file that grew would be cut."""
    upload(memory, made / "base", "/base")
    found = open_checkpoint(made / "base" if where == "local" else "memory://base")
    (made / "base" / "tokenizer.json").write_bytes(change)
    memory.pipe_file("/base/tokenizer.json", change)
    assert found.file_sizes()["tokenizer.json"] == len(SIDE["tokenizer.json"])
    with pytest.raises(CheckpointError, match=f"has {len(change)} bytes, its directory listed it with 18"):
        found.read_file("tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        list(found.read_files(SIDES))
    assert found.read_file("config.json") == json.dumps(SIDE["config.json"]).encode()


@pytest.fixture
def linked(made: Path, tmp_path: Path) -> Path:
    """The base as the cache of the Hub has it: links to blobs elsewhere."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (tmp_path / "blobs").mkdir()
    for i, path in enumerate(sorted((made / "base").iterdir())):
        blob = tmp_path / "blobs" / str(i)
        blob.write_bytes(path.read_bytes())
        (folder / path.name).symlink_to(Path("..", "blobs", str(i)))
    return folder


def test_links_have_the_size_of_what_they_point_to(made: Path, linked: Path) -> None:
    with relex_codec.open(made / "x.relex", base=linked) as run:
        assert run._reader.side_files().sizes() == sizes(made)
        assert read_all(run._reader.side_files()) == contents(made)


def test_embedded_files_are_the_runs_whatever_base_is_given(
    made: Path, tmp_path: Path, zoo_file: Callable[..., Path]
) -> None:
    """One answer for every interface."""
    path = zoo_file("raw", embed_base=True)
    with relex_codec.open(path) as run:
        assert run._reader.base_embedded
        embedded = read_all(run._reader.side_files())
        assert sorted(embedded) == SIDES
    other = tmp_path / "other"
    write_checkpoint(other, {"a": bf16([1.0])}, side={"config.json": b"{}"})
    with relex_codec.open(path, base=other) as run:
        assert not run._reader.base_embedded
        assert read_all(run._reader.side_files()) == embedded


def test_a_file_of_the_base_that_is_another_is_refused(made: Path) -> None:
    path = made / "base" / "tokenizer.json"
    content = path.read_bytes()
    with relex_codec.open(made / "x.relex") as run:
        path.write_bytes(b"{}" + content[2:])
        with pytest.raises(relex_codec.BaseMismatch, match=r"'tokenizer\.json' of base .* is not the one that the run"):
            read_all(run._reader.side_files())
    path.unlink()
    with relex_codec.open(made / "x.relex") as run:
        with pytest.raises(relex_codec.BaseMismatch, match=r"has no 'tokenizer\.json', which the run has"):
            run._reader.side_files().read("tokenizer.json")
        assert run._reader.side_files().read("config.json") == (made / "base" / "config.json").read_bytes()


def test_documents_may_change_in_the_base_and_be_gone(made: Path, tmp_path: Path) -> None:
    base, file = made / "base", tmp_path / "x.relex"
    (base / "README.md").write_text("a card")
    (base / "LICENSE").write_text("a licence")
    relex_codec.encode(made / "run", file, base=base, quality="raw")
    (base / "README.md").write_text("another card")
    (base / "LICENSE").unlink()
    with relex_codec.open(file) as run:
        files = run._reader.side_files()
        assert read_all(files) == contents(made) | {"README.md": b"another card"}
        assert files.sizes() == sizes(made) | {"README.md": 12}
        assert files.size("README.md") == 12 and files.size("LICENSE") is None and files.size("x") is None
    (base / "LICENSE").write_text("a licence")
    relex_codec.encode(made / "run", tmp_path / "embedded.relex", base=base, quality="raw", embed_base=True)
    (base / "LICENSE").unlink()
    with relex_codec.open(tmp_path / "embedded.relex") as run:
        assert read_all(run._reader.side_files())["LICENSE"] == b"a licence"


def test_names_that_are_not_on_the_list_are_neither_stored_nor_read(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would load the index's file as a pickle."""
    hostile = {"pytorch_model.bin.index.json": b"{}", "evil.model": b"cos", "nul.json": b"", "adapter_config.json": b""}
    for name, data in hostile.items():
        (made / "base" / name).write_bytes(data)
    run, base = made / "run", made / "base"
    relex_codec.encode(run, tmp_path / "good.relex", base=base, quality="raw", embed_base=True)
    with relex_codec.open(tmp_path / "good.relex") as file:
        file.save(tmp_path / "embedded", 2)
    with relex_codec.open(made / "x.relex") as file:
        file.save(tmp_path / "of_the_base", 2)
    for folder in (tmp_path / "embedded", tmp_path / "of_the_base"):
        assert sorted(path.name for path in folder.iterdir()) == sorted([*SIDES, "model.safetensors"])
    for number, name in enumerate(hostile):
        bad = tmp_path / f"bad-{number}.relex"
        with monkeypatch.context() as patch:
            patch.setattr(weight_files, "file_allowed", lambda found, *shards, name=name: found == name)
            patch.setattr(pipeline, "file_allowed", lambda found, *shards, name=name: found == name)
            relex_codec.encode(run, bad, base=base, quality="raw", embed_base=True)
        with pytest.raises(Corrupt, match=f"'{name}' (is no name of a file|beside other weights than those of an)"):
            relex_codec.open(bad)
