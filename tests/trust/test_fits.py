"""Curves through coefficients, against values that they were made of."""

from __future__ import annotations

import numpy as np
import pytest

from relex_codec.encoding.fit import fit_line
from relex_codec.errors import InvalidArgument
from relex_codec.trust.fits import Curve, held_out_errors, parse_curve, predicted

STEPS = [3, 10, 20, 21, 40, 60]


def values(function: object) -> np.ndarray:
    return np.array([[function(t), -2 * function(t)] for t in STEPS]).T  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("line", lambda t: 2 + 3 * t),
        ("window:2", lambda t: 5.0 if t < 40 else t - 30),
        ("poly:1", lambda t: 2 + 3 * t),
        ("poly:2", lambda t: 2 - t + 0.5 * t**2),
        ("poly:3", lambda t: 2 - t + 0.5 * t**2 - 0.01 * t**3),
        ("log", lambda t: 3 * np.log1p(t) - 1),
    ],
)
def test_a_curve_goes_on_as_it_was_made(text: str, function: object) -> None:
    found = predicted(parse_curve(text), STEPS, values(function), [60, 800, 12.5 if text != "window:2" else 60])
    wanted = [function(t) for t in (60, 800, 12.5 if text != "window:2" else 60)]  # type: ignore[operator]
    np.testing.assert_allclose(found, [wanted, np.multiply(-2, wanted)], rtol=1e-9)


def test_the_line_is_the_encoders() -> None:
    noisy = np.random.default_rng(0).standard_normal((1, len(STEPS)))
    slope, intercept, _ = fit_line(np.array(STEPS), noisy[0])
    np.testing.assert_allclose(predicted(Curve("line"), STEPS, noisy, [500])[0, 0], slope * 500 + intercept, rtol=1e-9)
    assert predicted(Curve("line"), [4], np.array([[2.0]]), [8]).tolist() == [[4.0]]


@pytest.mark.parametrize(
    "text", ["", "line:2", "window", "window:1", "window:x", "poly:0", "poly:21", "poly:²", "spline"]
)
def test_what_is_no_curve(text: str) -> None:
    with pytest.raises(InvalidArgument, match="expected line, window:W"):
        parse_curve(text)
    assert str(parse_curve("poly:2")) == "poly:2" and str(parse_curve("log")) == "log"


def test_too_few_steps_and_logarithms_of_nothing() -> None:
    with pytest.raises(InvalidArgument, match="takes 4 observed steps, there are 2"):
        predicted(parse_curve("poly:3"), [1, 2], np.ones((1, 2)), [3])
    with pytest.raises(InvalidArgument, match="takes 9 observed steps"):
        predicted(parse_curve("window:9"), STEPS, np.ones((1, 6)), [3])
    with pytest.raises(InvalidArgument, match="no value at step -1"):
        predicted(parse_curve("log"), STEPS, np.ones((1, 6)), [-3])


def test_the_right_curve_wins_on_steps_it_has_not_seen() -> None:
    steps = list(range(1, 41))
    for made, best in ((lambda t: 4.0 * t, "line"), (lambda t: t**2, "poly:2"), (lambda t: np.log1p(t), "log")):
        rows = held_out_errors(steps, np.array([[made(t) for t in steps]], float), 40)
        assert rows[0].error < 1e-6
        assert best in [row.fit for row in rows if row.error < 1e-6]
        assert (rows[0].fitted, rows[0].held_out) == ((20, 20), (21, 40))
        assert {row.fit for row in rows} == {"line", "window:10", "window:5", "poly:2", "poly:3", "log"}
    later = held_out_errors(steps, np.array([[2.0 * t for t in steps]]), 30)
    assert (later[0].fitted, later[0].held_out) == ((30, 30), (31, 40))


def test_nothing_to_hold_out() -> None:
    assert held_out_errors([1, 2], np.ones((1, 2)), 2) == []
    assert held_out_errors([1], np.ones((1, 1)), 1) == []
    assert held_out_errors([1, 2, 3, 4], np.ones((0, 4)), 4) == []
    assert held_out_errors([1, 2, 3, 4], np.zeros((1, 4)), 4) == []  # no error is relative to nothing
