"""Where trainers put the checkpoints of a run: all are found from the run's directory. From public reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relex_codec.checkpoints.discovery import find_run
from relex_codec.checkpoints.opening import open_reader
from relex_codec.checkpoints.safetensors import open_checkpoint
from relex_codec.errors import CheckpointError
from support.checkpoints import safetensors_bytes, write_checkpoint, write_run
from support.commands import cli, failed
from support.filesystems import upload
from support.tensors import Tensor, bf16

LAYOUTS = {
    "verl": "global_step_{}/actor/huggingface",
    "verl, Megatron": "global_step_{}/actor/model/huggingface",
    "verl, merged beside": "global_step_{}_merged",
    "TRL": "checkpoint-{}",
    "prime-rl": "weights/step_{}",
    "prime-rl, broadcasts": "broadcasts/step_{}",
    "NeMo-RL": "step_{}/policy/weights/model/consolidated",
    "OpenRLHF": "global_step{}_hf",
    "OpenRLHF, one above": "_actor_hf/global_step{}_hf",
    "OpenRLHF, best": "best_global_step{}_hf",
    "SkyRL": "global_step_{}/policy",
    "SkyRL, exported": "global_step_{}/policy/huggingface",
    "AReaL": "epoch0epochstep{0}globalstep{0}",
    "trlx": "checkpoint_{}/hf_model",
    "accelerate": "checkpoint_{}",
    "fms-hf-tuning": "checkpoint-{}/hf_converted_checkpoint",
    "ROLL": "checkpoint-{}/actor_train",
    "torchtune": "epoch_{}",
    "torchtitan": "step-{}",
    "cosmos-rl": "safetensors/step_{}",
    "slime": "iter_{:07d}",
    "ms-swift": "v0-20260101-120000/checkpoint-{}",
    "step": "step{}",
    "ckpt": "ckpt-{}",
    "number": "{}",
    "number, elsewhere": "{:06d}/hf",
}


def at_step(step: int) -> dict[str, Tensor]:
    return {"w": bf16(np.arange(12.0).reshape(4, 3) + step), "n": bf16(np.arange(3.0) - step)}


def steps_of(root: Any, **options: Any) -> list[int]:
    """The steps that are found, each with its own weights."""
    found = find_run(root, **options)
    for step, path in found:
        assert np.array_equal(open_checkpoint(path).read("w"), at_step(step)["w"][1].reshape(-1)), path
    return [step for step, _ in found]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("where", ["local", "memory"])
def test_runs_are_found(tmp_path: Path, memory: Any, layout: str, where: str) -> None:
    write_run(tmp_path, [1, 20, 3], at_step, layout=layout)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "events.out").write_bytes(b"")
    upload(memory, tmp_path, "/run")
    assert steps_of(tmp_path if where == "local" else "memory://run") == [1, 3, 20]


def test_the_step_of_areal_is_the_global_one(tmp_path: Path) -> None:
    for epoch, inner, step in ((0, 9, 9), (0, 19, 19), (1, 9, 29)):
        write_checkpoint(tmp_path / f"epoch{epoch}epochstep{inner}globalstep{step}", at_step(step))
    assert steps_of(tmp_path) == [9, 19, 29]


def test_what_lies_beside_the_steps(tmp_path: Path) -> None:
    """Best and last, copies, the final model, DeepSpeed's own directory: none of them is a step."""
    write_run(tmp_path, [9, 10, 100], at_step, layout="checkpoint-{}")
    write_checkpoint(tmp_path, at_step(100))
    for name in ("checkpoint-best", "checkpoint-last", "checkpoint-20 (copy)", "checkpoint-20.bak", "Checkpoint-30",
                 "runs", "5", "best_global_step7", "global_step8"):  # fmt: skip
        write_checkpoint(tmp_path / name, at_step(1))
    assert steps_of(tmp_path) == [9, 10, 100]


def test_a_name_twice_matters_only_where_both_are_wanted(tmp_path: Path) -> None:
    write_run(tmp_path, [10, 20, 100], at_step, layout="checkpoint-{}")
    write_run(tmp_path, [10], at_step, layout="checkpoint-{:03d}")
    with pytest.raises(CheckpointError, match="step 10 twice: checkpoint-010 and checkpoint-10; remove one, or choose"):
        find_run(tmp_path)
    assert steps_of(tmp_path, steps="20:100") == [20, 100]
    template = f"{tmp_path}/checkpoint-{{step}}"
    with pytest.raises(CheckpointError, match="step 10 twice: 010 and 10"):
        find_run(template)
    assert steps_of(template, steps="20:") == [20, 100]


def test_the_directory_of_a_prime_rl_run(tmp_path: Path) -> None:
    """Weights, and checkpoints of the trainer beside them; the first are taken."""
    write_run(tmp_path / "weights", [10, 20], at_step, layout="step_{}")
    for step in (10, 20, 30):
        (tmp_path / "checkpoints" / f"step_{step}" / "trainer").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step_{step}" / "trainer" / "__0_0.distcp").write_bytes(b"")
    assert steps_of(tmp_path) == [10, 20]


