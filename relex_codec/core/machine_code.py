"""Machine code of compiled functions, kept on disk and loaded without numba.

Importing numba, and setting up its compiler to load what it has kept, takes longer than decoding a small model. So what
decodes is compiled to plain functions of numbers and addresses. They count no references, raise nothing and call
nothing, and their object code is loaded by llvmlite alone. numba is imported where there is none on disk yet.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

from .forks import new_lock

PACKAGE: Final = Path(__file__).parent.parent
SHARED: Final = (
    "core/jit.py",
    "core/dtypes.py",
    "format/constants.py",
    "kernels/cpu/llvm_ops.py",
    "kernels/cpu/tables.py",
)
"""Files that compiled code of other folders takes constants or functions in from; a test compares this with imports."""
DIGEST: Final = 32
"""Bytes at the end of each file."""
ARGUMENTS: Final[dict[str, Any]] = {"q": ctypes.c_int64, "f": ctypes.c_float, "B": ctypes.c_int64, "Q": ctypes.c_int64}
"""Kinds of arguments: an int64, which may be an address, a float32, addresses of uint8 and of uint64."""
_KEPT: Final[list[Any]] = []
"""Engines, whose code must not go away."""


@lru_cache
def sources(folder: Path) -> str:
    """Return a digest of the modules in a folder, and of those elsewhere whose constants they compile in."""
    digest = hashlib.sha256()
    for path in (*sorted(folder.glob("*.py")), *(PACKAGE / name for name in SHARED)):
        if path.exists():
            digest.update(path.read_bytes())
    return digest.hexdigest()


class Compiled(NamedTuple):
    """A compiled function.

    Attributes:
        symbol: its name in the object code.
        code: an object file.
    """

    symbol: str
    code: bytes


class MachineCode:
    """A compiled function of numbers and addresses, which returns an integer; it runs without the GIL.

    It is loaded when it is first called.

    Args:
        module: where the function is, which numba compiles.
        name: of the function.
        arguments: a letter for each; see `ARGUMENTS`.
    """

    def __init__(self, module: str, name: str, arguments: str) -> None:
        self.module, self.name, self.arguments = module, name, arguments
        self._function: Any = None
        self._lock = new_lock()

    def __call__(self, *values: Any) -> int:
        """Call it. What addresses point to is as large as the function wants: nothing is checked."""
        result, exception = ctypes.c_int64(), ctypes.c_void_p()
        if self._loaded()(ctypes.byref(result), ctypes.byref(exception), *values):
            raise AssertionError(f"{self.name} raised an exception, which it must not")
        return result.value

    def _loaded(self) -> Any:
        if self._function is None:
            with self._lock:
                if self._function is None:
                    self._function = self._load()
        return self._function

    def _load(self) -> Any:
        found = next(self._on_disk(), None)
        if found is None:
            found = self.compile()
            self._keep(found)
        kinds = [ARGUMENTS[letter] for letter in self.arguments]
        return ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *kinds)(_address(found))

    def compile(self) -> Compiled:
        """Compile it with numba."""
        from .jit import object_code

        return object_code(getattr(import_module(self.module), self.name), self.arguments)

    def _key(self) -> bytes:
        """What the code on disk was made from, and for."""
        spec = find_spec(self.module)
        assert spec is not None and spec.origin is not None
        environment = sorted((k, v) for k, v in os.environ.items() if k.startswith("NUMBA_") and k != "NUMBA_CACHE_DIR")
        what = [self.module, self.name, self.arguments, sources(Path(spec.origin).parent), *_tools(), environment]
        return json.dumps(what).encode()

    def _places(self) -> Iterator[Path]:
        name = f"{self.module}.{self.name}-{hashlib.sha256(self._key()).hexdigest()[:16]}.code"
        return (folder / name for folder in _folders())

    def _on_disk(self) -> Iterator[Compiled]:
        """Yield what `_keep` has written, whole and from the same key."""
        key = self._key()
        for path in self._places():
            with suppress(OSError):
                raw = path.read_bytes()
                content, digest = raw[:-DIGEST], raw[-DIGEST:]
                if digest == hashlib.sha256(key + content).digest():
                    symbol, _, code = content.partition(b"\n")
                    yield Compiled(symbol.decode(), code)

    def _keep(self, found: Compiled) -> None:
        """Write it to the first place that takes it; if none does, it is compiled again the next time."""
        content = found.symbol.encode() + b"\n" + found.code
        content += hashlib.sha256(self._key() + content).digest()
        for path in self._places():
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".relex-")
                try:
                    with os.fdopen(handle, "wb") as file:
                        file.write(content)
                    os.replace(temporary, path)
                except BaseException:
                    os.unlink(temporary)
                    raise
                return


def _folders() -> Iterator[Path]:
    """Yield where code may be kept, as numba does: where the user says, beside the package, in the user's cache."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen)
        return
    yield PACKAGE / "__pycache__"
    with suppress(RuntimeError):  # a user without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relex-codec"


@lru_cache
def _tools() -> tuple[str, ...]:
    """Return what makes and runs the code: releases and processor."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    processor = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return sys.version, version("numba"), version("llvmlite"), llvm.get_process_triple(), *processor


def _address(found: Compiled) -> int:
    """Load object code, and return where its function is."""
    import llvmlite.binding as llvm

    _tools()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(found.code))
    engine.finalize_object()
    _KEPT.append(engine)
    return int(engine.get_function_address(found.symbol))
