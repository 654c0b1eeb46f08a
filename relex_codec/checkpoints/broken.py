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


def broken_steps(
    failures: Mapping[int, RelexError], steps: Iterable[int], *, skippable: bool = True, chosen: bool = True
) -> RelexError:
    """Return one error for all steps that cannot be used.

    Args:
        failures: why, the first reason of each step; at least one.
        steps: all that were wanted, these included.
        skippable: whether skipping incomplete checkpoints would leave them out as well.
        chosen: whether the user chose them from a run, and so can leave some out.
    """
    steps = sorted(steps)
    numbers = sorted(failures)
    advice = ""
    if chosen and len(numbers) < len(steps):
        them = spell_steps(numbers, steps)
        ways = [f"--exclude-steps {them}"] if len(them) <= TYPED or not skippable else []
        how = " or ".join([*ways, *(["--skip-incomplete"] if skippable else [])])
        advice = f"; to go on without {'it' if len(numbers) == 1 else 'them'}: {how}"
    if len(numbers) == 1:
        error = failures[numbers[0]]
        return type(error)(f"step {numbers[0]}: {error}{advice}")
    if len(numbers) == len(steps):
        error = failures[numbers[0]]
        return type(error)(f"{error} (none of the {len(steps)} steps can be used; this is the first)")
    reasons = "; ".join(f"step {number}: {failures[number]}" for number in numbers[:SHOWN])
    more = f"; and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return CheckpointError(f"{len(numbers)} of {len(steps)} steps cannot be used: {reasons}{more}{advice}")
