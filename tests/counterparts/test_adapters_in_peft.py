"""Adapters that are made of files, in real peft: what it merges, and computes unmerged, is what `decode` gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import relex_codec

pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 50}
LLAMA = SMALL | {"intermediate_size": 48, "num_hidden_layers": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("LlamaForCausalLM", LLAMA | {"tie_word_embeddings": False}),
    "tied": ("Qwen2ForCausalLM", LLAMA | {"tie_word_embeddings": True}),
    "fused": ("Phi3ForCausalLM", LLAMA | {"tie_word_embeddings": False, "pad_token_id": 0}),
    "transposed": ("GPT2LMHeadModel", {"n_embd": 32, "n_head": 2, "n_layer": 2, "vocab_size": 50, "n_positions": 32}),
    "experts [in, out]": (
        "GptOssForCausalLM",
        LLAMA | {"tie_word_embeddings": False, "num_local_experts": 3, "num_experts_per_tok": 2},
    ),
}


def made(name: str, root: Path, **options: Any) -> Path:
    """Write a model and three steps of it that lie on a line, and return the file that they become."""
    kind, settings = MODELS[name]
    torch.manual_seed(5)
    config = getattr(transformers, kind.replace("ForCausalLM", "Config").replace("LMHeadModel", "Config"))(**settings)
    model = getattr(transformers, kind)(config)
    model.save_pretrained(root / "base")
    moves = {n: 1e-3 * torch.randn(p.shape) for n, p in model.named_parameters()}
    for step in (1, 2, 3):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p += moves[n]
        model.save_pretrained(root / "run" / f"checkpoint-{step}")
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", **options)
    return root / "x.relex"


def loaded(folder: Path, name: str) -> Any:
    return getattr(transformers, MODELS[name][0]).from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{"quality": "raw"}, {"quality": "micro", "factor_rank": 4}], ids=["raw", "micro"])
def test_merged_and_unmerged(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    from peft import PeftModel

    with relex_codec.open(made(name, tmp_path, **options)) as run:
        found = run.save_adapter(tmp_path / "adapter", 5, rank=64, modules_to_save=True)
        run.save(tmp_path / "whole", 5)
    if "experts" in name:  # sinks lie beside linear layers, where PEFT brings nothing whole
        assert list(found.left_out) == ["no module of its own"]
    else:
        assert found.left_out == {}
    assert found.kept + sum(found.left_out.values()) == pytest.approx(1, abs=1e-5)
    x = torch.arange(12)[None]
    with torch.no_grad():
        expected = loaded(tmp_path / "whole", name)(x).logits
        start = loaded(tmp_path / "base", name)(x).logits
        model = PeftModel.from_pretrained(loaded(tmp_path / "base", name), tmp_path / "adapter").eval()
        unmerged = model(x).logits
        merged = model.merge_and_unload()
        after = merged(x).logits
    moved = float((start - expected).norm())
    assert float((unmerged - after).norm()) < 2e-3 * moved
    if not found.left_out:
        assert float((after - expected).norm()) < 2e-3 * moved
    weights, base = loaded(tmp_path / "whole", name).state_dict(), loaded(tmp_path / "base", name).state_dict()
    for key, value in merged.state_dict().items():
        if found.left_out and key.endswith("sinks"):
            continue
        change = float((weights[key] - base[key]).norm())
        assert float((value - weights[key]).norm()) <= 1e-3 * change + 1e-5, key


def test_several_steps_share_a_and_can_be_switched(tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    with relex_codec.open(made("untied", tmp_path, quality="raw", rank=2)) as run:
        run.save_adapter(tmp_path / "adapters", [2, 3, 6], rank=32, embeddings=False)
        run.save(tmp_path / "whole", 6)
    parts = [load_file(tmp_path / "adapters" / f"step-{step}" / "adapter_model.safetensors") for step in (2, 3, 6)]
    for key in parts[0]:
        same = all(torch.equal(part[key], parts[0][key]) for part in parts)
        assert same == ("lora_A" in key), key
    model = PeftModel.from_pretrained(loaded(tmp_path / "base", "untied"), tmp_path / "adapters" / "step-2", "two")
    model.load_adapter(tmp_path / "adapters" / "step-6", "six")
    model.set_adapter("six")
    merged, weights = model.merge_and_unload().state_dict(), loaded(tmp_path / "whole", "untied").state_dict()
    key = "model.layers.1.mlp.up_proj.weight"
    assert torch.allclose(merged[key], weights[key], atol=1e-5)


class Experts(torch.nn.Module):
    """Experts that hold [E, out, in], under names that are the same in files and in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = torch.nn.Parameter(torch.randn(3, 48, 32))
        self.down_proj = torch.nn.Parameter(torch.randn(3, 32, 24))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = torch.nn.Module()
        self.mlp.experts = Experts()


def test_experts_out_in(tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    torch.manual_seed(1)
    model = Model()
    for step in range(4):
        folder = tmp_path / "run" / f"checkpoint-{step}" if step else tmp_path / "base"
        folder.mkdir(parents=True)
        generator = torch.Generator().manual_seed(2)
        state = {n: p.detach() + step * 1e-3 * torch.randn(p.shape, generator=generator)
                 for n, p in model.named_parameters()}  # fmt: skip
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text('{"architectures": ["Model"]}')
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality="raw")
    with relex_codec.open(tmp_path / "x.relex") as run:
        run.save_adapter(tmp_path / "adapter", 5, rank=32)
        run.save(tmp_path / "whole", 5)
    model.load_state_dict(load_file(tmp_path / "base" / "model.safetensors"))
    merged = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload().state_dict()
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    for key, value in merged.items():
        assert torch.allclose(value, weights[key], atol=1e-5), key
