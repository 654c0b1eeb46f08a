"""Which steps a user means by ``A:B``, ``A:B:K`` or ``N``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from relex_codec.errors import InvalidArgument

from .text import quote

LISTED_LIMIT: Final = 100_000
"""Steps that are looked for one by one."""


def select_steps(steps: Iterable[int], spec: str | None) -> list[int]:
    """Choose steps by ``A:B``, ``A:B:K`` or ``N``; None chooses all.

    A and B are inclusive, and either may be left out. K keeps the steps s with (s - A) divisible by K; where A is left
    out, it counts from the first step there is.

    Args:
        steps: those that there are, in any order.
        spec: as the user wrote it.

    Returns:
        The chosen ones, increasing.

    Raises:
        InvalidArgument: the text is none of these, or no step is left.

    Example:
        >>> select_steps([30, 5, 10, 20, 15], "10:20"), select_steps([30, 5, 10, 20, 15], "::10")
        ([10, 15, 20], [5, 15])
    """
    steps = sorted(steps)
    if spec is None:
        return steps
    first, last, every = _parse_steps(spec)
    start = first if first is not None else min(steps, default=0)
    chosen = [s for s in steps if s >= start and (last is None or s <= last) and (s - start) % every == 0]
    if not chosen:
        there = f"{steps[0]} to {steps[-1]} ({len(steps)} steps)" if steps else "no steps"
        raise InvalidArgument(f"steps {quote(spec)} leaves nothing, there is {there}")
    return chosen


def listed_steps(spec: str | None) -> list[int] | None:
    """Return the steps that ``A:B``, ``A:B:K`` or ``N`` lists by itself; None where an end is left open, or all is.

    Raises:
        InvalidArgument: the text is none of these, or lists nothing or too much.
    """
    if spec is None:
        return None
    first, last, every = _parse_steps(spec)
    if first is None or last is None:
        return None
    found = range(first, last + 1, every)
    if not 0 < len(found) <= LISTED_LIMIT:
        raise InvalidArgument(f"steps {quote(spec)} lists {len(found):,} steps, expected 1 to {LISTED_LIMIT:,}")
    return list(found)


def _parse_steps(spec: str) -> tuple[int | None, int | None, int]:
    """Return first, last and every how many-th."""
    match = re.fullmatch(r"([0-9]{0,18}):([0-9]{0,18})(?::([0-9]{1,18}))?|([0-9]{1,18})", spec.strip())
    if match is None:
        raise InvalidArgument(f"steps {quote(spec)} not understood, expected A:B, A:B:K or N, for example 0:500:10")
    first, last, every, only = (None if not text else int(text) for text in match.groups())
    if every == 0:
        raise InvalidArgument(f"steps {quote(spec)} asks for every 0th step; K starts at 1")
    return (only, only, 1) if only is not None else (first, last, every or 1)
