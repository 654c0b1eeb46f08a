"""What the programs of this directory serve, and what the weights of an engine are: for models like Qwen2."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import pytest
import torch
from safetensors.torch import load_file, save_file

import relex_codec

DEMO = Path(relex_codec.__file__).parent / "demo" / "base"
STEPS = (10, 20, 30, 40, 50)
PROMPTS = [[1, 2, 3, 10, 4, 5, 6, 13], [9, 9, 9, 10, 1, 13], [5, 0, 5, 10, 5, 0, 5, 13], [7, 7, 10, 8, 8, 13]]


def make(folder: Path) -> Path:
    """Write base, steps and file: the demonstration's model, moved along a line with some noise."""
    torch.manual_seed(0)
    base = load_file(DEMO / "model.safetensors")
    drift = {name: torch.randn(one.shape) * one.float().std() for name, one in base.items()}
    shutil.copytree(DEMO, folder / "base")
    for step in STEPS:
        at = folder / "run" / f"checkpoint-{step}"
        at.mkdir(parents=True)
        moved = {
            name: (one.float() + step * 0.002 * (drift[name] + 0.2 * torch.randn(one.shape) * one.float().std())).to(
                one.dtype
            )
            for name, one in base.items()
        }
        save_file(moved, at / "model.safetensors", {"format": "pt"})
    relex_codec.encode(folder / "run", folder / "run.relex", base=folder / "base", exact=True, observe=40)
    return folder


def engine(folder: Path, step: float = 20, **options: Any) -> Any:
    """Return an engine in this process (in others, if it has several workers), started at a step."""
    if options.get("tensor_parallel_size", 1) == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        options["distributed_executor_backend"] = "uni"
    from vllm import LLM

    options = {"dtype": "bfloat16", "weight_transfer_config": {"backend": "relex"}, **options}
    return LLM(
        str(folder / "base"), load_format="relex", max_model_len=64, enforce_eager=True,
        model_loader_extra_config={"file": str(folder / "run.relex"), "step": step}, **options,
    )  # fmt: skip


def model_of(llm: Any) -> torch.nn.Module:
    """Return the model of an engine in this process."""
    found: torch.nn.Module = llm.llm_engine.model_executor.driver_worker.worker.get_model()
    return found


def weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the engine's weights as the checkpoint has them: unpacked, and fused ones apart."""
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    names = {
        "qkv_proj": (("q_proj", q), ("k_proj", kv), ("v_proj", kv)),
        "gate_up_proj": (("gate_proj", config.intermediate_size), ("up_proj", config.intermediate_size)),
    }
    for name, layer in model.named_modules():
        found = dict(layer.named_parameters(recurse=False))
        if "cpu_linear" in layer.__dict__:
            rows = found["weight"].shape[1] if found["weight"].numel() else layer.input_size
            found["weight"] = layer.cpu_linear(torch.eye(rows, dtype=layer.weight.dtype), layer.weight, None).T
        place, _, kind = name.rpartition(".")
        for own, tensor in found.items():
            if kind in names:
                parts = torch.split(tensor, [size for _, size in names[kind]])
                for (part, _), one in zip(names[kind], parts, strict=True):
                    yield f"{place}.{part}.{own}", one
            elif kind in ("embed_tokens", "lm_head"):
                assert not tensor[config.vocab_size :].any()
                yield f"{name}.{own}", tensor[: config.vocab_size]
            else:
                yield f"{name}.{own}", tensor


def assert_at(llm: Any, folder: Path, step: float, tier: str = "auto") -> None:
    """Compare the engine's weights with those that are decoded, bit for bit; in float32 they are exact as well."""
    with relex_codec.open(folder / "run.relex", base=folder / "base") as run:
        expected = run.state_dict(step, tier=tier)
    expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    found = dict(weights(model_of(llm)))
    assert sorted(found) == sorted(expected)
    dtype = llm.llm_engine.model_config.dtype
    integer = {torch.bfloat16: torch.int16, torch.float32: torch.int32}[dtype]
    for name, tensor in expected.items():
        assert found[name].dtype == dtype and tensor.dtype == torch.bfloat16, name
        assert torch.equal(found[name].contiguous().view(integer), tensor.to(dtype).view(integer)), (step, name)


def refused(kind: type[BaseException], words: str, call: Any, *args: Any, **options: Any) -> None:
    """Call, and look for the error that it should raise: one line that holds these words."""
    with pytest.raises(kind) as raised:
        call(*args, **options)
    assert words in str(raised.value), raised.value
    assert "\n" not in str(raised.value)


def expected_tokens(
    folder: Path, step: float, prompt: list[int], change: Mapping[str, torch.Tensor] | None = None
) -> list[int]:
    """Return what transformers generates, greedily, from weights that are decoded and computed with in float32.

    Args:
        change: what is added to some of them.
    """
    from transformers import Qwen2ForCausalLM

    model = relex_codec.load_model(
        folder / "run.relex", step, base=folder / "base", model_class=Qwen2ForCausalLM, dtype=torch.float32
    )
    with torch.no_grad():
        for name, added in (change or {}).items():
            model.get_parameter(name).add_(added)
    found = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8)
    return [int(one) for one in found[0][len(prompt) :]]
