"""Compiled functions: numba behind one typed decorator.

numba compiles at the first call and keeps the result on disk. It neither contracts nor reorders arithmetic unless told
to, so compiled code gives the bits that Python's integers and numpy's float32 give.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import compiler, registry
from numba.core.caching import FunctionCache, IndexDataCacheFile

from .machine_code import DIGEST, Compiled, sources

F = TypeVar("F", bound=Callable[..., Any])
INTERPRETED: Final = bool(numba.config.DISABLE_JIT)  # type: ignore[attr-defined]
"""Whether compiling is switched off: NUMBA_DISABLE_JIT."""


class _CheckedFiles(IndexDataCacheFile):
    """Index and entries of a function's cache, each with a digest at its end: what does not load whole is a miss.

    numba unpickles what it finds, and runs the machine code in it. After a loss of power a file may be empty, cut or
    full of zeros, and two processes that begin an index at the same moment may give two entries one name, so an entry
    also says which one it is.
    """

    def load(self, key: Any) -> Any:
        """Return the entry of `key`, or None."""
        name = self._load_index().get(key)
        found = None if name is None else self._unpickled(self._data_path(name))
        return found[1] if found is not None and found[0] == key else None

    def save(self, key: Any, data: Any) -> None:
        """Add an entry."""
        super().save(key, (key, data))

    def _load_index(self) -> dict[Any, str]:
        stamp, entries = self._unpickled(self._index_path) or (None, {})
        return dict(entries) if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._write(self._index_path, (self._source_stamp, overloads))

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), data)

    def _write(self, path: str, content: Any) -> None:
        raw = self._dump(content)
        with self._open_for_write(path) as out:
            out.write(raw + _digest_of_entry(raw))

    @staticmethod
    def _unpickled(path: str) -> Any:
        """Return what `_write` wrote, by the same releases of what makes the code; None: there is nothing whole."""
        try:
            with open(path, "rb") as file:
                raw = file.read()
        except OSError:
            return None
        content, digest = raw[:-DIGEST], raw[-DIGEST:]
        return pickle.loads(content) if digest == _digest_of_entry(content) else None


def _digest_of_entry(content: bytes) -> bytes:
    return hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}\n".encode() + content).digest()


class _Cache(FunctionCache):
    """numba's cache, for the code as it is now, and without trust in what a disk made of it.

    numba compares the file of a function only. What the function calls and inlines from other files would be kept as it
    was, and encoder and decoder might no longer agree.
    """

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        found = self._impl
        self._cache_file = _CheckedFiles(self._cache_path, found.filename_base, found.locator.get_source_stamp())

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), sources(Path(self._py_func.__code__.co_filename).parent))

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # a full disk: then it is compiled again the next time
            super().save_overload(sig, data)


def compiled(function: F) -> F:
    """Compile `function` when it is first called; it runs without the GIL."""
    return _kept(function, numba.njit(nogil=True)(function))


def woven(function: F) -> F:
    """The same for a function that is made a part of each one that calls it by LLVM, arrays among its arguments or not.

    References to arrays that are counted up and down again in one function are not counted at all.
    """
    return _kept(function, numba.njit(nogil=True, forceinline=True)(function))


def summing(function: F) -> F:
    """The same for a function that adds up floats, whose sums may be taken in another order, with fused products.

    So sums fill vector registers, and their last bits depend on the processor. NaNs and infinities stay what they are.
    """
    return _kept(function, numba.njit(nogil=True, fastmath={"reassoc", "contract"})(function))


def _kept(function: F, dispatcher: Any) -> F:
    """Keep on disk what `dispatcher` compiles."""
    if hasattr(dispatcher, "_cache"):  # not where compiling is switched off
        with suppress(RuntimeError):  # where neither the package's folder nor the user's cache can be written
            dispatcher._cache = _Cache(function)
    return cast(F, dispatcher)


_ARGUMENTS: Final = {
    "q": types.int64, "f": types.float32, "B": types.CPointer(types.uint8), "Q": types.CPointer(types.uint64),
}  # fmt: skip
"""What `machine_code.ARGUMENTS` are to numba."""
_PROVIDED: Final = ("memcpy", "memset", "memmove")
"""Functions of the C library that LLVM may call."""


def object_code(function: Any, arguments: str) -> Compiled:
    """Compile a function of numbers and addresses to object code that needs nothing of numba.

    Divisions are those of numpy, which raise nothing; divisors are not zero.

    Args:
        arguments: see `MachineCode`.

    Raises:
        AssertionError: the function calls something of Python's or numba's.
    """
    flags: Any = compiler.Flags()
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    target = registry.cpu_target
    kinds = tuple(_ARGUMENTS[letter] for letter in arguments)
    typing, context = target.typing_context, target.target_context
    found = compiler.compile_extra(typing, context, function, kinds, types.int64, flags, {})
    module = llvmlite.binding.parse_assembly(found.library.get_llvm_str())
    wanted = {one.name for one in module.functions if one.is_declaration and not one.name.startswith("llvm.")}
    if not wanted <= set(_PROVIDED):
        raise AssertionError(f"{function.__name__} calls {sorted(wanted)}")
    return Compiled(found.fndesc.mangled_name, found.library._codegen._tm.emit_object(module))


def inlined(function: F) -> F:
    """Make `function`, of numbers only, a part of each compiled function that calls it.

    Arrays as arguments of such a function would be counted as references at every call, at five times the cost of
    decoding a symbol; a function of arrays is `compiled` or written out.
    """
    return cast(F, numba.njit(inline="always")(function))


def operation(
    result: Any, arguments: tuple[Any, ...], build: Callable[..., Any], interpreted: Callable[..., Any] | None = None
) -> Any:
    """Return a function for compiled code whose instructions are made by ``build(builder, *values)``.

    Args:
        result, arguments: types of numba.
        interpreted: does the same where compiling is switched off, as tests do for the interpreter's bounds checks.
    """
    if INTERPRETED and interpreted is not None:
        return interpreted

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


bits_set = operation(
    types.uint64, (types.uint64,), lambda b, word: b.ctpop(word), lambda word: np.uint64(int(word).bit_count())
)
"""How many bits of a word are set."""


leading_zeros = operation(
    types.int64, (types.int64,), lambda b, word: b.ctlz(word, ir.Constant(ir.IntType(1), 0)),
    lambda word: 64 - (int(word) & (1 << 64) - 1).bit_length(),
)  # fmt: skip
"""How many bits of a number are zero above its highest one; 64 of 0."""


lowest_bit = operation(
    types.uint64, (types.uint64,), _lowest_bit, lambda word: np.uint64((int(word) & -int(word)).bit_length() - 1)
)
"""Position of the lowest bit that is set in a word that is not zero."""


def _differing(_: Any, old: Any, new: Any, first: Any) -> Any:
    def build(context: Any, b: Any, signature: Any, values: Any) -> Any:
        many = ir.VectorType(ir.IntType(signature.args[0].dtype.bitwidth), 64)

        def loaded(kind: Any, value: Any) -> Any:
            place = b.gep(context.make_array(kind)(context, b, value).data, [values[2]])
            return b.load(b.bitcast(place, many.as_pointer()), align=1)

        one, other = (loaded(signature.args[i], values[i]) for i in (0, 1))
        return b.bitcast(b.icmp_unsigned("!=", one, other), ir.IntType(64))

    return types.uint64(old, new, types.int64), build


def _differing_interpreted(old: Any, new: Any, first: int) -> np.uint64:
    return np.uint64(sum(1 << k for k in range(64) if old[first + k] != new[first + k]))


differing: Any = _differing_interpreted if INTERPRETED else numba.extending.intrinsic(_differing)
"""``differing(old, new, first)``: which of 64 elements of two arrays from `first` on differ, a bit for each.

Both are one-dimensional, contiguous, and of one integer dtype; that the elements are there is not checked.
"""
