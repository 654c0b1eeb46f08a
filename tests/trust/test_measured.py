"""The measurement that the documentation shows: its table is the committed one, and its numbers agree with the code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from relex_codec.trust.horizon import MEASURED, TYPICAL

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results"


def test_the_page_shows_what_was_measured() -> None:
    assert (RESULTS / "trust.md").read_text().strip() in (REPOSITORY / "docs" / "trust.md").read_text()


def test_predictions_are_as_good_as_is_said() -> None:
    rows = json.loads((RESULTS / "trust.json").read_text())
    assert {row["run"] for row in rows} == {"sparse", "dense"} and len(rows) >= 10
    factors = [abs(math.log(row["predicted_over_real"])) for row in rows]
    assert math.exp(max(factors)) < 1.35 and math.exp(sum(factors) / len(factors)) < 1.15
    for row in rows:
        at = [point["distance"] for point in row["points"]]
        assert at == sorted(at) and row["stored_norms"]
        # Between two scored steps D is all but linear in the step.
        below = [p for p in row["points"] if p["distance"] <= TYPICAL][-1]
        above = next(p for p in row["points"] if p["distance"] >= TYPICAL)
        assert below["step"] <= round(row["predicted_peak"]) <= above["step"] or row["predicted_peak"] == row["window"]
        if row["window_distance"] < 0.003:  # training had not got there itself
            assert MEASURED.low < row["real_distance"] < MEASURED.high


def test_straight_lines_do_not_hold_longer() -> None:
    """What the page says of R^2, on these windows: the rank correlation with how far they hold is not positive."""
    rows = json.loads((RESULTS / "trust.json").read_text())
    straight = [row["r2"] for row in rows]
    far = [row["real_peak"] / row["window"] for row in rows]
    order = [[sorted(values).index(x) for x in values] for values in (straight, far)]
    middle = (len(rows) - 1) / 2
    products = [(a - middle) * (b - middle) for a, b in zip(*order, strict=True)]
    assert sum(products) < 0


@pytest.mark.parametrize("key", ["report", "trust"])
def test_results_are_committed(key: str) -> None:
    assert json.loads((RESULTS / f"{key}.json").read_text())
