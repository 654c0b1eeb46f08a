"""Adapters that are made of a file: their factors are the best, and say with the configuration what `decode` gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import relex_codec
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.manifest import BaseRange
from relex_codec.format.tensor_record import Span, TensorRecord
from relex_codec.run.adapter_modules import (
    EMBEDDING,
    LINEAR,
    PARAMETER,
    TRANSPOSED,
    WHOLE,
    names_in_adapter,
    plan_adapter,
    wrapped_after,
)
from relex_codec.run.spectrum import kept_by_rank
from relex_codec.run.truncation import Changes, mixed, singular_values, truncated
from support import tiny
from support.commands import cli, failed


def record(name: str, shape: tuple[int, ...], *, moves: bool = True, kind: int = f.MOVING) -> TensorRecord:
    sources = (BaseRange(0, name, shape, 0, int(np.prod(shape))),)
    return TensorRecord(
        0, name, "BF16", shape, int(np.prod(shape)), "BF16", sources, kind, f.IN_BASE, False, Span(0, 0),
        range(int(moves)), range(0), 0, None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``made(tied=False, quality="raw")``: a file of the tiny model."""

    def make(*, tied: bool = False, **options: Any) -> Path:
        root = tmp_path_factory.mktemp("adapters")
        base = tiny.weights(tied=tied)
        config = tiny.CONFIG if tied else tiny.UNTIED
        tiny.write(root / "base", base, config)
        tiny.write_steps(root / "run", lambda step: tiny.moved(base, step), config=config)
        relex_codec.encode(root / "run", root / "r.relex", base=root / "base", **({"quality": "raw"} | options))
        return root / "r.relex"

    return make


def changes(run: relex_codec.Run, step: float) -> dict[str, torch.Tensor]:
    """What a step of the line changes, in float32 and not rounded to the weights' dtype."""
    from relex_codec.decoding.tiers import StepTier
    from relex_codec.run.directions import mixed_directions

    reader = run._reader
    found = {}
    for tensor in reader.container.index.layout.tensors:
        if tensor.directions:
            g = reader.decoder.coefficients(tensor, [StepTier(float(step), "line")])
            found[tensor.name] = torch.from_numpy(mixed_directions(reader.container, tensor, g)[0]).view(tensor.shape)
    return found


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (600, 560)], ids=str)
def test_truncation_is_the_best_there_is(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    scale = torch.logspace(0, -4, min(shape))
    matrix = (torch.randn(shape[0], len(scale), generator=generator) * scale) @ torch.randn(
        len(scale), shape[1], generator=generator
    )
    expected = torch.linalg.svdvals(matrix.double()).numpy()
    left, right, kept = truncated(Changes(matrix), 5)
    error = float(torch.linalg.matrix_norm(matrix.double() - left.double() @ right.double()) ** 2)
    assert error == pytest.approx(float((expected[5:] ** 2).sum()), rel=2e-2)
    assert kept == pytest.approx(float((expected[:5] ** 2).sum()), rel=1e-3)
    assert np.allclose(singular_values(Changes(matrix), 5), expected[:5], rtol=1e-3)
    product = Changes(left, right)
    assert product.energy == pytest.approx(kept, rel=1e-4)
    assert np.allclose(singular_values(product, 9)[:5], expected[:5], rtol=1e-3)
    again, _, _ = truncated(Changes(matrix), 5)
    assert torch.equal(left, again)  # the same file gives the same adapter


def test_mixing_keeps_the_steps() -> None:
    g = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    q, t = mixed(g)
    assert q.shape == (5, 2) and t.shape == (2, 2)
    assert np.allclose(q @ t, g, atol=1e-6)
    q, t = mixed(g[:1])
    assert np.array_equal(q @ t, g[:1])


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"quality": "micro", "factor_rank": 3}], ids=str)
def test_at_full_rank_it_is_the_change(made: Callable[..., Path], tmp_path: Path, options: dict[str, Any]) -> None:
    with relex_codec.open(made(**options)) as run:
        found = run.save_adapter(tmp_path / "a", 7, rank=16)
        expected = changes(run, 7)
        whole = run.state_dict(7)
    factors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 16
    names = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in factors}
    assert names == {name.removesuffix(".weight") for name in expected if expected[name].ndim == 2}
    total = sum(float(x.double().square().sum()) for x in expected.values())
    left_out = sum(float(x.double().square().sum()) for x in expected.values() if x.ndim == 1)
    assert found.left_out == {"norms and biases": pytest.approx(left_out / total, rel=1e-5)}
    assert found.kept == pytest.approx(1 - left_out / total, rel=1e-5)
    for name in names:
        prefix = f"base_model.model.{name}.lora_"
        if f"{prefix}embedding_A" in factors:
            delta = (factors[f"{prefix}embedding_B"] @ factors[f"{prefix}embedding_A"]).T
        else:
            delta = factors[f"{prefix}B.weight"] @ factors[f"{prefix}A.weight"]
        change = expected[f"{name}.weight"]
        assert torch.allclose(delta, change, atol=1e-5 * float(change.abs().max()) + 1e-9), name
    assert set(whole) >= {f"{name}.weight" for name in names}


