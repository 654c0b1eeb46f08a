"""Sweeps in memory: one live model is switched, scores are those of loaded checkpoints, and what fails is said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import relex_codec
from relex_codec.errors import InvalidArgument
from relex_codec.run.scoring_command import filled, last_number
from relex_codec.run.sweep import Steps, Sweep, SweepRow, run_sweep
from relex_codec.run.sweep_table import as_csv, read_csv, table
from relex_codec.trust.scores import Score, Scores, parse_scores, with_scores
from support import tiny


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweeps")
    base = tiny.weights(tied=False)
    tiny.write(root / "base", base, tiny.UNTIED)
    tiny.write_steps(root / "run", lambda step: tiny.moved(base, step), config=tiny.UNTIED)
    relex_codec.encode(root / "run", root / "r.relex", base=root / "base", quality="raw", exact=True)
    return root / "r.relex"


class Bag(torch.nn.Module):
    """A module with the tensors of a state dictionary."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            holder: torch.nn.Module = self
            *folders, last = name.split(".")
            for folder in folders:
                if not hasattr(holder, folder):
                    holder.add_module(folder, torch.nn.Module())
                holder = getattr(holder, folder)
            holder.register_parameter(last, torch.nn.Parameter(value.clone(), requires_grad=False))


def total(state: Any) -> float:
    values = state.state_dict() if isinstance(state, torch.nn.Module) else state
    return float(sum(value.double().sum() for value in values.values()))


def test_one_model_is_switched_in_place(path: Path) -> None:
    with relex_codec.open(path) as run:
        model = Bag(run.state_dict(1))
        places = {name: value.data_ptr() for name, value in model.state_dict().items()}
        found = run.sweep(total, [3, 0, 1.5, 9, 1], model=model)
        assert {name: value.data_ptr() for name, value in model.state_dict().items()} == places
        expected = {step: total(run.state_dict(step)) for step in (0, 1, 1.5, 3, 9)}
        assert [(row.step, row.tier) for row in found.rows] == [
            (0, "base"), (1, "exact"), (1.5, "track"), (3, "exact"), (9, "line"),
        ]  # fmt: skip
        assert {row.step: row.score for row in found.rows} == expected
        assert run.sweep(total, [3, 0, 1.5, 9, 1]).rows[0].score == expected[0]
        best = found.best
        assert best is not None and best.score == max(expected.values())


def test_lists_of_steps(path: Path) -> None:
    with relex_codec.open(path) as run:
        assert [row.step for row in run.sweep(total, "2:8:3,20").rows] == [2, 5, 8, 20]
        assert [row.step for row in run.sweep(total, "2:").rows] == [2, 3]
        for steps, words in (([], "no step"), ("x", "not understood"), ([math.inf], "finite")):
            with pytest.raises(InvalidArgument, match=words):
                run.sweep(total, steps)


def test_search_in_memory(path: Path) -> None:
    asked: list[float] = []
    with relex_codec.open(path) as run:
        start, at = total(run.state_dict(0)), total(run.state_dict(40, tier="line"))

        def score(state: Any) -> float:
            asked.append(total(state))
            return -abs(asked[-1] - at)

        found = run.sweep(score, [10, 160], search=True, tier="line", evaluations=8)
        assert start != at
    assert len(asked) <= 8
    assert found.best is not None and abs(found.best.step - 40) < 6


def test_what_has_no_score(path: Path) -> None:
    with relex_codec.open(path) as run:
        numbers = iter([1.0, math.nan, 2.0, math.inf, math.inf, math.inf, 3.0])
        found = run.sweep(lambda _: next(numbers), range(1, 8))
        assert [row.score for row in found.rows] == [1.0, None, 2.0, None, None, None]
        assert found.rows[1].problem == "its score is nan"
        assert len(run.sweep(lambda _: math.nan, range(1, 8)).rows) == 1  # the first one failed: so may all
        with pytest.raises(ZeroDivisionError):
            run.sweep(lambda _: 1 / 0, [1])


def test_known_rows_are_not_scored_again() -> None:
    found = Sweep([SweepRow(1.0, "line", 0.5)])
    asked: list[float] = []

    def score(step: float) -> tuple[str, float]:
        asked.append(step)
        return "line", step

    run_sweep(Steps((1.0, 2.0)), found, score)
    assert asked == [2.0]
    assert [row.score for row in found.rows] == [0.5, 2.0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.6550 /tmp/relex-12/checkpoint", 0.655),
        ("step 100\nscore: 0.7", 0.7),
        ("accuracy=71.3%, n=4096\nloss 1.5e-3", 0.0015),
        ("{'score': 0.25}", 0.25),
        ("The score is -.5.", -0.5),
        ("done in 3s, score 0.5", 0.5),
        ("model-7 v1.2.3 2026-01-02 checkpoint-800", None),
        ("", None),
        ("x 1_000", None),
    ],
)
def test_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_nan_is_a_number_that_was_printed() -> None:
    found = last_number("0.5\nscore nan")
    assert found is not None and math.isnan(found)
    assert last_number("inf") == math.inf


