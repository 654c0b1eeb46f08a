"""Runs of adapters: archived as they are, decoded as adapters, merged into their base."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relex_codec
from relex_codec import BaseMismatch, CheckpointError, InvalidArgument
from relex_codec.errors import Unsupported
from support.checkpoints import safetensors_bytes, write_checkpoint
from support.commands import cli, failed
from support.filesystems import upload
from support.tensors import Tensor, bf16, bits_of, f32
from support.torch_files import as_torch, state_dict

RNG = np.random.default_rng(7)
A, B = RNG.standard_normal((4, 20)), RNG.standard_normal((30, 4))
EMBED_A, EMBED_B = RNG.standard_normal((4, 50)), RNG.standard_normal((20, 4))
BASE = {
    "model.embed.weight": bf16(RNG.standard_normal((50, 20))),
    "model.q.weight": bf16(RNG.standard_normal((30, 20))),
    "model.k.weight": bf16(RNG.standard_normal((30, 20))),
    "model.norm.weight": bf16(RNG.standard_normal(20)),
}
CONFIG = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["q", "k"], "bias": "none", "lora_dropout": 0.1,
    "use_dora": False, "fan_in_fan_out": False, "init_lora_weights": True, "base_model_name_or_path": "../base",
    "megatron_core": "megatron.core", "qalora_group_size": 16, "rank_pattern": {}, "loftq_config": {},
}  # fmt: skip


def at_step(step: int) -> dict[str, Tensor]:
    """Tensors of the adapter, as peft names them."""
    return {
        "base_model.model.model.q.lora_A.weight": f32(A * (1 + 0.01 * step)),
        "base_model.model.model.q.lora_B.weight": f32(B * step * 0.1),
        "base_model.model.model.k.lora_A.weight": bf16(A[:, ::-1] * (1 + 0.02 * step)),
        "base_model.model.model.k.lora_B.weight": bf16(B * step * 0.2),
    }


def write_adapter(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | (config or {})))
    return folder


def write_adapters(root: Path, layout: str = "checkpoint-{}", steps: tuple[int, ...] = (1, 2, 3)) -> Path:
    write_checkpoint(root / "base", BASE, side={"config.json": {"model_type": "x"}, "tokenizer.json": {}})
    for step in steps:
        folder = write_adapter(root / "run" / layout.format(step), at_step(step))
        (folder / "tokenizer_config.json").write_text("{}")
        (folder / "optimizer.pt").write_bytes(b"x")
        (folder / "training_args.bin").write_bytes(b"x")
    return root


LAYOUTS = {
    "TRL": "checkpoint-{}", "verl": "global_step_{}/actor/lora_adapter", "prime-rl": "step_{}",
    "prime-rl, beside whole weights": "step_{}/lora_adapters",
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_run_of_adapters_comes_back(tmp_path: Path, memory: Any, layout: str, where: str) -> None:
    write_adapters(tmp_path, layout)
    if "actor" in layout:  # verl leaves shards of the model beside them
        for step in (1, 2, 3):
            (tmp_path / f"run/global_step_{step}/actor/model_world_size_1_rank_0.pt").write_bytes(b"x")
    upload(memory, tmp_path, "/x")
    run = tmp_path / "run" if where == "local" else "memory://x/run"
    file = tmp_path / "x.relex"
    relex_codec.encode(run, file, base=tmp_path / "base", exact=True, allow_pickle=True)
    with relex_codec.open(file) as opened:
        assert opened.steps == [1, 2, 3]
        for step in opened.steps:
            state = opened.state_dict(step, tier="exact")
            assert set(state) == set(at_step(step))
            assert all(torch.equal(state[name], tensor) for name, tensor in state_dict(at_step(step)).items())
        opened.restore(tmp_path / "again")
        opened.save(tmp_path / "between", 2.5)
        opened.save(tmp_path / "beyond", 40)
        opened.verify()
    (tmp_path / "base").rename(tmp_path / "gone")  # which nothing of this needs
    with relex_codec.open(file) as opened:
        opened.save(tmp_path / "exact", 3)
    folder = tmp_path / "again" / layout.format(3)
    files = ["adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"]
    for place in (folder, tmp_path / "exact", tmp_path / "beyond", tmp_path / "between"):
        assert sorted(path.name for path in place.iterdir()) == files
        assert (place / files[0]).read_bytes() == (tmp_path / "run" / layout.format(3) / files[0]).read_bytes()
    assert (folder / files[1]).read_bytes() == (tmp_path / "exact" / files[1]).read_bytes()
    relex_codec.encode(tmp_path / "again", tmp_path / "y.relex", base=tmp_path / "gone", base_uri="../base", exact=True)
    with relex_codec.open(tmp_path / "y.relex") as opened:
        assert torch.equal(opened.tensor("base_model.model.model.q.lora_B.weight", step=2, tier="exact"),
                           as_torch(at_step(2)["base_model.model.model.q.lora_B.weight"]))  # fmt: skip


def test_what_a_run_of_adapters_holds_besides(tmp_path: Path) -> None:
    write_adapters(tmp_path)
    file = tmp_path / "x.relex"
    relex_codec.encode(tmp_path / "run", file, base=tmp_path / "base", exact=True)
    with relex_codec.open(file) as opened:
        found = opened.verify_against(tmp_path / "run")
        assert [row["what"] for row in opened.info()["left_out"]] == ["optimizer.pt", "training_args.bin"]
    assert found.ok and [row.what for row in found.rest.rows] == ["optimizer.pt", "training_args.bin"]


@pytest.mark.parametrize("exact", [True, False])
def test_whole_weights_are_not_appended_to_adapters_nor_the_other_way_round(tmp_path: Path, exact: bool) -> None:
    write_adapters(tmp_path)
    write_checkpoint(tmp_path / "whole" / "checkpoint-4", BASE)
    adapters, whole = tmp_path / "adapters.relex", tmp_path / "whole.relex"
    relex_codec.encode(tmp_path / "run", adapters, base=tmp_path / "base", exact=exact)
    relex_codec.encode(tmp_path / "whole", whole, base=tmp_path / "base", exact=exact)
    write_adapter(tmp_path / "run" / "checkpoint-5", at_step(5))
    for file, further in ((adapters, "whole/checkpoint-4"), (whole, "run/checkpoint-5")):
        before = file.read_bytes()
        with pytest.raises(CheckpointError, match="is an adapter" if exact else "is part of .*, but not of"):
            relex_codec.append(file, [tmp_path / further])
        assert file.read_bytes() == before


def test_lines_go_through_adapters(tmp_path: Path) -> None:
    write_adapters(tmp_path)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality="raw")
    name = "base_model.model.model.q.lora_B.weight"
    with relex_codec.open(tmp_path / "x.relex") as opened:
        found = opened.tensor(name, step=10)
    assert torch.allclose(found, as_torch(at_step(10)[name]), rtol=1e-3, atol=1e-3)


def test_lines_of_adapters_are_not_judged_by_the_distances_of_whole_weights(tmp_path: Path) -> None:
    write_adapters(tmp_path)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", exact=True)
    with relex_codec.open(tmp_path / "x.relex") as opened:
        assert opened.trust(40).level == "unknown" and opened.info()["trust"] is None
    decode = ("decode", tmp_path / "x.relex", "--step", 40)
    for number, more in enumerate(([], ["--fit", "poly:1"], ["--along", "secant"])):
        done = cli(*decode, "-o", tmp_path / f"{number}", *more)
        assert done.returncode == 0 and "of adapters may be believed is not known" in done.stderr, done
    failed(cli(*decode, "-o", tmp_path / "no", "--max-distance", 0.4), "holds adapters", "choose a step")
    shown = cli("info", tmp_path / "x.relex")
    assert shown.returncode == 0 and "own size" not in shown.stdout


def test_configurations_that_change_are_kept(tmp_path: Path) -> None:
    write_adapters(tmp_path)
    (tmp_path / "run" / "checkpoint-2" / "README.md").write_text("a card")
    write_adapter(tmp_path / "run" / "checkpoint-3", at_step(3), {"lora_alpha": 8})
    file = tmp_path / "x.relex"
    relex_codec.encode(tmp_path / "run", file, base=tmp_path / "base", exact=True)
    write_adapter(tmp_path / "run" / "checkpoint-4", at_step(4), {"lora_alpha": 4})
    relex_codec.append(file, [tmp_path / "run" / "checkpoint-4"])
    with relex_codec.open(file) as opened:
        opened.restore(tmp_path / "again")
    for step in (1, 2, 3, 4):
        for name in ("adapter_config.json", *(["README.md"] if step == 2 else [])):
            here, there = (tmp_path / place / name for place in (f"run/checkpoint-{step}", f"again/checkpoint-{step}"))
            assert here.read_bytes() == there.read_bytes()
        assert (tmp_path / f"again/checkpoint-{step}/README.md").exists() == (step == 2)
    relex_codec.encode(tmp_path / "run", tmp_path / "line.relex", base=tmp_path / "base")
    with relex_codec.open(tmp_path / "line.relex") as opened:
        opened.save(tmp_path / "decoded", 1)
    assert json.loads((tmp_path / "decoded" / "adapter_config.json").read_text())["lora_alpha"] == 4


def test_pickled_adapters(tmp_path: Path) -> None:
    write_adapters(tmp_path)
    for step in (1, 2, 3):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        (folder / "adapter_model.safetensors").unlink()
        torch.save(state_dict(at_step(step)), folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"an adapter only \(adapter_model\.bin\).*pass --allow-pickle"):
        relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", exact=True, allow_pickle=True)
    with relex_codec.open(tmp_path / "x.relex") as opened:
        opened.save(tmp_path / "out", 2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[:2] == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip


def test_what_is_no_run_of_adapters(tmp_path: Path) -> None:
    write_adapters(tmp_path)
    options = {"base": tmp_path / "base"}
    with pytest.raises(InvalidArgument, match="the base of adapters is not embedded"):
        relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", embed_base=True, **options)
    (tmp_path / "run" / "checkpoint-2" / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"step 2: .*an adapter without adapter_config\.json"):
        relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", **options)
    write_checkpoint(tmp_path / "run" / "checkpoint-2", BASE)
    for exact in (False, True):
        with pytest.raises(
            CheckpointError, match="step 1 is an adapter, step 2 whole weights: encode them apart"
        ) as caught:
            relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", exact=exact, **options)
    kinds = re.findall(r"--steps (\S+)", str(caught.value))
    assert len(kinds) == 2
    encoded = []
    for number, steps in enumerate(kinds):
        relex_codec.encode(tmp_path / "run", tmp_path / f"{number}.relex", exact=True, steps=steps, **options)
        with relex_codec.open(tmp_path / f"{number}.relex") as opened:
            encoded += [(step, number) for step in opened.steps]
    assert [number for _, number in sorted(encoded)] == [0, 1, *[0] * (len(encoded) - 2)]


# ---- merging ----


def merged(step: int, scaling: float, base: dict[str, Tensor] = BASE) -> dict[str, torch.Tensor]:
    """The base with the adapter of a step in it, as its formula says."""
    found = state_dict(base)
    tensors = state_dict(at_step(step))
    for module in ("q", "k"):
        a, b = (tensors[f"base_model.model.model.{module}.lora_{part}.weight"].float() for part in "AB")
        weight = found[f"model.{module}.weight"]
        found[f"model.{module}.weight"] = (weight.float() + (b @ a) * scaling).to(weight.dtype)
    return found


def load(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


@pytest.mark.parametrize(("config", "scaling"), [({}, 4.0), ({"use_rslora": True}, 16 / math.sqrt(4))])
def test_adapters_are_merged(tmp_path: Path, config: dict[str, Any], scaling: float) -> None:
    write_adapters(tmp_path)
    for step in (1, 2, 3):
        write_adapter(tmp_path / "run" / f"checkpoint-{step}", at_step(step), config)
    file = tmp_path / "x.relex"
    relex_codec.encode(tmp_path / "run", file, base=tmp_path / "base", exact=True)
    with relex_codec.open(file, base=tmp_path / "base") as opened:
        assert opened.save(tmp_path / "out", 2, merge=True) == "exact"
    found = load(tmp_path / "out")
    expected = merged(2, scaling)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert np.array_equal(bits_of(found[name]), bits_of(tensor)), name
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_merging_from_the_command_line(tmp_path: Path) -> None:
    write_adapters(tmp_path)
    write_checkpoint(tmp_path / "sharded", BASE, shards=2)
    done = cli("encode", tmp_path / "run", "--base", tmp_path / "base", "-o", tmp_path / "x.relex", "--exact")
    assert done.returncode == 0
    assert f"keep the base, the adapters are merged into it: {tmp_path / 'base'}" in done.stderr
    assert "stored whole" not in done.stderr
    decode = ("decode", tmp_path / "x.relex", "--step", 2, "--merge")
    failed(cli(*decode, "-o", tmp_path / "out"), "to merge them, pass --base")
    assert cli(*decode, "-o", tmp_path / "out", "--base", tmp_path / "sharded").returncode == 0
    found = load(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in merged(2, 4.0).items())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(BASE)
    assert json.loads((tmp_path / "out" / "relex.json").read_text())["tier"] == "exact"
    over = cli(*decode, "-o", tmp_path / "sharded", "--base", tmp_path / "sharded", "-f")
    failed(over, "the base is there")
    assert all(torch.equal(load(tmp_path / "sharded")[name], tensor) for name, tensor in state_dict(BASE).items())
    whole = write_checkpoint(tmp_path / "w" / "step_1", BASE).parent
    relex_codec.encode(whole, tmp_path / "whole.relex", base=tmp_path / "base")
    done = cli(
        "decode", tmp_path / "whole.relex", "--step", 1, "--merge", "-o", tmp_path / "o", "--base", whole / "step_1"
    )
    failed(done, "is no run of adapters")


@pytest.mark.parametrize("along", ["line", "poly:2", "secant"])
def test_merging_follows_what_adapters_follow(tmp_path: Path, along: str) -> None:
    write_adapters(tmp_path, steps=(1, 2, 3, 4))
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", exact=True, quality="raw")
    with relex_codec.open(tmp_path / "x.relex", base=tmp_path / "base") as opened:
        opened.save(tmp_path / "adapter", 9, along=along)
        opened.save(tmp_path / "out", 9, along=along, merge=True)
        with pytest.raises(InvalidArgument, match="the secant begins at the last observed step"):
            opened.save(tmp_path / "near", 4, along="secant", merge=True)
    found, adapter = load(tmp_path / "out"), load(tmp_path / "adapter")
    a, b = (adapter[f"base_model.model.model.q.lora_{part}.weight"] for part in "AB")
    expected = (state_dict(BASE)["model.q.weight"].float() + (b @ a) * 4.0).bfloat16()
    assert torch.equal(found["model.q.weight"], expected)


def merge_one(root: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    write_checkpoint(root / "base", BASE)
    write_adapter(root / "run" / "step_1", tensors, config)
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", exact=True)
    with relex_codec.open(root / "x.relex", base=root / "base") as opened:
        opened.save(root / "out", 1, merge=True)
    return load(root / "out")


def test_embeddings_whole_modules_and_other_ranks(tmp_path: Path) -> None:
    tensors = {
        "base_model.model.model.embed.lora_embedding_A": f32(EMBED_A),
        "base_model.model.model.embed.lora_embedding_B": f32(EMBED_B),
        "base_model.model.model.q.lora_A.weight": f32(A[:2]),
        "base_model.model.model.q.lora_B.weight": f32(B[:, :2]),
        "base_model.model.model.norm.weight": f32(np.arange(20)),
    }
    config = {"rank_pattern": {"q": 2}, "alpha_pattern": {"model.q": 6}, "modules_to_save": ["norm"]}
    found = merge_one(tmp_path, tensors, config)
    base = {name: tensor.float() for name, tensor in state_dict(BASE).items()}
    change = (as_torch(f32(EMBED_B)) @ as_torch(f32(EMBED_A))).T * 4
    embed = base["model.embed.weight"] + change.bfloat16().float()  # peft rounds what it adds to embeddings
    query = base["model.q.weight"] + (as_torch(f32(B[:, :2])) @ as_torch(f32(A[:2]))) * 3
    assert torch.equal(found["model.embed.weight"], embed.bfloat16())
    assert torch.equal(found["model.q.weight"], query.bfloat16())
    assert torch.equal(found["model.norm.weight"], torch.arange(20).bfloat16())
    assert torch.equal(found["model.k.weight"], state_dict(BASE)["model.k.weight"])


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], dict[str, Any], type[Exception], str]] = {
    "DoRA": (lambda t: None, {"use_dora": True}, Unsupported, "an adapter with 'use_dora': True, which is not merged"),
    "another kind": (lambda t: None, {"peft_type": "IA3"}, Unsupported, "of kind 'IA3', only LORA is merged"),
    "something new": (lambda t: None, {"new_thing": {"a": 1}}, Unsupported, "'new_thing'"),
    "PiSSA": (lambda t: None, {"init_lora_weights": "pissa"}, Unsupported, "initialised by 'pissa', which changes"),
    "a pattern": (lambda t: None, {"rank_pattern": {"(a+)+": 4}}, Unsupported, r"pattern '\(a\+\)\+', expected names"),
    "another rank": (lambda t: None, {"r": 8}, Unsupported, "is of rank 4, its configuration says 8"),
    "no rank": (lambda t: None, {"r": 0}, Unsupported, "no number above 0"),
    "magnitudes": (
        lambda t: t.update({"base_model.model.model.q.lora_magnitude_vector": f32(np.ones(30))}), {}, Unsupported,
        "lora_magnitude_vector",
    ),
    "half": (lambda t: t.pop("base_model.model.model.q.lora_A.weight"), {}, Unsupported, "half of a change of"),
    "another base": (
        lambda t: t.update({"base_model.model.model.z.lora_A.weight": f32(A),
                            "base_model.model.model.z.lora_B.weight": f32(B)}),
        {}, BaseMismatch, r"has no tensor 'model\.z\.weight', which step 1 of",
    ),
    "another shape": (
        lambda t: t.update({"base_model.model.model.q.lora_A.weight": f32(A[:, :7])}), {}, BaseMismatch,
        r"'model\.q\.weight' of \[30, 20\], step 1 of .* changes \[30, 7\]",
    ),
    "convolutions": (
        lambda t: t.update({"base_model.model.model.q.lora_A.weight": f32(A.reshape(4, 20, 1))}), {}, Unsupported,
        "not matrices",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "config", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_variants_are_archived_and_refused_where_they_are_merged(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], config: dict[str, Any], error: Any, message: str
) -> None:
    tensors = at_step(1)
    change(tensors)
    with pytest.raises(error, match=message):
        merge_one(tmp_path, tensors, config)
    assert not (tmp_path / "out").exists()
    with relex_codec.open(tmp_path / "x.relex") as opened:
        state = opened.state_dict(1, tier="exact")
        assert all(torch.equal(state[name], tensor) for name, tensor in state_dict(tensors).items())
