"""Sweeps as text: the table that a command shows, and the file that it goes on from."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Final

from relex_codec.errors import InvalidArgument
from relex_codec.trust.horizon import percent, shown_step
from relex_codec.trust.scores import Scores

from .sparkline import sparkline
from .sweep import Sweep, SweepRow, kind_of

COLUMNS: Final = ("step", "tier", "score", "seconds", "problem", "digest", "command")


def as_csv(found: Sweep, digest: str, command: str) -> str:
    """Return a sweep as a table that the same sweep goes on from.

    Args:
        digest: of the file.
        command: that scored it.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in found.rows:
        score = "" if row.score is None else repr(row.score)
        writer.writerow([f"{row.step:.17g}", row.tier, score, f"{row.seconds:.1f}", row.problem, digest, command])
    return out.getvalue()


def read_csv(text: str, path: str, digest: str, command: str, tier: Callable[[float], str]) -> Sweep:
    """Return the scores in such a table; steps without one are left out.

    Args:
        path: for messages.
        tier: what each step would be read from now.

    Raises:
        InvalidArgument: it is no such table, or one of another file, command or tier.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    found = Sweep()
    for row in rows:
        if set(row) != set(COLUMNS) or None in row.values():
            raise InvalidArgument(f"{path} is no table of a sweep; choose another place, or replace it with -f")
        for what, now in (("digest", digest), ("command", command)):
            if row[what] != now:
                of = "file" if what == "digest" else "command"
                raise InvalidArgument(f"{path} has scores of another {of}; choose another place, or replace it with -f")
        if not row["score"]:
            continue
        try:
            step, score, seconds = float(row["step"]), float(row["score"]), float(row["seconds"])
        except ValueError:
            raise InvalidArgument(f"{path} is no table of a sweep; choose another place, or -f") from None
        if row["tier"] != tier(step):
            raise InvalidArgument(
                f"{path} has step {shown_step(step)} from tier {row['tier']}, not {tier(step)}; choose another place, "
                "or replace it with -f"
            )
        found.add(SweepRow(step, row["tier"], score, seconds))
    if not rows and not text.startswith(COLUMNS[0]):
        raise InvalidArgument(f"{path} is no table of a sweep; choose another place, or replace it with -f")
    return found


def line_of(row: SweepRow, observed: Sequence[int]) -> str:
    """Return what is said of a row as soon as it is there."""
    if row.score is None:
        return f"step {shown_step(row.step)}: no score: {row.problem}"
    return (
        f"step {shown_step(row.step)}: {row.score:g} ({kind_of(row, observed)}, tier {row.tier}, {row.seconds:.1f} s)"
    )


def table(
    found: Sweep,
    observed: Sequence[int],
    stored: Scores | None,
    distance: Callable[[float], float | None],
    blocks: str,
) -> str:
    """Return a sweep as text: a row for each step, with what was scored before, and the best.

    Args:
        observed: steps that were observed.
        stored: scores that lie beside the file.
        distance: how far the line is from the base at a step; None where it is not known.
        blocks: what small pictures are drawn with.
    """
    before: dict[float, list[str]] = {}
    for one in stored.scores if stored is not None else ():
        before.setdefault(one.step, []).append(f"{one.score:g} {one.tier}")
    lines = [("step", "", "from", "score", "from the base", *(["stored"] if before else []))]
    for row in found.rows:
        d = distance(row.step) if row.tier == "line" else None
        far = "" if d is None else percent(d)
        score = "none" if row.score is None else f"{row.score:g}"
        line = (shown_step(row.step), kind_of(row, observed) if row.tier else "", row.tier, score, far)
        lines.append((*line, *(["; ".join(before.get(row.step, []))] if before else [])))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = (0, 3, 4)
    shown = [
        "  ".join(f"{c:>{w}}" if i in right else f"{c:<{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    text = "\n".join(line.rstrip() for line in shown)
    scored = [row for row in found.rows if row.score is not None]
    if len(scored) > 1:
        low, high = scored[0].step, scored[-1].step
        least = min(row.score or 0.0 for row in scored)
        picture = sparkline([(row.score or 0.0) - least for row in scored], blocks)
        text += f"\n\n{picture}  scores from step {shown_step(low)} to {shown_step(high)}"
    best = found.best
    if best is not None:
        text += f"\nbest: {best.score:g} at step {shown_step(best.step)}, {kind_of(best, observed)}, tier {best.tier}"
    return text
