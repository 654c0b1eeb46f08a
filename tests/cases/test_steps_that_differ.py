"""Steps that differ: tensors that some lack, dtypes and names that change. With --exact each comes back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import relex_codec
from relex_codec import InvalidArgument
from support.commands import cli, failed
from support.tiny import (
    CONFIG,
    State,
    assert_same,
    decoded,
    encode,
    encoded,
    moved,
    read,
    restored,
    weights,
    write,
    write_steps,
)

BASE = weights(tied=False)
UP, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
FLOAT = {**CONFIG, "dtype": "float32"}


def check_exact(root: Path, expected: dict[int, State]) -> None:
    again = restored(root)
    for step, state in expected.items():
        assert_same(decoded(root, step), state)
        assert_same(read(again / f"checkpoint-{step}"), state)


def write_all(root: Path, steps: dict[int, State]) -> None:
    write(root / "base", BASE)
    for step, state in steps.items():
        fp32 = any(value.dtype == torch.float32 for value in state.values())
        write(root / f"run/checkpoint-{step}", state, FLOAT if fp32 else CONFIG)


def without(state: State, *names: str) -> State:
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize("lacking", [(1,), (2, 3), (4,)])
def test_a_tensor_that_some_steps_lack(tmp_path: Path, lacking: tuple[int, ...]) -> None:
    steps = {n: without(moved(BASE, n), UP) if n in lacking else moved(BASE, n) for n in (1, 2, 3, 4)}
    write_all(tmp_path, steps)
    failed(encode(tmp_path), f"'{UP}'", "--exclude-steps", "--exact")
    spelled = ",".join(map(str, lacking))
    assert encode(tmp_path, "--exclude-steps", spelled).returncode == 0
    encoded(tmp_path, "--exact")
    check_exact(tmp_path, steps)
    with relex_codec.open(tmp_path / "r.relex") as run:
        with pytest.raises(InvalidArgument, match=rf"{UP}"):
            run.tensor(UP, step=lacking[0], tier="exact")
        if 4 not in lacking:  # what the last observed step has, the line has
            found = run.tensor(UP, step=8, tier="line").float()
            true = moved(BASE, 8)[UP].float()
            assert (found - true).norm() < 0.3 * (true - BASE[UP].float()).norm()
    assert (UP in decoded(tmp_path, 8)) == (4 not in lacking)


@pytest.mark.parametrize("odd", [1, 3, 4])
def test_a_step_of_another_dtype(tmp_path: Path, odd: int) -> None:
    steps = {n: moved(BASE, n, torch.bfloat16 if n == odd else torch.float32) for n in (1, 2, 3, 4)}
    write_all(tmp_path, steps)
    failed(encode(tmp_path), "F32", "BF16", f"--exclude-steps {odd},", "--exact")
    encoded(tmp_path, "--exact")
    check_exact(tmp_path, steps)
    line = decoded(tmp_path, 8)
    for name, value in line.items():
        assert value.dtype == steps[4][name].dtype
        true = moved(BASE, 8, torch.float32)[name]
        if value.dim() > 1:  # bfloat16 rounds the move of a norm, which is about 1, away
            assert (value.float() - true).norm() < 0.3 * (true - BASE[name].float()).norm(), name


def test_append_of_another_dtype_and_back(tmp_path: Path) -> None:
    steps = {n: moved(BASE, n, torch.bfloat16 if n == 4 else torch.float32) for n in (1, 2, 3, 4, 5)}
    write_all(tmp_path, steps)
    encoded(tmp_path, "--exact", "--steps", "1:3")
    for step in (4, 5):
        done = cli("append", tmp_path / "r.relex", tmp_path / f"run/checkpoint-{step}")
        assert done.returncode == 0, done.stderr
    check_exact(tmp_path, steps)
    assert decoded(tmp_path, 9)[UP].dtype == torch.float32
    assert cli("verify", tmp_path / "r.relex", "--base", tmp_path / "base").returncode == 0


def renamed(state: State) -> State:
    return {name.replace("model.", "model.language_model.", 1): value for name, value in state.items()}


@pytest.mark.parametrize("by_append", [False, True])
def test_names_that_change_when_a_library_is_upgraded(tmp_path: Path, by_append: bool) -> None:
    steps = {n: renamed(moved(BASE, n)) if n > 2 else moved(BASE, n) for n in (1, 2, 3, 4)}
    write_all(tmp_path, steps)
    write_steps(tmp_path / "plain", lambda n: moved(BASE, n), (1, 2, 3, 4))
    failed(encode(tmp_path), "is called", "--exclude-steps 1,2")
    encoded(tmp_path, "--exact", run="plain", file="plain.relex")
    if by_append:
        encoded(tmp_path, "--exact", "--steps", "1:2")
        for step in (3, 4):
            done = cli("append", tmp_path / "r.relex", tmp_path / f"run/checkpoint-{step}")
            assert done.returncode == 0, done.stderr
    else:
        encoded(tmp_path, "--exact")
        sizes = [(tmp_path / file).stat().st_size for file in ("r.relex", "plain.relex")]
        assert sizes[0] < sizes[1] + 6000, "names only"
    check_exact(tmp_path, steps)
    assert_same(decoded(tmp_path, 8), renamed(decoded(tmp_path, 8, file="plain.relex")))


def test_a_tensor_that_comes_with_later_steps(tmp_path: Path) -> None:
    new = {"model.bias": torch.arange(8.0).bfloat16()}
    steps = {1: moved(BASE, 1), 2: moved(BASE, 2), 3: moved(BASE, 3) | new, 4: moved(BASE, 4) | moved(new, 4)}
    write_all(tmp_path, steps)
    encoded(tmp_path, "--exact")
    check_exact(tmp_path, steps)
    encoded(tmp_path, "--exact", "--steps", "1:2")
    for step in (3, 4):
        assert cli("append", tmp_path / "r.relex", tmp_path / f"run/checkpoint-{step}").returncode == 0
    check_exact(tmp_path, steps)


def test_one_shape_a_tensor(tmp_path: Path) -> None:
    steps = {n: moved(BASE, n) for n in (1, 2, 3)}
    steps[3][NORM] = torch.ones(17).bfloat16()
    write_all(tmp_path, steps)
    failed(encode(tmp_path, "--exact"), f"'{NORM}'", "[17]", "[16]", "--exclude-steps")