def test_paths_are_quoted() -> None:
    assert filled("s {checkpoint} | awk '{print $1}'", "/t/c", 2.5) == "s /t/c | awk '{print $1}'"
    assert filled('s "{checkpoint}" {step}', "/t/c", 2.5) == 's "/t/c" 2.5'
    assert filled("s {checkpoint}", "/t/a'; rm x", 1) == "s '/t/a'\"'\"'; rm x'"
    with pytest.raises(InvalidArgument, match="leave out the quotes"):
        filled('s "{checkpoint}"', "/t/a b", 1)


def test_the_table_is_read_back() -> None:
    found = Sweep(
        [SweepRow(100.0, "exact", 0.1 + 0.2, 1.0), SweepRow(800.5, "line", None, 2.0, 'it said "no",\nand more')]
    )
    text = as_csv(found, "d", "echo {checkpoint}")

    def tier(step: float) -> str:
        return "exact" if step == 100 else "line"

    again = read_csv(text, "x.csv", "d", "echo {checkpoint}", tier)
    assert [(row.step, row.score) for row in again.rows] == [(100.0, 0.1 + 0.2)]
    for digest, command, words in (("e", "echo {checkpoint}", "another file"), ("d", "true", "another command")):
        with pytest.raises(InvalidArgument, match=words):
            read_csv(text, "x.csv", digest, command, tier)
    with pytest.raises(InvalidArgument, match="from tier exact, not line"):
        read_csv(text, "x.csv", "d", "echo {checkpoint}", lambda _: "line")
    for other in (
        "",
        "hello\n",
        "a,b\n1,2\n",
        "step,tier,score,seconds,problem,digest,command\n1,line,x,1,,d,echo {checkpoint}\n",
    ):
        with pytest.raises(InvalidArgument, match="no table of a sweep"):
            read_csv(other, "x.csv", "d", "echo {checkpoint}", lambda _: "line")
    cut = text[: text.index("800.5") + 3]  # a table that was cut off, as by a full disk
    with pytest.raises(InvalidArgument, match="no table of a sweep"):
        read_csv(cut, "x.csv", "d", "echo {checkpoint}", tier)


def test_the_table_that_is_shown() -> None:
    found = Sweep([SweepRow(100.0, "exact", 0.5), SweepRow(150.0, "track", 0.6), SweepRow(1800.0, "line", 0.55)])
    stored = Scores("", (Score(100.0, "trained", 0.51),))
    shown = table(found, [100, 200], stored, lambda _: 0.0123, "_.:-=+*#").splitlines()
    assert shown[0].split() == ["step", "from", "score", "from", "the", "base", "stored"]
    assert shown[1].split() == ["100", "trained", "exact", "0.5", "0.51", "trained"]
    assert shown[2].split() == ["150", "observed", "track", "0.6"]
    assert shown[3].split() == ["1,800", "extrapolated", "line", "0.55", "1.23", "%"]
    assert shown[5] == "_#=  scores from step 100 to 1,800"
    assert shown[6] == "best: 0.6 at step 150, observed, tier track"


def test_scores_are_added_to_what_is_kept() -> None:
    first = with_scores(None, [{"step": 5.0, "tier": "line", "score": 0.5}], "solved", "r.scores.json")
    noted = first.replace(b'"metric"', b'"by": "me", "metric"')
    rows = [{"step": 5.0, "tier": "line", "score": 0.6}, {"step": 2.0, "tier": "exact", "score": 0.1}]
    second = with_scores(noted, rows, "", "r.scores.json")
    found = parse_scores(second, "r.scores.json")
    assert found == Scores("solved", (Score(2.0, "exact", 0.1), Score(5.0, "line", 0.6)))
    assert b'"by": "me"' in second
    with pytest.raises(InvalidArgument, match="'solved', not of 'loss'"):
        with_scores(second, rows, "loss", "r.scores.json")
    with pytest.raises(InvalidArgument, match="repair it"):
        with_scores(b"{}", rows, "", "r.scores.json")
