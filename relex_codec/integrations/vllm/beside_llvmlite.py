"""An engine of vLLM 0.32 on CPUs in a process that has loaded llvmlite, as decoding does.

When it starts, vLLM looks through `vars` of every object in every module for kernels to replace. llvmlite's library
object answers any name, ``__dict__`` too, with a wrapped function, and vLLM stops at that: ``'_lib_fn_wrapper' object
has no attribute 'get'``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any


def mend() -> None:
    """Have vLLM find an empty ``__dict__`` in llvmlite's library whenever it replaces kernels.

    Where a version of vLLM replaces none, or does it elsewhere, nothing is changed.
    """
    try:
        from vllm.triton_utils import dispatcher
    except ImportError:
        return
    register: Callable[..., None] | None = getattr(dispatcher, "register_kernels", None)
    if register is None:
        return

    @wraps(register)
    def register_kernels(*args: Any, **kwargs: Any) -> None:
        with plain_library():
            register(*args, **kwargs)

    dispatcher.register_kernels = register_kernels


@contextmanager
def plain_library() -> Iterator[None]:
    """While this lasts, `vars` of llvmlite's library is an empty dict, if llvmlite is loaded."""
    library = getattr(sys.modules.get("llvmlite.binding.ffi"), "lib", None)
    functions = getattr(library, "_fntab", None)
    if not isinstance(functions, dict):
        yield
        return
    functions["__dict__"] = {}
    try:
        yield
    finally:
        functions.pop("__dict__", None)
