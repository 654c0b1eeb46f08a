"""Runs that several test modules read: tensors of every kind that move, and where a run lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .tensors import Array, Tensor, bf16, f16, f32, random_bits

SIDE = {
    "config.json": {"model_type": "test"},
    "generation_config.json": {"temperature": 0.6},
    "tokenizer.json": b'{"version": "1.0"}',
    "chat_template.jinja": b"{{ messages }}\r\n",
}


@dataclass(frozen=True)
class Made:
    """A run on disk, with everything that is in it."""

    root: Path
    steps: list[int]
    base: dict[str, Tensor]
    at: Callable[[int], dict[str, Tensor]]

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def base_path(self) -> Path:
        return self.root / "base"

    def bits(self, name: str) -> list[Array]:
        """The tensor at every step."""
        return [self.at(step)[name][1] for step in self.steps]


def moving(shape: tuple[int, ...], seed: int, make: Callable[[Any], Tensor]) -> tuple[Tensor, Callable[[int], Tensor]]:
    """Return a tensor and what it is at a step: a drift of low rank and some noise, rounded by `make`."""
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(shape) * 0.05
    drift = rng.standard_normal(shape) * 1e-3
    if len(shape) > 1:
        drift += (
            np.einsum(
                "...i,...j->...ij", rng.standard_normal(shape[:-1]), rng.standard_normal((*shape[:-2], shape[-1]))
            )
            * 4e-3
        )

    def at(step: int) -> Tensor:
        noise = np.random.default_rng((seed, step)).standard_normal(shape) * 6e-4
        dtype, bits = make(start + drift * (step / 20) ** 0.9 + noise)
        return dtype, bits.reshape(shape)

    dtype, bits = make(start)
    return (dtype, bits.reshape(shape)), at


def zoo() -> tuple[dict[str, Tensor], Callable[[int], dict[str, Tensor]]]:
    """One tensor of every kind."""
    movers: dict[str, tuple[Tensor, Callable[[int], Tensor]]] = {
        "model.embed_tokens.weight": moving((40, 24), 1, bf16),
        "layers.0.proj.weight": moving((48, 64), 2, bf16),
        "layers.0.norm.weight": moving((64,), 3, bf16),
        "layers.0.experts": moving((4, 16, 24), 4, bf16),
        "layers.1.half": moving((30, 20), 5, f16),
        "layers.1.single": moving((17, 9), 6, f32),
        "layers.1.scale": moving((), 7, f32),
    }
    base: dict[str, Tensor] = {}
    static: dict[str, Tensor] = {
        "frozen": bf16(np.random.default_rng(8).standard_normal((32, 16))),
        "odd_bits": random_bits("BF16", (50,), 9),  # NaNs with payloads, infinities, subnormals
        "empty": bf16(np.zeros((0, 8))),
        "mask": f32(np.triu(np.full((12, 12), -np.inf), 1)),
        "positions": ("I64", np.arange(5, dtype=np.uint64)),
        "switch": random_bits("BOOL", (4, 4), 10),
        "codes": random_bits("F8_E4M3", (6, 3), 11),
    }
    names = list(movers)
    for i, name in enumerate(names):
        base[name] = movers[name][0]
        if i < len(static):
            key = list(static)[i]
            base[key] = static[key]
    base["batches_seen"] = ("I64", np.full((), 77, np.uint64))
    base["unused"] = bf16(np.ones((3, 3)))
    base["resized"] = bf16(np.zeros((8, 6)))
    base["wider"] = f32(np.random.default_rng(12).standard_normal((12, 10)) * 0.1)  # bf16 in the run
    base["wider_frozen"] = f32(np.random.default_rng(13).standard_normal((5, 10)) * 0.1)
    wider = base["wider"][1].view(np.float32)
    resized, added = moving((10, 6), 14, bf16), moving((24, 12), 15, bf16)
    added_frozen = bf16(np.random.default_rng(16).standard_normal((7, 7)))

    def at(step: int) -> dict[str, Tensor]:
        found = {name: mover(step) for name, (_, mover) in movers.items()} | static
        found["batches_seen"] = ("I64", np.array(step // 4, np.uint64))
        found["resized"] = resized[1](step)
        found["wider"] = bf16(wider + 1e-3 * step)
        found["wider_frozen"] = bf16(base["wider_frozen"][1].view(np.float32))
        found["added"] = added[1](step)
        found["added_frozen"] = added_frozen
        found["added_counter"] = ("I32", np.array([step, 7], np.uint32))
        return found

    return base, at
