"""Files of scores, good and bad."""

from __future__ import annotations

import json

import pytest

from relex_codec.errors import InvalidArgument
from relex_codec.trust.scores import parse_scores

ROW = {"step": 800, "tier": "line", "score": 0.693}


def test_scores_in_the_order_of_steps() -> None:
    rows = [
        ROW,
        {"step": 0, "tier": "base", "score": 0.5, "seconds": 3},
        {"step": 400, "tier": "trained", "score": 0.7},
    ]
    found = parse_scores(json.dumps({"metric": "solved", "scores": rows}), "x")
    assert found.metric == "solved"
    assert [one.step for one in found.scores] == [0, 400, 800]
    assert [one.score for one in found.of("line", "base")] == [0.5, 0.693]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"scores": 3}', "[" * 100_000, b"\xff", *(json.dumps({"scores": [ROW | change]}) for change in (
        {"step": "8"}, {"step": None}, {"step": True}, {"tier": "best"}, {"tier": None}, {"score": float("nan")},
        {"score": float("inf")}, {"step": 10**400},
    ))],
)  # fmt: skip
def test_what_is_none_is_refused_by_name(text: str | bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"^run\.scores\.json.*move it away"):
        parse_scores(text, "run.scores.json")
