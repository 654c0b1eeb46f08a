"""Weights that DeepSpeed ZeRO-3 did not gather: tensors of shape [0] where the base has elements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from support.checkpoints import write_checkpoint, write_run
from support.commands import cli, failed
from support.tensors import Tensor, bf16

SETTING = "stage3_gather_16bit_weights_on_model_save"


def whole(step: int) -> dict[str, Tensor]:
    return {"norm": bf16(np.ones(4)), "w": bf16(np.arange(12.0).reshape(3, 4) + step), "none": bf16(np.zeros((0, 2)))}


def placeholders(step: int) -> dict[str, Tensor]:
    return {name: bf16(np.zeros(0)) if name == "w" else tensor for name, tensor in whole(step).items()}


def encode(root: Path, *options: Any) -> Any:
    return cli("encode", root / "run", "--base", root / "base", "-o", root / "x.relex", "--quality", "raw", *options)


@pytest.mark.parametrize("exact", [(), ("--exact",)])
def test_a_run_of_placeholders_is_refused(tmp_path: Path, exact: tuple[str, ...]) -> None:
    write_checkpoint(tmp_path / "base", whole(0))
    write_run(tmp_path / "run", [1, 2], placeholders)
    failed(encode(tmp_path, *exact), "'w' of step 1 is empty", "ZeRO-3", SETTING)
    done = encode(tmp_path, *exact, "--skip-incomplete")
    assert done.returncode == 1
    assert "has no complete checkpoint; the first of 2 left out: tensor 'w' of step 1 is empty" in done.stderr
    assert not (tmp_path / "x.relex").exists()


@pytest.mark.parametrize("broken", [(1, 2), (3,)])
def test_some_steps_of_placeholders(tmp_path: Path, broken: tuple[int, ...]) -> None:
    write_checkpoint(tmp_path / "base", whole(0))
    write_run(tmp_path / "run", [1, 2, 3, 4], lambda step: (placeholders if step in broken else whole)(step))
    all_of_them = [f"'w' of step {step} is empty" for step in broken]
    without = f"--exclude-steps {','.join(map(str, broken))}"
    failed(encode(tmp_path, "--exact"), *all_of_them, "ZeRO-3", SETTING, without)
    done = encode(tmp_path, "--exact", "--skip-incomplete")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out: tensor 'w' of step") == len(broken)
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert run.steps == [step for step in (1, 2, 3, 4) if step not in broken]
    write_run(tmp_path / "later", [9], placeholders)
    failed(cli("append", tmp_path / "x.relex", tmp_path / "later" / "global_step_9"), "'w' of step 9 is empty", SETTING)


def test_a_base_of_placeholders(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", placeholders(0))
    write_run(tmp_path / "run", [1], whole)
    failed(encode(tmp_path), f"'w' of base {tmp_path}/base is empty", "ZeRO-3")
