"""Compiled code that is kept on disk belongs to the sources it was made from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from relex_codec.core import jit

CODE = """
import sys
sys.path.insert(0, {folder!r})
from package.jit import compiled
from package.other import inner
from package.outer import outer
print(outer(3), sum(outer.stats.cache_hits.values()))
"""


@pytest.mark.slow
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


def test_a_full_disk_is_no_error(tmp_path: Path) -> None:
    """What cannot be kept is compiled again the next time."""
    code = """
        import resource, sys
        from relex_codec.core.jit import compiled
        import numba
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        def double(x):
            return 2 * x
        print(compiled(double)(21))
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "42"), done.stderr
