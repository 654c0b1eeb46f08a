"""What a step is read from, and with which coefficients (FORMAT.md section 8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import ALL_FLOATS
from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.index import Index
from relex_codec.format.reader import FileReader
from relex_codec.format.step_layout import StepLayout
from relex_codec.format.tensor_record import TensorRecord

TIERS: Final = ("auto", "line", "track", "exact")
LINEAR: Final = ("line", "track")
"""The tiers that are made of directions and coefficients."""


class StepTier(NamedTuple):
    """A step, and what it is read from, as `choose_tier` returns it: ``base``, ``line``, ``track`` or ``exact``."""

    step: float
    tier: str


def as_step(step: object) -> float:
    """Return a step as a float.

    Raises:
        InvalidArgument: it is no number, or too large for one.
    """
    try:
        return float(step)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgument(f"step is {quote(step, 40)}, expected a finite number") from None


def choose_tier(container: FileReader, step: float, tier: str, *, exact: bool = True) -> str:
    """Return what a step is read from: ``base``, ``line``, ``track`` or ``exact`` (FORMAT.md sections 8 and 13).

    Args:
        exact: False where the exact tier is out of reach, so that ``auto`` never is that.

    Raises:
        InvalidArgument: an unknown tier, a step that is no number, or one that the tier does not have.
    """
    steps = container.index.steps
    if tier not in TIERS:
        raise InvalidArgument(f"tier is {tier!r}, expected one of {', '.join(TIERS)}")
    if not math.isfinite(step):
        raise InvalidArgument(f"step is {step}, expected a finite number")
    index = container.index
    stored = exact and index.has_exact and step in steps
    if tier == "exact" and not stored:
        if not index.has_exact:
            raise InvalidArgument(f"{container.source.path} has no tier 'exact': it was encoded without --exact")
        nearest = int(steps[np.argmin(np.abs(steps - step))])
        raise InvalidArgument(f"tier 'exact' has the stored steps only, not {step:g}; the nearest is {nearest}")
    if tier == "auto" and stored:
        return "exact"
    if tier == "auto":
        observed = int(steps[0]) <= step <= int(steps[index.manifest.observed - 1])
        return "base" if step == 0 and starts_from_base(index) else "track" if observed else "line"
    if tier == "track" and not int(steps[0]) <= step <= int(steps[-1]):
        raise InvalidArgument(f"tier 'track' reaches from step {steps[0]} to {steps[-1]}, not {step:g}; 'line' does")
    return tier


def starts_from_base(index: Index) -> bool:
    """Tell whether step 0 is the base: every tensor that tiers ``line`` and ``track`` have starts from it."""
    return all(index.target(tensor).in_base for tensor in index.layout.tensors)


def layout_at(index: Index, step: StepTier) -> StepLayout:
    """Return which tensors and files there are at a step, and how they are laid out."""
    if step.tier != "exact":
        return index.layout
    return index.layout_of(int(np.searchsorted(index.steps, step.step)) + 1)


def is_without_line(index: Index, tensor: TensorRecord) -> bool:
    """Tell whether a tensor is there at stored steps only: floats that are stored step by step."""
    target = index.target(tensor)
    return target.kind == f.FRAMED and target.dtype in ALL_FLOATS and target.size > 0


def check_reach(index: Index, tensor: TensorRecord, step: StepTier) -> None:
    """Refuse a step at which there is nothing of a tensor: floats that are stored step by step have no line.

    Raises:
        InvalidArgument: a linear tier, of a step that is not stored.
    """
    if step.tier in LINEAR and is_without_line(index, tensor) and step.step not in index.steps:
        last = int(index.steps[-1])
        raise InvalidArgument(
            f"tensor {quote(tensor.name)} is stored step by step and has no line, so there is none at step "
            f"{step.step:g}; ask for a stored step, up to {last}"
        )


Row = Callable[[], npt.NDArray[np.float64]]
"""Gives the coefficients of one direction, float64 [T]."""


def coefficient(record: Any, row: Row, steps: npt.NDArray[np.int64], step: float, tier: str) -> np.float32:
    """Return g of one direction at a step, from `tier` ``line`` or ``track``.

    Args:
        record: of the direction.
        row: not called for ``line``.

    Raises:
        InvalidArgument: it exceeds float32.
    """
    with np.errstate(over="ignore"):
        if tier == "line":
            c = np.float64(record["slope"]) * np.float64(step) + np.float64(record["intercept"])
        else:
            values = row()
            after = int(np.searchsorted(steps, step))
            if steps[after] == step:
                c = values[after]
            else:
                low, high = np.float64(steps[after - 1]), np.float64(steps[after])
                c = values[after - 1] + (values[after] - values[after - 1]) * ((np.float64(step) - low) / (high - low))
        g = np.float32(c)
    if not np.isfinite(g):
        raise InvalidArgument(f"step {step:g} is too far out: a coefficient there exceeds float32")
    return g
