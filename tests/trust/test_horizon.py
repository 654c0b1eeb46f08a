"""What is said of a step at each distance."""

from __future__ import annotations

import json

import numpy as np
import pytest

from relex_codec.trust.figures import Lines, Norms
from relex_codec.trust.horizon import MEASURED, Trust, band_of_scores, judge, percent, shown_step, within

NORMS = Norms(100.0, np.ones(1))
LINE = Lines(np.array([0.001]), np.array([0.0]))  # D is step / 100,000
OBSERVED = (1, 50)


def at(step: float, *, lines: Lines = LINE, norms: Norms | None = NORMS, band: object = None) -> Trust:
    found = judge(lines, norms, step, OBSERVED, MEASURED if band is None else band)  # type: ignore[arg-type]
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["level"] == found.level
    assert 1 <= len(found.words) <= 4 and all(word and "\n" not in word for word in found.words)
    return found


@pytest.mark.parametrize(
    ("step", "level"),
    [(25, "observed"), (50, "observed"), (0, "observed"), (199, "near"), (201, "score"), (499, "score"), (501, "far"),
     (4999, "far"), (5001, "refused"), (1e300, "refused"), (-199, "near"), (-501, "far")],
)  # fmt: skip
def test_levels(step: float, level: str) -> None:
    found = at(step)
    assert found.level == level
    assert found.distance == pytest.approx(abs(step) / 1e5)
    assert found.peak_steps == pytest.approx((220, 490))


def test_words_of_each_level() -> None:
    assert "score it first" in at(300).words[0] and "steps 220 to 490" in at(300).words[0]
    assert "nearer than where lines were best" in at(100).words[0]
    assert "steps 220 to 490" in at(600).words[0] and "worse" in at(600).words[1]
    assert any("backwards" in word for word in at(-100).words)
    assert any("six small runs" in word for word in at(100).words)


def test_no_word_trusts_a_fit() -> None:
    told = " ".join(word for step in (25, 100, 300, 600, 6000) for word in at(step).words)
    assert "R^2" not in told and "variance" not in told


def test_training_that_went_as_far_itself() -> None:
    found = at(60, lines=Lines(np.array([0.01]), np.array([0.0])))
    assert found.window_distance == pytest.approx(0.005)
    assert any("training itself has gone 0.5 %" in word for word in found.words)
    assert found.peak_steps == (50.0, 50.0)


def test_training_that_went_beyond_and_a_line_that_never_comes_back() -> None:
    found = at(60, lines=Lines(np.array([0.001, -0.001]), np.array([2.0, 2.0])), norms=Norms(100.0, np.ones(2)))
    assert found.peak_steps == (50.0, 50.0) and found.level == "far"


def test_norms_that_are_not_known() -> None:
    found = at(100, norms=None)
    assert (found.level, found.distance, found.peak_steps) == ("unknown", None, None)
    assert at(100, norms=Norms(0.0, np.ones(1))).level == "unknown"


def test_a_run_that_does_not_move() -> None:
    still = at(100, lines=Lines(np.zeros(1), np.zeros(1)))
    assert (still.level, still.distance, still.peak_steps) == ("still", 0.0, None)
    assert at(100, lines=Lines(np.zeros(0), np.zeros(0)), norms=Norms(3.0, np.zeros(0))).level == "still"


def test_a_line_that_stays_where_it_is() -> None:
    found = at(100, lines=Lines(np.zeros(1), np.ones(1)))
    assert (found.level, found.peak_steps) == ("far", None)


def test_norms_that_were_computed_say_so() -> None:
    assert any("quantised" in word for word in at(100, norms=Norms(100.0, np.ones(1), read=True)).words)


def test_scores_narrow_the_band() -> None:
    band = band_of_scores([(0.004, 0.71), (0.001, 0.60), (0.002, 0.66), (0.003, 0.72), (0.006, 0.50)])
    assert (band.low, band.high, band.source) == (0.002, 0.004, "scores")
    assert at(150, band=band).level == "near" and at(300, band=band).level == "score"
    assert at(450, band=band).level == "far" and "by its scores" in at(450, band=band).words[0]


@pytest.mark.parametrize(
    ("points", "low", "high"),
    [
        ([(0.001, 0.6), (0.002, 0.7), (0.003, 0.8)], 0.003, 0.0049),  # still rising
        ([(0.01, 0.6), (0.02, 0.7), (0.03, 0.8)], 0.03, 0.03),  # and beyond what other runs say
        ([(0.001, 0.9), (0.002, 0.7), (0.003, 0.6)], 0.001, 0.002),  # falling from the first
        ([(0.001, 0.9), (0.002, 0.7)], MEASURED.low, MEASURED.high),  # two say nothing
        ([(0.001, 0.9), (0.001, 0.7), (float("nan"), 2.0), (0.002, 0.1)], MEASURED.low, MEASURED.high),
    ],
)
def test_bands_of_few_scores(points: list[tuple[float, float]], low: float, high: float) -> None:
    band = band_of_scores(points)
    assert (band.low, band.high) == (low, high)


def test_a_limit_takes_a_nearer_step() -> None:
    assert within(LINE, NORMS, 800, 50, 0.004) == 400
    assert within(LINE, NORMS, 300, 50, 0.004) == 300
    assert within(LINE, NORMS, 800, 50, 0.0001) == 50  # training itself was farther
    assert within(LINE, NORMS, 30, 50, 0.0001) == 30
    assert within(LINE, NORMS, -800, 50, 0.004) == pytest.approx(-400)
    assert within(Lines(np.zeros(1), np.ones(1)), NORMS, -800, 50, 0.004) == 0


def test_numbers_as_people_write_them() -> None:
    assert [percent(x) for x in (0.0041, 31.2, 0.0, float("inf"))] == ["0.41 %", "3,120 %", "0 %", "infinitely many %"]
    assert [shown_step(x) for x in (800, 12.5, 1089.2, -50)] == ["800", "12.5", "1,089", "-50"]
