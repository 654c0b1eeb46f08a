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
from relex_codec.core import threads
from relex_codec.encoding import tensor_history
from relex_codec.encoding.delta_sums import GramSums, directions
from relex_codec.encoding.fit import deltas, directions_from_deltas, fit_directions, fit_line, gram_of
from relex_codec.engines import choice
from support import plain
from support.checkpoints import write_checkpoint, write_run
from support.plain import Array, File
from support.runs import Made
from support.tensors import Tensor, bf16, f32

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


# ---- Neither memory nor threads change anything ----


def test_memory_and_threads_do_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is read once or twice, one of several pieces that rows of NaNs interrupt, and small ones."""
    rng = np.random.default_rng(7)
    steps = list(range(1, 15))
    shapes = {"large": (1200, 1000), "b": (70, 50), "c": (3,), "masked": (300, 1000)}
    start = {name: rng.standard_normal(shape) * 0.02 for name, shape in shapes.items()}
    drift = {name: rng.standard_normal(shape) * 0.02 for name, shape in shapes.items()}
    noise = {name: rng.standard_normal(shape) * 1e-3 for name, shape in shapes.items()}
    start["masked"][7:200] = -np.inf

    def at(step: int) -> dict[str, Tensor]:
        moved = {name: start[name] + drift[name] * step / 200 + np.roll(noise[name], step) for name in shapes}
        return {name: bf16(value) for name, value in moved.items()}

    write_checkpoint(tmp_path / "base", {name: bf16(value) for name, value in start.items()})
    write_run(tmp_path / "run", steps, at)
    held = {}
    original = tensor_history.TensorHistory.__init__

    def spy(self: tensor_history.TensorHistory, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        held[self.info.name] = self._held is not None

    monkeypatch.setattr(tensor_history.TensorHistory, "__init__", spy)
    files = []
    for memory, processors in (("4GB", 2), ("256MB", 2), ("64MB", 2), ("64MB", 4), ("4GB", 1), ("4GB", 4)):
        for module in (threads, choice):
            monkeypatch.setattr(module, "cpu_count", lambda count=processors: count)
        path = tmp_path / f"{memory}-{processors}.relex"
        relex_codec.encode(tmp_path / "run", path, base=tmp_path / "base", memory=memory)
        assert held["large"] == (memory != "64MB")  # 34 MB of checkpoints: read once, or twice
        files.append(path.read_bytes())
    assert all(file == files[0] for file in files)


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


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("origin_dtype", ["BF16", "F32"])
@pytest.mark.parametrize("size", [1, 1023, 5000])
def test_sums_over_bits_are_those_of_float64(dtype: str, origin_dtype: str, size: int) -> None:
    rng = np.random.default_rng(size)
    start, drift = rng.standard_normal((2, size))
    origin = plain.narrow(origin_dtype, start)
    steps = [plain.narrow(dtype, start + (i + 1) * drift / 8 + rng.standard_normal(size) / 16) for i in range(6)]
    bits, wide = np.stack(steps), plain.widen(origin_dtype, origin)
    delta = plain.deltas(dtype, steps, origin_dtype, origin)
    sums = GramSums(6, 4)
    for lo in range(0, size, 2048):  # slices change nothing
        some = slice(lo, min(lo + 2048, size))
        sums.add(bits, dtype, lo, wide[some], origin[some], origin_dtype)
    once = GramSums(6, 4)
    once.add(bits, dtype, 0, wide, origin, origin_dtype)
    assert np.array_equal(once.matrix(), sums.matrix())
    largest = np.linalg.eigvalsh(delta @ delta.T)[-1]
    np.testing.assert_allclose(sums.matrix(), delta @ delta.T, atol=1e-7 * largest)
    assert np.linalg.eigvalsh(sums.matrix())[-1] == pytest.approx(largest, rel=1e-7)
    np.testing.assert_allclose(sums.squares, np.diagonal(delta @ delta.T), rtol=1e-6)
    weights = fit_directions(sums.matrix(), np.arange(1, 7), 4, 1).weights
    found = np.empty((1, size), np.float32)
    directions(weights, bits, dtype, 0, wide, origin, origin_dtype, found)
    close(found.astype(np.float64), weights @ delta[:4])
    assert sums.moved and not sums.infinite.any()


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e-12, 1e12, 1e24, 1e34])
def test_squares_that_float32_does_not_hold_are_float64(scale: float) -> None:
    """Deltas of 1e-30 have squares below its smallest number, those of 1e24 above its largest."""
    rng = np.random.default_rng(3)
    values = (rng.standard_normal((5, 3000)) * scale).astype(np.float32)
    values[:, :2000] += np.outer(np.arange(5), rng.standard_normal(2000) * scale).astype(np.float32)
    origin = np.zeros(3000, np.float32)
    sums = GramSums(5, 5)
    sums.add(values.view(np.uint32), "F32", 0, origin, origin.view(np.uint32), "F32")
    wide = values.astype(np.float64)
    np.testing.assert_allclose(sums.matrix(), wide @ wide.T, atol=1e-6 * np.trace(wide @ wide.T))
    weights = fit_directions(sums.matrix(), np.arange(1, 6), 5, 1).weights
    found = np.empty((1, 3000), np.float32)
    directions(weights, values.view(np.uint32), "F32", 0, origin, origin.view(np.uint32), "F32", found)
    close(found.astype(np.float64), weights @ wide)


def test_what_is_not_finite_is_found_where_it_is_and_counts_as_nothing() -> None:
    rng = np.random.default_rng(4)
    start = rng.standard_normal(4000).astype(np.float32)
    values = (start + rng.standard_normal((4, 4000)) / 8).astype(np.float32)
    start[100:200], values[:, 100:200] = np.inf, np.inf  # equal: no delta
    start[300], values[:, 300] = np.nan, np.nan
    clean = values.copy()
    values[2, 3000], values[3, 3500] = np.nan, -np.inf
    clean[2, 3000], clean[3, 3500] = start[3000], start[3500]
    found = []
    for weights in (values, clean):
        sums = GramSums(4, 4)
        sums.add(weights.view(np.uint32), "F32", 0, start, start.view(np.uint32), "F32")
        found.append(sums)
    assert found[0].infinite.tolist() == [False, False, True, True] and not found[1].infinite.any()
    np.testing.assert_allclose(found[0].matrix(), found[1].matrix(), rtol=1e-6)
    assert np.isfinite(found[0].matrix()).all()
    fitted = fit_directions(found[1].matrix(), np.arange(1, 5), 4, 1).weights
    direction = np.empty((1, 4000), np.float32)
    directions(fitted, clean.view(np.uint32), "F32", 0, start, start.view(np.uint32), "F32", direction)
    assert not direction[0, 100:200].any() and direction[0, 300] == 0 and np.isfinite(direction).all()


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
