"""Compiled functions: numba behind one typed decorator.

numba compiles at the first call and keeps the result on disk. It neither contracts nor reorders arithmetic unless told
to, so compiled code gives the bits that Python's integers and numpy's float32 give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
from llvmlite import ir
from numba import types
from numba.core.caching import FunctionCache

F = TypeVar("F", bound=Callable[..., Any])
PACKAGE: Final = Path(__file__).parent.parent
SHARED: Final = ("core/jit.py", "core/dtypes.py", "format/constants.py")
"""Files that compiled code of other folders takes constants or functions in from; a test compares this with imports."""


@lru_cache
def _sources(folder: Path) -> str:
    """Return a digest of the modules in a folder, and of those elsewhere whose constants they compile in."""
    digest = hashlib.sha256()
    for path in (*sorted(folder.glob("*.py")), *(PACKAGE / name for name in SHARED)):
        if path.exists():
            digest.update(path.read_bytes())
    return digest.hexdigest()


class _Cache(FunctionCache):
    """numba's cache, for the code as it is now.

    numba compares the file of a function only. What the function calls and inlines from other files would be kept as it
    was, and encoder and decoder might no longer agree.
    """

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), _sources(Path(self._py_func.__code__.co_filename).parent))  # type: ignore[no-untyped-call]

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # a full disk: then it is compiled again the next time
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]


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


def operation(result: Any, arguments: tuple[Any, ...], build: Callable[..., Any]) -> Any:
    """Return a function for compiled code whose instructions are made by ``build(builder, *values)``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return build(builder, *values)

    found = (result(*arguments), generate)
    # numba wants the parameters one by one
    typed: dict[int, Callable[..., Any]] = {
        1: lambda _, a: found,
        2: lambda _, a, b: found,
        3: lambda _, a, b, c: found,
        4: lambda _, a, b, c, d: found,
        7: lambda _, a, b, c, d, e, f, g: found,
    }
    return numba.extending.intrinsic(typed[len(arguments)])


def _lowest_bit(b: Any, word: Any) -> Any:
    return b.cttz(word, ir.Constant(ir.IntType(1), 1))  # a word that is not zero


bits_set = operation(types.uint64, (types.uint64,), lambda b, word: b.ctpop(word))
"""How many bits of a word are set."""


lowest_bit = operation(types.uint64, (types.uint64,), _lowest_bit)
"""Position of the lowest bit that is set in a word that is not zero."""
