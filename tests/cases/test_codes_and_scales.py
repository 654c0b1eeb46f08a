"""Quantised checkpoints: codes and scales only make sense together, so neither is extrapolated alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from packaging.version import Version

import relex_codec
from relex_codec import InvalidArgument
from support.commands import cli, failed
from support.tiny import UNTIED, State, assert_same, decoded, encode, encoded, moved, weights, write, write_steps

BASE = weights(tied=False)
FP8: dict[str, Any] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
UP = "model.layers.0.mlp.up_proj.weight"


def fp8(state: State) -> State:
    found: State = {}
    for name, value in state.items():
        if "_proj" not in name:
            found[name] = value
            continue
        scale = value.float().abs().max() / 448
        found[name] = (value.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        found[name + "_scale_inv"] = scale.reshape(1, 1)
    return found


def test_a_run_of_codes_and_scales_has_its_steps_and_no_others(tmp_path: Path) -> None:
    write(tmp_path / "base", fp8(BASE), {**UNTIED, "quantization_config": FP8})
    write_steps(tmp_path / "run", lambda n: fp8(moved(BASE, n)), config={**UNTIED, "quantization_config": FP8})
    failed(encode(tmp_path), "_proj.weight", "changes: a line through codes", "--exact")
    encoded(tmp_path, "--exact")
    for step in (1, 2, 3):
        assert_same(decoded(tmp_path, step), fp8(moved(BASE, step)))
    assert_same(decoded(tmp_path, 0), fp8(BASE))
    assert json.loads((tmp_path / "out/config.json").read_text())["quantization_config"] == FP8
    for step, tier in ((100, "auto"), (2.5, "track"), (100, "line")):
        done = cli("decode", tmp_path / "r.relex", "--step", step, "--tier", tier, "--far", "-o", tmp_path / "no")
        failed(done, "has no line")
    with relex_codec.open(tmp_path / "r.relex") as run:
        for name in (UP, UP + "_scale_inv"):
            with pytest.raises(InvalidArgument, match="has no line"):
                run.tensor(name, step=100)
        assert run.tensor("model.norm.weight", step=100).isfinite().all()


def test_codes_that_stay_go_with_lines_through_the_rest(tmp_path: Path) -> None:
    frozen = {name: value for name, value in fp8(BASE).items() if "_proj" in name}
    write(tmp_path / "base", fp8(BASE), UNTIED)
    write_steps(tmp_path / "run", lambda n: moved(BASE, n) | frozen, config=UNTIED)
    encoded(tmp_path)
    found = decoded(tmp_path, 50)
    assert_same({name: found[name] for name in frozen}, frozen)


def test_a_dequantised_run_of_a_base_of_codes(tmp_path: Path) -> None:
    write(tmp_path / "base", fp8(BASE), {**UNTIED, "quantization_config": FP8})
    write_steps(tmp_path / "run", lambda n: moved(BASE, n), config=UNTIED)
    write_steps(tmp_path / "bare", lambda n: moved(BASE, n), config=None)
    for run in ("run", "bare"):
        encoded(tmp_path, "--exact", run=run)
        assert_same(decoded(tmp_path, 3), moved(BASE, 3))
        config = json.loads((tmp_path / "out/config.json").read_text())
        assert config == UNTIED, "without the quantization_config of the base, which holds no more"
    done = cli("append", tmp_path / "r.relex", write(tmp_path / "run/checkpoint-4", moved(BASE, 4), UNTIED))
    assert done.returncode == 0, done.stderr
    assert_same(decoded(tmp_path, 4), moved(BASE, 4))


@pytest.mark.skipif(
    not hasattr(torch, "float8_e8m0fnu") or Version(safetensors.__version__) < Version("0.6"),
    reason="torch before 2.7 and safetensors before 0.6 have no E8M0",
)
def test_codes_alone_are_read_at_stored_steps(tmp_path: Path) -> None:
    """E8M0 scales, FP8 weights, blocks of four bits in bytes: exact with and without --exact."""
    generator = torch.Generator().manual_seed(0)
    frozen = {
        "x.blocks": torch.randint(0, 256, (8, 16), dtype=torch.uint8, generator=generator),
        "x.e8m0": torch.tensor([0.5, 1, 2, 4]).to(torch.float8_e8m0fnu),
    }

    def at(step: int) -> State:
        drawn = torch.randn(4, 32, generator=torch.Generator().manual_seed(step))
        return moved(BASE, step) | frozen | {"y.codes": drawn.to(torch.float8_e4m3fn)}

    write(tmp_path / "base", BASE | frozen)
    write_steps(tmp_path / "run", at)
    encoded(tmp_path, "--exact")
    encoded(tmp_path, file="l.relex")
    for step in (1, 2, 3):
        assert_same(decoded(tmp_path, step), at(step))
        with relex_codec.open(tmp_path / "l.relex") as run:
            assert_same({"y.codes": run.tensor("y.codes", step=step)}, {"y.codes": at(step)["y.codes"]})
    with relex_codec.open(tmp_path / "l.relex") as run, pytest.raises(InvalidArgument, match="has no line"):
        run.tensor("y.codes", step=50)
