"""What a distance says of a step: the band in which lines were best, and the words for it.

What was measured: real GRPO runs of six small models, 43 windows, each line scored from its window's end to thirty
times it. All windows of a run peak at one distance D (figures.py), whatever step that is: at 0.41 % on four runs, at
0.22 to 0.32 % on the two that were trained to break the finding. Beyond the peak scores fall, below the base at about
twice the step of the peak. Nobody knows what the distance is for a model of billions of weights. R^2 and explained
variance do not predict it; they are no part of this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from .figures import Lines, Norms, distance, mirrored, step_at

TYPICAL: Final = 0.0041
"""Where four of six runs had their peak; where a search begins, and nothing to believe by itself."""
LOOK: Final = 0.002
"""A distance from which a step should be scored first."""
FAR: Final = 0.005
"""A distance beyond which a step is probably worse than one before it."""
REFUSED: Final = 0.05
"""A distance beyond which a step is not decoded unless it is asked for twice."""
TRAINED_FAR: Final = 0.004
"""A distance at the end of the window from which lines had nothing more to gain."""


class Band(NamedTuple):
    """Distances between which the best step of a line lies.

    Attributes:
        low, high: ratios, as D.
        look, far: a step up to `look` is called near, one beyond `far` too far.
        source: what they come from: ``runs`` (six small ones) or ``scores`` (of this very run).
    """

    low: float
    high: float
    look: float
    far: float
    source: str


MEASURED: Final = Band(0.0022, 0.0049, LOOK, FAR, "runs")
"""The lowest and the highest distance at which a run of six had its peak."""


def band_of_scores(points: Sequence[tuple[float, float]]) -> Band:
    """Return the band that scores of steps on the line of this run leave.

    The peak lies between the neighbours of the best of them. Where the best one is the first or the last, the other
    end is that of other runs, or the best one itself if that is farther.

    Args:
        points: (D, score), a higher score is a better one; fewer than three different distances say nothing.

    Examples:
        >>> band_of_scores([(0.001, 0.60), (0.002, 0.66), (0.003, 0.71), (0.006, 0.52)])
        Band(low=0.002, high=0.006, look=0.002, far=0.006, source='scores')
    """
    best: dict[float, float] = {}
    for d, score in points:
        if math.isfinite(d) and math.isfinite(score):
            best[d] = max(score, best.get(d, score))
    at = sorted(best)
    if len(at) < 3:
        return MEASURED
    i = max(range(len(at)), key=lambda j: (best[at[j]], -j))
    low = at[i - 1] if i else min(MEASURED.low, at[0])
    high = at[i + 1] if i + 1 < len(at) else max(MEASURED.high, at[i])
    if i + 1 == len(at):
        low = at[i]  # it still rose there
    return Band(low, high, low, high, "scores")


@dataclass(frozen=True)
class Trust:
    """How far a step is from the base, and what that says of the step. Made by `Run.trust`.

    The distance is D(S) = sum of ``|c_k(S)| ||v_k||_1`` over directions k, divided by the sum of ``||W0||_1`` over
    tensors: the mean change of a weight over the mean weight (`relex_codec.trust.figures`). Where the best step lies
    was measured on six small runs; docs/trust.md says how.

    Attributes:
        step: that was asked for.
        observed: first and last step that lines were fitted on.
        distance: D of the line at the step, a ratio: 0.0041 is 0.41 %. None where it is not known.
        window_distance: D at the last observed step.
        band: distances at which the best step of a line lies, (low, high).
        band_source: ``runs`` (six small ones of others) or ``scores`` (of this run).
        peak_steps: the steps at which the line is that far, none before the end of the window; None where it never is.
        level: ``still`` (the run does not move), ``unknown``, ``observed`` (not beyond the observed ones), ``near``,
            ``score`` (score it first), ``far``, or ``refused`` (`decode` takes no such step unless told to).
        stored: whether the norms are the file's own, of unquantised directions.
        words: two or three sentences of it.

    Examples:
        >>> found = run.trust(200)
        >>> found.level, round(found.distance, 3), found.observed
        ('far', 0.01, (10, 40))
        >>> print(found.words[1])
        beyond the best step scores fall, below the base at about twice that step: expect a worse model
    """

    step: float
    observed: tuple[int, int]
    distance: float | None
    window_distance: float | None
    band: tuple[float, float]
    band_source: str
    peak_steps: tuple[float, float] | None
    level: str
    stored: bool
    words: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for JSON; a distance that overflows is None.

        Examples:
            >>> found = run.trust(60).as_dict()
            >>> found["level"], found["band"], found["observed"]
            ('score', [0.0022, 0.0049], [10, 40])
        """
        found = asdict(self)
        for key in ("distance", "window_distance"):
            if found[key] is not None and not math.isfinite(found[key]):
                found[key] = None
        return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def judge(
    lines: Lines,
    norms: Norms | None,
    step: float,
    observed: tuple[int, int],
    band: Band = MEASURED,
    *,
    moved: float | None = None,
) -> Trust:
    """Say what the distance of a step says of it.

    Args:
        norms: None where they are not known.
        observed: first and last observed step.
        band: where peaks lie.
        moved: the distance of the step, where it does not lie on the lines; then no steps are given for the band.
    """
    last = observed[1]
    d = None if norms is None else distance(lines.at(step), norms) if moved is None else moved
    window = None if norms is None else distance(lines.at(last), norms)
    stored = norms is not None and not norms.read
    peaks = None
    if norms is not None and moved is None and lines.slope.any():
        found = [step_at(lines, norms, wanted) for wanted in (band.low, band.high)]
        if found[0] is None:
            found[0] = float(last) if found[1] is not None else None
        if found[1] is None and window is not None and window > band.high:
            peaks = float(last), float(last)  # training went beyond the band, and the line never comes back to it
        if found[0] is not None and found[1] is not None:
            peaks = max(float(last), found[0]), max(float(last), found[1])
    if norms is not None and not lines.slope.any() and not lines.intercept.any():
        level, d, window = "still", 0.0, 0.0
    elif d is None or window is None or math.isnan(d):
        level, d, window = "unknown", None, None
    elif observed[0] <= step <= last or step == 0:
        level = "observed"
    elif d > REFUSED:
        level = "refused"
    else:
        level = "near" if d < band.look else "score" if d <= band.far else "far"
    words = tuple(_words(level, step, observed, d, window, band, peaks, stored))
    return Trust(
        step, observed, d, window, (band.low, band.high), band.source, peaks, level, stored, words
    )  # fmt: skip


