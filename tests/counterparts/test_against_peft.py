"""Adapters of every kind that peft makes of a small model: merged as it merges them, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import relex_codec
from relex_codec.errors import Unsupported

pytest.importorskip("peft")
import checks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
QV = ["q_proj", "v_proj"]
MERGED: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": QV},
    "rsLoRA": {"target_modules": QV, "use_rslora": True, "r": 6, "lora_alpha": 5},
    "ranks and alphas": {
        "target_modules": [*QV, "up_proj"], "rank_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 3},
        "alpha_pattern": {"up_proj": 7},
    },
    "embeddings": {"target_modules": [*QV, "embed_tokens"]},
    "biases": {"target_modules": QV, "bias": "lora_only"},
    "whole modules": {"target_modules": QV, "modules_to_save": ["norm"]},
    "some layers": {"target_modules": QV, "layers_to_transform": [1, 2]},
    "every layer": {"target_modules": "all-linear", "init_lora_weights": "gaussian"},
}  # fmt: skip
REFUSED: dict[str, dict[str, Any]] = {
    "DoRA": {"target_modules": QV, "use_dora": True},
    "PiSSA": {"target_modules": QV, "init_lora_weights": "pissa"},
    "OLoRA": {"target_modules": QV, "init_lora_weights": "olora"},
    "biases of B": {"target_modules": QV, "lora_bias": True},
}


def adapters(root: Path, options: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> Path:
    """Save an adapter of random weights at two steps, and return the file that they become."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    torch.set_num_threads(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(checks.BASE, dtype=dtype), LoraConfig(**options))
    for step in (1, 2):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn(parameter.shape).to(parameter.dtype)
        model.save_pretrained(root / "run" / f"checkpoint-{step}")
    relex_codec.encode(root / "run", root / "x.relex", base=checks.BASE, exact=True)
    return root / "x.relex"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("options", MERGED.values(), ids=MERGED)
def test_merged(tmp_path: Path, options: dict[str, Any], dtype: torch.dtype) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    file = adapters(tmp_path, options, dtype)
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(checks.BASE, dtype=dtype).save_pretrained(base)
    for step in (1, 2):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        merged = PeftModel.from_pretrained(model, tmp_path / "run" / f"checkpoint-{step}").merge_and_unload()
        merged.save_pretrained(tmp_path / f"peft-{step}")
        with relex_codec.open(file, base=base) as opened:
            opened.save(tmp_path / f"ours-{step}", step, merge=True)
        checks.assert_same(checks.load(tmp_path / f"ours-{step}"), checks.load(tmp_path / f"peft-{step}"))


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    file = adapters(tmp_path, options)
    with relex_codec.open(file, base=checks.BASE) as opened:
        opened.save(tmp_path / "adapter", 2)
        checks.assert_same(checks.load(tmp_path / "adapter"), checks.load(tmp_path / "run" / "checkpoint-2"))
        with pytest.raises(Unsupported, match="merge it with peft"):
            opened.save(tmp_path / "ours", 2, merge=True)
