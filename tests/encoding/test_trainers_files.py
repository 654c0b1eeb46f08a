"""Runs as trainers leave them, encoded without converting anything: each step back bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relex_codec
from relex_codec import CheckpointError
from support.checkpoints import write_checkpoint
from support.commands import cli, failed
from support.filesystems import upload
from support.same_runs import assert_same_but_for_names
from support.tensors import Tensor, bf16
from support.torch_files import state_dict

if not torch.distributed.is_available():
    pytest.skip("this torch is built without torch.distributed", allow_module_level=True)

import torch.distributed.checkpoint as dcp

from support.torch_dcp import ALONE, QUIET, slices_writer
from support.torch_files import write_shards

pytestmark = QUIET
RNG = np.random.default_rng(0)
START, DRIFT = RNG.standard_normal((300, 41)), RNG.standard_normal((300, 41))


def at_step(step: int) -> dict[str, Tensor]:
    return {
        "model.w.weight": bf16(START + 0.01 * step * DRIFT),
        "model.norm.weight": bf16(START[0] * (1 + 0.1 * step)),
        "model.ids": ("I64", np.arange(7, dtype=np.uint64) + step // 3),
    }


def whole(folder: Path, tensors: dict[str, Tensor]) -> None:
    write_checkpoint(folder / "actor" / "huggingface", tensors)


def distributed(folder: Path, tensors: dict[str, Tensor]) -> None:
    model = state_dict(tensors)
    app = {"app": {"model": model, "optimizers": {"state": {"exp_avg": torch.zeros(9)}}}}
    dcp.save(app, checkpoint_id=folder / "trainer", **ALONE)


def shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    write_shards(folder / "actor", tensors, (3,), plain=["model.ids"])


def pickled(folder: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    torch.save(state_dict(tensors), folder / "pytorch_model.bin")
    torch.save({"state": torch.zeros(3)}, folder / "optimizer.pt")


def slices(folder: Path, tensors: dict[str, Tensor]) -> None:
    path = folder / "policy" / "weights" / "model"
    path.mkdir(parents=True)
    dcp.save(state_dict(tensors), checkpoint_id=path, storage_writer=slices_writer(path), **ALONE)


KINDS = [whole, distributed, shards, pickled, slices]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run each of whose steps is of another kind, and its base."""
    write_checkpoint(tmp_path / "base", at_step(0))
    for step, write in enumerate(KINDS, 1):
        write(tmp_path / "run" / f"global_step_{step}", at_step(step))
    return tmp_path


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_run_of_all_kinds_is_one_run(run: Path, memory: Any, where: str, tmp_path: Path) -> None:
    upload(memory, run, "/x")
    root = str(run) if where == "local" else "memory://x"
    file = tmp_path / "x.relex"
    relex_codec.encode(f"{root}/run", file, base=run / "base", exact=True, allow_pickle=True)
    with relex_codec.open(file) as opened:
        assert opened.steps == [1, 2, 3, 4, 5]
        for step in opened.steps:
            for name, tensor in state_dict(at_step(step)).items():
                assert torch.equal(opened.tensor(name, step=step, tier="exact"), tensor)
        opened.restore(tmp_path / "again")
    relex_codec.encode(tmp_path / "again", tmp_path / "y.relex", base=run / "base", exact=True)
    with relex_codec.open(tmp_path / "y.relex") as opened:
        assert torch.equal(
            opened.tensor("model.w.weight", step=3, tier="exact"), state_dict(at_step(3))["model.w.weight"]
        )


