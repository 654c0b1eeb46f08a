"""A run with tensors of every kind that units treat differently: small, large, still, and without a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from relex_codec.format.constants import PIECE

from .checkpoints import write_checkpoint, write_run
from .tensors import Tensor, bf16, f32

STEPS = [10, 20, 30, 40]
LATER = [50, 60]


def weights(step: int) -> dict[str, Tensor]:
    """The tensors of a step; 0 is the base."""
    rng = np.random.default_rng(7)
    shapes = {"a": (40, 30), "b": (PIECE // 1024 * 5 + 3, 1024), "c": (700,), "d": (3, PIECE // 4), "e": (90, 20)}
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        start, drift = rng.standard_normal(shape) * 0.02, rng.standard_normal(shape) * 1e-5
        noise = np.random.default_rng(step).standard_normal(shape) * 1e-6
        values = start if name == "c" else start + step * drift + (noise if step else 0)
        found[name] = f32(values) if name == "d" else bf16(values)
    found["counter"] = "I64", np.array([1000 + step], np.uint64)
    return found


def make(root: Path) -> Path:
    """Write base/ and run/ and later/ below `root`."""
    write_checkpoint(root / "base", weights(0))
    write_run(root / "run", STEPS, weights)
    write_run(root / "later", LATER, weights)
    return root
