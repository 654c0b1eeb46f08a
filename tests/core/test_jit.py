"""Compiled code that is kept on disk belongs to the sources it was made from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
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
    for name in ("jit.py", "machine_code.py", "forks.py"):
        shutil.copy(Path(jit.__file__).parent / name, package / name)
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


DOUBLE = """
from relex_codec.core.jit import compiled
def outer(x):
    return 2 * x
outer = compiled(outer)
print(outer(21), outer(1.5), sum(outer.stats.cache_hits.values()))
"""


def spoiled(data: bytes) -> Iterator[bytes]:
    """What a loss of power, or a bad disk, makes of a file."""
    yield from (b"", data[: len(data) // 2], data[:-1], bytes(len(data)))
    for at in (0, len(data) // 3, len(data) // 2, len(data) - 40, len(data) - 1):
        yield data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


@pytest.mark.slow
def test_files_of_the_cache_that_are_not_whole_are_made_anew(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(DOUBLE)
    cache = tmp_path / "cache"

    def run() -> str:
        command = [sys.executable, str(tmp_path / "script.py")]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    assert [run(), run()] == ["42 3.0 0", "42 3.0 2"]
    files = {path: path.read_bytes() for path in cache.rglob("*.nb?")}
    assert sorted(path.suffix for path in files) == [".nbc", ".nbc", ".nbi"]
    for number in range(4):  # several at once: each run is a process
        for path, data in files.items():
            path.write_bytes(list(spoiled(data))[number if number < 3 else 6])
        assert run() == "42 3.0 0"
        assert run() == "42 3.0 2"
    for path, data in files.items():
        path.write_bytes(data)
        path.write_bytes(list(spoiled(data))[1])
        assert run().startswith("42 3.0"), path


def test_every_byte_of_the_cache_counts(tmp_path: Path) -> None:
    files = jit._CheckedFiles(str(tmp_path), "f", "stamp")
    files.save("key", ("code", b"x" * 100))
    files.save("other", ("code", b"y"))
    right = ("code", b"x" * 100), ("code", b"y")
    assert (files.load("key"), files.load("other"), files.load("none")) == (*right, None)
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path, data in whole.items():
        cut = (data[:length] for length in range(len(data)))
        flipped = (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data)))
        for bad in (*cut, *flipped):
            path.write_bytes(bad)
            found = files.load("key"), files.load("other")
            assert found in ((None, None), (None, right[1]), (right[0], None))
        path.write_bytes(data)
    assert jit._CheckedFiles(str(tmp_path), "f", "other stamp").load("key") is None


def test_an_entry_under_anothers_name_is_not_run(tmp_path: Path) -> None:
    """Two processes that begin an index at the same moment both call their entry the first one."""
    first, second = (jit._CheckedFiles(str(tmp_path), "f", "stamp") for _ in range(2))
    first.save("int", "code for int")
    index = (tmp_path / "f.nbi").read_bytes()
    (tmp_path / "f.nbi").unlink()
    second.save("float", "code for float")
    assert second.load("float") == "code for float"
    (tmp_path / "f.nbi").write_bytes(index)
    assert first.load("int") is None
