"""Models and tokenizers of transformers straight from a run, beside those from a decoded directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")

import torch  # noqa: E402 (after the skip)
from safetensors.torch import load_file  # noqa: E402

import relex_codec  # noqa: E402
from relex_codec import BaseMismatch, CheckpointError, Corrupt, InvalidArgument  # noqa: E402
from relex_codec.demo.run_demo import BASE  # noqa: E402
from relex_codec.run.run_reader import RunReader  # noqa: E402
from support.filesystems import empty_memory, upload  # noqa: E402
from support.models import State, encode_model, same_weights, write_model  # noqa: E402
from support.plain import File  # noqa: E402
from support.versions import DTYPE  # noqa: E402

TOKENS = torch.arange(1, 13)[None] % 12
Made = tuple[Path, Path]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small model that comes along."""
    return encode_model(tmp_path_factory.mktemp("model"), load_file(f"{BASE}/model.safetensors"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS.to(model.device)).logits


@pytest.mark.parametrize(("step", "tier"), [(20, "auto"), (20, "line"), (24.5, "auto"), (90, "auto"), (0, "auto")])
def test_a_model_is_that_of_the_decoded_directory(path: Path, tmp_path: Path, step: float, tier: str) -> None:
    with relex_codec.open(path) as run:
        run.save(tmp_path / "out", step, tier=tier)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **{DTYPE: "auto"})
    ours = relex_codec.load_model(path, step, tier=tier)
    assert type(ours) is type(theirs) and not ours.training
    assert same_weights(ours, theirs) and ours.dtype == theirs.dtype == torch.bfloat16
    assert torch.equal(logits(ours), logits(theirs))
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    config = [{k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"} for model in (ours, theirs)]
    assert config[0] == config[1]
    assert ours.config.name_or_path == f"relex://step_{step:g}::{path}"
    for name, parameter in ours.named_parameters():
        assert parameter.requires_grad and parameter.is_contiguous(), name


def test_the_dtype_that_is_asked_for(path: Path, tmp_path: Path) -> None:
    with relex_codec.open(path) as run:
        run.save(tmp_path / "out", 20)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **{DTYPE: torch.float32})
    for dtype in (torch.float32, "float32"):
        ours = relex_codec.load_model(path, 20, dtype=dtype)
        assert ours.dtype == torch.float32 and same_weights(ours, theirs)
        assert torch.equal(logits(ours), logits(theirs))


def test_the_device_map_that_is_asked_for(path: Path) -> None:
    pytest.importorskip("accelerate")
    plain = relex_codec.load_model(path, 20)
    for device_map in ("cpu", {"": "cpu"}, "auto"):
        model = relex_codec.load_model(path, 20, device_map=device_map)
        assert model.device == plain.device or device_map == "auto"
        assert same_weights(model.to("cpu"), plain)


def test_other_classes_and_options_of_from_pretrained(path: Path, tmp_path: Path) -> None:
    auto = relex_codec.load_model(path, 20, model_class=transformers.AutoModelForCausalLM)
    named = relex_codec.load_model(path, 20, model_class=transformers.Qwen2ForCausalLM)
    assert type(auto) is type(named) is transformers.Qwen2ForCausalLM and same_weights(auto, named)
    model, info = relex_codec.load_model(path, 20, output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"] and model.config._attn_implementation == "eager"
    model = relex_codec.load_model(path, 20, attention_dropout=0.25, generation_config=transformers.GenerationConfig())
    assert model.config.attention_dropout == 0.25 and model.generation_config.max_length != 77
    config = transformers.AutoConfig.from_pretrained(BASE)
    config.use_cache = False
    assert not relex_codec.load_model(path, 20, config=config).config.use_cache


def test_weights_are_decoded_one_by_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    tensor = RunReader.tensor

    def watched(self: Any, name: str, *args: Any) -> Any:
        read.append(name)
        return tensor(self, name, *args)

    monkeypatch.setattr(RunReader, "tensor", watched)
    relex_codec.load_model(path, 20)
    with relex_codec.open(path) as run:
        assert sorted(read) == sorted(run.keys())


@pytest.mark.slow
def test_tied_weights(path: Path, tmp_path: Path) -> None:
    model = relex_codec.load_model(path, 60)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    state = load_file(f"{BASE}/model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + 1
    untied = transformers.AutoConfig.from_pretrained(BASE)
    untied.tie_word_embeddings = False
    other = encode_model(tmp_path, state)
    model = relex_codec.load_model(other, 60, config=untied)
    with relex_codec.open(other) as run:
        assert torch.equal(model.lm_head.weight, run.tensor("lm_head.weight", 60))
        assert torch.equal(model.model.embed_tokens.weight, run.tensor("model.embed_tokens.weight", 60))
    with pytest.raises(InvalidArgument, match=r"Qwen2Model has no place for 'lm_head.weight'"):
        relex_codec.load_model(other, 20, model_class=transformers.Qwen2Model)
    with pytest.raises(InvalidArgument, match=r"lacks 'lm_head.weight'"):
        relex_codec.load_model(path, 20, config=untied)


def test_generating_as_from_the_directory(path: Path, tmp_path: Path) -> None:
    with relex_codec.open(path) as run:
        run.save(tmp_path / "out", 20)
    tokenizer = relex_codec.load_tokenizer(path)
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer("123+456=", return_tensors="pt")["input_ids"]
    assert prompt.tolist() == other("123+456=", return_tensors="pt")["input_ids"].tolist()
    models = (
        relex_codec.load_model(path, 20),
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **{DTYPE: "auto"}),
    )
    found = [
        model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False)
        for model in models
    ]
    assert torch.equal(*found)
    assert tokenizer.decode(found[0][0]) == other.decode(found[1][0])
    assert tokenizer.get_vocab() == other.get_vocab()
    assert relex_codec.load_tokenizer(path, padding_side="left").padding_side == "left"


def test_from_a_url_with_a_moved_base(path: Path) -> None:
    with empty_memory() as memory:
        memory.pipe_file("/deep/run.relex", path.read_bytes())
        upload(memory, path.parent / "base", "/elsewhere")
        options: dict[str, Any] = {"base": "memory://elsewhere", "storage_options": {"use_listings_cache": False}}
        model = relex_codec.load_model("memory://deep/run.relex", 20, **options)
        assert same_weights(model, relex_codec.load_model(path, 20))
        assert relex_codec.load_tokenizer("memory://deep/run.relex", **options).get_vocab()
        with pytest.raises(CheckpointError, match="nowhere"):
            relex_codec.load_model("memory://deep/run.relex", 20, base="memory://nowhere")


# ---- What cannot be ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.layers.0.mlp.up_proj.weight"), "lacks 'model.layers.0.mlp.up_proj.weight'"),
        (lambda state: state.update(extra=torch.ones(3)), "has no place for 'extra'"),
        (
            lambda state: state.update({"model.norm.weight": torch.ones(7, dtype=torch.bfloat16)}),
            "has another shape of 'model.norm.weight'",
        ),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, change: Callable[[State], Any], message: str) -> None:
    state = load_file(f"{BASE}/model.safetensors")
    change(state)
    path = encode_model(tmp_path, state)
    with pytest.raises(InvalidArgument, match=message):
        relex_codec.load_model(path, 20)


