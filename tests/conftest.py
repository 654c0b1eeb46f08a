"""Runs and files that several test modules read; made once a session, never changed."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import relex_codec
from relex_codec.storage.source import Source
from support.faulty import Faulty
from support.helpers import Tensor, bf16, empty_memory, f16, f32, random_bits, write_checkpoint, write_run
from support.plain import Array

pytest_plugins = ["support.servers.fixtures", "support.servers.runs", "support.hub_server"]


def pytest_configure() -> None:
    """Without a GPU Triton's kernels run in its interpreter, which it asks for when it is imported: so before that."""
    assert "triton" not in sys.modules
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


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


class Held(Source):
    """A source in memory."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data, self.size, self.path = data, len(data), "held.relex"

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self._check(ranges)
        return [bytes(self.data[a:b]) for a, b in ranges]


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


@pytest.fixture(scope="session")
def zoo_run(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every kind of tensor, seven uneven steps, base in three shards, checkpoints in two."""
    root = tmp_path_factory.mktemp("zoo")
    base, at = zoo()
    steps = [1, 2, 5, 9, 14, 20, 23]
    write_checkpoint(root / "base", base, shards=3, side=SIDE)
    write_run(root / "run", steps, at, shards=2)
    return Made(root, steps, base, at)


@pytest.fixture(scope="session")
def zoo_file(zoo_run: Made, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Encode the zoo: ``zoo_file("raw", rank=2)``; each combination once."""
    folder = tmp_path_factory.mktemp("zoo_files")
    known: dict[str, Path] = {}

    def make(quality: str | float = "raw", **options: Any) -> Path:
        key = f"{quality}-" + "-".join(f"{k}={v}" for k, v in sorted(options.items()))
        if key not in known:
            path = folder / f"{key}.relex"
            size = relex_codec.encode(zoo_run.run, path, base=zoo_run.base_path, quality=quality, **options)
            assert size == path.stat().st_size
            known[key] = path
        return known[key]

    return make


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The reference decoder, which shares no code with the package."""
    if "relex_reference_decoder" in sys.modules:
        return sys.modules["relex_reference_decoder"]
    path = Path(__file__).parent.parent / "spec" / "reference_decoder.py"
    spec = importlib.util.spec_from_file_location("relex_reference_decoder", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's memory filesystem, empty before and after."""
    with empty_memory() as filesystem:
        yield filesystem


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files wait for their upload, also in new processes."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    Faulty.reset()
    return folder