def test_several_steps_share_a(made: Callable[..., Path], tmp_path: Path) -> None:
    with relex_codec.open(made(rank=2)) as run:
        found = run.save_adapter(tmp_path / "all", [2, 3, 9], rank=4)
        alone = run.save_adapter(tmp_path / "alone", 9, rank=4)
    assert found.directories == {float(s): str(tmp_path / "all" / f"step-{s}") for s in (2, 3, 9)}
    assert found.tiers == {2.0: "track", 3.0: "track", 9.0: "line"}
    parts = [load_file(Path(place) / "adapter_model.safetensors") for place in found.directories.values()]
    for name in parts[0]:
        same = all(torch.equal(part[name], parts[0][name]) for part in parts)
        assert same == ("lora_A" in name or "embedding_A" in name), name
    # what is best for three steps together is not better for one of them than what is best for that alone
    assert found.kept <= alone.kept + 0.05


def test_files_of_factors_alone_need_neither_remainder_nor_base(made: Callable[..., Path], tmp_path: Path) -> None:
    path = made(quality="micro", factor_rank=3, embed_base=True)
    with relex_codec.open(path) as run:
        container = run._reader.container
        base = container.index.entries[f.DATA_BASE]
        config = json.dumps(tiny.UNTIED, indent=1).encode()
        reads: set[tuple[int, int]] = set()
        read_many = container.source.read_many

        def noted(ranges: Any) -> Any:
            reads.update(ranges)
            return read_many(ranges)

        container.source.read_many = noted  # type: ignore[method-assign]
        found = run.save_adapter(tmp_path / "a", 7)
        whole = run.info()["checkpoint_bytes"]
    assert found.rank == 3
    of_base = [end - begin for begin, end in reads if base.begin <= begin < base.end]
    assert sum(of_base) <= len(config) < whole  # config.json, and no weights


def test_ranks_are_padded_and_default(made: Callable[..., Path], tmp_path: Path) -> None:
    with relex_codec.open(made()) as run:
        assert run.save_adapter(tmp_path / "a", 3).rank == 16
    factors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    for name, value in factors.items():
        assert 16 in value.shape, name
    narrow = factors["base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"]  # of a matrix of 8 rows
    assert not narrow[8:].any() and narrow[:8].any()


