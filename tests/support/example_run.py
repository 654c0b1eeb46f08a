"""The run that examples in docstrings read: a tiny Qwen3 that moves along a line, as little as real runs do."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

import relex_codec
from relex_codec.demo.run_demo import BASE

from .tiny import State, weights, write, write_steps

STEPS = (10, 20, 30, 40, 50)
AT_THE_END = 40
"""The last step that ``run.relex`` has."""
SIZE = 8e-5
"""How far elements go until then, of the size of 0.02: at step 60 the line is where scores often peak."""
NORM = "model.norm.weight"
"""The only norm that moves, ten times smaller than usual: a BF16 of 1.0 would not move at all, as in real runs."""


def at(step: int) -> State:
    """The weights at a step; at 0 those of the base."""
    found = {}
    for name, value in weights().items():
        size = {NORM: 6 * SIZE}.get(name, 0.0 if "norm" in name else SIZE)
        way = torch.randn(value.shape, generator=torch.Generator().manual_seed(sum(map(ord, name))))
        start = value.float() * (0.1 if name == NORM else 1)
        found[name] = (start + step / AT_THE_END * size * way).to(value.dtype)
    return found


def write_example_run(root: Path) -> None:
    """Write ``base/``, ``ckpts/`` with steps 10 to 50, and ``run.relex`` with those to 40, all of them bit for bit."""
    write(root / "base", at(0))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, root / "base" / name)
    write_steps(root / "ckpts", at, STEPS, "global_step_{}")
    relex_codec.encode(root / "ckpts", root / "run.relex", base=root / "base", steps=f":{AT_THE_END}", exact=True)
