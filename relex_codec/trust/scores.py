"""Scores of a run's steps, as they lie beside its file: ``run.scores.json`` beside ``run.relex``.

    {"metric": "share of problems solved", "scores": [{"step": 0, "tier": "base", "score": 0.566},
                                                      {"step": 800, "tier": "line", "score": 0.693}]}

A higher score is a better one. `tier` says what was scored: ``base``, ``trained`` (a checkpoint of the run itself),
``exact``, ``track`` or ``line``. Other keys are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument

SCORED: Final = ("base", "trained", "exact", "track", "line")
"""What may have been scored."""


@dataclass(frozen=True)
class Score:
    """The score of a step.

    Attributes:
        step: the step.
        tier: what was scored: ``base``, ``trained``, ``exact``, ``track`` or ``line``.
        score: a higher one is better.

    Examples:
        >>> from pathlib import Path
        >>> text = '{"scores": [{"step": 60, "tier": "line", "score": 0.64}]}'
        >>> size = Path("run.scores.json").write_text(text)
        >>> run.scores().scores[0]
        Score(step=60.0, tier='line', score=0.64)
    """

    step: float
    tier: str
    score: float


@dataclass(frozen=True)
class Scores:
    """What was scored, in the order of the steps.

    Attributes:
        metric: what the scores are, in words; empty if the file does not say.
        scores: one for each step and tier that was scored.

    Examples:
        >>> text = '{"metric": "solved", "scores": [{"step": 60, "tier": "line", "score": 0.64}]}'
        >>> from pathlib import Path
        >>> size = Path("run.scores.json").write_text(text)
        >>> run.scores()
        Scores(metric='solved', scores=(Score(step=60.0, tier='line', score=0.64),))
    """

    metric: str
    scores: tuple[Score, ...]

    def of(self, *tiers: str) -> list[Score]:
        """Return the scores of some tiers, in the order of the steps.

        Args:
            tiers: as `Score` has them.

        Examples:
            >>> rows = '{"step": 40, "tier": "exact", "score": 0.61}, {"step": 60, "tier": "line", "score": 0.64}'
            >>> from pathlib import Path
            >>> size = Path("run.scores.json").write_text(f'{{"scores": [{rows}]}}')
            >>> [one.step for one in run.scores().of("line", "track")]
            [60.0]
        """
        return [one for one in self.scores if one.tier in tiers]


def parse_scores(text: str | bytes, path: str) -> Scores:
    """Return what a file of scores says.

    Args:
        path: for messages.

    Raises:
        InvalidArgument: it is not as the module says.

    Examples:
        >>> found = parse_scores('{"scores": [{"step": 800, "tier": "line", "score": 0.693}]}', "run.scores.json")
        >>> found.scores
        (Score(step=800.0, tier='line', score=0.693),)
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidArgument(f"{path} is not JSON; repair it, or move it away") from None
    rows = document.get("scores") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise InvalidArgument(f"{path} has no list 'scores'; repair it, or move it away")
    metric = document.get("metric", "")
    found = [_score(row, path) for row in rows]
    return Scores(metric if isinstance(metric, str) else "", tuple(sorted(found, key=lambda one: one.step)))


def with_scores(text: str | bytes | None, rows: Iterable[Mapping[str, Any]], metric: str, path: str) -> bytes:
    """Return a file of scores with further ones, which take the place of those of the same steps and tiers.

    Args:
        text: the file so far, of which other keys stay; None: there is none yet.
        rows: ``step``, ``tier`` and ``score`` of each.
        metric: what the scores are, in words; empty: as the file says.
        path: for messages.

    Raises:
        InvalidArgument: the file is not as the module says, or of another metric.

    Examples:
        >>> old = b'{"scores": [{"step": 0, "tier": "base", "score": 0.5}]}'
        >>> made = with_scores(old, [{"step": 800.0, "tier": "line", "score": 0.7}], "solved", "run.scores.json")
        >>> [one.step for one in parse_scores(made, "run.scores.json").scores]
        [0.0, 800.0]
    """
    rows = list(rows)
    new = {(row["step"], row["tier"]) for row in rows}
    document: dict[str, Any] = {}
    old: list[Any] = []
    if text is not None:
        known = parse_scores(text, path)
        if metric and known.metric and metric != known.metric:
            raise InvalidArgument(f"{path} has scores of {quote(known.metric)}, not of {quote(metric)}; move it away")
        document = json.loads(text)
        old = [row for row in document["scores"] if (row["step"], row["tier"]) not in new]
    if metric:
        document["metric"] = metric
    document["scores"] = sorted([*old, *rows], key=lambda row: (row["step"], row["tier"]))
    return (json.dumps(document, indent=1) + "\n").encode()


def _score(row: object, path: str) -> Score:
    step, tier, score = (row.get(key) if isinstance(row, dict) else None for key in ("step", "tier", "score"))
    numbers = [x for x in (step, score) if isinstance(x, (int, float)) and not isinstance(x, bool)]
    if len(numbers) != 2 or not all(abs(x) < 1e300 and math.isfinite(x) for x in numbers) or tier not in SCORED:
        raise InvalidArgument(
            f"{path}: expected {{'step': number, 'tier': one of {', '.join(SCORED)}, 'score': number}}, found "
            f"{quote(row, 80)}; repair it, or move it away"
        )
    return Score(float(numbers[0]), str(tier), float(numbers[1]))
