"""torch.distributed.checkpoint and transformers on S3: what a load takes in requests and bytes, at the server."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import relex_codec
from relex_codec.core.indexing import TensorIndex
from relex_codec.decoding.tensors import box_at, plan_boxes
from relex_codec.decoding.tiers import StepTier
from relex_codec.storage.coalesce import FIRST_READ
from support.checkpoints import write_checkpoint, write_run
from support.runs import Made
from support.servers.counting import fetched
from support.servers.fixtures import Bucket
from support.servers.runs import SHAPES, uploaded, weights

pytestmark = [
    pytest.mark.usefixtures("nothing_kept"),
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]
STEP = 5
OPENING = 5
"""Requests before the first weights: file, listing, index, two shards."""
RANK, RANKS = 1, 4


def needed(run: relex_codec.Run, parts: Mapping[str, TensorIndex], step: float, tier: str = "auto") -> int:
    """Bytes of file and base that decoding parts of tensors takes, each once."""
    boxes = [box_at(run._reader.entry(name), index) for name, index in parts.items()]
    plan = plan_boxes(run._reader.decoder, boxes, [StepTier(float(step), run.tier(step, tier=tier))])
    total, ends = 0, {None: 0, 0: 0, 1: 0}
    for source, start, end in sorted(plan.ranges(run._reader.container.index), key=lambda found: found.start):
        total += max(0, end - max(start, ends[source]))
        ends[source] = max(end, ends[source])
    return total


def check(bucket: Bucket, expected: int, most: int) -> None:
    """Weights took what they need, in at most so many requests; the first of each file brings more than it is for."""
    assert bucket.proxy.most <= 16
    lengths = [end - start for _, start, end in fetched(bucket.proxy)]
    weights = [length for length in lengths if length != FIRST_READ]
    assert len(lengths) - len(weights) <= OPENING
    assert 0.99 * expected - (len(lengths) - len(weights)) * FIRST_READ <= sum(weights) <= 1.01 * expected
    assert len(weights) <= most


def local_run(made: Made) -> relex_codec.Run:
    return relex_codec.open(made.root / "run.relex", base=made.base_path)


def load(bucket: Bucket, made: Made, state: dict[str, Any], **options: Any) -> None:
    import torch.distributed.checkpoint as dcp

    uploaded(bucket, made)
    url, base = bucket.url("run.relex").replace("s3", "S3", 1), bucket.url("base")
    reader = relex_codec.RelexStorageReader(url, STEP, base=base, storage_options=bucket.options)
    bucket.proxy.latency = 0.05
    dcp.load(state, storage_reader=reader, **options)
    reader.close()


@pytest.mark.skipif(not dist.is_available(), reason="this torch is built without torch.distributed")
def test_a_step_into_a_plain_model(moto_bucket: Bucket, cloud_run: Made) -> None:
    with local_run(cloud_run) as run:
        expected, wanted = needed(run, dict.fromkeys(SHAPES, ...), STEP), run.state_dict(STEP)
    state = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}
    load(moto_bucket, cloud_run, state)
    assert all(torch.equal(state[name], value) for name, value in wanted.items())
    check(moto_bucket, expected, most=6)


@pytest.mark.skipif(not dist.is_available(), reason="this torch is built without torch.distributed")
def test_many_small_tensors_of_the_exact_tier(moto_bucket: Bucket, tmp_path: Path) -> None:
    """Several of them share a part of each frame, and threads that decode them must not each read it."""
    shapes = {f"layers.{i}.{name}": (64, 48) for i in range(40) for name in "ab"}
    write_checkpoint(tmp_path / "base", weights(0, shapes))
    write_run(tmp_path / "run", range(1, 9), lambda step: weights(step, shapes))
    file = tmp_path / "run.relex"
    relex_codec.encode(tmp_path / "run", file, base=tmp_path / "base", quality="micro", exact=True)
    made = Made(tmp_path, list(range(1, 9)), {}, lambda step: {})
    with local_run(made) as run:
        expected, wanted = needed(run, dict.fromkeys(shapes, ...), STEP), run.state_dict(STEP)
        assert run.tier(STEP) == "exact"
    state = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    load(moto_bucket, made, state)
    assert all(torch.equal(state[name], value) for name, value in wanted.items())
    check(moto_bucket, expected, most=12)


@pytest.fixture
def one_of_four() -> Iterator[Any]:
    """The mesh of four ranks as the second one sees it; the others do not run."""
    if not dist.is_available():
        pytest.skip("this torch is built without torch.distributed")
    import torch.distributed.checkpoint as dcp

    if "no_dist" not in inspect.signature(dcp.load).parameters:
        pytest.skip(f"torch {torch.__version__} loads on all ranks or without a mesh")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=RANK, world_size=RANKS, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (RANKS,))
    finally:
        dist.destroy_process_group()


def test_the_slices_of_one_rank(moto_bucket: Bucket, cloud_run: Made, one_of_four: Any) -> None:
    """Rows, as FSDP cuts them, and columns of one matrix, of which every piece is read."""
    from torch.distributed.tensor import DTensor, Shard

    parts: dict[str, TensorIndex] = {}
    state = {}
    for name, shape in SHAPES.items():
        dim = 1 if name == "c" else 0
        size = -(-shape[dim] // RANKS)
        mine = slice(RANK * size, min((RANK + 1) * size, shape[dim]))
        parts[name] = (slice(None),) * dim + (mine,)
        local = torch.zeros(*shape[:dim], mine.stop - mine.start, *shape[dim + 1 :], dtype=torch.bfloat16)
        state[name] = DTensor.from_local(local, one_of_four, [Shard(dim)], run_check=False)
    with local_run(cloud_run) as run:
        expected, whole = needed(run, parts, STEP), needed(run, dict.fromkeys(SHAPES, ...), STEP)
        wanted = {name: run.tensor(name, STEP, index=index) for name, index in parts.items()}
    assert expected < 0.6 * whole
    load(moto_bucket, cloud_run, state, no_dist=True)
    assert all(torch.equal(state[name].to_local(), value) for name, value in wanted.items())
    check(moto_bucket, expected, most=6)


@pytest.mark.parametrize("tier", ["exact", "track"])
def test_a_model_and_its_tokenizer(moto_bucket: Bucket, tmp_path: Path, tier: str) -> None:
    pytest.importorskip("transformers")
    from safetensors.torch import load_file

    from relex_codec.demo.run_demo import BASE
    from support.models import encode_model, same_weights

    file = encode_model(tmp_path, load_file(f"{BASE}/model.safetensors"))
    with relex_codec.open(file) as run:
        expected = needed(run, dict.fromkeys(run.keys(), ...), 20, tier)
        sides = run._reader.side_files().sizes()
    moto_bucket.put("x.relex", file.read_bytes())
    moto_bucket.upload(tmp_path / "base", "base")
    place: dict[str, Any] = {"base": moto_bucket.url("base"), "storage_options": moto_bucket.options}
    url = moto_bucket.url("x.relex")

    tokenizer = relex_codec.load_tokenizer(url, **place)
    assert tokenizer("123+456=")["input_ids"] == relex_codec.load_tokenizer(file)("123+456=")["input_ids"]
    assert len(moto_bucket.proxy.seen) == 3 + len(sides)  # file, listing, weights
    assert moto_bucket.proxy.sent < 2 * FIRST_READ + sum(sides.values()) + 4096

    moto_bucket.proxy.clear()
    model = relex_codec.load_model(url, 20, tier=tier, **place)
    assert same_weights(model, relex_codec.load_model(file, 20, tier=tier))
    assert len([seen for seen in moto_bucket.proxy.seen if seen.range is None]) == 3 + len(sides)  # still the same?
    check(moto_bucket, expected, most=2 if tier == "track" else 7)  # and the tables of the exact tier
