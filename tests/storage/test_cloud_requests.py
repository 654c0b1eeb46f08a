"""What reading from object stores and from web servers costs, in requests and bytes, counted at the server."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import relex_codec
from relex_codec.exact.bisection import frames_of
from support.checkpoints import write_checkpoint
from support.plain import File
from support.runs import Made
from support.servers.counting import Answer, fetched
from support.servers.fixtures import Bucket, Web
from support.servers.runs import SHAPES, STEPS, uploaded

pytestmark = pytest.mark.usefixtures("nothing_kept")
MB = 1 << 20


def chunks_of(file: File, name: str) -> tuple[int, int]:
    """Where the direction of a tensor lies, up to the next one."""
    (number,) = file.numbers(name)
    first = file.directions[number].chunk
    later = [d.chunk for d in file.directions if d.chunk > first]
    last = min(later, default=len(file.chunks)) - 1
    return file.chunks[first][0], file.chunks[last][0] + file.chunks[last][1]


def base_place(made: Made, name: str) -> tuple[str, int, int]:
    """Shard and place of a tensor of the base."""
    for shard in sorted(made.base_path.glob("*.safetensors")):
        with safe_open(shard, "np") as f:
            if name not in f.keys():  # noqa: SIM118 (not a dict)
                continue
        raw = shard.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        low, high = json.loads(raw[8 : 8 + length])[name]["data_offsets"]
        return shard.name, 8 + length + low, 8 + length + high
    raise AssertionError(name)


def test_opening_and_one_tensor(bucket: Bucket, cloud_run: Made) -> None:
    file = File(cloud_run.root / "run.relex")
    open_run = uploaded(bucket, cloud_run)
    expected = [cloud_run.at(step)["b"][1] for step in STEPS]
    with open_run() as run:
        assert len(bucket.proxy.seen) <= 2 and bucket.proxy.seen[0].sent == 64 << 10
        document = run.info()
        assert document["tensors"] == len(SHAPES)
        assert len(bucket.proxy.seen) <= 3
        bucket.proxy.clear()
        run._reader.base_reader()  # its listing, its index, and the header of each of its two shards
        assert len(bucket.proxy.seen) == 4
        bucket.proxy.clear()
        low, high = chunks_of(file, "b")
        bits = run._reader.bits("b", 5)
        assert fetched(bucket.proxy) == sorted([base_place(cloud_run, "b"), ("run.relex", low, high)])
        assert bits.shape == (3_000_000,) and (bits != expected[1].reshape(-1)).mean() < 0.2
        with relex_codec.open(cloud_run.root / "run.relex", base=cloud_run.base_path) as local:
            assert (bits == local._reader.bits("b", 5)).all()
        run._reader.bits("still", 5)
        assert fetched(bucket.proxy) == [base_place(cloud_run, "still")]


def test_a_slice_reads_its_pieces_only(bucket: Bucket, cloud_run: Made) -> None:
    with uploaded(bucket, cloud_run)() as run:
        run._reader.base_reader()
        bucket.proxy.clear()
        found = run._reader.bits("b", 6, "auto", 10, 20)
        _, (_, low, high) = reads = fetched(bucket.proxy)
        assert len(reads) == 2 and high - low < 2 * MB
        name, begin, _ = base_place(cloud_run, "b")
        assert reads[0] == (name, begin, begin + (2 << 18))
        with relex_codec.open(cloud_run.root / "run.relex", base=cloud_run.base_path) as local:
            assert (found == local._reader.bits("b", 6, "auto", 10, 20)).all()


@pytest.mark.parametrize("how", ["state_dict", "save", "resident", "lazily"])
def test_a_whole_step(bucket: Bucket, cloud_run: Made, tmp_path: Path, how: str) -> None:
    file = File(cloud_run.root / "run.relex")
    with (
        uploaded(bucket, cloud_run)() as run,
        relex_codec.open(cloud_run.root / "run.relex", base=cloud_run.base_path) as local,
    ):
        run._reader.base_reader()
        bucket.proxy.clear()
        bucket.proxy.latency = 0.05
        if how == "save":
            run.save(tmp_path / "remote", 5)
            local.save(tmp_path / "local", 5)
            for path in (tmp_path / "local").iterdir():
                assert (tmp_path / "remote" / path.name).read_bytes() == path.read_bytes()
            side = [request for request in bucket.proxy.seen if request.name.endswith(".json")]
            assert len(side) == 1  # config.json
        else:
            if how == "resident":
                found = run.resident().state_dict(5)
            elif how == "lazily":
                names = list(SHAPES)
                with run._reader.ahead([(name, ...) for name in names], 5):
                    found = {name: run.tensor(name, 5) for name in names}
            else:
                found = run.state_dict(5)
            assert all((found[name] == value).all() for name, value in local.state_dict(5).items())
        assert 2 <= bucket.proxy.most <= 16
        reads = [read for read in fetched(bucket.proxy) if not read[0].endswith(".json")]
    low, high = file.places["relex.data.directions"]
    base = sum(bits.nbytes for _, bits in cloud_run.base.values())
    lengths = [end - start for _, start, end in reads]
    kept = 3 * (64 << 10)  # of file and shards, from when they were opened
    assert (high - low) + base - kept <= sum(lengths) <= 1.01 * (high - low + base)
    assert max(lengths) <= 16 * MB
    assert all(length >= 4 * MB for length in lengths)  # all is of several MB here: nothing is read in small pieces


def test_verifying_reads_ahead(bucket: Bucket, cloud_run: Made) -> None:
    with uploaded(bucket, cloud_run)() as run:
        bucket.proxy.clear()
        run.verify()
        reads = fetched(bucket.proxy)
        assert sum(end - start for _, start, end in reads) <= 1.01 * (cloud_run.root / "run.relex").stat().st_size
        assert len(reads) <= 8
        run._reader.base_reader()
        bucket.proxy.clear()
        run.check_base()
        assert len(fetched(bucket.proxy)) <= 4


def test_a_second_step_reads_the_same(bucket: Bucket, cloud_run: Made) -> None:
    with uploaded(bucket, cloud_run)() as run:
        run.state_dict(5)
        fetched(bucket.proxy)
        run.state_dict(77)
        second = fetched(bucket.proxy)
        run.state_dict(3.5)
        assert fetched(bucket.proxy) == second


def test_opening_again_is_one_request(bucket: Bucket, cloud_run: Made) -> None:
    open_run = uploaded(bucket, cloud_run)
    with open_run() as run:
        run._reader.bits("norm", 5)
    bucket.proxy.clear()
    with open_run() as run:
        assert [(seen.method, seen.range) for seen in bucket.proxy.seen] == [(bucket.server.looks, None)]
        bucket.proxy.clear()
        run._reader.base_reader()  # the listing, and by their versions alone the index and two shards
        assert [seen.range for seen in bucket.proxy.seen] == [None] * 4
        assert len({seen.name for seen in bucket.proxy.seen}) == 4 and bucket.proxy.sent < 64 << 10
    bucket.put("run.relex", (cloud_run.root / "run.relex").read_bytes()[:-1])
    with pytest.raises(relex_codec.Truncated):  # another version: what is kept of the first one is not used
        open_run()


def test_the_exact_tier_reads_its_frames_only(bucket: Bucket, cloud_exact_run: Made) -> None:
    made = cloud_exact_run
    file = File(made.root / "run.relex")
    segments, frames, data = (
        file.places[f"relex.{name}"] for name in ("exact.segments", "exact.frames", "data.frames")
    )
    (segment,) = np.frombuffer(file.entries["relex.exact.segments"], "<u8").reshape(-1, 6)
    records = np.frombuffer(file.entries["relex.exact.frames"], "<u8").reshape(-1, 3)
    with uploaded(bucket, made)() as run:
        run._reader.base_reader()
        bucket.proxy.clear()
        found = run.state_dict(11)
        for name, (_, bits) in made.at(11).items():
            assert (found[name].view(dtype=torch.uint16).numpy() == bits).all()
        reads = fetched(bucket.proxy)
    blocks = [(int(segment[3]), int(segment[3] + segment[4]))]
    blocks += [
        (int(records[n - 1][0]), int(records[n - 1][0] + records[n - 1][1])) for n in frames_of(11, len(made.steps))
    ]
    allowed = [(start, end) for _, start, end in merged(("", *place) for place in [(segments[0], frames[1]), *blocks])]
    of_file = [(start, end) for name, start, end in reads if name == "run.relex"]
    assert data[1] > 64 << 10  # or all of it would have come when the file was opened
    inside = [any(a <= start and end <= b for a, b in allowed) for start, end in of_file]
    needed = sum(b - a for a, b in allowed)
    assert all(inside) and sum(end - start for start, end in of_file) <= 1.01 * needed
    assert needed < 0.5 * (data[1] - data[0])
    base = [(name, start, end) for name, start, end in reads if name != "run.relex"]
    assert sorted(base) == sorted(merged(base_place(made, name) for name in made.base))


def merged(places: Any) -> list[tuple[str, int, int]]:
    """Neighbouring places as one."""
    found: list[tuple[str, int, int]] = []
    for name, start, end in sorted(places):
        if found and found[-1][0] == name and found[-1][2] == start:
            found[-1] = name, found[-1][1], end
        else:
            found.append((name, start, end))
    return found


def test_web_servers(web: Web, cloud_run: Made) -> None:
    file = File(cloud_run.root / "run.relex")
    web.put("run.relex", file.data)
    web.put("base.safetensors", write_single(cloud_run).read_bytes())
    with relex_codec.open(web.url("run.relex"), base=web.url("base.safetensors")) as run:
        assert len(web.proxy.seen) <= 2
        run._reader.base_reader()
        web.proxy.clear()
        found = run._reader.bits("a", 5)
        reads = fetched(web.proxy)
        assert [read[0] for read in reads] == ["base.safetensors", "run.relex"]
        assert reads[1][1:] == chunks_of(file, "a")
    web.proxy.clear()
    with relex_codec.open(web.url("run.relex"), base=web.url("base.safetensors")) as run:
        assert web.proxy.requests == ["HEAD /run.relex"]
    with relex_codec.open(cloud_run.root / "run.relex", base=cloud_run.base_path) as local:
        assert (found == local._reader.bits("a", 5)).all()


def write_single(made: Made) -> Path:
    """The base as one file."""
    folder = made.root / "single"
    write_checkpoint(folder, made.base)
    return folder / "model.safetensors"


def test_what_opening_a_base_takes_in_round_trips(moto_bucket: Bucket, cloud_run: Made) -> None:
    """Listing, index and headers at the same time, as the file says what they are called; then the tensor."""
    with uploaded(moto_bucket, cloud_run)() as run:
        moto_bucket.proxy.clear()
        together = threading.Barrier(4, timeout=20)
        inner = moto_bucket.proxy.answer

        def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
            together.wait()  # listing, index and two shards
            return inner(method, path, headers, body)

        moto_bucket.proxy.answer = answer
        run._reader.base_reader()
        assert len(moto_bucket.proxy.seen) == 4
        together = threading.Barrier(2, timeout=20)
        run._reader.bits("b", 5)  # file and base


@pytest.mark.parametrize("shards", [1, 3, 4])
def test_a_base_that_is_cut_into_other_files(moto_bucket: Bucket, cloud_run: Made, tmp_path: Path, shards: int) -> None:
    """What the file says they are called is asked for in vain."""
    uploaded(moto_bucket, cloud_run)
    moto_bucket.upload(write_checkpoint(tmp_path, cloud_run.base, shards=shards), "other")
    url, options = moto_bucket.url("run.relex"), moto_bucket.options
    with relex_codec.open(url, base=moto_bucket.url("other"), storage_options=options) as run:
        moto_bucket.proxy.clear()
        found = run._reader.bits("b", 5)
        missed = [seen.path for seen in moto_bucket.proxy.seen if seen.status == 404]
        assert {path.partition("?")[0].rpartition("/")[2] for path in missed} == (
            {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
            | ({"model.safetensors.index.json"} if shards == 1 else set())
        )
    with relex_codec.open(cloud_run.root / "run.relex", base=cloud_run.base_path) as local:
        assert (found == local._reader.bits("b", 5)).all()


def test_sixteen_reads_are_under_way_at_a_time(
    moto_bucket: Bucket, cloud_run: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relex_codec.storage.prefetch.BLOCK_BYTES", 1 << 20)
    with uploaded(moto_bucket, cloud_run)() as run:
        run._reader.base_reader()
        moto_bucket.proxy.clear()
        together, waited = threading.Barrier(16, timeout=20), threading.Semaphore(16)
        inner = moto_bucket.proxy.answer

        def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
            if waited.acquire(blocking=False):
                together.wait()  # none of the first 16 is answered before the last of them has come
            return inner(method, path, headers, body)

        moto_bucket.proxy.answer = answer
        run.state_dict(5)
        assert moto_bucket.proxy.most == 16


def test_a_file_with_a_longer_index_opens_with_two_requests(
    moto_bucket: Bucket, cloud_run: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("storage.remote.FIRST_READ", "format.reader.FIRST_READ"):
        monkeypatch.setattr(f"relex_codec.{name}", 3000)
    begin, _ = File(cloud_run.root / "run.relex").places["relex.data.directions"]
    assert begin > 3000
    with uploaded(moto_bucket, cloud_run)() as run:
        assert fetched(moto_bucket.proxy) == [("run.relex", 0, 3000), ("run.relex", 3000, begin)]
        run.info()
        assert moto_bucket.proxy.seen == []
