"""Lines through the steps that say something: those where a tensor exists and is finite."""

from __future__ import annotations

import numpy as np
import pytest

from relex_codec.encoding.fit import fit_directions
from relex_codec.encoding.usable_steps import fit_usable, last_usable, left_out_of_fits

STEPS = np.array([1, 2, 5, 9, 14], np.int64)


def grams() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    deltas = np.outer(STEPS, rng.standard_normal(40)) + 0.1 * rng.standard_normal((5, 40))
    return deltas, deltas @ deltas.T


@pytest.mark.parametrize("bad", [[0], [2], [4], [0, 3]])
@pytest.mark.parametrize("observed", [4, 5])
@pytest.mark.parametrize("rank", [1, 2])
def test_it_is_the_fit_of_the_run_without_the_other_steps(bad: list[int], observed: int, rank: int) -> None:
    deltas, gram = grams()
    usable = np.ones(5, bool)
    usable[bad] = False
    spoiled = gram.copy()
    spoiled[bad] = spoiled[:, bad] = np.nan
    found = fit_usable(spoiled, STEPS, observed, rank, usable)
    kept = np.flatnonzero(usable)
    count = int(usable[:observed].sum())
    expected = fit_directions(gram[np.ix_(kept, kept)], STEPS[kept], count, rank)
    assert np.array_equal(found.slope, expected.slope)
    assert np.array_equal(found.intercept, expected.intercept)
    assert np.array_equal(found.coefficients[:, kept], expected.coefficients)
    line = expected.slope[:, None] * STEPS[bad] + expected.intercept[:, None]
    assert np.allclose(found.coefficients[:, bad], line, rtol=1e-15)
    assert found.weights.shape == (rank, observed)
    assert not found.weights[:, [step for step in bad if step < observed]].any()
    direction = np.where(usable[:observed], found.weights, 0) @ deltas[:observed]
    assert np.allclose(direction, expected.weights @ deltas[kept[:count]])


def test_the_last_step_that_says_something() -> None:
    assert last_usable(np.array([True, True, False, True]), 3) == 1
    assert last_usable(np.array([False, False, True]), 2) is None


def test_what_is_said_of_steps_that_are_left_out() -> None:
    steps = [10, 20, 30, 40]
    assert left_out_of_fits({}, steps, 3) == []
    lines = left_out_of_fits({"a": [40, 20], "b": [20, 40], "c": [10], "d": [10, 20, 30, 40]}, steps, 9)
    assert lines == [
        "not finite at steps 20,40: 2 tensors, the first 'a'; lines are fitted on the other steps",
        "not finite at step 10: tensor 'c'; lines are fitted on the other steps",
        "not finite at any step: tensor 'd'; no line there, stored steps only",
    ]
    assert left_out_of_fits({"a": [40], "b": [40]}, steps, 2) == [
        "not finite at step 40: all 2 tensors; lines are fitted on the other steps"
    ]
