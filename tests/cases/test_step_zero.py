"""Step 0: what the run stored there if it did, and "the base" only where all of it is the base's."""

from __future__ import annotations

from pathlib import Path

import torch

import relex_codec
from support.commands import cli
from support.tiny import assert_same, decoded, encoded, moved, read, restored, weights, write, write_steps

BASE = weights()


def test_a_run_that_stores_step_0(tmp_path: Path) -> None:
    write(tmp_path / "base", BASE)
    at = lambda n: moved(BASE, n + 1)  # noqa: E731
    write_steps(tmp_path / "run", at, (0, 1, 2), "step-{}")
    encoded(tmp_path, "--exact")
    assert_same(decoded(tmp_path, 0), at(0))
    assert_same(read(restored(tmp_path) / "step-0"), at(0))
    with relex_codec.open(tmp_path / "r.relex") as run:
        assert run.tier(0) == "exact"
        assert_same(dict(run.iter_steps())[0], run.state_dict(0))


def test_a_tensor_that_is_not_of_the_base(tmp_path: Path) -> None:
    write(tmp_path / "base", BASE)
    more = {"value_head.weight": torch.arange(32.0).reshape(2, 16).bfloat16()}
    write_steps(tmp_path / "run", lambda n: moved(BASE, n) | moved(more, n), (1, 2, 3))
    encoded(tmp_path)
    done = cli("decode", tmp_path / "r.relex", "--step", 0, "-o", tmp_path / "zero", "--json")
    assert done.returncode == 0, done.stderr
    assert '"base"' not in done.stdout.replace('"base":', "")
    with relex_codec.open(tmp_path / "r.relex") as run:
        assert run.tier(0) != "base"
    write_steps(tmp_path / "plain", lambda n: moved(BASE, n), (1, 2, 3))
    encoded(tmp_path, run="plain")
    assert_same(decoded(tmp_path, 0), BASE)
