"""Runs of the small language model that comes along with the package."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import relex_codec
from relex_codec.demo.run_demo import BASE

State = dict[str, torch.Tensor]


def write_model(folder: Path, state: State) -> Path:
    """A checkpoint as the demonstration's base is, with other weights."""
    shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def encode_model(root: Path, base: State, change: Callable[[int], State] | None = None) -> Path:
    """A run of three steps from `base`; `change` gives the weights at a step."""
    generator = torch.Generator().manual_seed(4)
    drift = {name: torch.randn(value.shape, generator=generator) * 2e-3 for name, value in base.items()}
    write_model(root / "base", base)
    for step in (10, 20, 30):
        moved = {name: (value + drift[name] * step / 10).to(value.dtype) for name, value in base.items()}
        write_model(root / "run" / f"checkpoint-{step}", moved if change is None else change(step))
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", quality="raw", exact=True)
    return root / "x.relex"


def same_weights(a: Any, b: Any) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )
