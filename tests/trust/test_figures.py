"""Distances of lines, and the steps at which they are reached, against sums and searches over many steps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relex_codec.trust.figures import Lines, Norms, distance, mirrored, step_at
from relex_codec.trust.horizon import TYPICAL

MEASURED = Path(__file__).resolve().parents[3] / "shared" / "trust" / "sparse-dense.json"


def slowly(lines: Lines, norms: Norms, step: float) -> float:
    total = 0.0
    for slope, intercept, norm in zip(lines.slope, lines.intercept, norms.directions, strict=True):
        total += abs(slope * step + intercept) * norm
    return total / norms.base


def test_distance_is_the_sum_of_its_parts() -> None:
    lines, norms = (
        Lines(np.array([0.5, -0.25, 0.0]), np.array([1.0, 3.0, -2.0])),
        Norms(50.0, np.array([1.0, 2.0, 4.0])),
    )
    for step in (-3.0, 0.0, 7.5, 800.0):
        assert distance(lines.at(step), norms) == pytest.approx(slowly(lines, norms, step), rel=1e-12)
    assert math.isnan(distance(lines.at(1), Norms(0.0, norms.directions)))
    assert distance(Lines(np.array([1e308]), np.array([1e308])).at(1e10), Norms(1.0, np.ones(1))) == math.inf


numbers = st.floats(-10, 10).map(lambda x: round(x, 3))


@given(st.lists(st.tuples(numbers, numbers, st.floats(0.01, 5)), min_size=1, max_size=6), st.floats(0.001, 100))
def test_the_step_of_a_distance_is_the_last_one_within_it(
    rows: list[tuple[float, float, float]], wanted: float
) -> None:
    slope, intercept, norm = (np.array(column) for column in zip(*rows, strict=True))
    lines, norms = Lines(slope, intercept), Norms(10.0, norm)
    found = step_at(lines, norms, wanted)
    if not slope.any():
        assert found is None
        return
    lowest = min(distance(lines.at(-b / a), norms) for a, b, _ in rows if a)  # a convex sum is lowest where one bends
    if lowest > wanted * (1 + 1e-9):
        assert found is None
    elif lowest < wanted * (1 - 1e-9):
        assert found is not None
        assert distance(lines.at(found), norms) == pytest.approx(wanted, rel=1e-6)
        assert distance(lines.at(found + 1e-3 * (1 + abs(found))), norms) > wanted


def test_mirrored_lines_go_the_other_way() -> None:
    lines = Lines(np.array([1.0, -2.0]), np.array([0.5, 3.0]))
    np.testing.assert_array_equal(mirrored(lines).at(-4.0), lines.at(4.0))


@pytest.mark.skipif(not MEASURED.exists(), reason="there is no ../shared/trust beside the repository")
def test_steps_of_a_distance_are_those_of_the_measurement() -> None:
    """Of the sums that were recorded: D at the end of the window, how it grows, and the predicted peak."""
    document = json.loads(MEASURED.read_text())
    checked = 0
    for run, windows in document["norms"].items():
        for window, figures in windows.items():
            rate, end = figures["l1_rate"], figures["l1_line"]
            lines = Lines(np.array([rate]), np.array([end - rate * int(window)]))
            found = step_at(lines, Norms(1.0, np.ones(1)), TYPICAL)
            assert found is not None
            predicted = document["peaks"][run][window]["predicted"]["L1"]
            assert max(found, int(window)) == pytest.approx(predicted, rel=0.05), (run, window)
            checked += 1
    assert checked > 15
