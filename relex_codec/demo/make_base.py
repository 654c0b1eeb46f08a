"""Makes the base model that the demonstration starts from: supervised training from scratch, stopped half way.

``python -m relex_codec.demo.make_base OUT`` writes the Hugging Face checkpoint ``OUT/`` in bf16 (1.58 M parameters,
3.2 MB). It stops at a little over half of the problems solved, because reinforcement learning with a yes-or-no reward
needs a model that is right sometimes and wrong sometimes. The model in ``base/`` beside this file is what the script
wrote: step 300, score 0.555. Takes a minute on two cores; the same machine and versions give the same bytes.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from relex_codec.storage.local_directory import AtomicDirectory

from . import task

STOP_AT = 0.55
CHECK_EVERY, MAX_STEPS = 5, 4000
BATCH, LEARNING_RATE, WARMUP_STEPS = 64, 2e-3, 100
# The stopping problems are held-out ones, but not those of the score, so that stopping selects nothing for the score.
WEIGHTS_SEED, TRAINING_SEED, STOPPING_SEED, STOPPING_PROBLEMS = 0, 20, 21, 1024


def new_model() -> task.Model:
    """An untrained Qwen2 of 4 layers and 192 dimensions with tied embeddings."""
    configuration = transformers.Qwen2Config(
        vocab_size=len(task.VOCABULARY),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        # With the usual 0.02 a model as narrow as this one learns nothing for its first thousand steps.
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=task.END,
        pad_token_id=task.PAD,
    )
    with torch.random.fork_rng():
        torch.manual_seed(WEIGHTS_SEED)
        return transformers.Qwen2ForCausalLM(configuration)


def rounded(model: task.Model) -> task.Model:
    """A float32 copy of ``model`` whose weights are those of its bf16 checkpoint."""
    return copy.deepcopy(model).to(torch.bfloat16).to(torch.float32)


def train(model: task.Model, stop_at: float = STOP_AT, max_steps: int = MAX_STEPS) -> tuple[int, float]:
    """Trains ``model`` until it solves ``stop_at`` of the stopping problems; returns the steps taken and that share."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    questions, answers = task.problems(BATCH * max_steps, TRAINING_SEED)
    solved = 0.0
    bar = tqdm(range(1, max_steps + 1), desc="supervised training", unit="step")
    for step, question, answer in zip(bar, torch.split(questions, BATCH), torch.split(answers, BATCH), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, step / WARMUP_STEPS)
        log_probabilities = task.answer_log_probabilities(model, question, answer)
        optimizer.zero_grad()
        torch.autograd.backward(-log_probabilities.mean())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % CHECK_EVERY == 0:
            # Of the model as it will be written: so unsettled a model can move by points when rounded to bf16.
            solved = task.score_model(rounded(model), STOPPING_PROBLEMS, STOPPING_SEED)
            bar.set_postfix(solved=f"{solved:.3f}")
            if solved >= stop_at:
                return step, solved
    raise RuntimeError(f"{solved:.3f} of the problems solved after {max_steps} steps, expected {stop_at}")


def write_tokenizer(directory: Path) -> None:
    """One token a character, in the two files that ``AutoTokenizer`` reads."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [{"id": task.VOCABULARY[character], "content": character, **flags} for character in ".$"]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": task.VOCABULARY, "unk_token": "."},
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "$", "pad_token": ".", "unk_token": "."}
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Trains, rounds to bf16, writes, and prints the score of what was written."""
    parser = argparse.ArgumentParser(description="Make the base model of the demonstration.")
    parser.add_argument("out", type=Path, help="directory of the checkpoint, not there yet or empty")
    out: Path = parser.parse_args(arguments).out
    with AtomicDirectory(out) as unfinished:
        model = new_model()
        step, solved = train(model)
        print(f"stopped at step {step}: {solved:.4f} of {STOPPING_PROBLEMS} stopping problems solved")
        with task.quiet_transformers():
            model.to(torch.bfloat16).save_pretrained(unfinished.path)
        write_tokenizer(Path(unfinished.path))
    print(f"{out}: score {task.score(out):.4f} on {task.SCORE_PROBLEMS} held-out problems")


if __name__ == "__main__":
    main()
