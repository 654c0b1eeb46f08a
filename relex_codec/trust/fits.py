"""Other curves through the coefficients than the line of the file, and how well each predicts steps it has not seen.

The coefficients of all observed steps are in a file, so that a curve can be chosen when a step is read:

- ``line``: least squares over all observed steps, what the file itself brings and every reader uses;
- ``window:W``: a line over the last W observed steps;
- ``poly:D``: a polynomial of degree D over all observed steps;
- ``log``: ``a ln(1 + t) + b`` over all observed steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument

F64 = npt.NDArray[np.float64]
KINDS: Final = ("line", "window:W", "poly:D", "log")
MOST_DEGREES: Final = 20


@dataclass(frozen=True)
class Curve:
    """A kind of curve, with its number where it has one.

    Attributes:
        kind: ``line``, ``window``, ``poly`` or ``log``.
        number: W or D; 0 for the others.
    """

    kind: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}" if self.number else self.kind

    @property
    def needs(self) -> int:
        """Observed steps that it takes."""
        return {"line": 2, "log": 2, "window": self.number, "poly": self.number + 1}[self.kind]


def parse_curve(text: str) -> Curve:
    """Return the curve that `text` names.

    Raises:
        InvalidArgument: it names none.

    Examples:
        >>> parse_curve("window:20"), parse_curve("log").needs
        (Curve(kind='window', number=20), 2)
    """
    kind, colon, number = text.partition(":")
    if kind in ("line", "log") and not colon:
        return Curve(kind)
    least, most = {"window": (2, 10**9), "poly": (1, MOST_DEGREES)}.get(kind, (1, 0))
    if number.isascii() and number.isdigit() and len(number) < 11 and least <= int(number) <= most:
        return Curve(kind, int(number))
    raise InvalidArgument(
        f"fit is {quote(text, 40)}, expected line, window:W (W from 2), poly:D (D from 1 to {MOST_DEGREES}) or log"
    )


def predicted(curve: Curve, steps: Sequence[int], values: F64, at: Sequence[float]) -> F64:
    """Fit a curve to each row of coefficients, and return it at other steps.

    Args:
        steps: K, those that are fitted on.
        values: float64 [directions, K].
        at: steps, A.

    Returns:
        float64 [directions, A].

    Raises:
        InvalidArgument: there are too few steps, or ``log`` is asked for step -1 or before.

    Examples:
        >>> predicted(Curve("line"), [1, 2, 3], np.array([[2.0, 4.0, 6.0]]), [10]).round(6).tolist()
        [[20.0]]
    """
    t, s = np.array(steps, np.float64), np.array(at, np.float64)
    if curve.kind == "line" and len(t) == 1 and t[0]:  # as the encoder has it: through the base
        return np.asarray(values / t[0] * s, np.float64)
    if len(t) < curve.needs:
        raise InvalidArgument(f"fit {curve} takes {curve.needs} observed steps, there are {len(t)}")
    if curve.kind == "window":
        t, values = t[-curve.number :], values[:, -curve.number :]
    if curve.kind == "log":
        if min(t.min(), s.min(initial=0)) <= -1:
            raise InvalidArgument("fit log has no value at step -1 or before; take the line")
        t, s = np.log1p(t), np.log1p(s)
    middle, half = (t[0] + t[-1]) / 2, max((t[-1] - t[0]) / 2, 1e-300)
    powers = np.arange(max(curve.number, 1) + 1 if curve.kind == "poly" else 2)
    with np.errstate(over="ignore", invalid="ignore"):
        there = ((t - middle) / half)[:, None] ** powers
        then = ((s - middle) / half)[:, None] ** powers
        found, *_ = np.linalg.lstsq(there, values.T, rcond=None)
        return np.asarray((then @ found).T, np.float64)


@dataclass(frozen=True)
class HeldOut:
    """How well a curve predicts coefficients that it has not seen.

    Attributes:
        fit: the curve, as `Run.save` takes it for `along`.
        fitted: how many steps it was fitted on, and the last of them.
        held_out: first and last step that it was compared at.
        error: root of the summed squared differences over that of the coefficients; 1 is what the base itself gives.
        last: the same at the last held-out step alone.

    Examples:
        >>> best = run.fits()[0]
        >>> best.fit, best.fitted, best.held_out, round(best.error, 1)
        ('line', (2, 20), (30, 40), 0.1)
    """

    fit: str
    fitted: tuple[int, int]
    held_out: tuple[int, int]
    error: float
    last: float


def held_out_errors(steps: Sequence[int], values: F64, observed: int) -> list[HeldOut]:
    """Compare curves at steps that they are not fitted on, the best first.

    These are the later steps of a run where it has some, else the second half of its observed ones. The directions are
    those of the file: only the coefficients are held out.

    Args:
        values: float64 [directions, steps].
        observed: how many steps, from the first, directions were fitted on.

    Returns:
        Nothing where fewer than two steps remain to fit on, or none to compare at.
    """
    fitted = observed if observed < len(steps) else (observed + 1) // 2
    if fitted < 2 or fitted >= len(steps) or not len(values):
        return []
    windows = sorted({w for w in (max(2, fitted // 2), max(2, fitted // 4)) if w < fitted}, reverse=True)
    curves = [Curve("line"), *(Curve("window", w) for w in windows), *(Curve("poly", d) for d in (2, 3)), Curve("log")]
    there, then = list(steps[:fitted]), list(steps[fitted:])
    truth, found = values[:, fitted:], []
    for curve in curves:
        if curve.needs > fitted:
            continue
        miss = predicted(curve, there, values[:, :fitted], then) - truth
        errors = [_ratio(miss, truth), _ratio(miss[:, -1], truth[:, -1])]
        if all(map(math.isfinite, errors)):
            found.append(HeldOut(str(curve), (fitted, there[-1]), (then[0], then[-1]), *errors))
    return sorted(found, key=lambda row: row.error)


def _ratio(miss: F64, truth: F64) -> float:
    size = float(np.sqrt((truth**2).sum()))
    return float(np.sqrt((miss**2).sum())) / size if size > 0 else math.nan
