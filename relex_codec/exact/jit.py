"""Compiled functions: numba behind one typed decorator.

numba compiles at the first call and keeps the result on disk. It neither contracts nor reorders integer arithmetic, and
nothing in the exact tier is done in floating point, so compiled code gives the bits that Python's integers give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile `function` when it is first called; it runs without the GIL."""
    try:
        return cast(F, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return cast(F, numba.njit(nogil=True)(function))


def inlined(function: F) -> F:
    """Make `function`, of numbers only, a part of each compiled function that calls it.

    Arrays as arguments of such a function would be counted as references at every call, at five times the cost of
    decoding a symbol; a function of arrays is `compiled` or written out.
    """
    return cast(F, numba.njit(inline="always")(function))
