"""What compiled code takes in from other files is in the digest that its copy on disk is kept under."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from relex_codec.core import machine_code

PACKAGE = "relex_codec"
COMPILING = {"compiled", "summing", "inlined", "operation", "loop", "bits_set"}
"""Functions by which a module takes part in compiled code: those of core/jit.py, and the one of kernels/cpu."""
NOT_TAKEN_IN = {"errors.py", "core/machine_code.py"}
"""Compiled code raises nothing of ours: a module that imports an error has functions for the interpreter too. And what
keeps and loads compiled code is no part of it."""


def file_of(root: Path, module: tuple[str, ...]) -> Path | None:
    """The file of a module of the package, if it is one."""
    place = root.joinpath(*module)
    found = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in found if path.is_file()), None)


def imported(root: Path, path: Path) -> Iterator[Path]:
    """Files of the package that a module imports, wherever in it; not what only type checkers see."""
    here = path.relative_to(root).parts[:-1]
    tree = ast.parse(path.read_text())
    unseen = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        modules: list[tuple[str, ...]] = []
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            modules = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            tail = tuple(node.module.split(".")) if node.module else ()
            base = (PACKAGE, *here[: len(here) - node.level + 1]) if node.level else ()
            # a name may be a module; what is none is in the module that it is imported from
            modules = [(*base, *tail, alias.name) for alias in node.names] + [(*base, *tail)]
            named = [found for found in modules[:-1] if found[0] == PACKAGE and file_of(root, found[1:])]
            modules = named if len(named) == len(node.names) else modules
        for module in modules:
            if module[:1] == (PACKAGE,) and len(module) > 1 and (found := file_of(root, module[1:])):
                yield found


def compiling(root: Path) -> list[Path]:
    """Modules with functions that are compiled, or that become part of compiled ones."""
    found = []
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        numba = any(ast.unparse(node) == "numba.njit" for node in ast.walk(tree) if isinstance(node, ast.Attribute))
        taking_part = any(name in path.read_text() for name in (".jit ", ".inner_loops "))
        if path.name != "jit.py" and (numba or (names & COMPILING and taking_part)):
            found.append(path)
    return found


def outside(root: Path, shared: set[str]) -> set[tuple[str, str]]:
    """(module, file that it imports) where the file is in no digest of compiled code that may take it in."""
    known = {root / name for name in shared}
    seen: set[tuple[Path, Path]] = set()
    found: set[tuple[str, str]] = set()
    waiting = [(path.parent, path) for path in compiling(root)]
    while waiting:
        folder, path = waiting.pop()
        if (folder, path) in seen:
            continue
        seen.add((folder, path))
        for other in imported(root, path):
            if other.parent == folder or other in known:
                waiting.append((folder, other))
            elif str(other.relative_to(root)) not in NOT_TAKEN_IN:
                found.add((str(path.relative_to(root)), str(other.relative_to(root))))
    return found


def test_every_source_of_compiled_code_is_in_its_digest() -> None:
    assert outside(machine_code.PACKAGE, set(machine_code.SHARED)) == set()


def test_there_is_nothing_in_the_list_that_no_compiled_code_takes_in() -> None:
    for name in machine_code.SHARED:
        assert (machine_code.PACKAGE / name).is_file(), name
        assert outside(machine_code.PACKAGE, set(machine_code.SHARED) - {name}), name


def test_compiled_code_is_where_it_is_looked_for() -> None:
    found = {str(path.relative_to(machine_code.PACKAGE)) for path in compiling(machine_code.PACKAGE)}
    assert {path.split("/")[0] for path in found} == {"encoding", "exact", "kernels", "format", "journal"}
    assert {
        "exact/contexts.py", "exact/frame_decoder.py", "exact/frame_encoder.py", "exact/frequency_tables.py",
        "exact/interval_lists.py", "exact/ordered_words.py", "exact/rans.py", "format/fill_expand.py",
        "kernels/cpu/inner_loops.py", "kernels/cpu/llvm_ops.py", "kernels/cpu/loops.py",
    } <= found  # fmt: skip


def test_a_source_that_is_missing_in_the_digest_is_found(tmp_path: Path) -> None:
    """Directly, through a module beside it, by a relative import, and through a module of the list."""
    files = {
        "core/jit.py": "compiled = lambda f: f\n",
        "core/tables.py": "WIDTH = 3\n",
        "core/dtypes.py": "NAN = 5\n",
        "errors.py": "class Corrupt(Exception): ...\n",
        "exact/loops.py": (
            "from relex_codec.core.jit import compiled\nfrom relex_codec.errors import Corrupt\n"
            "from .sizes import SIZE\n@compiled\ndef f(): return SIZE\n"
        ),
        "exact/sizes.py": "SIZE = 4\n",
        "exact/reader.py": "from relex_codec.core.tables import WIDTH\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    shared = {"core/jit.py", "core/dtypes.py"}
    assert outside(tmp_path, shared) == set()
    assert outside(tmp_path, {"core/dtypes.py"}) == {("exact/loops.py", "core/jit.py")}
    for line in (
        "from relex_codec.core.tables import WIDTH", "from relex_codec.core import tables",
        "from ..core.tables import WIDTH", "from ..core import tables", "import relex_codec.core.tables",
    ):  # fmt: skip
        for name in ("exact/loops.py", "exact/sizes.py", "core/dtypes.py"):
            if name == "core/dtypes.py":
                (tmp_path / "exact/sizes.py").write_text("from relex_codec.core.dtypes import NAN as SIZE\n")
            (tmp_path / name).write_text(f"{line}\n{files[name]}")
            assert outside(tmp_path, shared) == {(name, "core/tables.py")}, (name, line)
            for changed in (name, "exact/sizes.py"):
                (tmp_path / changed).write_text(files[changed])
