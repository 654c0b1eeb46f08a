"""Steps of a run that cannot be used, all of them in one message, with what to type to go on without them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from relex_codec.core.steps import spell_steps
from relex_codec.errors import CheckpointError, RelexError

SHOWN: Final = 10
"""Steps whose reasons are told."""
TYPED: Final = 200
"""Characters of a list of steps that somebody would still type."""


def broken_steps(failures: Mapping[int, RelexError], steps: Iterable[int], *, chosen: bool = True) -> RelexError:
    """Return one error for all steps that cannot be used.

    Args:
        failures: why, the first reason of each step; at least one.
        steps: all that were wanted, these included.
        chosen: whether the user chose them from a run, and so can leave some out.
    """
    steps = sorted(steps)
    numbers = sorted(failures)
    advice = ""
    if chosen and len(numbers) < len(steps):
        them = spell_steps(numbers, steps)
        how = f"--exclude-steps {them} or --skip-incomplete" if len(them) <= TYPED else "--skip-incomplete"
        advice = f"; to go on without {'it' if len(numbers) == 1 else 'them'}: {how}"
    if len(numbers) == 1:
        error = failures[numbers[0]]
        return type(error)(f"step {numbers[0]}: {error}{advice}")
    reasons = "; ".join(f"step {number}: {failures[number]}" for number in numbers[:SHOWN])
    more = f"; and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return CheckpointError(f"{len(numbers)} of {len(steps)} steps cannot be used: {reasons}{more}{advice}")
