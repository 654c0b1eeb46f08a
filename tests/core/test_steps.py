"""Choosing steps by ``A:B``, ``A:B:K`` and ``N``."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relex_codec.core.steps import select_steps
from relex_codec.errors import InvalidArgument


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        (None, [5, 10, 15, 20, 30]), (":", [5, 10, 15, 20, 30]), ("10:20", [10, 15, 20]), (":10", [5, 10]),
        ("20:", [20, 30]), ("10::10", [10, 20, 30]), ("0::10", [10, 20, 30]), ("::10", [5, 15]),
        ("6:29:2", [10, 20]), ("15", [15]),
    ],
)  # fmt: skip
def test_chosen_steps(spec, chosen):
    assert select_steps([30, 5, 10, 20, 15], spec) == chosen


@pytest.mark.parametrize("spec", ["", "a", "1:2:3:4", "-5:", "1:2:", "5:10:0", "1.5:", "\u0665", "1:2 :3", "7", "40:"])
def test_steps_that_are_refused(spec):
    with pytest.raises(InvalidArgument, match="steps"):
        select_steps([5, 10, 15], spec)


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


@given(st.text(alphabet="0123:- x", max_size=8))
def test_any_text_is_understood_or_refused(spec):
    with suppress(InvalidArgument):
        assert select_steps(range(5), spec)
