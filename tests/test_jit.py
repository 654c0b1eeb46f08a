"""Compiled code that is kept on disk belongs to the sources it was made from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from relex_codec import jit

CODE = """
import sys
sys.path.insert(0, {folder!r})
from package.jit import compiled
from package.other import inner
from package.outer import outer
print(outer(3), sum(outer.stats.cache_hits.values()))
"""


def test_a_change_in_another_file_is_noticed(tmp_path: Path) -> None:
    """numba itself looks at the file of the outer function only, which stays as it is."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(jit.__file__, package / "jit.py")
    outer = "from .jit import compiled\nfrom .other import inner\n@compiled\ndef outer(x):\n    return inner(x) + 1\n"
    (package / "outer.py").write_text(outer)

    def run(factor: int) -> str:
        inner = f"from .jit import inlined\n@inlined\ndef inner(x):\n    return x * {factor}\n"
        (package / "other.py").write_text(inner)
        command = [sys.executable, "-c", CODE.format(folder=str(tmp_path))]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.strip()

    assert run(2) == "7 0"
    assert run(2) == "7 1"  # from disk
    assert run(5) == "16 0"
    assert run(2) == "7 1"