def test_several_runs_below_one_directory(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_run(tmp_path / name, [1], at_step)
    with pytest.raises(CheckpointError, match="ambiguous: first, second have checkpoints in them; give one of them"):
        find_run(tmp_path)


@pytest.mark.parametrize("marker", ["STABLE", ".complete"])
@pytest.mark.parametrize("template", [False, True])
def test_steps_without_the_marker_that_others_have(tmp_path: Path, marker: str, template: bool) -> None:
    write_run(tmp_path, [10, 20, 30], at_step, layout="step_{}", shards=3, side={marker: b""})
    write_run(tmp_path, [40], at_step, layout="step_{}", shards=3)
    root = f"{tmp_path}/step_{{step}}" if template else tmp_path
    with pytest.raises(CheckpointError, match=f"step 40 has no {marker}, which other steps have; wait for it"):
        find_run(root)
    assert steps_of(root, steps=":30") == [10, 20, 30]
    skipped: list[str] = []
    assert steps_of(root, skip_incomplete=True, on_skip=skipped.append) == [10, 20, 30]
    assert len(skipped) == 1
    assert f"step 40 has no {marker}" in skipped[0]
    if not template:  # seen from a step that is not asked for
        with pytest.raises(CheckpointError, match=f"step 40 has no {marker}"):
            find_run(root, steps="40")


def test_steps_that_cannot_be_used_for_several_reasons_are_named_together(tmp_path: Path) -> None:
    write_run(tmp_path, [10, 20], at_step, layout="step_{}", side={"STABLE": b""})
    write_run(tmp_path, [30], at_step, layout="step_{}")
    write_run(tmp_path, [40], at_step, layout="step_{}", side={"STABLE": b""})
    (tmp_path / "step_40" / "model.safetensors").unlink()
    (tmp_path / "step_50").symlink_to("/gone/step_50")
    (tmp_path / "step_60.tmp").mkdir()
    with pytest.raises(CheckpointError) as caught:
        find_run(tmp_path)
    reasons = str(caught.value).split("; step ")
    assert reasons[0].startswith("4 of 6 steps cannot be used: step 30: ")
    assert "has no STABLE, which other steps have; wait for it" in reasons[0]
    assert "step_40 has no weights" in reasons[1]
    assert "step_50 is a link to /gone/step_50" in reasons[2]
    assert reasons[3].endswith(
        "going by its name: step_60.tmp; to go on without them: --exclude-steps 30:60 or --skip-incomplete"
    )
    assert [step for step, _ in find_run(tmp_path, exclude_steps="30:60")] == [10, 20]


def test_runs_without_markers(tmp_path: Path) -> None:
    assert steps_of(write_run(tmp_path, [1, 2], at_step, layout="step_{}")) == [1, 2]


def sliced(step: int, rank: int, offsets: Callable[[int, int], list[int]]) -> bytes:
    """What one of two ranks of torch.distributed writes: half of the rows of each tensor, described as such."""
    parts = {name: (dtype, np.array_split(bits, 2)[rank]) for name, (dtype, bits) in at_step(step).items()}
    info = {name: {"saved_offsets": offsets(rank, bits.ndim)} for name, (_, bits) in parts.items()}
    return safetensors_bytes(parts, {"format": "pt", "DCP_SHARDING_INFO": json.dumps(info)})


def rows(rank: int, dimensions: int) -> list[int]:
    return [2 * rank, *[0] * (dimensions - 1)]


def test_slices_beside_consolidated_weights(tmp_path: Path) -> None:
    write_run(tmp_path, [1, 2], at_step, layout="step_{}/policy/weights/model/consolidated", shards=2)
    for step in (1, 2):
        for rank in (0, 1):
            model = tmp_path / f"step_{step}" / "policy" / "weights" / "model"
            (model / f"shard-0000{rank + 1}-model-00001-of-00001.safetensors").write_bytes(sliced(step, rank, rows))
    assert steps_of(tmp_path) == [1, 2]
    assert steps_of(f"{tmp_path}/step_{{step}}/policy/weights/model") == [1, 2]


def test_slices_alone_are_joined(tmp_path: Path) -> None:
    model = tmp_path / "step_1" / "policy" / "weights" / "model"
    model.mkdir(parents=True)
    for rank in (0, 1):
        (model / f"shard-0000{rank + 1}-model-00001-of-00001.safetensors").write_bytes(sliced(1, rank, rows))
    ((step, path),) = find_run(tmp_path)
    assert (step, path) == (1, f"{model}/shard-00001-model-00001-of-00001.safetensors")
    found = open_reader(path)
    for name, (_, bits) in at_step(1).items():
        assert np.array_equal(found.read(name), bits.reshape(-1))
    message = rf"has slices of tensors .*DCP_SHARDING_INFO.*consolidate_safetensors_files.* into {model}/consolidated"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(model)  # as a base, which decoding reads in ranges of its own


def test_slices_under_other_names_are_told_by_their_header(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", at_step(0))
    folder = tmp_path / "run" / "step_1"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(sliced(1, 1, rows))
    with pytest.raises(CheckpointError, match="has slices of tensors"):
        open_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(sliced(1, 0, rows))  # the first slice begins where the tensor does
    encode = ("encode", tmp_path / "run", "--base", tmp_path / "base", "-o", tmp_path / "x.relex")
    failed(cli(*encode), "step 1 has slices of tensors", "'w' is [2, 3], [4, 3] in the base")
