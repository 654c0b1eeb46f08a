"""Directions, coefficients and lines against a full singular value decomposition and least squares in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import relex_codec
from relex_codec.encoding import tensor_history
from relex_codec.encoding.fit import deltas, directions_from_deltas, fit_directions, fit_line, gram_of
from support import plain
from support.checkpoints import write_checkpoint, write_run
from support.plain import Array, File
from support.runs import Made
from support.tensors import bf16, f32

Zoo = Callable[..., Path]


def close(found: Array, expected: Array, scale: float | None = None) -> None:
    """Equal to 1e-6 of the largest value."""
    scale = float(np.abs(expected).max()) if scale is None else scale
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)


# ---- Whole files ----


@pytest.mark.parametrize("observed", [None, 9])
def test_a_file_holds_the_plain_fit_of_every_tensor(zoo_run: Made, zoo_file: Zoo, observed: int | None) -> None:
    file = File(zoo_file("raw") if observed is None else zoo_file("raw", observe=observed))
    count = len(zoo_run.steps) if observed is None else 4
    checked = 0
    for name in file.names:
        if file.kind(name)[0] != 1:
            continue
        dtype, bits = zoo_run.at(1)[name]
        in_base = file.kind(name)[1] == 0
        origin_dtype, origin = zoo_run.base[name] if in_base else (dtype, bits)
        delta = plain.deltas(dtype, zoo_run.bits(name), origin_dtype, origin)
        vectors, coefficients, lines = plain.fit(delta, zoo_run.steps, count)
        number = file.numbers(name)[0]
        record = file.directions[number]
        close(file.raw_vector(name).astype(np.float64), vectors[0])
        close(file.coefficients[number], coefficients[0])
        assert record.slope == pytest.approx(lines[0][0], rel=1e-6), name
        assert record.intercept == pytest.approx(lines[0][1], abs=1e-6 * np.abs(coefficients).max()), name
        sigma = np.linalg.svd(delta[:count], compute_uv=False)
        assert record.explained == pytest.approx(sigma[0] ** 2 / (sigma**2).sum(), rel=1e-6), name
        c, t = coefficients[0, :count], np.array(zoo_run.steps[:count], np.float64)
        assert record.r2 == pytest.approx(np.corrcoef(c, t)[0, 1] ** 2, rel=1e-5), name
        checked += 1
    assert checked == 10


def test_more_directions_are_the_next_singular_vectors(zoo_run: Made, zoo_file: Zoo) -> None:
    file = File(zoo_file("raw", rank=3))
    for name in ("layers.0.proj.weight", "model.embed_tokens.weight", "layers.0.norm.weight"):
        assert len(file.numbers(name)) == 3
        dtype, origin = zoo_run.base[name]
        delta = plain.deltas(dtype, zoo_run.bits(name), dtype, origin)
        vectors, coefficients, lines = plain.fit(delta, zoo_run.steps, len(zoo_run.steps), 3)
        for j, number in enumerate(file.numbers(name)):
            sign = 1 if file.raw_vector(name, j) @ vectors[j] > 0 else -1  # where the line is nearly level
            close(sign * file.raw_vector(name, j).astype(np.float64), vectors[j])
            close(sign * file.coefficients[number], coefficients[j], np.abs(coefficients[0]).max())
            close(np.array(sign * file.directions[number].slope), np.array(lines[j][0]), abs(lines[0][0]))


def test_there_are_no_more_directions_than_the_deltas_have(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    start, drift = rng.standard_normal((2, 30)).astype(np.float32)
    drift = np.round(drift * 8)  # exact in float32 at every step: the deltas have rank 1
    write_checkpoint(tmp_path / "base", {"w": f32(start * 0)})
    write_run(tmp_path / "run", [1, 2, 3], lambda step: {"w": f32(drift * step)})
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality="raw", rank=3)
    file = File(tmp_path / "x.relex")
    assert len(file.directions) == 1
    assert file.directions[0].explained == pytest.approx(1)


# ---- The memory budget changes nothing ----


def test_a_run_larger_than_the_budget_gives_the_same_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    start, drift = rng.standard_normal((2, 700, 500)) * 0.02
    write_checkpoint(tmp_path / "base", {"w": bf16(start)})
    steps = list(range(1, 61))
    noise = rng.standard_normal((700, 500)) * 2e-3
    write_run(tmp_path / "run", steps, lambda step: {"w": bf16(start + drift * step / 600 + np.roll(noise, 37 * step))})
    held = []
    original = tensor_history.TensorHistory.__init__

    def spy(self: tensor_history.TensorHistory, *args: Any) -> None:
        original(self, *args)
        held.append(self._held is not None)

    monkeypatch.setattr(tensor_history.TensorHistory, "__init__", spy)
    files = []
    for memory in ("4GB", "64MB"):
        path = tmp_path / f"{memory}.relex"
        relex_codec.encode(tmp_path / "run", path, base=tmp_path / "base", quality="raw", memory=memory)
        files.append(path)
    assert held == [True, False]  # 42 MB of checkpoints: read once and read twice
    large, small = (File(path) for path in files)
    np.testing.assert_allclose(small.coefficients, large.coefficients, rtol=1e-9)
    assert small.directions[0].slope == pytest.approx(large.directions[0].slope, rel=1e-9)
    np.testing.assert_allclose(small.raw_vector("w"), large.raw_vector("w"), rtol=2e-7, atol=1e-12)
    with relex_codec.open(files[0]) as a, relex_codec.open(files[1]) as b:
        for step in (1, 30.5, 60, 300):
            differ = a._reader.bits("w", step) != b._reader.bits("w", step)
            assert differ.mean() < 1e-4
            apart = a._reader.bits("w", step).astype(np.int64) - b._reader.bits("w", step)
            assert np.abs(apart).max() <= 1


# ---- The parts ----


@settings(max_examples=60)
@given(
    st.integers(1, 7), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(1, 3), st.data()
)  # fmt: skip
def test_fit_equals_a_full_decomposition(count: int, size: int, seed: int, rank: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.integers(1, 50, count))
    observed = data.draw(st.integers(1, count))
    delta = rng.standard_normal((count, size)) + 3 * np.outer(steps / steps[-1], rng.standard_normal(size))
    delta = delta.astype(np.float32).astype(np.float64)
    vectors, coefficients, lines = plain.fit(delta, [int(s) for s in steps], observed, rank)
    sigma = np.linalg.svd(delta[:observed], compute_uv=False)
    found = fit_directions(delta @ delta.T, steps.astype(np.int64), observed, rank)
    assert len(found.weights) == min(rank, observed, size)
    for j in range(len(found.weights)):
        near = np.abs(np.delete(sigma, j) / sigma[j] - 1)
        if (len(near) and near.min() < 1e-2) or sigma[j] < 1e-2 * sigma[0]:
            continue  # no direction of its own
        v = found.weights[j] @ delta[:observed]
        assert np.linalg.norm(v) == pytest.approx(1, rel=1e-7)
        sign = 1 if v @ vectors[j] > 0 else -1
        np.testing.assert_allclose(sign * v, vectors[j], atol=1e-6)
        np.testing.assert_allclose(sign * found.coefficients[j], coefficients[j], atol=1e-6 * sigma[0])
        if observed > 1:
            assert sign * found.slope[j] == pytest.approx(lines[j][0], rel=1e-6, abs=1e-7 * sigma[0])
        assert found.slope[j] >= 0
        assert found.explained[j] == pytest.approx(sigma[j] ** 2 / (sigma**2).sum(), rel=1e-6)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=20, unique=True), st.integers(0, 2**32 - 1))
def test_line_is_least_squares(steps: list[int], seed: int) -> None:
    t = np.array(sorted(steps), np.int64)
    c = np.random.default_rng(seed).standard_normal(len(t)) + t / t[-1]
    slope, intercept, r2 = fit_line(t, c)
    expected = np.polynomial.Polynomial.fit(t.astype(float), c, 1).convert().coef
    assert slope == pytest.approx(expected[1], rel=1e-6, abs=1e-9 * np.abs(c).max() / t[-1])
    assert intercept == pytest.approx(expected[0], rel=1e-6, abs=1e-8 * np.abs(c).max())
    rest = c - slope * t - intercept
    assert rest.sum() == pytest.approx(0, abs=1e-7) and rest @ (t / t[-1]) == pytest.approx(0, abs=1e-7)
    assert r2 == pytest.approx(1 - rest @ rest / ((c - c.mean()) ** 2).sum(), abs=1e-9)


def test_line_of_equal_values_has_no_r2() -> None:
    slope, intercept, r2 = fit_line(np.array([1, 5, 9]), np.full(3, 0.1))
    assert slope == 0 and intercept == pytest.approx(0.1) and np.isnan(r2)


def test_slices_add_up() -> None:
    delta = np.random.default_rng(0).standard_normal((5, 1000)).astype(np.float32)
    wide = delta.astype(np.float64)
    whole = wide @ wide.T
    parts = gram_of(delta[:, :333]) + gram_of(delta[:, 333:])
    np.testing.assert_allclose(parts, whole, rtol=1e-12)
    weights = np.random.default_rng(1).standard_normal((2, 5))
    found = np.concatenate(
        [directions_from_deltas(weights, delta[:, :7]), directions_from_deltas(weights, delta[:, 7:])], axis=1
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, weights @ wide, rtol=1e-6, atol=1e-6)


def test_small_deltas_on_large_weights_are_exact() -> None:
    start = np.array([1000.0, -3.0, 1e-30, 0.0], np.float32)
    moved = np.nextafter(start, np.float32(np.inf), dtype=np.float32)
    found = deltas(moved.view(np.uint32)[None], "F32", start.view(np.uint32), "F32")
    np.testing.assert_array_equal(found[0].astype(np.float64), moved.astype(np.float64) - start.astype(np.float64))


def test_equal_bits_have_no_delta_even_if_they_are_no_numbers() -> None:
    bits = np.array([0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x3F80, 0x7F80], np.uint16)
    other = bits.copy()
    other[5] = 0x3F80
    found = deltas(np.stack([bits, other]), "BF16", bits, "BF16")
    np.testing.assert_array_equal(found[:, :5], 0)
    assert found[0, 5] == 0 and np.isneginf(found[1, 5])
