"""The best step is found with few scores, also where these are noisy, and on what real runs scored."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from relex_codec.trust.peak_search import FIRST, next_step

MEASURED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "trust.json"


def search(
    score: Callable[[float], float], low: float, high: float, most: int = 9, beyond: bool = False
) -> dict[float, float]:
    known: dict[float, float] = {}
    while (step := next_step(known, low, high, most=most, beyond=beyond)) is not None:
        assert step not in known and step == int(step) and step >= 1
        assert beyond or low - 1 <= step <= high + 1
        known[step] = score(step)
    assert len(known) <= most
    return known


def best(known: dict[float, float]) -> float:
    return max(known, key=lambda step: known[step])


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_few_scores_are_enough(noise: float) -> None:
    lost = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        peak, width, skew = math.exp(random.uniform(5, 7.3)), random.uniform(0.05, 0.12), random.uniform(0.6, 1.6)

        def true(step: float, peak: float = peak, width: float = width, skew: float = skew) -> float:
            away = math.log(step / peak)
            return 0.7 - width * away**2 * (skew if away > 0 else 1)

        known = search(lambda step: true(step) + float(random.normal(0, noise)), 100, 2000)  # noqa: B023
        lost.append(0.7 - true(best(known)))
    assert np.mean(lost) < 0.0005 + 0.35 * noise


def test_on_real_runs() -> None:
    """Windows of two real runs: what is lost against the best of a fine grid, with the scores that they measured."""
    lost = []
    for row in json.loads(MEASURED.read_text()):
        steps = np.log([point["step"] for point in row["points"]])
        scores = [point["probability"] for point in row["points"]]

        def score(step: float, steps: np.ndarray = steps, scores: list[float] = scores) -> float:  # type: ignore[type-arg]
            return float(np.interp(math.log(step), steps, scores))

        low, high = max(1.0, row["predicted_peak"] / 3), min(3 * row["predicted_peak"], math.exp(steps[-1]))
        lost.append(max(scores) - score(best(search(score, low, high))))
    assert len(lost) >= 10
    assert np.mean(lost) < 0.01 and max(lost) < 0.03


def test_it_begins_evenly_and_ends_near() -> None:
    known = search(lambda step: -abs(math.log(step / 300)), 100, 1600, most=20)
    assert list(known)[:FIRST] == [100, 200, 400, 800, 1600]
    assert len(known) < 20
    steps = sorted(known)
    i = steps.index(best(known))
    assert abs(math.log(steps[i] / 300)) < 0.1


def test_ends() -> None:
    rising = search(lambda step: step, 100, 1600)
    assert best(rising) == 1600
    further = search(lambda step: -abs(math.log(step / 5000)), 100, 1600, most=12, beyond=True)
    assert abs(math.log(best(further) / 5000)) < 0.2
    assert search(lambda step: 1.0, 7, 8) == {7: 1.0, 8: 1.0}
    assert len(search(lambda step: math.nan, 100, 1600)) == FIRST  # nothing to search by
