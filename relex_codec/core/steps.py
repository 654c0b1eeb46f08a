"""Which steps a user means by ``1:4,6:10``, ``0:500:10`` or ``1,2,4``, and how such a list is written."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from relex_codec.errors import InvalidArgument

from .text import quote

LISTED_LIMIT: Final = 100_000
"""Steps that are looked for one by one."""


class _Range(NamedTuple):
    """One part of a list: ``A:B``, ``A:B:K`` or ``N``."""

    first: int | None
    last: int | None
    every: int
    text: str


def select_steps(steps: Iterable[int], spec: str | None, exclude: str | None = None) -> list[int]:
    """Choose steps by a list of ``A:B``, ``A:B:K`` and ``N``, separated by commas; None chooses all.

    A and B are inclusive, and either may be left out. K keeps the steps s with (s - A) divisible by K; where A is left
    out, it counts from the first step there is. Each part has to find something, so that a slip of the finger is not
    taken for a wish.

    Args:
        steps: those that there are, in any order.
        spec: as the user wrote it.
        exclude: what is left out of them, written in the same way.

    Returns:
        The chosen ones, increasing.

    Raises:
        InvalidArgument: a text is no such list, a part of it finds no step, or no step is left.

    Examples:
        >>> select_steps([30, 5, 10, 20, 15], "5:10,30"), select_steps([30, 5, 10, 20, 15], "::10", exclude="5")
        ([5, 10, 30], [15])
    """
    steps = sorted(steps)
    chosen = steps if spec is None else _found(steps, "steps", spec)
    if exclude is None:
        return chosen
    left_out = set(_found(steps, "exclude-steps", exclude))
    chosen = [step for step in chosen if step not in left_out]
    if not chosen:
        raise InvalidArgument(f"exclude-steps {quote(exclude)} leaves nothing of {_there(steps)}")
    return chosen


def listed_steps(spec: str | None) -> list[int] | None:
    """Return the steps that a list names by itself; None where an end is left open, or all is.

    Raises:
        InvalidArgument: the text is no such list, or lists nothing or too much.
    """
    if spec is None:
        return None
    found: set[int] = set()
    for part in _parse("steps", spec):
        if part.first is None or part.last is None:
            return None
        steps = range(part.first, part.last + 1, part.every)
        if not 0 < len(steps) <= LISTED_LIMIT or len(found) + len(steps) > LISTED_LIMIT:
            raise InvalidArgument(
                f"steps {quote(part.text)} lists {len(steps):,} steps, expected 1 to {LISTED_LIMIT:,} in all"
            )
        found.update(steps)
    return sorted(found)


def spell_steps(chosen: Collection[int], steps: Iterable[int]) -> str:
    """Return the shortest list that chooses just these of `steps`, as a user may type it.

    Examples:
        >>> spell_steps({10, 20, 30, 50}, [10, 20, 30, 40, 50])
        '10:30,50'
    """
    runs: list[list[int]] = [[]]
    for step in sorted({*steps, *chosen}):
        if step in chosen:
            runs[-1].append(step)
        elif runs[-1]:
            runs.append([])
    parts = [[f"{run[0]}:{run[-1]}"] if len(run) > 2 else map(str, run) for run in runs]
    return ",".join(text for part in parts for text in part)


def name_steps(chosen: Collection[int], steps: Iterable[int]) -> str:
    """Return `spell_steps` with the word before it.

    Examples:
        >>> name_steps({10}, [10, 20, 30]), name_steps({10, 20, 30}, [10, 20, 30])
        ('step 10', 'steps 10:30')
    """
    return f"step{'' if len(chosen) == 1 else 's'} {spell_steps(chosen, steps)}"


def _found(steps: Sequence[int], option: str, spec: str) -> list[int]:
    """Return what a list chooses of `steps`, which are sorted; errors name the option it was given with."""
    found: set[int] = set()
    for part in _parse(option, spec):
        start = part.first if part.first is not None else min(steps, default=0)
        last = part.last if part.last is not None else max(steps, default=0)
        new = [step for step in steps if start <= step <= last and (step - start) % part.every == 0]
        if not new:
            what = "leaves nothing, there is" if option == "steps" else "names none of what there is,"
            raise InvalidArgument(f"{option} {quote(part.text)} {what} {_there(steps)}")
        found.update(new)
    return sorted(found)


def _there(steps: Sequence[int]) -> str:
    return f"{steps[0]} to {steps[-1]} ({len(steps)} steps)" if steps else "no steps"


def _parse(option: str, spec: str) -> list[_Range]:
    return [_parse_part(option, spec, part.strip()) for part in spec.split(",")]


def _parse_part(option: str, spec: str, part: str) -> _Range:
    match = re.fullmatch(r"([0-9]{0,18}):([0-9]{0,18})(?::([0-9]{1,18}))?|([0-9]{1,18})", part)
    if match is None:
        raise InvalidArgument(
            f"{option} {quote(spec)} not understood, expected A:B, A:B:K or N, or several of them separated by commas, "
            "for example 0:500:10 or 1:4,6,8"
        )
    first, last, every, only = (None if not text else int(text) for text in match.groups())
    if every == 0:
        raise InvalidArgument(f"{option} {quote(part)} asks for every 0th step; K starts at 1")
    return _Range(only, only, 1, part) if only is not None else _Range(first, last, every or 1, part)
