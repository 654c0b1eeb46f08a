"""Quantisers, factors and the quality setting against plain computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_codec import InvalidArgument
from relex_codec.encoding import low_rank
from relex_codec.encoding.direction_search import DirectionSearch, sample_starts
from relex_codec.encoding.low_rank import decompose, round_factors
from relex_codec.encoding.quality import Quality
from relex_codec.encoding.quantizer_search import Magnitudes, cheapest_quantizers
from relex_codec.encoding.weight_error import Sample
from relex_codec.format.constants import BYTE, FLOAT32, NIBBLE, PIECE, QUINARY, TERNARY, WORD, Packing
from relex_codec.format.factors import from_stream, stream
from support.plain import Array

CODED = (TERNARY, QUINARY, NIBBLE, BYTE)


def sample(kind: str, count: int, seed: int = 0) -> Array:
    """Remainders as they occur: noise, heavy tails, clusters of values that moved by one rounding step."""
    rng = np.random.default_rng(seed)
    if kind == "gauss":
        values = rng.standard_normal(count)
    elif kind == "tails":
        values = rng.standard_t(2.5, count)
    elif kind == "clustered":
        values = rng.choice([0.0, 1.5, -1.5, 3.0], count, p=[0.4, 0.28, 0.28, 0.04]) + 0.02 * rng.standard_normal(count)
    else:
        values = np.where(rng.random(count) < 0.97, 0.0, rng.standard_normal(count))
    return np.asarray(values * 1e-3, np.float32)


KINDS = ("gauss", "tails", "clustered", "sparse")


def slowly_quantised(x: Array, width: float, bias: float, zero: int) -> Array:
    """The formula of encoding/quantizer.py, in float64."""
    q = np.floor(np.abs(x.astype(np.float64)) / width + 0.5 - bias)
    return np.sign(x) * np.minimum(np.maximum(q, 0), zero)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", [*CODED, WORD], ids=lambda p: p.name)
@settings(max_examples=15)
@given(width=st.floats(0.02, 3), bias=st.floats(0, 0.45), seed=st.integers(0, 99))
def test_error_and_bits_are_those_of_the_codes(
    kind: str, packing: Packing, width: float, bias: float, seed: int
) -> None:
    x = sample(kind, 2000, seed)
    found = Magnitudes(x).evaluate(packing, width * 1e-3, bias)
    q = slowly_quantised(x, width * 1e-3, bias, packing.zero)
    if not q.any():
        assert found is None
        return
    assert found is not None
    codes = found.codes(x)
    assert (codes != q).mean() < 2e-3  # float32 at a threshold
    values = q * np.float64(found.scale) - np.sign(q) * np.float64(found.shift)
    error = float(np.mean((x.astype(np.float64) - values) ** 2))
    assert found.error == pytest.approx(error, rel=1e-6, abs=1e-9 * float(np.mean(x.astype(np.float64) ** 2)))
    p = np.unique(np.abs(q), return_counts=True)[1] / len(q)
    bits = -(p * np.log2(p)).sum() + np.count_nonzero(q) / len(q)
    assert found.bits == pytest.approx(bits, rel=1e-9, abs=1e-12)
    assert found.scale >= 0 and np.isfinite(found.scale) and np.isfinite(found.shift)


@pytest.mark.parametrize("kind", ["gauss", "tails", "clustered"])
def test_step_and_shift_are_the_best_for_the_codes(kind: str) -> None:
    x = sample(kind, 5000, 3)
    found = Magnitudes(x).evaluate(NIBBLE, 0.9e-3, 0.1)
    assert found is not None
    q = slowly_quantised(x, 0.9e-3, 0.1, 7)
    design = np.stack([q, -np.sign(q)], axis=1)[q != 0]
    best = np.linalg.lstsq(design, x[q != 0].astype(np.float64), rcond=None)[0]
    assert float(found.scale) == pytest.approx(best[0], rel=1e-5)
    assert float(found.shift) == pytest.approx(best[1], rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.1, 0.02, 0.001])
def test_candidates_hold_the_bound_and_are_the_cheapest_of_a_grid(kind: str, share: float) -> None:
    x = sample(kind, 20_000)
    magnitudes = Magnitudes(x)
    bound = share * float(np.mean(x.astype(np.float64) ** 2))
    found = {q.packing.name: q for q in cheapest_quantizers(magnitudes, bound)}
    rms = np.sqrt(magnitudes.energy / len(x))
    for quantizer in found.values():
        codes = quantizer.codes(x).astype(np.float64)
        values = codes * np.float64(quantizer.scale) - np.sign(codes) * np.float64(quantizer.shift)
        assert np.mean((x - values) ** 2) <= bound * 1.01
        assert np.abs(codes).max() <= quantizer.packing.zero
    best = min((q.bits for q in found.values()), default=np.inf)
    for packing in (TERNARY, QUINARY, NIBBLE):
        for width in np.geomspace(3, 0.06, 25) * rms:
            other = magnitudes.evaluate(packing, float(width), 0.15)
            if other is not None and other.error <= bound:
                assert best <= other.bits * 1.03, (packing.name, width)
    if not found:
        assert share < 0.01


def test_a_ternary_quantiser_finds_clusters() -> None:
    rng = np.random.default_rng(0)
    x = (rng.choice([0, 1, -1], 10_000, p=[0.6, 0.2, 0.2]) * 0.5).astype(np.float32)
    found = {q.packing.name: q for q in cheapest_quantizers(Magnitudes(x), 1e-6)}
    assert found["ternary"].error < 1e-12
    assert float(found["ternary"].scale - found["ternary"].shift) == pytest.approx(0.5)


def test_nothing_is_found_for_zeros() -> None:
    assert list(cheapest_quantizers(Magnitudes(np.zeros(10, np.float32)), 1.0)) == []


# ---- The search ----


def searched(x: Array, noise: float, quality: str | float) -> tuple[Any, float, float]:
    """Search for a vector x as direction with coefficient 1; returns it with both relative errors."""
    rng = np.random.default_rng(9)
    origin = rng.standard_normal(len(x)).astype(np.float32)
    target = origin + x + (noise * rng.standard_normal(len(x))).astype(np.float32)
    made = Sample([0], [origin], [target], "F32")
    stored = DirectionSearch(lambda lo, hi: x[lo:hi], (len(x),), made, [x * 0], 1.0, Quality.parse(quality)).run()
    delta = np.linalg.norm((target - origin).astype(np.float64))
    errors = [
        float(np.linalg.norm((origin + v).astype(np.float64) - target) / delta) for v in (x, stored.decoded(x, 0))
    ]
    return stored, errors[0], errors[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("growth", [0.003, 0.02, 0.3])
def test_the_search_holds_the_rule(kind: str, growth: float) -> None:
    stored, unquantised, error = searched(sample(kind, 6000), 4e-4, growth)
    assert error <= unquantised * (1 + growth) * (1 + 1e-6)
    assert stored.packing is not FLOAT32
    assert stored.error_line == pytest.approx(unquantised, rel=1e-5)
    assert stored.error_stored == pytest.approx(error, rel=1e-5)


def test_an_exact_direction_is_still_coded() -> None:
    """With one observed step the unquantised error is 0 and no growth of it would allow any code."""
    stored, unquantised, error = searched(sample("gauss", 6000), 0.0, 0.05)
    assert unquantised < 1e-4 and error < 0.011
    assert stored.packing in (BYTE, WORD)


def test_raw_is_float32() -> None:
    stored, unquantised, error = searched(sample("gauss", 100), 1e-4, "raw")
    assert stored.packing is FLOAT32 and stored.factors is None and error == unquantised


def test_samples_are_spread_over_the_tensor() -> None:
    assert sample_starts([2.0]) == [0]
    assert sample_starts([1.0, 9.0, 0.0, 4.0]) == [0, PIECE, 2 * PIECE, 3 * PIECE]
    starts = sample_starts([float(i != 37) + 5 * (i == 61) for i in range(100)])
    assert len(starts) == 4
    assert {37 * PIECE, 61 * PIECE} < set(starts)  # the piece that moved least, and the one that moved most


# ---- Factors ----


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (3, 12, 16), (2, 2, 9, 11)])
def test_decompose_is_the_singular_value_decomposition_of_each_matrix(shape: tuple[int, ...]) -> None:
    v = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    flat = v.reshape(-1)
    found = decompose(lambda lo, hi: flat[lo:hi], shape, 4)
    for h, matrix in enumerate(v.reshape(-1, *shape[-2:]).astype(np.float64)):
        u, s, w = np.linalg.svd(matrix, full_matrices=False)
        best = (u[:, :4] * s[:4]) @ w[:4]
        np.testing.assert_allclose(found.a[h].T.astype(np.float64) @ found.b[h], best, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(found.a[h], axis=1), np.linalg.norm(found.b[h], axis=1), rtol=1e-4)


def test_decompose_of_a_large_matrix_is_close_to_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    m, n = 300, 200
    v = rng.standard_normal((m, 6)) @ rng.standard_normal((6, n)) + 0.3 * rng.standard_normal((m, n))
    flat = v.astype(np.float32).reshape(-1)
    reads: list[int] = []

    def read(lo: int, hi: int) -> Array:
        reads.append(hi - lo)
        return flat[lo:hi]

    monkeypatch.setattr(low_rank, "FULL_SVD", 1000)
    monkeypatch.setattr(low_rank, "BLOCK_ELEMENTS", 7000)
    found, again = decompose(read, (m, n), 6), decompose(read, (m, n), 6)
    assert max(reads) <= 7000  # never the whole matrix at once
    s = np.linalg.svd(v, compute_uv=False)
    rest = np.linalg.norm(v - found.a[0].T.astype(np.float64) @ found.b[0])
    assert rest <= np.sqrt((s[6:] ** 2).sum()) * 1.001
    np.testing.assert_array_equal(found.a, again.a)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 7]))
def test_factors_are_rounded_to_few_bits_of_bf16(seed: int, mantissa: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, 10, 14)
    flat = rng.standard_normal(int(np.prod(shape))).astype(np.float32)
    exact = decompose(lambda lo, hi: flat[lo:hi], shape, 5)
    found = round_factors(exact, 2, mantissa)
    for before, after in ((exact.a, found.a), (exact.b, found.b)):
        assert after.shape[1] == 2
        low = after.view(np.uint32) & np.uint32((1 << (23 - mantissa)) - 1)
        assert not low.any()
        np.testing.assert_allclose(after, before[:, :2], rtol=2.0 ** -(mantissa + 1) * (1 + 1e-6))
    bits = stream(found)
    expected = []
    for h in range(3):
        expected += [*found.a[h].reshape(-1), *found.b[h].reshape(-1)]
    np.testing.assert_array_equal(bits, (np.array(expected, np.float32).view(np.uint32) >> 16).astype(np.uint16))
    back = from_stream(bits, shape, 2)
    np.testing.assert_array_equal(back.a, found.a)
    np.testing.assert_array_equal(back.b, found.b)


# ---- The quality setting ----


@pytest.mark.parametrize(
    ("given", "growth", "rank"),
    [("raw", None, None), ("fine", 0.01, None), ("default", 0.05, None), ("small", 0.2, None), (0.03, 0.03, None),
     ("0.03", 0.03, None), ("micro", 0.2, 8), (1e-6, 1e-6, None), (2, 2, None)],
)  # fmt: skip
def test_quality(given: str | float, growth: float | None, rank: int | None) -> None:
    found = Quality.parse(given)
    assert (found.growth, found.factor_rank) == (growth, rank)


def test_factor_rank_goes_with_micro() -> None:
    assert Quality.parse("micro", 3).factor_rank == 3
    for quality, rank in (("default", 3), (0.1, 3), ("micro", 0), ("micro", 65536)):
        with pytest.raises(InvalidArgument, match="factor rank"):
            Quality.parse(quality, rank)


@pytest.mark.parametrize("quality", ["", "Default", "high", "-1", 0, -0.5, "nan", "inf"])
def test_other_qualities_are_refused(quality: str | float) -> None:
    with pytest.raises(InvalidArgument, match="quality is"):
        Quality.parse(quality)
