"""Runs of small models that transformers makes itself: encoded, restored, opened again, generating the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")

import torch  # noqa: E402 (after the skip)

import relex_codec  # noqa: E402
from support.commands import cli  # noqa: E402
from support.tiny import State, assert_same, read  # noqa: E402
from support.versions import DTYPE  # noqa: E402

STEPS = (10, 20, 30)
PROMPT = torch.tensor([[3, 9, 17, 4]])
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen3-tied": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 8}),
    "qwen3-untied": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 8}),
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "gemma3": ("Gemma3Text", {"head_dim": 8, "sliding_window": 16}),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 8, "decoder_sparse_step": 1, "mlp_only_layers": []}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2-buffers": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}),
}


def made(kind: str) -> Any:
    name, options = MODELS[kind]
    config_class = getattr(transformers, f"{name}Config", None)
    model_class = getattr(
        transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name.removesuffix('Text')}ForCausalLM"
    )
    if config_class is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(7)
    config = config_class(**({} if name == "GPT2" else SMALL), **options)
    model = model_class(config).to(torch.bfloat16)
    if kind == "gpt2-buffers":  # as checkpoints of older releases have them
        for i, layer in enumerate(model.transformer.h):
            layer.attn.register_buffer("masked_bias", torch.tensor(-1e4 - i))
            layer.attn.register_buffer("bias", torch.ones(4, 4, dtype=torch.bool).tril())
    return model


def train(model: Any, step: int) -> None:
    """Move the weights along a line, and a little besides."""
    for number, (_, parameter) in enumerate(model.named_parameters()):
        generator = torch.Generator().manual_seed(number)
        line = torch.randn(parameter.shape, generator=generator) * 2e-3
        noise = torch.randn(parameter.shape, generator=generator.manual_seed(100 * step + number)) * 3e-4
        parameter.data = (parameter.data.float() + line + noise).to(parameter.dtype)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes each run once: a base, three checkpoints, and the file of them."""
    known: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in known:
            root, model = tmp_path_factory.mktemp(kind), made(kind)
            model.save_pretrained(root / "base")
            for step in STEPS:
                train(model, step)
                model.save_pretrained(root / f"run/checkpoint-{step}", max_shard_size="20KB")
            done = cli("encode", root / "run", "--base", root / "base", "-o", root / "x.relex", "--exact")
            assert done.returncode == 0, done.stderr
            assert "not in the base" not in done.stderr
            known[kind] = root
        return known[kind]

    return run


def opened(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **{DTYPE: "auto"})
    assert not any(found for key, found in info.items() if key != "unexpected_keys"), info
    assert all("bias" in key for key in info["unexpected_keys"]), info
    return model


def is_tied(model: Any) -> bool:
    return model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


def tokens(model: Any) -> list[int]:
    with torch.no_grad():
        return model.generate(PROMPT, max_new_tokens=6, do_sample=False)[0].tolist()


@pytest.mark.parametrize("kind", MODELS)
def test_steps_come_back_as_they_were(runs: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    root = runs(kind)
    done = cli("restore", root / "x.relex", "-o", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    for step in STEPS:
        one, other = tmp_path / f"again/checkpoint-{step}", root / f"run/checkpoint-{step}"
        assert_same(read(one), read(other))
        assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
        for name in ("config.json", "generation_config.json"):
            assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("kind", MODELS)
def test_a_decoded_step_is_the_model_it_was(runs: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    root = runs(kind)
    with relex_codec.open(root / "x.relex") as run:
        run.save(tmp_path / "out", 20)
        run.save(tmp_path / "zero", 0)
        run.save(tmp_path / "far", 60)
    original, ours = opened(root / "run/checkpoint-20"), opened(tmp_path / "out")
    assert is_tied(ours) == is_tied(original)
    assert_same(ours.state_dict(), original.state_dict())
    assert tokens(ours) == tokens(original)
    assert_same(opened(tmp_path / "zero").state_dict(), opened(root / "base").state_dict())
    far = opened(tmp_path / "far")
    assert is_tied(far) == is_tied(original)
    assert all(value.isfinite().all() for value in far.state_dict().values())


@pytest.mark.parametrize(("kind", "step"), [("qwen3-tied", 60), ("qwen3-moe", 20), ("gemma3", 60)])
def test_without_a_checkpoint_on_disk(runs: Callable[[str], Path], kind: str, step: float, tmp_path: Path) -> None:
    root = runs(kind)
    with relex_codec.open(root / "x.relex") as run:
        run.save(tmp_path / "out", step)
        expected, loaded = opened(tmp_path / "out"), relex_codec.load_model(root / "x.relex", step)
        assert type(loaded) is type(expected)
        assert is_tied(loaded) == is_tied(expected)
        assert_same(loaded.state_dict(), expected.state_dict())
        assert tokens(loaded) == tokens(expected)


def test_experts_of_the_hub_and_of_memory(tmp_path: Path, runs: Callable[[str], Path]) -> None:
    """transformers 5 keeps all experts of a layer in one tensor, and saves them one by one."""
    root = runs("qwen3-moe")
    model = opened(root / "base")
    state: State = {name: value.clone() for name, value in model.state_dict().items()}
    if not any(name.endswith("experts.gate_up_proj") for name in state):
        pytest.skip("this release keeps experts apart")
    from safetensors.torch import save_file

    for step in STEPS:
        train(model, step)
        folder = tmp_path / f"run/global_step_{step}"
        folder.mkdir(parents=True)
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors"
        )
        (folder / "config.json").write_bytes((root / "base/config.json").read_bytes())
    done = cli("encode", tmp_path / "run", "--base", root / "base", "-o", tmp_path / "f.relex", "--exact")
    assert done.returncode == 0, done.stderr
    assert "not in the base" not in done.stderr
    with relex_codec.open(tmp_path / "f.relex") as run:
        assert_same(run.state_dict(0), state)
        assert_same(run.state_dict(20), read(tmp_path / "run/global_step_20"))
