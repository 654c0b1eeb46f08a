"""Six steps of TRL's GRPOTrainer on the model of the demonstration, every step saved.

usage: python trl_run.py OUTPUT full|lora|rslora
"""

from __future__ import annotations

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


def main(output: str, kind: str) -> None:
    """Train."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16)
    adapter = None
    if kind != "full":
        adapter = LoraConfig(
            r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=kind == "rslora"
        )
    config = GRPOConfig(
        output_dir=output, max_steps=STEPS, save_steps=1, save_strategy="steps", per_device_train_batch_size=4,
        num_generations=4, max_completion_length=6, learning_rate=1e-3, report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, logging_steps=100, disable_tqdm=True, seed=1,
    )  # fmt: skip
    prompts = Dataset.from_list([{"prompt": f"{a}+{b}="} for a in range(2, 8) for b in range(1, 9)])
    GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=prompts, processing_class=tokenizer,
        peft_config=adapter,
    ).train()  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
