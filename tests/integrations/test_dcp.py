"""torch.distributed.checkpoint: a step of a run loaded into plain and sharded modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed

if not torch.distributed.is_available():
    pytest.skip("this torch is built without torch.distributed", allow_module_level=True)

import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

import relex_codec
from relex_codec import CheckpointError, InvalidArgument
from relex_codec.integrations.dcp import batches
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE
from support.runs import Made
from support.tensors import bf16

Zoo = Callable[..., Path]
RANKS = 2
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")


def load(state: dict[str, Any], path: Path, step: float = 9, planner: Any = None, **options: Any) -> None:
    dcp.load(state, storage_reader=relex_codec.RelexStorageReader(path, step, **options), planner=planner)


def cause(error: Any) -> str:
    """What the only rank met."""
    return str(error.value.failures[0][0])


# ---- One process ----


@pytest.mark.parametrize(("step", "tier"), [(9, "auto"), (9, "track"), (12.5, "auto"), (60, "auto"), (0, "auto")])
def test_every_kind_of_tensor(zoo_file: Zoo, step: float, tier: str) -> None:
    path = zoo_file("default", exact=True)
    with relex_codec.open(path) as run:
        wanted = run.state_dict(step, tier=tier)
    state = {name: torch.zeros_like(value) for name, value in wanted.items()}
    load(state, path, step, tier=tier)
    for name, value in wanted.items():
        width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
        assert torch.equal(state[name].view(width), value.view(width)), name


def test_part_of_a_state_dict_is_loaded(zoo_file: Zoo) -> None:
    state = {"model": {"frozen": torch.zeros(32, 16, dtype=torch.bfloat16)}}
    load(state, zoo_file("raw"), key_prefix="model.")
    with relex_codec.open(zoo_file("raw")) as run:
        assert torch.equal(state["model"]["frozen"], run.tensor("frozen", 9))


def test_tied_weights_that_a_file_leaves_out(zoo_file: Zoo) -> None:
    path = zoo_file("raw")
    shared = torch.zeros(40, 24, dtype=torch.bfloat16)
    state = {"a.model.embed_tokens.weight": shared, "a.lm_head.weight": shared}
    load(state, path, key_prefix="a.", tied={"lm_head.weight": "model.embed_tokens.weight"})
    with relex_codec.open(path) as run:
        assert torch.equal(shared, run.tensor("model.embed_tokens.weight", 9))
    with pytest.raises(InvalidArgument, match="'nothing' is not in"):
        load(state, path, tied={"lm_head.weight": "nothing"})
    with pytest.raises(InvalidArgument, match="'frozen' itself is in"):
        load(state, path, tied={"frozen": "codes"})


def test_other_keys_and_shapes_are_refused(zoo_file: Zoo) -> None:
    path = zoo_file("raw")
    frozen = torch.zeros(32, 16)
    with pytest.raises(dcp.CheckpointException) as error:
        load({"frozen": frozen, "nothing": frozen}, path)
    assert "nothing" in cause(error) and "Missing key" in cause(error)
    with pytest.raises(dcp.CheckpointException) as error:
        load({"frozen": torch.zeros(16, 32)}, path)
    assert "frozen" in cause(error) and "[32, 16]" in cause(error) and "[16, 32]" in cause(error)
    partial = DefaultLoadPlanner(allow_partial_load=True)
    with pytest.raises(dcp.CheckpointException) as error:
        load({"frozen": frozen}, path, planner=partial, key_prefix="model.")
    assert "nothing in the state dict" in cause(error) and "'model." in cause(error)
    state = {"frozen": frozen, "nothing": frozen}
    load(state, path, planner=DefaultLoadPlanner(allow_partial_load=True))
    assert state["frozen"].abs().sum() > 0
    with pytest.raises(dcp.CheckpointException) as error:
        load({"frozen": 3}, path)
    assert "frozen" in cause(error)


def test_a_reader_refuses_what_a_run_refuses(zoo_run: Made, zoo_file: Zoo, tmp_path: Path) -> None:
    for options, message in (
        ({"tier": "track"}, "from step 1 to 23, not 60"),
        ({"tier": "exact"}, "without --exact"),
        ({"tier": "nonsense"}, "tier is 'nonsense'"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            relex_codec.RelexStorageReader(zoo_file("raw"), 60, **options)
    with pytest.raises(InvalidArgument, match="does not exist"):
        relex_codec.RelexStorageReader(tmp_path / "no.relex", 9)
    reader = relex_codec.RelexStorageReader(zoo_file("raw"), 9, base=tmp_path / "no")
    with pytest.raises(dcp.CheckpointException) as error:
        dcp.load({"frozen": torch.zeros(32, 16)}, storage_reader=reader)
    assert isinstance(error.value.failures[0][0], CheckpointError)


def test_one_reader_loads_again_and_elsewhere(zoo_file: Zoo) -> None:
    name = "layers.0.proj.weight"
    reader = relex_codec.RelexStorageReader(zoo_file("raw"), 60)
    for path, other in ((zoo_file("raw"), None), (zoo_file("small"), zoo_file("small")), (zoo_file("small"), None)):
        state = {name: torch.zeros(48, 64, dtype=torch.bfloat16)}
        dcp.load(state, storage_reader=reader, checkpoint_id=other)
        with relex_codec.open(path) as run:
            assert torch.equal(state[name], run.tensor(name, 60))
    reader.close()
    reader.close()
    assert reader.validate_checkpoint_id("s3://bucket/run.relex")
    assert not reader.validate_checkpoint_id("s3://bucket/run.safetensors")


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 40))
def test_batches_are_in_order_and_within_the_limit(sizes: list[int], limit: int) -> None:
    items: Any = list(range(len(sizes)))
    found = list(batches(items, sizes, limit))
    assert [item for batch in found for item in batch] == items
    totals = [sum(sizes[item] for item in batch) for batch in found]
    assert all(total <= limit or len(batch) == 1 for total, batch in zip(totals, found, strict=True))
    assert all(a + sizes[batch[0]] > limit for a, batch in zip(totals, found[1:], strict=False))


# ---- Two processes ----


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks report of their loads (dcp_ranks.py); a rank that fails or hangs fails here."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch is built without gloo")
    if not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip(f"torch {torch.__version__} has no public fully_shard, 2.6 has")
    root = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(3)
    start = {
        "up.weight": rng.standard_normal((1100, 1024)),
        "down.weight": rng.standard_normal((1024, 1100)),
        "norm.weight": rng.standard_normal(51),
    }

    def at(step: int) -> dict[str, Any]:
        found = {name: bf16(value * (0.05 + step * 1e-3)) for name, value in start.items()}
        return found | {"count": ("I64", np.array(step, np.uint64))}

    write_checkpoint(root / "base", at(0))
    write_run(root / "run", [5, 10], at)
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", quality="small")
    ours = Path(__file__).parents[1] / "support" / "dcp_ranks.py"
    where = [f"counted://{root / name}" for name in ("x.relex", "base")]
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}  # no name of the machine to look up
    environment = loopback | dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(ours), str(rank), str(RANKS), str(root / "store"), *where],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ELSEWHERE, env=environment,
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    deadline = time.monotonic() + 150
    try:
        ends = [process.communicate(timeout=max(1.0, deadline - time.monotonic())) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(ranks, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in ends]


@pytest.mark.parametrize("case", ["plain", "fsdp", "fsdp in float32", "tensor parallel"])
def test_shards_have_the_bits_of_the_whole(reports: list[dict[str, Any]], case: str) -> None:
    assert [report[case][1] for report in reports] == [True] * RANKS


def test_a_rank_reads_no_more_than_its_rows_need(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        whole = report["plain"][0]
        base = 2 * (1100 * 1024 * 2) + 51 * 2
        assert whole > base  # all of the base, and the directions
        for case in ("fsdp", "fsdp in float32"):
            assert report[case][0] < 0.75 * whole  # half, and the rest of pieces that two ranks share
        assert report["tensor parallel"][0] < whole  # rows of one matrix; of the other, which columns cut, all


def test_a_missing_key_is_named_on_every_rank(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert "Missing key" in report["missing"] and "other." in report["missing"]
