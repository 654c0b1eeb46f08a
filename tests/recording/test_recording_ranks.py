"""Recording in two processes: each rank records what it holds, and the journal has the whole, however it was cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed

if not torch.distributed.is_available():
    pytest.skip("this torch is built without torch.distributed", allow_module_level=True)

import torch.distributed.fsdp

import relex_codec
from relex_codec.checkpoints.base_model import open_base
from relex_codec.journal.reader import Journal
from relex_codec.journal.series import JournalSeries
from relex_codec.journal.verify import check_journal
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE
from support.tensors import Tensor, bf16

pytestmark = pytest.mark.servers
RANKS = 2
WHOLE = 2 * 1100 * 1024 + 51 + 1


def at(step: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(3)
    start = {
        "up.weight": rng.standard_normal((1100, 1024)) * 0.05,
        "down.weight": rng.standard_normal((1024, 1100)) * 0.05,
        "norm.weight": rng.standard_normal(51),
    }
    noise = np.random.default_rng(step)
    found = {}
    for name, value in start.items():
        moves = (noise.random(value.shape) < 0.05) * step
        found[name] = bf16(value + moves * 1e-3)
    return {**found, "count": ("I64", np.array(step, np.uint64))}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``base``, ``run`` (seven steps) and what two ranks recorded: ``j``, ``j.relex``, reports."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch is built without gloo")
    if not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip(f"torch {torch.__version__} has no public fully_shard, 2.6 has")
    root = tmp_path_factory.mktemp("recording")
    write_checkpoint(root / "base", at(0))
    write_run(root / "run", range(1, 8), at)
    tests = Path(__file__).parents[1]
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}  # no name of the machine to look up
    paths = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = loopback | dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    script = tests / "support" / "recording_ranks.py"
    where = [str(root / name) for name in ("store", "run", "base", "j")]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(RANKS), *where],
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
    (root / "reports.json").write_text(json.dumps([json.loads(out.splitlines()[-1]) for out, _ in ends]))
    return root


@pytest.fixture(scope="module")
def reports(place: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((place / "reports.json").read_text())
    return found


def test_the_whole_is_there_however_it_was_cut(place: Path) -> None:
    journal = Journal(place / "j")
    check_journal(journal)
    assert (journal.numbers, journal.left_behind) == ([1, 2, 4, 5, 6], [3])
    assert [len(generation.ranks) for generation in journal.generations] == [2, 2, 2]
    series = JournalSeries(journal, open_base(place / "base"))
    for name in series.names:
        rows = series.read(name)
        for row, step in zip(rows, series.steps, strict=True):
            assert (row == at(step)[name][1].reshape(-1)).all(), (name, step)
    lo, hi = 270_000, 600_123  # through chunks of both ranks, and rows that columns cut
    for name in ("up.weight", "down.weight"):
        assert (series.read(name, lo, hi) == series.read(name)[:, lo:hi]).all()
        assert (series.checkpoint(3).read(name, lo, hi) == at(5)[name][1].reshape(-1)[lo:hi]).all()


def test_no_rank_holds_the_model(reports: list[dict[str, Any]]) -> None:
    for case in ("fsdp", "tensor parallel", "replicated"):
        assert sum(report[case] for report in reports) == WHOLE
    for case in ("fsdp", "tensor parallel"):
        assert all(report[case] < 0.51 * WHOLE for report in reports)


def test_encoding_it_is_encoding_the_checkpoints(place: Path, reports: list[dict[str, Any]], tmp_path: Path) -> None:
    steps = "1,2,4,5,6"
    run = place / "run/global_step_{step}"  # the other step is none of this run
    relex_codec.encode(run, tmp_path / "x.relex", base=place / "base", exact=True, steps=steps, base_uri="")
    relex_codec.encode(place / "j", tmp_path / "y.relex", base=place / "base", exact=True, base_uri="")
    assert (tmp_path / "x.relex").read_bytes() == (tmp_path / "y.relex").read_bytes()
    assert [report["finish"] for report in reports] == [(place / "j.relex").stat().st_size, 0]


def test_a_second_recorder_is_refused_on_every_rank(reports: list[dict[str, Any]]) -> None:
    assert all("another recorder does" in report["second"] for report in reports)


def test_a_rank_that_misses_a_step_records_no_more(place: Path, reports: list[dict[str, Any]]) -> None:
    first, second = reports[1]["missed"]
    assert first == second and "is part of the steps before" in first
    assert Journal(place / "j").numbers[-1] == 6  # rank 0 has step 7, and it is no step of the journal
    assert [len(rank.commits) for rank in Journal(place / "j").generations[-1].ranks] == [2, 1]