@pytest.mark.parametrize("write", KINDS)
def test_the_file_is_the_same_whatever_the_kind(tmp_path: Path, write: Callable[[Path, Any], None]) -> None:
    write_checkpoint(tmp_path / "base", at_step(0))
    for kind in (whole, write):
        for step in (1, 2):
            kind(tmp_path / kind.__name__ / f"step_{step}", at_step(step))
        options = {"base": tmp_path / "base", "base_uri": "base", "exact": True, "overwrite": True}
        relex_codec.encode(
            tmp_path / kind.__name__, tmp_path / f"{kind.__name__}.relex", allow_pickle=True, **options  # type: ignore[arg-type]
        )  # fmt: skip
    assert_same_but_for_names(tmp_path / "whole.relex", tmp_path / f"{write.__name__}.relex", tmp_path / "base")
    with relex_codec.open(tmp_path / f"{write.__name__}.relex", base=tmp_path / "base") as opened:
        opened.restore(tmp_path / "again")
    found = [path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.safetensors")]
    places = {path.parent.relative_to(tmp_path / write.__name__) for path in (tmp_path / write.__name__).rglob("*.*")}
    assert len(found) == 2 and all(path.parent in places for path in found)  # where the checkpoints were


def test_pickles_are_read_only_if_that_is_allowed(run: Path) -> None:
    encode = ("encode", run / "run", "--base", run / "base", "-o", run / "x.relex", "--exact")
    failed(
        cli(*encode), "3 of 5 steps cannot be used", "step 2: ", "step 3: ", "step 4: ", "pass --allow-pickle",
        "nothing in them is run",
    )  # fmt: skip
    done = cli(*encode, "--allow-pickle")
    assert done.returncode == 0, done.stderr
    assert "step 2: not read: 1 tensors that are not the model's, 36 bytes, of app.optimizers" in done.stderr
    distributed(run / "run" / "global_step_6", at_step(6))
    append = ("append", run / "x.relex", run / "run" / "global_step_6", "--base", run / "base")
    failed(cli(*append), "global_step_6 is a torch.distributed checkpoint", "pass --allow-pickle")
    done = cli(*append, "--allow-pickle")
    assert done.returncode == 0, done.stderr
    with relex_codec.open(run / "x.relex") as opened:
        assert torch.equal(
            opened.tensor("model.w.weight", step=6, tier="exact"), state_dict(at_step(6))["model.w.weight"]
        )


def test_a_path_with_the_step_may_be_that_of_a_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", at_step(0))
    for step in (1, 2):
        (tmp_path / "run" / f"{step}").mkdir(parents=True)
        torch.save({"model": state_dict(at_step(step))}, tmp_path / "run" / f"{step}" / "policy.pt")
        torch.save({"model": {"v": torch.zeros(3)}}, tmp_path / "run" / f"{step}" / "value.pt")
    template = f"{tmp_path}/run/{{step}}/policy.pt"
    with pytest.raises(CheckpointError, match=r"policy\.pt is a pickle; pass --allow-pickle"):
        relex_codec.encode(template, tmp_path / "x.relex", base=tmp_path / "base", exact=True)
    relex_codec.encode(template, tmp_path / "x.relex", base=tmp_path / "base", exact=True, allow_pickle=True)
    with relex_codec.open(tmp_path / "x.relex") as opened:
        assert torch.equal(opened.tensor("model.ids", step=2, tier="exact"), state_dict(at_step(2))["model.ids"])


def test_steps_that_are_not_complete_are_left_out(run: Path) -> None:
    os.truncate(run / "run" / "global_step_2" / "trainer" / "__0_0.distcp", 1000)
    (run / "run" / "global_step_3" / "actor" / "model_world_size_3_rank_2.pt").write_bytes(b"PK\x03\x04")
    options = {"base": run / "base", "exact": True, "allow_pickle": True}
    with pytest.raises(CheckpointError, match=r"2 of 5 steps cannot be used: step 2: .*__0_0\.distcp has 1000 bytes"):
        relex_codec.encode(run / "run", run / "x.relex", **options)  # type: ignore[arg-type]
    relex_codec.encode(run / "run", run / "x.relex", skip_incomplete=True, **options)  # type: ignore[arg-type]
    with relex_codec.open(run / "x.relex") as opened:
        assert opened.steps == [1, 4, 5]


LAYOUTS = {
    "DeepSpeed, 16-bit": ("global_step{}", "pytorch_model.bin", ["mp_rank_00_model_states.pt"]),
    "OpenRLHF": ("global_step{}_hf", "pytorch_model.bin", []),
    "transformers": ("checkpoint-{}", "pytorch_model.bin", ["optimizer.pt", "scheduler.pt", "training_args.bin"]),
    "accelerate, whole": ("checkpoint_{}", "pytorch_model_fsdp.bin", ["random_states_0.pkl", "sampler.bin"]),
    "somebody's": ("step_{}", "policy.pt", ["optim.pt", "rng.pt"]),
    "below a pickle of somebody": ("global_step_{}", "actor/pytorch_model.bin", ["notes.pkl"]),
}  # fmt: skip


@pytest.mark.parametrize(("layout", "file", "more"), LAYOUTS.values(), ids=LAYOUTS)
def test_where_pickles_of_models_lie(tmp_path: Path, layout: str, file: str, more: list[str]) -> None:
    write_checkpoint(tmp_path / "base", at_step(0))
    for step in (3, 5):
        path = tmp_path / "run" / layout.format(step) / file
        path.parent.mkdir(parents=True)
        torch.save(state_dict(at_step(step)), path)
        for name in more:
            torch.save({"x": torch.zeros(3)}, tmp_path / "run" / layout.format(step) / name)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", exact=True, allow_pickle=True)
    with relex_codec.open(tmp_path / "x.relex") as opened:
        assert opened.steps == [3, 5]
        assert torch.equal(opened.tensor("model.ids", step=5, tier="exact"), state_dict(at_step(5))["model.ids"])


@pytest.mark.parametrize("names", [
    ["global_step10/zero_pp_rank_0_mp_rank_00_model_states.pt", "latest", "zero_to_fp32.py"],
    ["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"],
    ["dist_ckpt/.metadata", "dist_ckpt/__0_0.distcp", "dist_ckpt/common.pt"],
    [".metadata", "__0_0.distcp", "common.pt"],
    ["policy.pt", "value.pt"],
])  # fmt: skip
def test_what_is_refused_though_pickles_are_allowed(tmp_path: Path, names: list[str]) -> None:
    write_checkpoint(tmp_path / "base", at_step(0))
    for name in names:
        path = tmp_path / "run" / "checkpoint-10" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")  # their names are all that is looked at
    with pytest.raises(CheckpointError, match=r"checkpoint-10 (is a |has pickled files only)") as caught:
        relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", allow_pickle=True)
    assert "--allow-pickle" not in str(caught.value)
