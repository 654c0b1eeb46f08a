"""What the file says of its tiers' errors and of norms, against the weights that it gives back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import relex_codec
from relex_codec.encoding.step_errors import EXCERPT, STRETCH, excerpt_spans
from support import plain
from support.checkpoints import write_checkpoint, write_run
from support.plain import File
from support.runs import Made
from support.tensors import bf16

Zoo = Callable[..., Path]


def wide(dtype: str, bits: plain.Array) -> plain.Array:
    return plain.widen(dtype, bits).astype(np.float64).reshape(-1)


@pytest.mark.parametrize(
    ("quality", "options"), [("default", {}), ("small", {"observe": 9}), ("default", {"rank": 2}), ("micro", {})]
)
def test_errors_are_those_of_the_weights_that_are_decoded(
    zoo_run: Made, zoo_file: Zoo, quality: str, options: dict[str, int]
) -> None:
    path = zoo_file(quality, **options)
    moving = [name for name in File(path).names if File(path).kind(name)[0] == 1]
    with relex_codec.open(path) as run:
        stored = run._reader.container.errors()
        for tier, row in zip(("track", "line"), stored, strict=True):
            for step, found in zip(run.steps, row, strict=True):
                miss = delta = 0.0
                for name in moving:
                    dtype, bits = zoo_run.at(step)[name]
                    in_base = File(path).kind(name)[1] == 0
                    start = wide(*(zoo_run.base if in_base else zoo_run.at(1))[name])
                    miss += ((wide(dtype, run._reader.bits(name, step, tier)) - wide(dtype, bits)) ** 2).sum()
                    delta += ((start - wide(dtype, bits)) ** 2).sum()
                assert found == pytest.approx(np.sqrt(miss / delta), rel=1e-4), (tier, step)


def test_norms_are_those_of_the_base_and_of_unit_directions(zoo_run: Made, zoo_file: Zoo) -> None:
    path = zoo_file("raw", rank=2)
    file = File(path)
    with relex_codec.open(path) as run:
        norms, of_directions = run._reader.container.norms()
    assert len(norms) == len(file.names) and len(of_directions) == len(file.directions)
    known = 0
    for name, norm in zip(file.names, norms, strict=True):
        if name in zoo_run.base and zoo_run.base[name][0] in ("BF16", "F16", "F32") and file.kind(name)[1] == 0:
            expected = np.abs(wide(*zoo_run.base[name])).sum()
            assert np.isnan(norm) if not np.isfinite(expected) else norm == pytest.approx(expected, rel=1e-6), name
            known += 1
    assert known > 8
    for name in file.names:
        for j, number in enumerate(file.numbers(name)):
            vector = file.raw_vector(name, j).astype(np.float64)
            assert of_directions[number] == pytest.approx(np.abs(vector).sum(), rel=1e-6), name
            assert np.linalg.norm(vector) == pytest.approx(1, rel=1e-5)


def test_an_excerpt_of_a_large_tensor_is_scaled_to_all_of_it(tmp_path: Path) -> None:
    """Some of the two million weights did not move; a tenth of the tensor is measured."""
    rng = np.random.default_rng(1)
    start, drift = rng.standard_normal((2, 2000, 1000)) * 0.02
    drift[300:900] = 0
    steps = [1, 2, 3, 4]
    write_checkpoint(tmp_path / "base", {"w": bf16(start)})
    noise = rng.standard_normal(start.shape) * 1e-3
    at = {step: bf16(start + drift * step / 50 + np.roll(noise, step)) for step in steps}
    write_run(tmp_path / "run", steps, lambda step: {"w": at[step]})
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality="small")
    origin = wide(*bf16(start))
    with relex_codec.open(tmp_path / "x.relex") as run:
        for tier, row in zip(("track", "line"), run._reader.container.errors(), strict=True):
            for step, found in zip(steps, row, strict=True):
                target = wide(*at[step])
                miss = wide("BF16", run._reader.bits("w", step, tier)) - target
                assert found == pytest.approx(np.linalg.norm(miss) / np.linalg.norm(target - origin), rel=0.02)


def test_a_run_that_stands_still_has_no_errors(tmp_path: Path) -> None:
    start = bf16(np.linspace(-1, 1, 64))
    write_checkpoint(tmp_path / "base", {"w": start})
    write_run(tmp_path / "run", [1, 2], lambda step: {"w": start})
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert np.isnan(run._reader.container.errors()).all()


@pytest.mark.parametrize("size", [0, 1, STRETCH, STRETCH + 1, EXCERPT, EXCERPT + 1, 10 * EXCERPT + 7])
def test_stretches_lie_apart_and_within_the_tensor(size: int) -> None:
    spans = excerpt_spans(size)
    assert spans[0][0] == 0 and spans[-1][1] == size
    assert sum(hi - lo for lo, hi in spans) == min(size, EXCERPT)
    if size != EXCERPT + 1:
        assert all(one[1] <= other[0] for one, other in pairwise(spans))
