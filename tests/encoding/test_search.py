"""What the search for a quantiser costs, and that its short cuts give what the long way gives."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec.core import threads
from relex_codec.encoding import low_rank, unit
from relex_codec.encoding.direction_search import DirectionSearch
from relex_codec.encoding.excerpt import LIMIT, Excerpt
from relex_codec.encoding.low_rank import decompose, explained_by_rank, round_factors
from relex_codec.encoding.quality import Quality
from relex_codec.encoding.quantizer_search import PACKINGS, Magnitudes
from relex_codec.encoding.stored_direction import StoredDirection
from relex_codec.encoding.weight_error import Sample, SampledWeights
from relex_codec.format.constants import NIBBLE, NONE, PIECE
from relex_codec.kernels.reference import factor_sum
from support.checkpoints import write_checkpoint, write_run
from support.tensors import Array, bf16, f32


def weights_of(shape: tuple[int, ...], seed: int = 0) -> tuple[Array, Sample]:
    """A direction as training makes it, half of it of rank 2, with the first pieces of the weights that it moved."""
    rng = np.random.default_rng(seed)
    low = rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[-1])) if len(shape) == 2 else 0.0
    moved = (1e-4 * (low + rng.standard_normal(shape))).astype(np.float32).reshape(-1)
    origin = (0.02 * rng.standard_normal(moved.size)).astype(np.float32)
    origin = (origin.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    noise = (3e-5 * rng.standard_normal(moved.size)).astype(np.float32)
    target = ((origin + moved + noise).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    starts = list(range(0, min(moved.size, 4 * PIECE), PIECE))
    pieces = [slice(start, start + PIECE) for start in starts]
    return moved, Sample(starts, [origin[p] for p in pieces], [target[p] for p in pieces], "BF16")


def searching(shape: tuple[int, ...], quality: str = "default", seed: int = 0) -> DirectionSearch:
    moved, sample = weights_of(shape, seed)
    others = [np.zeros(len(t), np.float32) for t in sample.targets]
    return DirectionSearch(lambda lo, hi: moved[lo:hi], shape, sample, others, 1.0, Quality.parse(quality))


# ---- What it costs ----


@pytest.mark.parametrize("quality", ["fine", "default", "small"])
@pytest.mark.parametrize(
    ("shape", "most"),
    [((64,), 300), ((16, 16), 600), ((30, 30), 900), ((64, 64), 1500), ((256, 256), 5000), ((1024, 1100), 6000)],
)
def test_quantisers_that_are_tried_grow_slowly_with_the_tensor(shape: tuple[int, ...], most: int, quality: str) -> None:
    for seed in range(3 if np.prod(shape) < 1 << 16 else 1):
        search = searching(shape, quality, seed)
        stored = search.run()
        assert 0 < search.trials <= most
        assert stored.error_stored <= max(stored.error_line, 0.01) * (1 + Quality.parse(quality).growth) * (1 + 1e-6)  # type: ignore[operator]  # a preset with a bound


def test_thousands_of_small_tensors_take_a_few_hundred_trials_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, rng = 2000, np.random.default_rng(4)
    start = 0.02 * rng.standard_normal((count, 16, 16))
    drift = 1e-4 * rng.standard_normal(start.shape)

    def at(step: int) -> dict[str, tuple[str, Array]]:
        return {f"experts.{i}": bf16(start[i] + step * drift[i]) for i in range(count)}

    write_checkpoint(tmp_path / "base", at(0))
    write_run(tmp_path / "run", [1, 2], at)
    trials: list[int] = []
    run = DirectionSearch.run

    def counted(self: DirectionSearch, *args: Any) -> StoredDirection:
        found = run(self, *args)
        trials.append(self.trials)
        return found

    monkeypatch.setattr(unit.DirectionSearch, "run", counted)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
    assert len(trials) == count
    assert sum(trials) <= 250 * count
    with relex_codec.open(tmp_path / "x.relex") as file:
        rows = file.info()["tensor_rows"]
    assert all(row["error_stored"] <= max(row["error_unquantised"], 0.01) * 1.05 * (1 + 1e-5) for row in rows)


def test_a_small_tensor_needs_no_compiler(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", {"w": bf16(np.linspace(-1, 1, 256).reshape(16, 16))})
    write_run(tmp_path / "run", [1, 2], lambda step: {"w": bf16(np.linspace(-1, 1 + step, 256).reshape(16, 16))})
    code = (
        "import sys, relex_codec; run, base, out = sys.argv[1:];"
        "relex_codec.encode(run, out, base=base); assert 'numba' not in sys.modules"
    )
    command = [sys.executable, "-c", code, tmp_path / "run", tmp_path / "base", tmp_path / "x.relex"]
    subprocess.run(command, check=True, timeout=120)


# ---- The rule on all of a tensor ----


def test_what_the_rule_allows_is_used(tmp_path: Path) -> None:
    """A tensor that the search sees a small part of holds the rule, and gives little of what it allows away."""
    rng = np.random.default_rng(1)
    start, drift = 0.02 * rng.standard_normal((1100, 1200)), 1e-5 * rng.standard_normal((1100, 1200))
    noise = 1e-5 * rng.standard_normal((3, 1100, 1200))
    write_checkpoint(tmp_path / "base", {"w": f32(start)})
    write_run(tmp_path / "run", [1, 2, 3], lambda step: {"w": f32(start + step * drift + noise[step - 1])})
    for quality, growth in (("fine", 0.01), ("default", 0.05)):
        file = tmp_path / f"{quality}.relex"
        relex_codec.encode(tmp_path / "run", file, base=tmp_path / "base", quality=quality)
        with relex_codec.open(file) as run:
            row = run.info()["tensor_rows"][0]
        used = row["error_stored"] / row["error_unquantised"] - 1
        assert 0.8 * growth < used <= growth * (1 + 1e-4)


def test_the_file_does_not_depend_on_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    start, drift = 0.02 * rng.standard_normal((1100, 1200)), 2e-5 * rng.standard_normal((1100, 1200))
    drift += 1e-5 * rng.standard_normal((1100, 3)) @ rng.standard_normal((3, 1200))
    small = rng.standard_normal((40, 50))

    def at(step: int) -> dict[str, tuple[str, Array]]:
        return {"w": bf16(start + step * drift), "small": bf16(small * (1 + 0.01 * step))}

    write_checkpoint(tmp_path / "base", at(0))
    write_run(tmp_path / "run", [1, 2, 3], at)
    code = (
        "import sys, relex_codec; from relex_codec.core import threads; run, base, out, count = sys.argv[1:];"
        "threads.cpu_count = lambda: int(count); relex_codec.encode(run, out, base=base)"
    )
    digests = set()
    for count in (1, 2, 5):
        out = tmp_path / f"{count}.relex"
        environment = os.environ | {f"{name}_NUM_THREADS": str(count) for name in ("OPENBLAS", "OMP", "MKL")}
        command = [sys.executable, "-c", code, tmp_path / "run", tmp_path / "base", out, str(count)]
        subprocess.run(command, check=True, timeout=300, env=environment)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1


# ---- Short cuts ----


def test_packings_are_evaluated_together_as_one_by_one() -> None:
    x = (np.random.default_rng(0).standard_t(3, 3000) * 1e-3).astype(np.float32)
    magnitudes = Magnitudes(x)
    width, bias = np.meshgrid(np.geomspace(2e-5, 2e-1, 30), [0.0, 0.2, 0.4])
    found = magnitudes.evaluate_all(PACKINGS, width.ravel(), bias.ravel())
    assert 30 < len(found.width) < 90  # without those for which all codes are 0
    compared = 0
    for row, packing in enumerate(PACKINGS):
        for i in range(len(found.width)):
            alone = magnitudes.evaluate(packing, float(found.width[i]), float(found.bias[i]))
            assert alone is not None
            if np.isfinite(found.error[row, i]):
                assert found.at(row, i).scale == pytest.approx(float(alone.scale), rel=1e-6)
                assert found.at(row, i).bits == pytest.approx(alone.bits, rel=1e-9)
                assert found.at(row, i).error == pytest.approx(alone.error, rel=1e-6)
                compared += 1
            else:  # the packing before has these codes too
                assert np.abs(alone.codes(x)).max() <= PACKINGS[row - 1].zero
    assert compared > 100


@pytest.mark.parametrize("rank", [0, 2])
def test_quantisers_that_are_measured_together_have_the_errors_of_decoding(rank: int) -> None:
    shape = (30, 40)
    search = searching(shape)
    moved = search.sampled.values[0]
    factors = round_factors(decompose(search.read, shape, 2), 2, 2) if rank else None
    excerpt = Excerpt.of(search.sampled, shape)
    chosen = Magnitudes(excerpt.rest(factors)).candidates(1e-9, 1e-8)
    assert len(chosen) > 10
    errors = excerpt.errors(factors, chosen)
    for i in range(len(chosen)):
        quantizer = chosen[i]
        stored = StoredDirection(factors, quantizer.packing, quantizer)
        assert errors[i] == pytest.approx(search.sampled.error(stored), rel=1e-12)
        rest = excerpt.rest(factors)
        sums = 0 if factors is None else factor_sum(factors, 0, moved.size)
        np.testing.assert_array_equal(chosen.values(rest)[i] + sums, stored.decoded(moved, 0))


def test_errors_where_weights_are_no_numbers() -> None:
    """An infinity that is decoded as such is no error; one that is not is an infinite one."""
    origin = np.array([np.inf, np.nan, 1.0, 2.0], np.float32)
    target = np.array([np.inf, np.nan, 1.5, 2.0], np.float32)
    values = np.array([0, 0, 0.25, -0.5], np.float32)
    sampled = SampledWeights(Sample([0], [origin], [target], "F32"), [values], [values * 0], np.float32(1), None)
    excerpt = Excerpt.of(sampled, (4,))
    chosen = Magnitudes(values).candidates(0.02, 1.0)
    assert len(chosen)
    for error, quantizer in zip(excerpt.errors(None, chosen), [chosen[i] for i in range(len(chosen))], strict=True):
        assert error == pytest.approx(sampled.error(StoredDirection(None, quantizer.packing, quantizer)), rel=1e-6)
        assert np.isfinite(error)
    target[3] = np.inf  # which the sample and its excerpt share
    assert set(excerpt.errors(None, chosen)) == {np.inf} and sampled.before() == np.inf


@pytest.mark.parametrize("shape", [(700, 320), (250, 1021), (512, 512)])
def test_an_excerpt_of_a_large_tensor_has_all_columns_and_their_factors(shape: tuple[int, int]) -> None:
    search = searching(shape)
    excerpt = Excerpt.of(search.sampled, shape)
    assert not excerpt.complete and LIMIT // 3 < excerpt.count <= LIMIT
    every = np.arange(np.prod(shape), dtype=np.float32)
    places = SampledWeights(search.sampled.sample, [every], search.sampled.others, np.float32(1), None)
    at = Excerpt.of(places, shape).values.astype(np.int64)
    assert len(set((at % shape[1]).tolist())) == shape[1]
    factors = round_factors(decompose(search.read, shape, 3), 3, 2)
    rest = search.sampled.values[0] - factor_sum(factors, 0, int(np.prod(shape)))
    np.testing.assert_array_equal(excerpt.rest(factors), rest[at])


def test_matrices_that_lack_rank_are_decomposed() -> None:
    rng = np.random.default_rng(0)
    matrix = (rng.standard_normal((20, 2)) @ rng.standard_normal((2, 30))).astype(np.float32)
    for shape in ((20, 30), (30, 20)):
        flat = (matrix if shape == (20, 30) else matrix.T).reshape(-1)
        found = decompose(lambda lo, hi, flat=flat: flat[lo:hi], shape, 5)  # type: ignore[misc]  # the loop's variable
        assert np.isfinite(found.a).all() and np.isfinite(found.b).all()
        np.testing.assert_allclose(found.a[0].T @ found.b[0], flat.reshape(shape), atol=1e-5)
        energies = explained_by_rank(found)
        assert energies[2] == pytest.approx(float((flat.astype(np.float64) ** 2).sum()), rel=1e-5)
    zeros = decompose(lambda lo, hi: np.zeros(hi - lo, np.float32), (9, 11), 3)
    assert not zeros.a.any() and not zeros.b.any()


def test_more_ranks_are_looked_at_where_they_could_be_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "FULL_SVD", 1000)
    monkeypatch.setattr("relex_codec.encoding.direction_search.FULL_SVD", 1000)
    rng = np.random.default_rng(0)
    moved = (1e-3 * rng.standard_normal((300, 14)) @ rng.standard_normal((14, 300))).astype(np.float32).reshape(-1)
    origin = rng.standard_normal(moved.size).astype(np.float32)
    made = Sample(
        [0], [origin], [origin + moved + np.float32(3e-4) * rng.standard_normal(moved.size).astype(np.float32)], "F32"
    )
    stored = DirectionSearch(
        lambda lo, hi: moved[lo:hi], (300, 300), made, [moved * 0], 1.0, Quality.parse("small")
    ).run()
    assert stored.rank == 16  # beyond the eight that are looked at first
    assert stored.packing in (NONE, *PACKINGS) and stored.packing is not NIBBLE


def test_small_matrices_get_factors_where_one_pair_explains_most() -> None:
    rng = np.random.default_rng(0)
    origin = rng.standard_normal(320).astype(np.float32)
    line = 1e-2 * np.outer(rng.standard_normal(16), rng.standard_normal(20))
    for moved, rank, most in ((line + 1e-4 * rng.standard_normal((16, 20)), 1, 900),
                              (1e-2 * rng.standard_normal((16, 20)), 0, 300)):  # fmt: skip
        x = moved.astype(np.float32).reshape(-1)
        noise = (2e-3 * rng.standard_normal(320)).astype(np.float32)
        made = Sample([0], [origin], [origin + x + noise], "F32")
        search = DirectionSearch(lambda lo, hi, x=x: x[lo:hi], (16, 20), made, [x * 0], 1.0, Quality.parse("default"))  # type: ignore[misc]  # the loop's variable
        assert search.run().rank == rank
        assert search.trials <= most


def test_threads_measure_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for count in (1, 4):
        monkeypatch.setattr(threads, "cpu_count", lambda count=count: count)
        stored = searching((1100, 1000)).run()
        found.add(
            (stored.rank, stored.packing.name, stored.scale, stored.shift, stored.error_line, stored.error_stored)
        )
    assert len(found) == 1
