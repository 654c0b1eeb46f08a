"""Runs of a tiny Qwen3, as trainers leave them on disk: what the cases from public reports are made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .commands import Done, cli

State = dict[str, torch.Tensor]
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 48,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "hidden_act": "silu",
    "dtype": "bfloat16", "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
UNTIED = {**CONFIG, "tie_word_embeddings": False}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def weights(*, vocabulary: int = 48, tied: bool = True, seed: int = 0) -> State:
    """The weights of the base, in bfloat16."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).bfloat16()

    found = {EMBEDDING: drawn(vocabulary, 16), "model.norm.weight": torch.ones(16).bfloat16()}
    for i in range(2):
        layer = {
            "self_attn.q_proj": drawn(16, 16), "self_attn.k_proj": drawn(8, 16), "self_attn.v_proj": drawn(8, 16),
            "self_attn.o_proj": drawn(16, 16), "mlp.gate_proj": drawn(32, 16), "mlp.up_proj": drawn(32, 16),
            "mlp.down_proj": drawn(16, 32), "self_attn.q_norm": torch.ones(8).bfloat16(),
            "self_attn.k_norm": torch.ones(8).bfloat16(), "input_layernorm": torch.ones(16).bfloat16(),
            "post_attention_layernorm": torch.ones(16).bfloat16(),
        }  # fmt: skip
        found.update({f"model.layers.{i}.{name}.weight": value for name, value in layer.items()})
    if not tied:
        found[HEAD] = drawn(vocabulary, 16)
    return found


def moved(base: State, step: int, dtype: torch.dtype | None = None) -> State:
    """The base moved along a line, and a little besides, as so many steps of training do."""
    found = {}
    for name, value in base.items():
        if not value.is_floating_point():
            found[name] = value.clone()
            continue
        seed = sum(map(ord, name))
        line = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)) * 1e-3
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed + 7919 * step)) * 2e-4
        found[name] = (value.float() + line * step + noise).to(dtype or value.dtype)
    return found


def with_head(state: State) -> State:
    """The weights with a copy of the embeddings as output embeddings."""
    return {**state, HEAD: state[EMBEDDING].clone()}


def put(path: Path, content: Any = b"x") -> None:
    """Write a file, and its folders: bytes as they are, all else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content, indent=1).encode())


def write(
    folder: Path,
    state: State,
    config: Mapping[str, Any] | None = CONFIG,
    *,
    shards: int = 1,
    files: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint: weights in so many shards, their index, ``config.json``, further files."""
    names, where = list(state), {}
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(shards):
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        file = "model.safetensors" if shards == 1 else f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: state[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(part, file))
    if shards > 1:
        put(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": where})
    for name, content in {**({} if config is None else {"config.json": config}), **(files or {})}.items():
        put(folder / name, content)
    return folder


def write_steps(
    root: Path,
    at: Callable[[int], State],
    steps: tuple[int, ...] = (1, 2, 3),
    name: str = "checkpoint-{}",
    **options: Any,
) -> Path:
    """Write a checkpoint for each step, with the weights that `at` gives for it."""
    for step in steps:
        write(root / name.format(step), at(step), **options)
    return root


def read(folder: Path) -> State:
    """All tensors of a folder's safetensors files."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Check that names, dtypes, shapes and bits are the same."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert bytes_of(found[name]) == bytes_of(value), name


def bytes_of(value: torch.Tensor) -> bytes:
    """The bytes of a tensor, whatever its dtype."""
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def encode(root: Path, *options: Any, run: str = "run", base: str = "base", file: str = "r.relex") -> Done:
    """Encode the run below a folder with its base; quick, in the quality that searches for nothing."""
    return cli("encode", root / run, "--base", root / base, "-o", root / file, "--quality", "raw", "-f", *options)


def encoded(root: Path, *options: Any, **names: str) -> Done:
    """Encode, and verify the file against its base."""
    done = encode(root, *options, **names)
    assert done.returncode == 0, done.stderr
    checked = cli("verify", root / names.get("file", "r.relex"), "--base", root / names.get("base", "base"))
    assert checked.returncode == 0, checked.stderr
    return done


def decoded(root: Path, step: float, *options: Any, file: str = "r.relex", out: str = "out") -> State:
    """Decode a step to a folder, which is emptied before, and return its weights."""
    shutil.rmtree(root / out, ignore_errors=True)
    done = cli("decode", root / file, "--step", f"{step:g}", "--far", "-o", root / out, *options)
    assert done.returncode == 0, done.stderr
    return read(root / out)


def restored(root: Path, file: str = "r.relex", out: str = "again") -> Path:
    """Restore all steps and return the folder that has them."""
    shutil.rmtree(root / out, ignore_errors=True)
    done = cli("restore", root / file, "-o", root / out)
    assert done.returncode == 0, done.stderr
    return root / out
