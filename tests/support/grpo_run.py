"""A GRPO run of TRL on the CPU, recorded as it trains; killed in the middle where that is asked for.

usage: python grpo_run.py FOLDER STEPS KILLED_AFTER. FOLDER gets ``out/checkpoint-N`` and ``j``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from relex_codec.demo.run_demo import BASE
from relex_codec.integrations.trainer import RelexCallback


class Kill(TrainerCallback):  # type: ignore[misc]
    """Ends the process as a cluster does."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the step was handed to the recorder, which may be writing it."""
        if state.global_step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def reward(completions: list[str], **kwargs: Any) -> list[float]:
    """Some answers are better than others, so there is a gradient."""
    return [float(len(set(completion))) for completion in completions]


def main(folder: str, steps: str, killed_after: str) -> None:
    """Train, from the last checkpoint if there is one."""
    torch.manual_seed(0)
    root = Path(folder)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16)
    prompts = datasets.Dataset.from_dict({"prompt": [f"{a}+{b}=" for a in range(10, 18) for b in range(10, 14)]})
    config = GRPOConfig(
        output_dir=str(root / "out"), max_steps=int(steps), save_steps=2, logging_steps=1, report_to=[], use_cpu=True,
        per_device_train_batch_size=8, num_generations=4, max_completion_length=6, learning_rate=1e-3, bf16=False,
        disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    callbacks = [RelexCallback(root / "j", base=BASE), Kill(int(killed_after))]
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=prompts, processing_class=tokenizer,
        callbacks=callbacks,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=any((root / "out").glob("checkpoint-*")) or None)


if __name__ == "__main__":
    main(*sys.argv[1:])
