"""A step of NaN among good ones: no line goes through it, and none of it comes out elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import relex_codec
from relex_codec import InvalidArgument
from support.commands import cli, failed
from support.tiny import State, assert_same, decoded, encode, encoded, moved, weights, write

BASE = weights()
MASK = {"model.mask": torch.full((4, 4), float("-inf")).triu(1).bfloat16()}
UP = "model.layers.0.mlp.up_proj.weight"


def spoiled(state: State) -> State:
    return {name: torch.full_like(value, float("nan")) for name, value in state.items()}


def make(root: Path, bad: int, count: int = 4) -> dict[int, State]:
    steps = {n: {**(spoiled(BASE) if n == bad else moved(BASE, n)), **MASK} for n in range(1, count + 1)}
    write(root / "base", BASE)
    for step, state in steps.items():
        write(root / f"run/step_{step}", state)
    return steps


@pytest.mark.parametrize("bad", [1, 2, 4])
@pytest.mark.parametrize("observe", [(), ("--observe", 3)])
def test_lines_are_fitted_on_the_finite_steps(tmp_path: Path, bad: int, observe: tuple[object, ...]) -> None:
    steps = make(tmp_path, bad)
    done = encode(tmp_path)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert all(word in said for word in (f"step {bad} has", "not finite", f"--exclude-steps {bad}", "--exact"))
    done = encoded(tmp_path, "--exact", *observe)
    said = [line for line in done.stderr.splitlines() if "not finite" in line]
    assert len(said) == 1
    assert f"step {bad}" in said[0]
    assert f"{len(BASE)} tensors" in said[0]
    for step, state in steps.items():
        assert_same(decoded(tmp_path, step), state)
    count = 3 if observe else 4
    shown = f"1:{count}"
    without = encode(
        tmp_path, "--exact", "--steps", shown, *([] if bad > count else ["--exclude-steps", bad]), file="w.relex"
    )
    assert without.returncode == 0, without.stderr
    for step in (2.5, 8):
        found, expected = (decoded(tmp_path, step, "--tier", "line", file=file) for file in ("r.relex", "w.relex"))
        assert_same(found, expected)
    track = decoded(tmp_path, bad, "--tier", "track")
    assert not any(value.isnan().any() for name, value in track.items())


def test_a_tensor_that_is_never_finite_has_no_line(tmp_path: Path) -> None:
    write(tmp_path / "base", BASE)
    steps = {n: moved(BASE, n) for n in (1, 2, 3)}
    for n, state in steps.items():
        state[UP] = torch.full_like(state[UP], float("nan" if n == 2 else "inf"))
        write(tmp_path / f"run/step_{n}", state)
    failed(encode(tmp_path), f"'{UP}'", "not finite")
    done = encoded(tmp_path, "--exact")
    assert f"not finite at any step: tensor '{UP}'" in done.stderr
    for n, state in steps.items():
        assert_same(decoded(tmp_path, n), state)
    told = cli("info", tmp_path / "r.relex").stdout
    assert f"line for any step, but for '{UP}': at stored steps only" in " ".join(told.split())  # as wide as it may be
    refused = cli("decode", tmp_path / "r.relex", "--step", 8, "--far", "-o", tmp_path / "out8")
    failed(refused, f"'{UP}'", "no line")
    with relex_codec.open(tmp_path / "r.relex") as run:
        assert torch.equal(run.tensor("model.norm.weight", step=3), steps[3]["model.norm.weight"])
        assert run.tensor("model.norm.weight", step=8).isfinite().all()
        with pytest.raises(InvalidArgument, match="no line"):
            run.tensor(UP, step=2.5)


def test_infinities_that_do_not_move_are_no_matter(tmp_path: Path) -> None:
    steps = make(tmp_path, bad=0)
    done = encoded(tmp_path)
    assert "finite" not in done.stderr
    assert torch.equal(decoded(tmp_path, 8)["model.mask"], steps[1]["model.mask"])
