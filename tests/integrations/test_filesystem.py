"""The filesystem ``relex``: the files that decoding writes, through fsspec, without writing them."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import relex_codec
from relex_codec import BaseMismatch, CheckpointError, InvalidArgument
from relex_codec.decoding.read_plan import WindowPlan
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.format.constants import PIECE
from relex_codec.integrations.fsspec_chain import unchained
from relex_codec.run.run_reader import RunReader
from relex_codec.run.step_files import StepFiles
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE
from support.filesystems import empty_memory
from support.runs import Made
from support.servers.counting import Answer, Files
from support.servers.fixtures import Bucket
from support.tensors import bf16, f32
from support.versions import FSSPEC

keeping = pytest.mark.skipif(FSSPEC < (2023, 12), reason="caches of fsspec 2023.10 keep nothing of a chain")
Zoo = Callable[..., Path]
STEPS = ["step_1", "step_2", "step_5", "step_9", "step_14", "step_20", "step_23"]
WEIGHTS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture
def exact(zoo_file: Zoo) -> Path:
    """The zoo with its exact tier."""
    return zoo_file("default", exact=True)


def open_fs(path: Path, **options: Any) -> Any:
    """The filesystem of a file, and not one that another test has used."""
    return fsspec.filesystem("relex", fo=str(path), skip_instance_cache=True, **options)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What is decoded: name, first and last element of each read."""
    found: list[tuple[str, int, int]] = []
    decode = TensorDecoder.decode_window

    def watched(self: Any, plan: WindowPlan, steps: Any) -> Any:
        found.append((plan.tensor.name, plan.window.lo, plan.window.hi))
        return decode(self, plan, steps)

    monkeypatch.setattr(TensorDecoder, "decode_window", watched)
    return found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A file whose tensors have several pieces, one of them of an odd size, and what step 7 of it decodes to."""
    root = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    start = {"wide": rng.standard_normal((700, 1000)), "odd": rng.standard_normal(PIECE + 77), "small": np.ones(3)}

    def at(step: int) -> dict[str, Any]:
        found = {name: (f32 if name == "odd" else bf16)(value * (1 + step / 90)) for name, value in start.items()}
        return found | {"none": bf16(np.zeros((0, 4)))}

    write_checkpoint(root / "base", at(0))
    write_run(root / "run", [3, 7], at)
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", quality="small")
    with relex_codec.open(root / "x.relex") as run:
        run.save(root / "out", 7)
    return root / "x.relex", (root / "out" / "model.safetensors").read_bytes()


# ---- The bytes of decode ----


@pytest.mark.parametrize(
    ("step", "tier"),
    [(0, "auto"), (9, "auto"), (9, "exact"), (9, "track"), (12.5, "auto"), (-3, "line"), (800, "auto")],
)
def test_every_file_has_the_bytes_that_decoding_writes(exact: Path, tmp_path: Path, step: float, tier: str) -> None:
    with relex_codec.open(exact) as run:
        chosen = run.save(tmp_path / "out", step, tier=tier)
    fs = open_fs(exact, tier=tier)
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(written) == 8  # three shards, their index, four other files
    listed = fs.ls(f"step_{step}")
    assert [info["name"] for info in listed] == [f"step_{step}/{name}" for name in sorted(written)]
    for info in listed:
        name = info["name"].partition("/")[2]
        assert (info["size"], info["type"], info["tier"]) == (len(written[name]), "file", chosen)
        assert fs.info(info["name"]) == info
        assert fs.cat_file(info["name"]) == written[name], name
        with fs.open(info["name"]) as file:
            assert file.read() == written[name], name
    fs.get(f"step_{step}", str(tmp_path / "got"), recursive=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "got").iterdir()} == written


def test_the_embedded_base_brings_its_files(zoo_run: Made, zoo_file: Zoo, tmp_path: Path) -> None:
    path = zoo_file("raw", embed_base=True)
    with relex_codec.open(path) as run:
        run.save(tmp_path / "out", 9)
    for options in ({}, {"base": str(zoo_run.base_path)}):
        fs = open_fs(path, **options)
        assert len(fs.ls("step_9")) == 8
        for info in fs.ls("step_9"):
            assert fs.cat_file(info["name"]) == (tmp_path / "out" / info["name"].partition("/")[2]).read_bytes()


def test_a_base_without_an_index_gives_one_file_of_weights(large: tuple[Path, bytes]) -> None:
    fs = open_fs(large[0])
    assert fs.ls("step_7", detail=False) == ["step_7/config.json", "step_7/model.safetensors"]
    assert fs.cat_file("step_7/model.safetensors") == large[1]


# ---- Ranges ----


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_range_of_any_file(exact: Path, data: st.DataObject) -> None:
    fs = fsspec.filesystem("relex", fo=str(exact))
    name = data.draw(st.sampled_from(fs.ls("step_9", detail=False)))
    whole = fs.cat_file(name)
    bounds = st.none() | st.integers(-len(whole) - 3, len(whole) + 3)
    start, end = data.draw(bounds), data.draw(bounds)
    assert fs.cat_file(name, start, end) == whole[start:end]


def test_ranges_around_every_border(large: tuple[Path, bytes]) -> None:
    path, whole = large
    fs = open_fs(path)
    name = "step_7/model.safetensors"
    head = 8 + int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8:head])
    borders = {0, 8, head, len(whole)}
    for entry in (entries[key] for key in ("wide", "odd", "small", "none")):
        begin, end = (head + offset for offset in entry["data_offsets"])
        width = {"BF16": 2, "F32": 4}[entry["dtype"]]
        borders |= {begin, end, *range(begin, end, PIECE * width)}
    assert len(borders) >= 9
    pairs = [(a + i, b + j) for a in borders for b in borders if a <= b for i in (-1, 0, 3) for j in (-1, 0, 1)]
    pairs = [(a, b) for a, b in pairs if 0 <= a <= b <= len(whole) and b - a < 1_200_000]
    assert len(pairs) > 100
    found = fs.cat_ranges([name] * len(pairs), [a for a, _ in pairs], [b for _, b in pairs], on_error="raise")
    for (a, b), data in zip(pairs, found, strict=True):
        assert data == whole[a:b], (a, b)


def test_only_what_a_range_covers_is_decoded(large: tuple[Path, bytes], reads: list[Any]) -> None:
    path, whole = large
    fs = open_fs(path)
    name = "step_7/model.safetensors"
    head = 8 + int.from_bytes(whole[:8], "little")
    fs.ls("step_7")
    assert fs.cat_file(name, 0, head) == whole[:head] and reads == []  # headers are known without decoding
    entries = json.loads(whole[8:head])
    begin = head + entries["wide"]["data_offsets"][0]
    assert fs.cat_file(name, begin + 7, begin + 10) == whole[begin + 7 : begin + 10]
    assert reads == [("wide", 3, 5)]
    reads.clear()
    fs.cat_file(name, head + entries["small"]["data_offsets"][0], head + entries["small"]["data_offsets"][1])
    assert reads == [("small", 0, 3)]


def test_small_reads_one_after_another_decode_each_piece_once(large: tuple[Path, bytes], reads: list[Any]) -> None:
    path, whole = large
    with open_fs(path).open("step_7/model.safetensors") as file:
        parts = []
        while data := file.read(50_001):
            parts.append(data)
        assert b"".join(parts) == whole
        elements = sum(hi - lo for _, lo, hi in reads)
        assert elements == 700_000 + PIECE + 77 + 3
        for position in (len(whole) - 9, 3, 900_000, 899_000, 1_000_000):  # and back and forth
            file.seek(position)
            assert file.read(5000) == whole[position : position + 5000]
        file.seek(0)
        reads.clear()
        assert file.read() == whole


def test_other_files_are_read_once(exact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = open_fs(exact)
    whole = fs.cat_file("step_9/model.safetensors.index.json")
    read: list[str] = []
    other = StepFiles.other

    def watched(self: Any, name: str, *ends: int | None) -> bytes:
        read.append(name)
        return other(self, name, *ends)

    monkeypatch.setattr(StepFiles, "other", watched)
    with fs.open("step_9/model.safetensors.index.json", "rb") as file:
        assert b"".join(iter(lambda: file.read(7), b"")) == whole
    assert read == ["model.safetensors.index.json"]


def test_buffers_of_fsspec_can_be_chosen(large: tuple[Path, bytes]) -> None:
    path, whole = large
    for cache_type in ("readahead", "bytes", "all", "none"):
        with open_fs(path).open("step_7/model.safetensors", cache_type=cache_type, block_size=300_000) as file:
            file.seek(1_000_001)
            assert file.read(77) == whole[1_000_001:1_000_078]
            file.seek(-5, os.SEEK_END)
            assert file.read() == whole[-5:]


def test_memory_while_getting_is_that_of_a_tensor(large: tuple[Path, bytes], reads: list[Any], tmp_path: Path) -> None:
    path, whole = large
    fs = open_fs(path)
    seen: list[int] = []

    class Sink(io.BytesIO):
        def write(self, data: Any) -> int:
            seen.append(len(data))
            return super().write(data)

    sink = Sink()
    fs.get_file("step_7/model.safetensors", sink)
    assert sink.getvalue() == whole
    assert sorted(seen)[-2:] == [4 * (PIECE + 77), 1_400_000] and sorted(name for name, *_ in reads) == [
        "odd",
        "small",
        "wide",
    ]


# ---- Listing ----


def test_the_root_lists_the_stored_steps(exact: Path) -> None:
    fs = open_fs(exact)
    assert fs.ls("", detail=False) == fs.ls("/", detail=False) == fs.ls("relex://", detail=False) == STEPS
    assert all(info["type"] == "directory" and info["size"] == 0 for info in fs.ls(""))
    assert fs.info("") == {"name": "", "size": 0, "type": "directory"}
    assert fs.isdir("") and fs.isdir("step_9/") and fs.isdir("step_800") and fs.isdir("/step_12.5")
    assert not fs.isfile("step_9") and not fs.isdir("step_9/config.json") and fs.isfile("step_9/config.json")
    assert fs.exists("step_9") and fs.exists("relex://step_12.5/config.json")
    assert fs.ls("step_9/config.json", detail=False) == ["step_9/config.json"]
    assert fs.size("step_9/config.json") == 22 and fs.du("step_9") == sum(i["size"] for i in fs.ls("step_9"))
    assert fs.glob("step_*/config.json") == [f"{step}/config.json" for step in sorted(STEPS)]
    assert fs.glob("step_800/*.safetensors") == [f"step_800/model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert fs.glob("*") == sorted(STEPS) and fs.glob("step_7/nothing*") == []
    assert len(fs.find("")) == 7 * 8 and fs.find("step_5") == fs.ls("step_5", detail=False)
    assert fs.find("step_5/config.json") == ["step_5/config.json"]
    walked = list(fs.walk(""))
    assert [path for path, _, _ in walked] == ["", *STEPS] and walked[0][1:] == (STEPS, [])
    assert "config.json" in walked[3][2]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("step_9/no.json", "'no.json' is no file"),
        ("step_9/config.json/x", "is no file"),
        ("nine", "'nine' is no directory"),
        ("step_nan", "expected step_N"),
        ("step_9/../step_9/config.json", "is no file"),
    ],
)
def test_what_is_not_there(exact: Path, path: str, message: str) -> None:
    fs = open_fs(exact)
    for call in (fs.info, fs.ls, fs.cat_file, fs.open):
        with pytest.raises(FileNotFoundError, match=message):
            call(path)
    assert not fs.exists(path) and not fs.isdir(path) and not fs.isfile(path)
    assert isinstance(fs.cat_ranges([path], [0], [1])[0], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([path], 0, 1, on_error="raise")


def test_directories_are_not_read(exact: Path) -> None:
    fs = open_fs(exact)
    for call in (fs.cat_file, fs.open):
        for path in ("", "step_9"):
            with pytest.raises(IsADirectoryError):
                call(path)


def test_a_tier_has_the_steps_that_it_reaches(exact: Path, zoo_file: Zoo) -> None:
    track = open_fs(exact, tier="track")
    assert track.exists("step_12.5") and not track.exists("step_24")
    with pytest.raises(FileNotFoundError, match="from step 1 to 23, not 24"):
        track.info("step_24")
    only = open_fs(exact, tier="exact")
    with pytest.raises(FileNotFoundError, match="the nearest is 9"):
        only.cat_file("step_10/config.json")
    for options, message in (({"tier": "exact"}, "without --exact"), ({"tier": "other"}, "tier is 'other'")):
        with pytest.raises(InvalidArgument, match=message):
            open_fs(zoo_file("raw"), **options)


def test_weights_need_no_base_that_they_are_not_made_from(zoo_run: Made, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", zoo_run.base, shards=3)
    relex_codec.encode(zoo_run.run, tmp_path / "x.relex", base=tmp_path / "base", quality="raw", steps="1:2")
    os.rename(tmp_path / "base", tmp_path / "moved")
    fs = open_fs(tmp_path / "x.relex")
    shard = "step_2/model-00001-of-00003.safetensors"
    assert fs.isfile(shard) and fs.isfile("step_2/model.safetensors.index.json")
    head = 8 + int.from_bytes(fs.cat_file(shard, 0, 8), "little")
    assert json.loads(fs.cat_file(shard, 8, head))["__metadata__"] == {"format": "pt"}
    # names and sizes are in the file, and content that is only in the base is not called missing
    assert fs.isfile("step_2/config.json") and not fs.isdir("step_2/config.json")
    assert fs.size("step_2/config.json") == len(json.dumps({"model_type": "test"}))
    assert "step_2/config.json" in fs.ls("step_2", detail=False)
    with pytest.raises(CheckpointError, match="pass --base"):
        fs.cat_file("step_2/config.json")
    with pytest.raises(CheckpointError, match="pass --base"):
        fs.cat_file(shard)
    given = open_fs(tmp_path / "x.relex", base=str(tmp_path / "moved"))
    assert json.loads(given.cat_file("step_2/config.json")) == {"model_type": "test"}
    write_checkpoint(tmp_path / "wrong", zoo_run.base | {"frozen": bf16(np.ones((32, 16)))}, shards=3)
    wrong = open_fs(tmp_path / "x.relex", base=str(tmp_path / "wrong"))
    with pytest.raises(BaseMismatch, match="'frozen'"):
        wrong.cat([f"step_2/{name}" for name in WEIGHTS])


# ---- URLs, instances, processes, threads ----


def test_chained_urls(exact: Path) -> None:
    whole = open_fs(exact).cat_file("step_800/config.json")
    with fsspec.open(f"relex://step_800/config.json::{exact}") as file:
        assert file.read() == whole
    with fsspec.open(f"relex://step_800/config.json::file://{exact}", "rt") as file:
        assert json.load(file) == {"model_type": "test"}
    with empty_memory() as memory:
        memory.pipe_file("/deep/run.relex", exact.read_bytes())
        for url in ("memory://deep/run.relex", "simplecache::memory://deep/run.relex"):
            with fsspec.open(f"relex://step_800/config.json::{url}") as file:
                assert file.read() == whole
            fs, path = fsspec.core.url_to_fs(f"relex://step_9::{url}")
            assert path == "step_9" and len(fs.ls(path)) == 8
        found = fsspec.open_files("relex://step_*/config.json::memory://deep/run.relex")
        assert [file.path for file in found] == [f"{step}/config.json" for step in sorted(STEPS)]
        fs = fsspec.filesystem("relex", fo="memory://deep/run.relex")
        assert fs.cat_file("step_800/config.json") == whole
        with fsspec.open(f"filecache::relex://step_9/config.json::{exact}") as file:  # and caches above it
            assert file.read() == whole


@keeping
def test_a_cache_over_a_web_server(exact: Path, tmp_path: Path) -> None:
    """Each link of the chain has the options under its own name."""
    whole = open_fs(exact).cat_file("step_9/model-00001-of-00003.safetensors")
    files, kept = Files({"/run.relex": exact.read_bytes()}), tmp_path / "kept"
    with files.server() as server:
        inner = server.answer
        given: set[str | None] = set()

        def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
            given.add(headers.get("x-given"))
            return inner(method, path, headers, body)

        server.answer = answer
        fs, path = fsspec.core.url_to_fs(
            f"relex://step_9/model-00001-of-00003.safetensors::simplecache::{server.url}/run.relex",
            http={"headers": {"X-Given": "yes"}},
            relex={"tier": "exact"},
            simplecache={"cache_storage": str(kept), "relex": {"retry_seconds": 0}},
        )
        assert fs.url == f"simplecache::{server.url}/run.relex"
        assert fs.info(path)["tier"] == "exact"
        assert fs.cat_file(path) == whole
        assert [file.is_file() for file in kept.iterdir()] == [True]
        assert given == {"yes"}


@keeping
@pytest.mark.parametrize("cache", ["simplecache", "filecache"])  # files in memory are nothing for blockcache
def test_caches_over_memory(exact: Path, memory: Any, tmp_path: Path, cache: str) -> None:
    memory.pipe_file("/deep/run.relex", exact.read_bytes())
    url = f"relex://step_9/model-00002-of-00003.safetensors::{cache}::memory://deep/run.relex"
    with fsspec.open(url, **{cache: {"cache_storage": str(tmp_path / "kept")}}) as file:
        assert file.read() == open_fs(exact).cat_file("step_9/model-00002-of-00003.safetensors")
    assert any((tmp_path / "kept").iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # blockcache leaves its file open
@pytest.mark.parametrize("cache", ["simplecache", "filecache", "blockcache"])
def test_caches_over_s3_have_its_credentials(moto_bucket: Bucket, exact: Path, cache: str) -> None:
    moto_bucket.put("run.relex", exact.read_bytes())
    url = f"relex://step_9::{cache}::{moto_bucket.url('run.relex')}"
    fs, path = fsspec.core.url_to_fs(url, s3=moto_bucket.options)
    name = f"{path}/model-00003-of-00003.safetensors"
    assert fs.cat_file(name) == open_fs(exact).cat_file(name)


def test_chains_as_they_come_from_fsspec() -> None:
    """Where URLs of these chains point, and what each link is opened with."""

    def parts(url: str, **options: Any) -> tuple[str, Any]:
        asked: dict[str, Any] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fsspec.core, "filesystem", lambda protocol, **own: asked.update(own))
            fsspec.core.url_to_fs(f"relex://step_1::{url}", **options)
        return unchained(asked["fo"], asked["target_protocol"], asked["target_options"])

    assert parts("s3://b/x.relex", s3={"key": 1}) == ("s3://b/x.relex", {"key": 1})
    assert parts("http://h/x.relex?t=1") == ("http://h/x.relex?t=1", {})
    options = {"s3": {"key": 1, "relex": {"timeout": 3}}, "filecache": {"check_files": True}}
    assert parts("filecache::s3://b/x.relex", **options) == (
        "filecache::s3://b/x.relex", {"filecache": {"check_files": True}, "s3": {"key": 1}, "relex": {"timeout": 3}},
    )  # fmt: skip
    assert parts("zip://x.relex::s3://b/x.zip", s3={"key": 1}) == (
        "zip://x.relex::s3://b/x.zip", {"zip": {}, "s3": {"key": 1}}
    )  # fmt: skip
    assert unchained("/x.relex", None, None) == ("/x.relex", None)
    by_hand = {"target_protocol": "s3", "target_options": {"anon": True}}
    assert unchained("b/x.relex", "simplecache", by_hand) == (
        "simplecache::s3://b/x.relex", {"simplecache": {}, "s3": {"anon": True}}
    )  # fmt: skip
    nested = {"fo": "x", "target_protocol": "zip", "target_options": {"fo": "b/z", "target_protocol": "s3"}}
    assert unchained("x", "blockcache", nested)[0] == "blockcache::zip://x::s3://b/z"


def test_options_reach_the_filesystem_below(exact: Path, zoo_run: Made) -> None:
    url = f"relex://step_5/config.json::file://{exact}"
    fs, _ = fsspec.core.url_to_fs(
        url, relex={"base": str(zoo_run.base_path), "tier": "line"}, file={"auto_mkdir": False}
    )
    assert fs.info("step_5/config.json")["tier"] == "line" and fs.base == str(zoo_run.base_path)
    with empty_memory() as memory:
        memory.pipe_file("/x.relex", exact.read_bytes())
        fs = fsspec.filesystem("relex", fo="memory://x.relex", target_options={"use_listings_cache": False})
        assert fs.isdir("step_5")
    with pytest.raises(InvalidArgument, match="no option 'teir'"):
        fsspec.filesystem("relex", fo=str(exact), teir="line")
    with pytest.raises(InvalidArgument, match="needs a file"):
        fsspec.filesystem("relex")
    with pytest.raises(InvalidArgument, match="does not exist"):
        fsspec.filesystem("relex", fo="/nowhere/run.relex")


@pytest.mark.parametrize("how", ["safe_open", "dcp", "fsspec"])
def test_a_file_that_lacks_the_tier_is_closed(zoo_file: Zoo, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    closed: list[str] = []
    close = RunReader.close

    def watched(self: Any) -> None:
        closed.append(self.path)
        close(self)

    monkeypatch.setattr(RunReader, "close", watched)
    path = str(zoo_file("raw"))
    calls = {
        "safe_open": lambda: relex_codec.safe_open(path, step=9, tier="exact"),
        "dcp": lambda: relex_codec.RelexStorageReader(path, 9, tier="exact"),
        "fsspec": lambda: fsspec.filesystem("relex", fo=path, tier="exact"),
    }
    with pytest.raises(InvalidArgument, match="without --exact"):
        calls[how]()
    assert closed == [path]


def test_a_base_that_is_gone_does_not_look_like_a_file_that_is_not_there(exact: Path) -> None:
    """Callers of fsspec pass over a FileNotFoundError in silence: they list nothing, and fill in zeros."""
    fs = open_fs(exact, base="/nowhere/base", tier="line")
    weights = "step_9/model-00001-of-00003.safetensors"
    mapper = fsspec.get_mapper(f"relex://step_9::{exact}", relex={"base": "/nowhere/base", "tier": "line"})
    for call in (
        lambda: fs.cat_file("step_9/config.json"), lambda: fs.cat("step_9/config.json"),
        lambda: fs.cat_file(weights), lambda: fs.open(weights).read(), lambda: mapper["config.json"],
        lambda: mapper[weights.partition("/")[2]], lambda: fs.get_file(weights, os.devnull, outfile=io.BytesIO()),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match="/nowhere/base does not exist") as caught:
            call()
        assert not isinstance(caught.value, OSError)


def test_a_file_that_is_gone(exact: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_fs(tmp_path / "x.relex")
    shutil.copy(exact, tmp_path / "x.relex")
    fs = open_fs(tmp_path / "x.relex")
    os.remove(tmp_path / "x.relex")
    assert fs.exists("step_9")  # it goes on reading what it opened
    fs.invalidate_cache()
    for call in (lambda: fs.ls(""), lambda: fs.exists("step_9"), lambda: fs.find("")):
        with pytest.raises(InvalidArgument, match="does not exist") as caught:
            call()
        assert not isinstance(caught.value, OSError)


def test_a_mapper_of_a_step(exact: Path) -> None:
    mapper = fsspec.get_mapper(f"relex://step_9::{exact}")
    assert len(mapper) == 8 and json.loads(mapper["config.json"]) == {"model_type": "test"}
    assert "no.json" not in mapper and mapper.get("no.json") is None
    with pytest.raises(KeyError):
        mapper["no.json"]


def test_instances_are_shared_and_opened_anew_when_told(zoo_run: Made, tmp_path: Path) -> None:
    path = tmp_path / "x.relex"
    relex_codec.encode(zoo_run.run, path, base=zoo_run.base_path, quality="raw", steps="1:9")
    fs = fsspec.filesystem("relex", fo=str(path))
    assert fsspec.filesystem("relex", fo=str(path)) is fs
    assert fsspec.filesystem("relex", fo=str(path), tier="line") is not fs
    before = fs.cat_file("step_9/model-00001-of-00003.safetensors")
    with fs.open("step_9/model-00001-of-00003.safetensors") as file:
        start = file.read(100)
        relex_codec.encode(zoo_run.run, path, base=zoo_run.base_path, quality="raw", overwrite=True)
        assert fs.ls("", detail=False) == STEPS[:4]  # what was opened goes on being read
        start += file.read(100)
        fs.invalidate_cache()
        assert fs.ls("", detail=False) == STEPS
        assert start + file.read() == before  # and what an open file was opened on
    key = fs.ukey("step_9/config.json")
    fs.invalidate_cache()
    assert fs.ls("", detail=False) == STEPS
    assert fs.ukey("step_9/config.json") == key != fs.ukey("step_5/config.json")


def test_pickled_instances_read_the_same(exact: Path) -> None:
    fs = fsspec.filesystem("relex", fo=str(exact), tier="line")
    assert pickle.loads(pickle.dumps(fs)) is fs
    file = fs.open("step_9/config.json")
    name = "step_9/model-00002-of-00003.safetensors"
    opened = fsspec.open(f"relex://{name}::{exact}")
    code = (
        "import pickle, sys, hashlib; fs, opened = pickle.load(sys.stdin.buffer)\n"
        f"print(hashlib.sha256(fs.cat_file({name!r})).hexdigest())\n"
        "with opened as file: print(hashlib.sha256(file.read()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps((fs, opened)), capture_output=True, cwd=ELSEWHERE, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    auto = fsspec.filesystem("relex", fo=str(exact))
    assert done.stdout.decode().split() == [hashlib.sha256(f.cat_file(name)).hexdigest() for f in (fs, auto)]
    if FSSPEC < (2024, 12):
        return  # open files cannot be pickled
    file.seek(3)
    again = pickle.loads(pickle.dumps(file))  # as dask does
    assert again.read() == file.read() == auto.cat_file("step_9/config.json")[3:]


def test_a_relative_path_is_one_of_where_the_process_is(
    exact: Path, zoo_run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name, steps in (("a", None), ("b", ":9")):
        (tmp_path / name).mkdir()
        relex_codec.encode(zoo_run.run, tmp_path / name / "x.relex", base=zoo_run.base_path, steps=steps, exact=True)
        monkeypatch.chdir(tmp_path / name)
        fs = fsspec.filesystem("relex", fo="x.relex")
        assert fs is fsspec.filesystem("relex", fo="x.relex")
        found.append(fs.ls("", detail=False))
    assert found == [STEPS, STEPS[:4]]
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    away.rmdir()
    assert fsspec.filesystem("relex", fo=str(tmp_path / "a" / "x.relex")).ls("", detail=False) == STEPS


def test_threads_share_an_instance(exact: Path) -> None:
    fs = open_fs(exact)
    names = [f"{step}/{name}" for step in ("step_9", "step_12.5", "step_60") for name in WEIGHTS]
    wanted = {name: fs.cat_file(name) for name in names}
    fs.invalidate_cache()
    start = threading.Barrier(6, timeout=20)

    def read(worker: int) -> bool:
        start.wait()
        return all(fs.cat_file(name) == wanted[name] for name in names[worker:] + names[:worker])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(6)))


# ---- Writing ----


@pytest.mark.parametrize(
    "write",
    [
        lambda fs, here: fs.open("step_9/new.json", "wb"),
        lambda fs, here: fs.open("step_9/config.json", "ab"),
        lambda fs, here: fs.pipe("step_9/new.json", b"x"),
        lambda fs, here: fs.pipe({"step_9/new.json": b"x"}),
        lambda fs, here: fs.write_text("step_9/new.json", "x"),
        lambda fs, here: fs.put(here, "step_9/new.json"),
        lambda fs, here: fs.put_file(here, "step_9/new.json"),
        lambda fs, here: fs.mkdir("step_77"),
        lambda fs, here: fs.makedirs("step_77", exist_ok=True),
        lambda fs, here: fs.rm("step_9", recursive=True),
        lambda fs, here: fs.rm_file("step_9/config.json"),
        lambda fs, here: fs.rmdir("step_9"),
        lambda fs, here: fs.cp_file("step_9/config.json", "step_9/new.json"),
        lambda fs, here: fs.copy("step_9/config.json", "step_9/new.json"),
        lambda fs, here: fs.mv("step_9/config.json", "step_9/new.json"),
        lambda fs, here: fs.touch("step_9/config.json"),
    ],
)
def test_nothing_can_be_written(exact: Path, tmp_path: Path, write: Callable[[Any, str], Any]) -> None:
    fs = open_fs(exact)
    (tmp_path / "here").write_text("x")
    with pytest.raises(OSError, match="read-only") as caught:
        write(fs, str(tmp_path / "here"))
    assert caught.value.errno == errno.EROFS


# ---- fsspec's own tests, those that need no writing ----


class Fixtures:
    """What the abstract suite of fsspec asks for."""

    @pytest.fixture
    def fs(self, exact: Path) -> Any:
        return open_fs(exact)

    @pytest.fixture
    def fs_path(self) -> str:
        return "step_9"

    @pytest.fixture
    def target(self, tmp_path: Path) -> str:
        (tmp_path / "target").mkdir()
        return str(tmp_path / "target")


class TestGetLikeOtherFilesystems(Fixtures):
    """The cases of fsspec.tests.abstract.get, on files that are there instead of those that it writes first."""

    def test_get_file_to_existing_directory(self, fs: Any, fs_path: str, target: str) -> None:
        fs.get(f"{fs_path}/config.json", target + "/")
        fs.get(f"{fs_path}/tokenizer.json", target)
        assert sorted(os.listdir(target)) == ["config.json", "tokenizer.json"]

    def test_get_file_to_new_directory(self, fs: Any, fs_path: str, target: str) -> None:
        fs.get(f"{fs_path}/config.json", os.path.join(target, "newdir/"))
        assert os.listdir(os.path.join(target, "newdir")) == ["config.json"]

    def test_get_file_to_file_in_new_directory(self, fs: Any, fs_path: str, target: str) -> None:
        fs.get(f"{fs_path}/config.json", os.path.join(target, "newdir/newfile"))
        assert os.listdir(os.path.join(target, "newdir")) == ["newfile"]

    def test_get_directory_to_existing_directory(self, fs: Any, fs_path: str, target: str) -> None:
        fs.get(fs_path, target)
        assert os.listdir(target) == []  # not recursive
        fs.get(fs_path, target, recursive=True)
        assert len(os.listdir(target)) == 8  # fsspec makes no directory for one that is at the top
        fs.get(fs_path + "/", os.path.join(target, "other"), recursive=True)
        assert len(os.listdir(os.path.join(target, "other"))) == 8

    def test_get_glob_and_list(self, fs: Any, fs_path: str, target: str) -> None:
        fs.get(f"{fs_path}/*.jinja", target)
        fs.get([f"{fs_path}/config.json", "step_77/generation_config.json"], target)
        assert sorted(os.listdir(target)) == ["chat_template.jinja", "config.json", "generation_config.json"]

    def test_get_everything(self, fs: Any, target: str) -> None:
        fs.get("", target, recursive=True)
        assert sorted(os.listdir(target)) == sorted(STEPS)

    def test_a_file_that_fails_midway_is_not_left_behind(
        self, fs: Any, fs_path: str, target: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*args: Any) -> Any:
            raise relex_codec.Corrupt("as if")

        monkeypatch.setattr(TensorDecoder, "decode_window", broken)
        with pytest.raises(relex_codec.Corrupt, match="as if"):
            fs.get(f"{fs_path}/model-00001-of-00003.safetensors", target + "/")
        assert os.listdir(target) == []


def test_fsspec_opens_it_without_an_import_of_ours(exact: Path) -> None:
    code = (
        "import fsspec, sys; assert 'relex_codec' not in sys.modules\n"
        f"print(len(fsspec.open('relex://step_12.5/config.json::{exact}').open().read()))\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ELSEWHERE, timeout=60)
    assert done.stdout.split("\n")[:2] == ["22", "[]"], done.stderr
