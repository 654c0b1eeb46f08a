"""A base that the run did not begin at is noticed, and no straight, wandering or late run is taken for one."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import relex_codec
from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, TensorReader
from relex_codec.encoding.base_check import (
    ELEMENTS,
    FARTHER,
    PLACES,
    Distances,
    Gap,
    Place,
    check_base,
    check_new_tensors,
    choose_places,
    reach,
    too_far,
)
from relex_codec.errors import InvalidArgument
from support.checkpoints import write_checkpoint, write_run
from support.commands import cli, failed
from support.tensors import Tensor, bf16, f32

SIZE = 6000


class InMemory(TensorReader):
    """float32 weights."""

    def __init__(self, weights: dict[str, Any], path: str = "there") -> None:
        self.path = path
        self.weights = {name: np.asarray(values, np.float32) for name, values in weights.items()}
        self.tensors = {name: TensorInfo(name, "F32", values.shape) for name, values in self.weights.items()}
        self.asked = 0

    def read_into(self, name: str, lo: int, out: Any) -> None:
        self.asked += out.nbytes
        out[:] = self.weights[name].reshape(-1)[lo : lo + out.size].view(np.uint32)


class Walk(CheckpointSeries):
    """A run as a function of the step."""

    def __init__(self, steps: list[int], at: Any) -> None:
        self.steps = steps
        self._readers = [InMemory({"w": at(step)}, f"step {step}") for step in steps]

    def checkpoint(self, index: int) -> InMemory:
        return self._readers[index]

    def read_into(self, name: str, lo: int, out: Any) -> None:
        for row, reader in zip(out, self._readers, strict=False):
            reader.read_into(name, lo, row)


BASE = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32) * 0.05
DRIFT = np.random.default_rng(1).standard_normal(SIZE) * 1e-5
_moves = np.random.default_rng(2).standard_normal((400, SIZE)) * 1e-5
WANDERED = np.concatenate([np.zeros((1, SIZE)), np.cumsum(_moves, axis=0)])
KINDS = {
    "straight": lambda step: BASE + DRIFT * step,
    "random walk": lambda step: BASE + WANDERED[step],
    "both": lambda step: BASE + DRIFT * step / 10 + WANDERED[step],
    "faster and faster": lambda step: BASE + DRIFT * step**1.5,
    "converged": lambda step: BASE + DRIFT * 150 * (1 - math.exp(-step / 150)) + WANDERED[step] / 3,
}
windows = st.lists(st.integers(0, 400), min_size=1, max_size=12, unique=True).map(sorted)


@pytest.mark.parametrize("kind", KINDS)
@given(steps=windows)
def test_the_base_of_a_run_is_taken_whatever_window_is_encoded(kind: str, steps: list[int]) -> None:
    check_base(Walk(steps, KINDS[kind]), InMemory({"w": BASE}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("wrong", "steps"),
    [
        (0.01, [1, 2]), (0.01, [0, 1, 2]), (0.01, [1, 2, 3, 4, 5]), (0.01, [10, 20, 30]),
        (0.05, [1, 400]), (0.05, [0, 400]), (0.5, [20, 40, 400]), (0.5, [100, 150, 200]),
    ],
)  # fmt: skip
def test_another_base_is_refused(kind: str, steps: list[int], wrong: float) -> None:
    other = BASE + wrong * np.random.default_rng(3).standard_normal(SIZE)
    with pytest.raises(InvalidArgument, match=rf"did not begin at base other: step {steps[0]} is .* --allow-any-base$"):
        check_base(Walk(steps, KINDS[kind]), InMemory({"w": other}, "other"))


def test_what_cannot_be_known_is_not_refused() -> None:
    other = InMemory({"w": BASE + 1})
    check_base(Walk([7], KINDS["straight"]), other)  # one step
    check_base(Walk([7, 8, 9], lambda step: BASE), other)  # steps that do not differ
    few = InMemory({"w": BASE[:100] + 1})
    check_base(Walk([7, 8, 9], lambda step: KINDS["straight"](step)[:100]), few)


def test_a_bound_is_what_a_straight_line_or_a_random_walk_reaches() -> None:
    assert reach(1, [Gap(1, 2.0)]) == reach(0, [Gap(1, 2.0)]) == 2.0
    assert reach(100, [Gap(1, 2.0)]) == 200.0
    assert reach(1, [Gap(100, 2.0)]) == pytest.approx(0.2)
    assert reach(10, [Gap(10, 0.0), Gap(10, 3.0)]) == 3.0  # a step that was saved twice says nothing
    assert reach(10, []) == 0


def place(name: str, size: int) -> Place:
    return Place(name, 0, size)


def test_most_of_the_model_decides() -> None:
    far = Distances(place("far", 100), 1.0, 2 * FARTHER, [Gap(1, 1.0)])
    near = Distances(place("near", 90), 1.0, 0.5 * FARTHER, [Gap(1, 1.0)])
    frozen = Distances(place("frozen", 1000), 1.0, 0.0, [Gap(1, 0.0)])
    odd = Distances(place("odd", 20), 1.0, 1e9, [Gap(1, 1.0)])
    assert too_far(1, [far, near]) == too_far(1, [far, near, frozen]) == [far]  # what never moves says nothing
    assert too_far(1, [near, odd, frozen]) == []
    replaced = Distances(place("frozen, but another one", 1000), 1.0, 1e-3, [Gap(1, 0.0)])
    assert too_far(1, [near, replaced]) == [replaced]
    assert too_far(1, [replaced]) == []


def test_large_tensors_from_all_layers_are_looked_at_and_little_of_them() -> None:
    infos = [TensorInfo(f"{i}.{name}", "BF16", (size,)) for i in range(40) for name, size in (("n", 5), ("w", 1 << 20))]
    found = choose_places(infos)
    assert len(found) == PLACES
    assert {one.name.partition(".")[2] for one in found} == {"w"}
    assert {int(one.name.partition(".")[0]) // 4 for one in found} == set(range(10))
    assert all(one.hi - one.lo == ELEMENTS for one in found)
    one = choose_places([TensorInfo("w", "BF16", (1 << 24,))])
    assert len(one) == PLACES and all(a.hi <= b.lo for a, b in pairwise(one))
    assert choose_places([TensorInfo("w", "BF16", (70,)), TensorInfo("e", "BF16", (0,))]) == [Place("w", 0, 70)]


def test_few_bytes_of_few_steps_are_read() -> None:
    large = np.random.default_rng(4).standard_normal(1 << 21).astype(np.float32)
    run, base = Walk(list(range(1, 21)), lambda step: large * (1 + step * 1e-4)), InMemory({"w": large})
    check_base(run, base)
    asked = [run.checkpoint(index).asked for index in range(20)]
    assert [index for index, size in enumerate(asked) if size] == [0, 1, 2, 3, 18, 19]
    assert base.asked == max(asked) == PLACES * ELEMENTS * 4


def test_new_tensors_are_counted_by_bytes() -> None:
    base = InMemory({"a": np.zeros((10, 10)), "b": np.zeros(5)}, "the-base")

    def infos(**shapes: tuple[int, ...]) -> list[TensorInfo]:
        return [TensorInfo(name, "F32", shape) for name, shape in shapes.items()]

    check_new_tensors(infos(a=(10, 10), b=(5,), c=(100,)), base)
    check_new_tensors(infos(c=(100,)), base)  # nothing in common, which is said where tensors are matched
    with pytest.raises(InvalidArgument) as error:
        check_new_tensors([*infos(a=(10, 11), b=(5,), c=(100,)), TensorInfo("d", "F32", (7,))], base)
    assert str(error.value) == (
        "98 % of the run's bytes are in tensors that base the-base does not have: 'a' ([10, 11], there [10, 10]), 'c' "
        "(it has none of that name), 'd' (it has none of that name); give the model that training started from, or "
        "store them whole with --allow-new-tensors"
    )
    with pytest.raises(InvalidArgument, match=r"'a' \(I64, there F32\)"):
        check_new_tensors([TensorInfo("a", "I64", (10, 10)), *infos(b=(5,))], base)


def made(root: Path, base: dict[str, Tensor], **more: Tensor) -> tuple[Path, Path]:
    steps = {step: {"w": bf16(KINDS["both"](step)), **more} for step in (2, 4, 6)}
    write_run(root / "run", list(steps), steps.__getitem__)
    return root / "run", write_checkpoint(root / "base", base)


def test_encode_refuses_another_base_and_takes_it_if_told_to(tmp_path: Path) -> None:
    run, base = made(tmp_path, {"w": f32(BASE + 0.01)})  # of another dtype, too
    output = tmp_path / "x.relex"
    failed(cli("encode", run, "--base", base, "-o", output), "did not begin at base", "step 2", "--allow-any-base")
    assert not output.exists()
    done = cli("encode", run, "--base", base, "-o", output, "--exact", "--allow-any-base")
    assert done.returncode == 0, done.stderr
    with relex_codec.open(output) as file:
        assert file.check_exact() == 3


def test_a_base_in_another_dtype_is_compared_as_the_run_rounds_it(tmp_path: Path) -> None:
    run, base = made(tmp_path, {"w": f32(BASE)})
    relex_codec.encode(run, tmp_path / "x.relex", base=base)


def test_encode_refuses_new_tensors_and_takes_them_if_told_to(tmp_path: Path) -> None:
    run, base = made(tmp_path, {"w": bf16(BASE)}, head=bf16(np.ones(SIZE + 1)))
    output = tmp_path / "x.relex"
    with pytest.raises(InvalidArgument, match=r"50 % of the run's bytes .*'head'"):
        relex_codec.encode(run, output, base=base)
    relex_codec.encode(run, output, base=base, allow_new_tensors=True)
    with relex_codec.open(output) as file:
        assert "head" in file


@pytest.mark.parametrize("flag", ["--allow-any-base", "--allow-new-tensors"])
def test_the_flags_are_explained(flag: str) -> None:
    assert flag in cli("encode", "--help-all").stdout