def test_sizes_that_differ_can_be_allowed_as_in_from_pretrained(tmp_path: Path) -> None:
    state = load_file(f"{BASE}/model.safetensors")
    state["model.norm.weight"] = torch.ones(7, dtype=torch.bfloat16)
    path = encode_model(tmp_path, state)
    model, info = relex_codec.load_model(path, 20, ignore_mismatched_sizes=True, output_loading_info=True)
    assert len(info["mismatched_keys"]) == 1 and model.model.norm.weight.shape != (7,)


def test_what_goes_wrong_while_decoding_keeps_its_name(path: Path, tmp_path: Path) -> None:
    state = load_file(f"{BASE}/model.safetensors")
    state["model.norm.weight"] = state["model.norm.weight"] + 1
    write_model(tmp_path / "wrong", state)
    with pytest.raises(BaseMismatch, match=r"'model.norm.weight'"):
        relex_codec.load_model(path, 90, base=tmp_path / "wrong")
    data = bytearray(path.read_bytes())
    file = File(path)
    data[file.chunks[file.directions[1].chunk][0] + 3] ^= 1
    (tmp_path / "bad.relex").write_bytes(data)
    with pytest.raises(Corrupt):
        relex_codec.load_model(tmp_path / "bad.relex", 90, base=path.parent / "base")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 90, "tier": "exact"}, "the nearest is 30"),
        ({"step": 90, "tier": "track"}, "from step 10 to 30"),
        ({"step": float("nan")}, "finite"),
        ({"url": "/nowhere/x.relex"}, "does not exist"),
    ],
)
def test_arguments_that_cannot_be(path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        relex_codec.load_model(**({"url": path, "step": 20} | options))


def test_an_architecture_that_transformers_does_not_have(path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(BASE)
    config.architectures = ["OurOwnModel"]
    with pytest.raises(InvalidArgument, match=r"no class for the architectures \['OurOwnModel'\].*pass model_class"):
        relex_codec.load_model(path, 20, config=config)
    model = relex_codec.load_model(path, 20, config=config, model_class=transformers.Qwen2ForCausalLM)
    assert model.config.architectures is not None
