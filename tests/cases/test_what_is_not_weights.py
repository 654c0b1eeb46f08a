"""Runs and bases that hold no whole safetensors: what they hold is named, with the command that works.

From public reports; the files are empty, as their names are all that is looked at.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from relex_codec.checkpoints.base_model import open_base
from relex_codec.checkpoints.discovery import find_run
from relex_codec.errors import CheckpointError, MissingCheckpoint
from support.checkpoints import write_checkpoint, write_run
from support.commands import cli, failed
from support.filesystems import upload
from support.tensors import Tensor, bf16

TRAINER = ["trainer_state.json", "rng_state_0.pth", "scheduler.pt", "training_args.bin", "tokenizer.json"]
SHARDS = ["model_world_size_2_rank_0.pt", "huggingface/config.json"]
MERGE = "AutoPeftModelForCausalLM as M; M.from_pretrained('{}').merge_and_unload().save_pretrained('RUN/{}/merged')"
MODEL_MERGER = "python -m verl.model_merger merge --backend {} --local_dir RUN/{} --target_dir RUN/{}/huggingface"
DCP = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch RUN/{}"
RUNS: dict[str, tuple[str, list[str], list[str]]] = {
    "verl, Megatron": (
        "global_step_10",
        ["data.pt", "actor/dist_ckpt/.metadata", "actor/dist_ckpt/__0_0.distcp", "actor/dist_ckpt/common.pt",
         "actor/huggingface/config.json"],
        ["a checkpoint of Megatron (actor/dist_ckpt)", MODEL_MERGER.format("megatron", *["global_step_10/actor"] * 2)],
    ),
    "verl, FSDP": (
        "global_step_10",
        ["data.pt", *(f"actor/{file}" for file in (*SHARDS, "optim_world_size_2_rank_0.pt", "fsdp_config.json"))],
        ["pickled files only (actor/model_world", MODEL_MERGER.format("fsdp", *["global_step_10/actor"] * 2)],
    ),
    "verl, with a critic": (
        "global_step_10",
        ["critic/model_world_size_2_rank_0.pt", "data.pt"],
        ["training state only"],
    ),
    "an adapter without its configuration": (
        "checkpoint-10",
        [*TRAINER, "adapter_model.safetensors", "optimizer.pt"],
        ["is incomplete: an adapter without adapter_config.json"],
    ),
    "a pickled adapter": (
        "checkpoint-10",
        [*TRAINER, "adapter_model.bin", "adapter_config.json", "optimizer.pt"],
        ["an adapter only (adapter_model.bin)", MERGE.format("RUN/checkpoint-10", "checkpoint-10")],
    ),
    "TRL, FSDP": (
        "checkpoint-10",
        [*TRAINER, "pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata", "optimizer_0/__0_0.distcp"],
        ["torch.distributed checkpoint (pytorch_model_fsdp_0/__0_0.distcp)",
         "accelerate merge-weights RUN/checkpoint-10/pytorch_model_fsdp_0 RUN/checkpoint-10/merged",
         DCP.format("checkpoint-10/pytorch_model_fsdp_0")],
    ),
    "TRL, ZeRO-3": (
        "checkpoint-10",
        [*TRAINER, "global_step10/zero_pp_rank_0_mp_rank_00_model_states.pt", "latest", "zero_to_fp32.py"],
        ["DeepSpeed ZeRO checkpoint",
         "python RUN/checkpoint-10/zero_to_fp32.py RUN/checkpoint-10 RUN/checkpoint-10/merged --safe_serialization"],
    ),
    "NeMo-RL": (
        "step_10",
        ["config.yaml", "train_dataloader.pt", "policy/weights/model/__0_0.distcp", "policy/weights/model/.metadata",
         "policy/optimizer/optim/__0_0.distcp"],
        ["torch.distributed checkpoint (policy/weights/model/__0_0.distcp)", DCP.format("step_10/policy/weights/model"),
         "convert_dcp_to_hf.py --config=RUN/step_10/config.yaml"],
    ),
    "prime-rl, trainer": (
        "step_10",
        ["trainer/__0_0.distcp", "trainer/.metadata"],
        ["torch.distributed checkpoint (trainer/__0_0.distcp)", DCP.format("step_10/trainer")],
    ),
    "SkyRL": (
        "global_step_10",
        ["data.pt", "trainer_state.pt", *(f"policy/{file}" for file in SHARDS)],
        ["pickled files only (policy/model_world", MODEL_MERGER.format("fsdp", *["global_step_10/policy"] * 2),
         "hf_save_interval"],
    ),
    "slime": (
        "iter_0000010",
        ["__0_0.distcp", ".metadata", "common.pt"],
        ["torch.distributed checkpoint of Megatron", "convert_torch_dist_to_hf.py --input-dir RUN/iter_0000010"],
    ),
    "OpenRLHF": (
        "global_step10_hf",
        ["pytorch_model.bin", "config.json"],
        ["pickled files only (pytorch_model.bin)", "M.from_pretrained('RUN/global_step10_hf'", "save_pretrained"],
    ),
    "DeepSpeed": (
        "global_step10",
        ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"],
        ["DeepSpeed ZeRO checkpoint", "python -m deepspeed.utils.zero_to_fp32 RUN RUN/global_step10/merged"],
    ),
    "training state": (
        "checkpoint-10",
        [*TRAINER, "optimizer.pt"],
        ["training state only (optimizer.pt, rng_state_0.pth and 2 more), expected weights: model.safetensors"],
    ),
    "configuration": ("step_10", ["policy/tokenizer/tokenizer.json", "config.yaml"],
                      ["no weights", "found config.yaml, policy"]),
    "directories only": ("step_10", ["policy/"], ["no weights", "found policy"]),
    "nothing": ("step_10", [], ["no weights", "it is empty"]),
    "weights somewhere": (
        "step_10",
        ["export/final/model.safetensors"],
        ["has weights in export/final", "give the run as 'RUN/step_{step}/export/final'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("step", "files", "words"), RUNS.values(), ids=RUNS)
def test_what_steps_hold_is_named(tmp_path: Path, step: str, files: list[str], words: list[str]) -> None:
    root = tmp_path / "run"
    (root / step).mkdir(parents=True)
    for file in files:
        path = root / step / file
        (path if file.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not file.endswith("/"):
            path.write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        find_run(root)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"step 10: checkpoint {root}/{step} ")
    for word in words:
        assert word.replace("RUN", str(root)) in message
    for state in ("data.pt", "optim", "training_args"):
        assert not re.search(rf"(files only|checkpoint) \([^)]*{state}", message)


def test_what_lies_in_an_object_store_is_named_too(tmp_path: Path, memory: Any) -> None:
    for file in ("data.pt", "actor/model_world_size_2_rank_0.pt"):
        (tmp_path / "global_step_10" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "global_step_10" / file).write_bytes(b"x")
    upload(memory, tmp_path, "/run")
    with pytest.raises(CheckpointError, match="--local_dir memory://run/global_step_10/actor"):
        find_run("memory://run")


# A model wrapped by PEFT


def at_step(step: int) -> dict[str, Tensor]:
    return {"model.up_proj.weight": bf16([[1.0 + step, 2.0]]), "model.norm.weight": bf16([1.0])}


def wrapped(step: int) -> dict[str, Tensor]:
    found = {}
    for name, tensor in at_step(step).items():
        inner = "base_model.model." + name.removesuffix(".weight")
        found[f"{inner}.base_layer.weight" if "proj" in name else f"{inner}.weight"] = tensor
        if "proj" in name:
            found[f"{inner}.lora_A.default.weight"] = bf16([[step, step]])
            found[f"{inner}.lora_B.default.weight"] = bf16([[step]])
    return found


def test_a_model_wrapped_by_peft_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", at_step(0))
    write_run(tmp_path / "run", [1, 2], wrapped, layout="global_step_{}/actor/huggingface", shards=2)
    done = cli("encode", tmp_path / "run", "--base", tmp_path / "base", "-o", tmp_path / "x.relex", "--exact")
    failed(done, "wrapped by PEFT", "lora_A.default.weight", "merge_and_unload()", "save_pretrained")


# Links, caches, and where the run is


def test_steps_that_are_links_to_nowhere(tmp_path: Path) -> None:
    write_run(tmp_path, [10, 20], at_step, layout="checkpoint-{}")
    (tmp_path / "checkpoint-30").symlink_to("/gone/checkpoint-30")
    (tmp_path / "checkpoint-last").symlink_to("gone")
    message = "checkpoint-30 is a link to /gone/checkpoint-30, which does not exist"
    with pytest.raises(CheckpointError, match=message):
        find_run(tmp_path)
    skipped: list[str] = []
    assert [step for step, _ in find_run(tmp_path, skip_incomplete=True, on_skip=skipped.append)] == [10, 20]
    assert len(skipped) == 1
    assert message in skipped[0]
    assert [step for step, _ in find_run(tmp_path, steps=":20")] == [10, 20]


def test_weights_that_are_links_to_nowhere(tmp_path: Path) -> None:
    write_run(tmp_path, [10], at_step, layout="step_{}/hf")
    folder = tmp_path / "step_10" / "hf"
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")  # would be taken otherwise
    (folder / "model.safetensors").symlink_to("../blobs/12")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link to \.\./blobs/12, which does not exist"):
        find_run(tmp_path)
    (folder / "consolidated.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link to \.\./blobs/12, which does not exist"):
        find_run(tmp_path)


def test_the_directory_of_a_model_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    root = tmp_path / "models--Qwen--Qwen3-8B"
    write_checkpoint(root / "snapshots" / ("0123456789" * 4), at_step(0))
    (root / "refs").mkdir()
    (root / "blobs").mkdir()
    for look in (open_base, find_run):
        with pytest.raises(CheckpointError, match="is the cache of Qwen/Qwen3-8B, not a checkpoint: give hf://Qwen/Q"):
            look(root)
    (tmp_path / "run" / "step_1").mkdir(parents=True)
    root.rename(tmp_path / "run" / "step_1" / "models--Qwen--Qwen3-8B")
    with pytest.raises(CheckpointError, match="step_1 has weights in models--Qwen--Qwen3-8B/snapshots/0123456789"):
        find_run(tmp_path / "run")


def test_the_name_of_a_model_is_not_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingCheckpoint, match=r"^Qwen/Qwen3-8B does not exist.*give hf://Qwen/Qwen3-8B$"):
        open_base("Qwen/Qwen3-8B")
    for other in ("Qwen", "a/b/c", "./Qwen/Qwen3-8B", "/Qwen/Qwen3-8B"):
        with pytest.raises(MissingCheckpoint) as caught:
            open_base(other)
        assert "hf://" not in str(caught.value)


def test_paths_with_the_step_are_suggested(tmp_path: Path) -> None:
    write_run(tmp_path, [1, 20], at_step, layout="m-{}")
    with pytest.raises(CheckpointError, match=rf"found m-1, m-20; if .*for the number: '{tmp_path}/m-\{{step\}}'$"):
        find_run(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"found nothing; .*'.*/\.\.\./\{step\}/\.\.\.'$"):
        find_run(empty)


def test_the_directory_of_one_step_is_no_run(tmp_path: Path) -> None:
    write_run(tmp_path, [1], at_step, layout="global_step_{}/actor/huggingface")
    with pytest.raises(CheckpointError, match="global_step_1 is itself a checkpoint; give the directory above it"):
        find_run(tmp_path / "global_step_1")
