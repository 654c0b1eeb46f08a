"""Plans count while they last."""

from __future__ import annotations

from relex_codec.decoding.read_plan import Plans


def test_a_plan_counts_as_long_as_anyone_has_it() -> None:
    plans = Plans()
    assert plans.cover([]) and not plans.cover([1])
    with plans.of([1, 2]):
        with plans.of([2, 3]):
            assert plans.cover([1, 2, 3]) and not plans.cover([1, 4])
        assert plans.cover([1, 2]) and not plans.cover([3])
    assert not plans.cover([1]) and not plans.cover([2])