def test_ties_come_whole_or_not_at_all(made: Callable[..., Path], tmp_path: Path) -> None:
    path = made(tied=True)
    with relex_codec.open(path) as run:
        without = run.save_adapter(tmp_path / "a", 5)
        found = run.save_adapter(tmp_path / "b", 5, modules_to_save=True)
        bare = run.save_adapter(tmp_path / "c", 5, modules_to_save=True, embeddings=False)
        state = run.state_dict(5)
    assert set(without.left_out) == {"tied embeddings", "norms and biases"}
    assert found.left_out == {}
    assert set(bare.left_out) == {"embeddings"}
    written = load_file(tmp_path / "b" / "adapter_model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(written[f"base_model.model.{name}"], state["model.embed_tokens.weight"])
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["ensure_weight_tying"] is True
    assert "model.embed_tokens" in config["modules_to_save"]
    assert "ensure_weight_tying" not in json.loads((tmp_path / "a" / "adapter_config.json").read_text())


def test_kinds_of_tensors() -> None:
    tensors = [
        record("model.embed_tokens.weight", (48, 16)),
        record("model.layers.0.self_attn.qkv_proj.weight", (48, 16)),
        record("model.layers.0.self_attn.qkv_proj.bias", (48,)),
        record("model.layers.0.self_attn.sinks", (2,)),
        record("model.layers.0.input_layernorm.weight", (16,)),
        record("model.layers.0.mlp.gate.weight", (4, 16)),
        record("model.layers.0.mlp.experts.gate_up_proj", (4, 32, 64)),
        record("model.layers.0.mlp.experts.down_proj", (4, 64, 32)),
        record("model.layers.0.conv1d.weight", (64, 1, 4)),
        record("model.layers.0.still.weight", (8, 8), moves=False, kind=f.SAME),
        record("lm_head.weight", (48, 16)),
    ]
    plan = plan_adapter(tensors, {"tie_word_embeddings": False}, whole=True)
    kinds = {part.name: part.kind for part in plan.parts}
    assert kinds == {
        "model.embed_tokens.weight": EMBEDDING,
        "model.layers.0.self_attn.qkv_proj.weight": LINEAR,
        "model.layers.0.self_attn.qkv_proj.bias": WHOLE,
        "model.layers.0.input_layernorm.weight": WHOLE,
        "model.layers.0.mlp.gate.weight": WHOLE,
        "model.layers.0.mlp.experts.gate_up_proj": PARAMETER,
        "model.layers.0.mlp.experts.down_proj": PARAMETER,
        "model.layers.0.conv1d.weight": WHOLE,
        "lm_head.weight": LINEAR,
    }
    assert [(one.name, why) for one, why in plan.left_out] == [
        ("model.layers.0.self_attn.sinks", "no module of its own")
    ]
    by_name = {part.name: part for part in plan.parts}
    down, up = (by_name[f"model.layers.0.mlp.experts.{name}"] for name in ("down_proj", "gate_up_proj"))
    assert wrapped_after(up, plan.parts) == [down.name] and wrapped_after(down, plan.parts) == []
    assert names_in_adapter(up, [down.name])[0] == (
        "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"
    )
    gpt2 = plan_adapter([record("h.0.attn.c_attn.weight", (16, 48))], {"model_type": "gpt2"})
    assert [part.kind for part in gpt2.parts] == [TRANSPOSED]
    other = record("model.layers.0.up_proj.weight", (8, 16))._replace(sources=())
    assert [why for _, why in plan_adapter([other], {}).left_out] == ["not in the base as it is"]


def test_shares_by_rank(made: Callable[..., Path]) -> None:
    with relex_codec.open(made()) as run:
        rows = kept_by_rank(run._reader)
        expected = changes(run, run.observed_steps[-1])
    total = sum(float(x.double().square().sum()) for x in expected.values())
    for row in rows:
        kept = sum(
            float((torch.linalg.svdvals(x.double())[: row["rank"]] ** 2).sum())
            for x in expected.values()
            if x.ndim == 2
        )
        assert row["kept"] == pytest.approx(kept / total, rel=1e-4)
    assert [row["rank"] for row in rows] == [1, 2, 4, 8, 16, 32, 64]


def test_refusals(made: Callable[..., Path], tmp_path: Path) -> None:
    with relex_codec.open(made(exact=True)) as run:
        for options, words in (
            ({"step": 3, "rank": 0}, "rank is 0"),
            ({"step": 3, "tier": "exact"}, "no adapter"),
            ({"step": 0}, "is the base"),
            ({"step": []}, "no step"),
            ({"step": [3, 3]}, "twice"),
            ({"step": "x"}, "finite number"),
            ({"step": float("nan")}, "finite number"),
        ):
            with pytest.raises(InvalidArgument, match=words):
                run.save_adapter(tmp_path / "a", **options)  # type: ignore[arg-type]
        assert not (tmp_path / "a").exists()
        run.save_adapter(tmp_path / "a", 3)
        with pytest.raises(InvalidArgument, match="not empty"):
            run.save_adapter(tmp_path / "a", 4)
        run.save_adapter(tmp_path / "a", 4, overwrite=True)
    assert json.loads((tmp_path / "a" / "relex.json").read_text())["step"] == 4


def test_the_command(made: Callable[..., Path], tmp_path: Path) -> None:
    path = made()
    done = cli("adapter", path, "--step", 3, "-o", tmp_path / "a", "--rank", 4)
    assert done.returncode == 0, done.stderr
    assert "step 3 from tier track, rank 4" in done.stdout
    assert "left out: norms and biases" in done.stderr
    assert (tmp_path / "a" / "README.md").read_text().startswith("---\n")
    done = cli("adapter", path, "--steps", "2,3", "-o", tmp_path / "b", "--json", "--no-embeddings")
    document = json.loads(done.stdout)
    assert [row["step"] for row in document["adapters"]] == [2, 3]
    assert set(document["left_out"]) == {"embeddings", "norms and biases"}
    failed(cli("adapter", path, "--step", 1e6, "-o", tmp_path / "c"), "--far")
    failed(cli("adapter", path, "--steps", "2:", "-o", tmp_path / "c"), "open end")
    failed(cli("adapter", path, "--step", 3, "-o", tmp_path / "a"), "not empty")
    assert cli("adapter", path, "-o", tmp_path / "c").returncode == 2
    assert not (tmp_path / "c").exists()
