"""Compiled functions: numba behind one typed decorator.

numba compiles at the first call and keeps the result on disk. It neither contracts nor reorders integer arithmetic, and
nothing in the exact tier is done in floating point but the choice of tables, so compiled code gives the bits that
Python's integers give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
from numba.core.caching import FunctionCache

F = TypeVar("F", bound=Callable[..., Any])


def _sources() -> str:
    """Return a digest of all modules of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


SOURCES: Final = _sources()


class _Cache(FunctionCache):
    """numba's cache, for the code as it is now.

    numba compares the file of a function only. What the function calls and inlines from other files would be kept as it
    was, and encoder and decoder might no longer agree.
    """

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), SOURCES)  # type: ignore[no-untyped-call]


def compiled(function: F) -> F:
    """Compile `function` when it is first called; it runs without the GIL."""
    dispatcher = numba.njit(nogil=True)(function)
    if hasattr(dispatcher, "_cache"):  # not where compiling is switched off
        with suppress(RuntimeError):  # where neither the package's folder nor the user's cache can be written
            dispatcher._cache = _Cache(function)  # type: ignore[no-untyped-call]
    return cast(F, dispatcher)


def inlined(function: F) -> F:
    """Make `function`, of numbers only, a part of each compiled function that calls it.

    Arrays as arguments of such a function would be counted as references at every call, at five times the cost of
    decoding a symbol; a function of arrays is `compiled` or written out.
    """
    return cast(F, numba.njit(inline="always")(function))
