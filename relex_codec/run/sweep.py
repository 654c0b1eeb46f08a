"""Scoring steps of a run, one after another: which is next, what came of each, and which is the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from relex_codec.core.steps import listed_steps, select_steps
from relex_codec.decoding.tiers import as_step
from relex_codec.errors import InvalidArgument
from relex_codec.trust.peak_search import next_step
from relex_codec.trust.scores import Score, Scores

from .run_reader import RunReader

if TYPE_CHECKING:
    import torch

    from .module_targets import Names
    from .resident import Resident

EVALUATIONS: Final = 9
"""Steps that a search scores at most."""
FAILURES: Final = 3
"""So many in a row end a sweep; where nothing has been scored yet, the first one does."""


class ScoreFailed(Exception):
    """There is no score of a step; the message says why."""


@dataclass(frozen=True)
class SweepRow:
    """What came of one step.

    Attributes:
        step: that was scored.
        tier: what it was read from.
        score: a finite number; None where there is none.
        seconds: that decoding and scoring took.
        problem: why there is no score.

    Examples:
        >>> row = run.sweep(lambda state: 0.64, [60]).rows[0]
        >>> row.step, row.tier, row.score, row.problem
        (60.0, 'line', 0.64, '')
    """

    step: float
    tier: str
    score: float | None
    seconds: float = 0.0
    problem: str = ""


@dataclass
class Sweep:
    """The scores of some steps; returned by `Run.sweep`.

    Attributes:
        rows: in the order of the steps.

    Examples:
        >>> scores = iter([0.61, 0.66, 0.58])
        >>> found = run.sweep(lambda state: next(scores), [40, 60, 80])  # a real score solves problems with the weights
        >>> [(row.step, row.tier, row.score) for row in found.rows]
        [(40.0, 'exact', 0.61), (60.0, 'line', 0.66), (80.0, 'line', 0.58)]
        >>> found.best.step
        60.0
    """

    rows: list[SweepRow] = field(default_factory=list)

    @property
    def best(self) -> SweepRow | None:
        """The row with the highest score, of several the first; None where nothing has a score.

        Examples:
            >>> scores = iter([0.61, 0.66, 0.58])
            >>> run.sweep(lambda state: next(scores), [40, 60, 80]).best.step
            60.0
        """
        scored = [row for row in self.rows if row.score is not None]
        return max(scored, key=lambda row: (row.score or 0.0, -row.step), default=None)

    def add(self, row: SweepRow) -> None:
        """Take a row in; it replaces one of the same step.

        Args:
            row: what came of a step.

        Examples:
            >>> found = run.sweep(lambda state: 0.6, [40])
            >>> found.add(run.sweep(lambda state: 0.7, [60]).rows[0])
            >>> [row.score for row in found.rows]
            [0.6, 0.7]
        """
        self.rows = sorted([*(old for old in self.rows if old.step != row.step), row], key=lambda one: one.step)


@dataclass(frozen=True)
class Steps:
    """Which steps a sweep scores.

    Attributes:
        steps: those to be scored, or the two ends to search between.
        search: whether they are such ends.
        most: how many a search scores.
        beyond: whether a search may leave the ends.
    """

    steps: tuple[float, ...]
    search: bool = False
    most: int = EVALUATIONS
    beyond: bool = False

    def next(self, rows: Sequence[SweepRow], tried: Iterable[float]) -> float | None:
        """Return the step to be scored next; None where there is none.

        Args:
            rows: so far.
            tried: steps that failed in this sweep, which are not tried again.
        """
        known = {row.step: row.score for row in rows if row.score is not None}
        if not self.search:
            return next((step for step in self.steps if step not in known and step not in set(tried)), None)
        scores = dict.fromkeys(tried, -math.inf) | known
        return next_step(scores, min(self.steps), max(self.steps), most=self.most, beyond=self.beyond)


def wanted_steps(reader: RunReader, spec: str | Sequence[float]) -> tuple[float, ...]:
    """Return the steps that a list means: any that it names, or with an open end those of the run that it chooses.

    Raises:
        InvalidArgument: it is no such list, or names nothing.

    Examples:
        >>> wanted_steps(run._reader, "100:300:100,800"), wanted_steps(run._reader, "30:")
        ((100.0, 200.0, 300.0, 800.0), (30.0, 40.0))
    """
    if isinstance(spec, str):
        named = listed_steps(spec)
        found = [float(step) for step in (select_steps(reader.steps, spec) if named is None else named)]
    else:
        found = sorted({as_step(step) for step in spec})
    if not found:
        raise InvalidArgument("no step is given to be scored")
    return tuple(found)


def search_between(steps: Sequence[float], most: int, beyond: bool) -> Steps:
    """Return a search between the least and the greatest of some steps.

    Raises:
        InvalidArgument: these are no two steps above 0, or fewer scores than a search begins with.
    """
    low, high = min(steps), max(steps)
    if not 0 < low < high:
        raise InvalidArgument(f"a search goes between two steps above 0, not from {low:g} to {high:g}")
    if most < 3:
        raise InvalidArgument(f"a search takes 3 scores or more, not {most}")
    return Steps((low, high), True, most, beyond)


def run_sweep(
    steps: Steps,
    found: Sweep,
    score: Callable[[float], tuple[str, float]],
    on_row: Callable[[SweepRow], Any] = lambda _: None,
) -> None:
    """Score steps until there is none left, or too many fail in a row.

    Args:
        found: rows that are known, to which the others are added.
        score: gives what a step was read from and its score, or raises `ScoreFailed`.
        on_row: called with each new row.
    """
    tried: list[float] = []
    failed = 0
    while (step := steps.next(found.rows, tried)) is not None:
        begin = time.monotonic()
        tier, problem, value = "", "", None
        try:
            tier, number = score(step)
            if math.isfinite(number):
                value = float(number) + 0.0  # no minus zero
            else:
                problem = f"its score is {number}"
        except ScoreFailed as error:
            problem = str(error)
        row = SweepRow(step, tier, value, time.monotonic() - begin, problem)
        found.add(row)
        on_row(row)
        if value is not None:
            failed = 0
            continue
        tried.append(step)
        failed += 1
        if failed == FAILURES or not any(one.score is not None for one in found.rows):
            return


def live_scores(
    reader: RunReader,
    resident: Callable[[], Resident],
    score: Callable[[Any], float],
    model: torch.nn.Module | None,
    tier: str,
    device: Any,
    names: Names,
    prefix: str,
) -> Callable[[float], tuple[str, float]]:
    """Return what scores steps in memory: in one live model, or as dictionaries of tensors.

    Args:
        resident: gives the run as it is held in memory; called when a step is read from directions.
        model: whose weights are switched; None: `score` gets ``{name: tensor}``.
    """
    from .loading import load_module

    held: list[Resident] = []

    def one(step: float) -> tuple[str, float]:
        read = reader.tier(step, tier)
        if model is None:
            return read, float(score(reader.states({}, [step], read if read != "base" else "auto", device)[0]))
        if read == "exact":
            load_module(reader, model, step, read, names, prefix, device)
        else:
            if not held:
                held.append(resident())
            held[0].load_into(model, step, tier="auto" if read == "base" else read, names=names, prefix=prefix)
        return read, float(score(model))

    return one


def kind_of(row: SweepRow, observed: Sequence[int]) -> str:
    """Say in a word what was scored: ``trained``, ``observed`` (near it) or ``extrapolated``.

    Args:
        observed: steps of the run that were observed.
    """
    if row.tier in ("exact", "base"):
        return {"exact": "trained", "base": "base"}[row.tier]
    return "observed" if observed[0] <= row.step <= observed[-1] else "extrapolated"


def with_stored(found: Sweep, stored: Scores | None, metric: str) -> Scores:
    """Return the scores of a sweep with those that lie beside the file, of steps and tiers that are not in it.

    Args:
        metric: what the sweep's are, in words; empty: as the file says.
    """
    rows = [Score(row.step, row.tier, row.score) for row in found.rows if row.score is not None]
    have = {(one.step, one.tier) for one in rows}
    others = [one for one in (stored.scores if stored else ()) if (one.step, one.tier) not in have]
    said = metric or (stored.metric if stored else "")
    return Scores(said, tuple(sorted([*rows, *others], key=lambda one: one.step)))


def kept_scores(rows: Iterable[SweepRow]) -> list[Mapping[str, Any]]:
    """Return rows as a file of scores has them."""
    return [{"step": row.step, "tier": row.tier, "score": row.score} for row in rows if row.score is not None]
