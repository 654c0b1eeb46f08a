"""Choosing steps by ``A:B``, ``A:B:K`` and ``N``."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relex_codec.core.steps import listed_steps, select_steps, spell_steps
from relex_codec.errors import InvalidArgument


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        (None, [5, 10, 15, 20, 30]), (":", [5, 10, 15, 20, 30]), ("10:20", [10, 15, 20]), (":10", [5, 10]),
        ("20:", [20, 30]), ("10::10", [10, 20, 30]), ("0::10", [10, 20, 30]), ("::10", [5, 15]),
        ("6:29:2", [10, 20]), ("15", [15]), ("5:10,20:30", [5, 10, 20, 30]), ("30,5", [5, 30]),
        ("::10, 10:20 ,15", [5, 10, 15, 20]),
    ],
)  # fmt: skip
def test_chosen_steps(spec, chosen):
    assert select_steps([30, 5, 10, 20, 15], spec) == chosen


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "a",
        "1:2:3:4",
        "-5:",
        "1:2:",
        "5:10:0",
        "1.5:",
        "\u0665",
        "1:2 :3",
        "7",
        "40:",
        ",",
        "5,",
        "5,7",
        "5,40:",
        "5;10",
    ],
)
def test_steps_that_are_refused(spec):
    with pytest.raises(InvalidArgument, match=r"^steps"):
        select_steps([5, 10, 15], spec)
    with pytest.raises(InvalidArgument, match=r"^exclude-steps"):
        select_steps([5, 10, 15], None, spec)


def test_steps_that_are_left_out():
    steps = [30, 5, 10, 20, 15]
    assert select_steps(steps, None, "5:15,30") == [20]
    assert select_steps(steps, "10:", "15") == [10, 20, 30]
    assert select_steps(steps, "10:20", "30") == [10, 15, 20]  # it is there, though it was not chosen
    with pytest.raises(InvalidArgument, match=r"exclude-steps '5:' leaves nothing of 5 to 30 \(5 steps\)"):
        select_steps(steps, "10:", "5:")


def test_lists_that_name_their_steps():
    assert listed_steps("1:4,6:10:2,3") == [1, 2, 3, 4, 6, 8, 10]
    assert [listed_steps(spec) for spec in (None, ":", "1:4,6:")] == [None] * 3
    for spec in ("5:2", "0:100000", "0:99999,100000", "1:3,9:8"):
        with pytest.raises(InvalidArgument, match=r"lists .* expected 1 to 100,000 in all"):
            listed_steps(spec)


@given(st.sets(st.integers(0, 60), min_size=1), st.data())
def test_what_is_spelled_chooses_just_these(steps, data):
    chosen = data.draw(st.sets(st.sampled_from(sorted(steps)), min_size=1))
    assert select_steps(steps, spell_steps(chosen, steps)) == sorted(chosen)


def test_spelling_is_short():
    assert spell_steps([1, 2, 3, 5, 6, 9], range(1, 10)) == "1:3,5,6,9"
    assert spell_steps({10, 20, 30}, [10, 20, 30]) == "10:30"


def test_choosing_from_no_steps():
    assert select_steps([], None) == []
    with pytest.raises(InvalidArgument, match="there is no steps"):
        select_steps([], ":")


@given(
    st.sets(st.integers(0, 60)),
    st.none() | st.integers(0, 60),
    st.none() | st.integers(0, 60),
    st.none() | st.integers(1, 9),
)
def test_chosen_steps_follow_the_rule(steps, first, last, every):
    spec = f"{'' if first is None else first}:{'' if last is None else last}" + ("" if every is None else f":{every}")
    start = min(steps, default=0) if first is None else first
    expected = [s for s in sorted(steps) if s in range(start, (60 if last is None else last) + 1, every or 1)]
    if expected:
        assert select_steps(steps, spec) == expected
    else:
        with pytest.raises(InvalidArgument):
            select_steps(steps, spec)


@given(st.text(alphabet="0123:-, x", max_size=8))
def test_any_text_is_understood_or_refused(spec):
    with suppress(InvalidArgument):
        assert select_steps(range(5), spec)
