"""Moving a quantiser to where the quality rule is just held, by measuring the weights."""

from __future__ import annotations

from typing import Final

import numpy as np

from relex_codec.format.constants import WORD

from .excerpt import Excerpt
from .quantizer import Quantizer
from .remainder import Remainder
from .stored_direction import StoredDirection
from .weight_error import Rule, Weights

RELAXATION: Final = 4.0
"""How far the bound on the direction's own error may be relaxed while the measured weight error holds the rule."""
TRIALS: Final = 6
"""How often the bound is moved at most, once the rule was held."""
FAILURES: Final = 12
"""How often it is moved at most where the rule is not held."""
FURTHER_DOWN: Final = 10
"""How often the bound is divided by 4 where moving it led nowhere, before it is float32."""
FEWER_BITS: Final = (0.04, 0.02, 0.02, 0.01, 0.01)
"""Shares of the bits that are to be saved by other biases, one after another."""
ROUNDS: Final = 3
"""How often quantisers are measured together, where elements are few."""
ON_ALL: Final = 3
"""How often all of a large tensor is measured at most, once the rule was held."""
NEAR: Final = 1.015
"""The bound is where it should be when the room that the rule leaves is at most so many times what is used of it."""
STRIDE: Final = 1.3
"""How far the square of the width is moved at most at once, when all of a tensor is measured: the excerpt knew better
than that, and where weights are clusters the error jumps."""
AIM: Final = 0.995
"""Share of the room that the next bound aims at."""

Found = tuple[float, float, StoredDirection]
"""Bytes, how far the bound was moved, and how the direction is stored."""


def tune_in_excerpt(remainder: Remainder, excerpt: Excerpt, rule: Rule, bound: float, most: float) -> Found | None:
    """Return the cheapest quantiser found that holds the rule in the excerpt.

    Args:
        remainder: in the excerpt.
        excerpt: the weights that are measured.
        rule: what they allow.
        bound: mean squared error of the direction that is estimated to use what the rule leaves.
        most: mean squared error that is not exceeded, whatever the rule leaves.
    """
    if remainder.magnitudes.few and bound > 0 and remainder.magnitudes.energy > bound * excerpt.count:
        found = _measured_together(remainder, excerpt, rule, bound, min(RELAXATION * bound, most))
        if found is not None:
            return found
    tuned = move_bound(remainder, excerpt, rule, bound, most, 1.0)
    return tuned and _with_other_biases(remainder, excerpt, rule, tuned, min(RELAXATION * bound, most))


def _measured_together(remainder: Remainder, excerpt: Excerpt, rule: Rule, bound: float, most: float) -> Found | None:
    """The same where elements are few: some dozen quantisers are measured at once, then those around the best."""
    best: tuple[Quantizer, float] | None = None
    chosen = remainder.magnitudes.candidates(bound, most)
    for left in range(ROUNDS - 1, -1, -1):
        errors = excerpt.errors(remainder.factors, chosen) if len(chosen) else []
        cheapest = next((i for i, error in enumerate(errors) if rule.holds(error)), None)
        if cheapest is None:
            break
        best = chosen[cheapest], errors[cheapest]
        if left:
            chosen = remainder.magnitudes.neighbours(best[0], most)
    if best is None:
        return None
    stored = StoredDirection(remainder.factors, best[0].packing, best[0])
    return remainder.bytes_of(best[0]), 1.0, with_errors(stored, rule, best[1])


def move_bound(
    remainder: Remainder, weights: Weights, rule: Rule, bound: float, most: float, relax: float
) -> Found | None:
    """Move the bound to where the rule is just held; return (bytes, how far it was moved, how).

    The error that is used grows nearly in proportion with the bound, so that a secant finds the place in two or
    three trials. None where no quantiser holds the rule.

    Args:
        remainder, rule, bound, most: as above.
        weights: that are measured.
        relax: bound of the first trial, in units of `bound`.
    """
    best: Found | None = None
    low, high = (0.0, 0.0), (np.inf, np.inf)  # bound and what it uses: where the rule is held, and where not
    top = min(RELAXATION, most / bound) if bound > 0 else RELAXATION
    relax, trial = min(relax, top), 0
    while trial < (TRIALS if best else FAILURES):
        trial += 1
        found = remainder.cheapest(bound * relax)
        if found is None:
            break  # below what 16-bit codes can hold: float32 it is
        cost, stored = found
        error = weights.error(stored)
        used = rule.used(error)
        if rule.holds(error):
            low = (relax, used)
            if best is None or cost < best[0]:
                best = cost, relax, with_errors(stored, rule, error)
            if relax >= top or used * NEAR >= rule.room:
                break
        else:
            high = (relax, used)
        relax = min(_next(low, high, relax, used, AIM * rule.room), top)
        if high[0] < low[0] * 1.002:
            break
    return best or _held_further_down(remainder, weights, rule, bound)


