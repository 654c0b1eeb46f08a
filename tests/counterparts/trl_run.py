"""Six steps of TRL's GRPOTrainer on the model of the demonstration, every step saved.

usage: python trl_run.py OUTPUT full|lora|rslora|fsdp2|fsdp2-lora [RANK RANKS PORT]

Under FSDP2 there are several ranks over gloo on the CPU. accelerate has all that this takes, but sets FSDP up only
where it takes the ranks for those of GPUs: `AcceleratorState` looks for a plugin of FSDP if their type is ``MULTI_GPU``
or one of its kin, among which ``MULTI_CPU`` is not, and else wraps the model with DDP without a word. So the ranks are
called ``MULTI_GPU`` here, on the device ``cpu``, and everything else is TRL, transformers and accelerate.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

import relex_codec

BASE = Path(relex_codec.__file__).parent / "demo" / "base"
STEPS = 6


def reward(completions: list[str], **others: Any) -> list[float]:
    """Short answers that have a 1 in them are better."""
    return [answer.count("1") - 0.1 * len(answer) for answer in completions]


def options_of_fsdp(rank: str, ranks: str, port: str, layer: str) -> dict[str, Any]:
    """Return the arguments of FSDP2, and tell accelerate of the ranks."""
    os.environ.update(
        RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    config = {
        "fsdp_version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "transformer_layer_cls_to_wrap": [layer],
        "reshard_after_forward": True, "cpu_ram_efficient_loading": False, "state_dict_type": "SHARDED_STATE_DICT",
    }  # fmt: skip
    return {"fsdp": True, "fsdp_config": config}


def main(output: str, kind: str, *ranks: str) -> None:
    """Train."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16)
    adapter = None
    if kind not in ("full", "fsdp2"):
        adapter = LoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=kind == "rslora"
        )
    sharded = options_of_fsdp(*ranks, type(model.model.layers[0]).__name__) if ranks else {}
    config = GRPOConfig(
        output_dir=output, max_steps=STEPS, save_steps=1, save_strategy="steps", per_device_train_batch_size=4,
        num_generations=4, max_completion_length=6, learning_rate=1e-3, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, logging_steps=100, disable_tqdm=True, seed=1, **sharded,
    )  # fmt: skip
    if ranks:
        PartialState().distributed_type = DistributedType.MULTI_GPU
    prompts = Dataset.from_list([{"prompt": f"{a}+{b}="} for a in range(2, 8) for b in range(1, 9)])
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=prompts, processing_class=tokenizer,
        peft_config=adapter,
    )  # fmt: skip
    if ranks:
        assert trainer.accelerator.distributed_type == DistributedType.FSDP
        assert trainer.accelerator.is_fsdp2
    trainer.train()
    if ranks:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