def _words(
    level: str, step: float, observed: tuple[int, int], d: float | None, window: float | None, band: Band,
    peaks: tuple[float, float] | None, stored: bool,
) -> list[str]:  # fmt: skip
    if level == "still":
        return ["no tensor moved while the run was observed: every step of the line is the base"]
    if d is None or window is None:
        return ["how far the line may be believed is not known: the file has no norms of its directions, or only zeros"]
    last = observed[1]
    size = f"step {shown_step(step)} is {percent(d)} of the weights' own size from the base"
    best = f"{percent(band.low)} to {percent(band.high)}".replace(" % to", " to")
    where = f"lines were best at {best}" if band.source == "runs" else f"by its scores this line is best at {best}"
    ahead = peaks is not None and peaks[1] > last
    at = (
        f", here at steps {shown_step(round(peaks[0]))} to {shown_step(round(peaks[1]))}"
        if peaks is not None and ahead
        else ""
    )
    if level == "observed":
        found = [f"{size}, by the line; {where}{at}"]
    elif level == "near":
        found = [f"{size}: nearer than where lines were best ({best}{at})"]
    elif level == "score":
        found = [f"{size}: {where}{at}, so score it first"]
    else:
        found = [f"{size}: {where}{at}"]
    if level in ("far", "refused"):
        found.append("beyond the best step scores fall, below the base at about twice that step: expect a worse model")
    if step < 0:
        found.append(f"step {shown_step(step)} lies before the base: the line goes backwards, which nobody has scored")
    if window > TRAINED_FAR:
        found.append(
            f"by step {last} training itself has gone {percent(window)}, as far as lines held: do not expect them to "
            "gain more"
        )
    elif band.source == "runs" and level in ("near", "score"):
        found.append("that is from six small runs; no model of billions of weights is among them")
    if not stored:
        found.append("computed from the stored directions, which are quantised, as the file has no norms of them")
    return found


def percent(ratio: float) -> str:
    """Return a ratio in percent, with three digits.

    Examples:
        >>> percent(0.00412), percent(31.2), percent(0)
        ('0.412 %', '3,120 %', '0 %')
    """
    value = 100 * ratio
    if not math.isfinite(value):
        return "infinitely many %"
    return f"{value:,.0f} %" if abs(value) >= 100 else f"{value:.3g} %"


def shown_step(step: float) -> str:
    """Return a step as people write it: no decimals for whole ones and large ones.

    Examples:
        >>> shown_step(800.0), shown_step(12.5), shown_step(1089.19), shown_step(1e9)
        ('800', '12.5', '1,089', '1,000,000,000')
    """
    if step != int(step) and abs(step) < 100:
        return f"{step:.3g}"
    return f"{step:,.0f}" if abs(step) >= 1000 else f"{step:.0f}"


def within(lines: Lines, norms: Norms, step: float, last: int, limit: float) -> float:
    """Return the step nearest to `step` on its side that is no farther from the base than `limit`.

    Beyond the observed steps that is a whole one where there is a whole one, and never one before the last observed
    one, as training itself was there. Before the base it is none beyond 0.
    """
    if not distance(lines.at(step), norms) > limit:
        return step
    if step < 0:
        found = step_at(mirrored(lines), norms, limit)
        return 0.0 if found is None else min(0.0, -found)
    found = step_at(lines, norms, limit)
    if found is None or found <= last:
        return float(min(step, last))
    return float(max(last, math.floor(found)))