def _held_further_down(remainder: Remainder, weights: Weights, rule: Rule, bound: float) -> Found | None:
    """Return the first of ever finer quantisers that holds the rule, where the secant found none.

    Where weights are clusters, as after few steps, the error jumps with the width, and a secant leads nowhere; codes
    of 8 or 16 bits that hold the rule are still a quarter or half of float32.
    """
    for power in range(1, FURTHER_DOWN + 1):
        relax = 4.0**-power
        found = remainder.cheapest(bound * relax)
        if found is None:
            return None
        cost, stored = found
        error = weights.error(stored)
        if rule.holds(error):
            return cost, relax, with_errors(stored, rule, error)
    return None


def _with_other_biases(remainder: Remainder, weights: Weights, rule: Rule, best: Found, most: float) -> Found:
    """Improve what was found by the error of the weights: the width of the zone of 0 against that of the levels.

    The bound on the direction's error does not know that small changes are rounded away in the weights, where they
    only cost bits. So at somewhat fewer bits several biases are tried, as long as one of them holds the rule.
    """
    for less in FEWER_BITS:
        quantizer = best[2].quantizer
        if quantizer is None or not quantizer.scale or quantizer.packing is WORD:
            return best
        for other in remainder.magnitudes.with_bits(quantizer, quantizer.bits * (1 - less), most):
            stored = StoredDirection(remainder.factors, other.packing, other)
            error = weights.error(stored)
            if rule.holds(error):
                saved = remainder.bytes_of(quantizer) - remainder.bytes_of(other)
                best = best[0] - saved, best[1], with_errors(stored, rule, error)
                break
    return best


def tune_width(
    remainder: Remainder, found: StoredDirection, weights: Weights, rule: Rule, top: float
) -> StoredDirection | None:
    """Return what was found in an excerpt with the width at which all weights just hold the rule, if there is one.

    Args:
        remainder: in the excerpt.
        found: a quantiser of it.
        weights: all of them.
        rule: what they allow.
        top: the largest mean squared error of the direction that is allowed.
    """
    quantizer = found.quantizer
    if quantizer is None or not quantizer.scale:
        error = weights.error(found)
        return with_errors(found, rule, error) if rule.holds(error) else None
    best: StoredDirection | None = None
    low, high = (0.0, 0.0), (np.inf, np.inf)
    at = 1.0  # square of the width, with which errors grow
    most = max(top / quantizer.error, 1.0) if quantizer.error > 0 else RELAXATION
    for trial in range(FAILURES):
        width = quantizer.width * float(np.sqrt(at))
        changed = remainder.magnitudes.evaluate(quantizer.packing, width, quantizer.bias)
        if changed is None:
            break
        stored = StoredDirection(found.factors, found.packing, changed)
        error = weights.error(stored)
        used = rule.used(error)
        if rule.holds(error):
            best, low = with_errors(stored, rule, error), (at, used)
        else:
            high = (at, used)
        near = low[1] * NEAR >= rule.room or low[0] >= most or high[0] < low[0] * 1.02
        if best is not None and (near or trial + 1 >= ON_ALL):
            break
        at = min(_next(low, high, at, used, AIM * rule.room, STRIDE), most)
    return best


def with_errors(stored: StoredDirection, rule: Rule, error: float) -> StoredDirection:
    """Return a direction with its errors as they are recorded, given the squared error of the weights."""
    line, kept = rule.relative(rule.unquantised), rule.relative(error)
    return StoredDirection(stored.factors, stored.packing, stored.quantizer, line, kept)


def _next(
    low: tuple[float, float],
    high: tuple[float, float],
    relax: float,
    used: float,
    wanted: float,
    stride: float = RELAXATION,
) -> float:
    """Return where the bound is tried next: between what held and what did not, by the error that both use."""
    if low[0] and np.isfinite(high[0]):
        slope = (high[1] - low[1]) / (high[0] - low[0])
        at = low[0] + (wanted - low[1]) / slope if slope > 0 else 0.0
        margin = 0.05 * (high[0] - low[0])
        return float(min(max(at, low[0] + margin), high[0] - margin))
    ratio = wanted / used if used > 0 else np.inf
    return float(relax * min(max(ratio, 1.02), stride) if low[0] else relax * min(max(ratio, 0.2), 0.97))
