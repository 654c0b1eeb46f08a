"""Machine code on disk: loaded without numba, and only if it is whole, and of these sources, tools and processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relex_codec.core import machine_code
from relex_codec.core.machine_code import MachineCode

LOOPS = """
import numpy as np
def total(numbers, count, factor):
    found = 0
    for i in range(count):
        found += np.int64(numbers[i])
    return found * FACTOR + np.int64(factor)
"""
CALL = """
import json, sys
sys.path.insert(0, FOLDER)
import numpy as np
from relex_codec.core.machine_code import MachineCode
total = MachineCode("loops_of_a_test.loops", "total", "Bqf")
numbers = np.array([1, 2, 250], np.uint8)
print(json.dumps([total(numbers.ctypes.data, len(numbers), 0.5), "numba" in sys.modules]))
"""
Runner = Callable[..., list[object]]


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    """Call a function in a new process, with a given factor in its source; returns the sum, and if numba is there."""
    folder = tmp_path / "loops_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").touch()

    def called(factor: int = 1, before: str = "", **environment: str) -> list[object]:
        (folder / "loops.py").write_text(LOOPS.replace("FACTOR", str(factor)))
        code = before + CALL.replace("FOLDER", repr(str(tmp_path)))
        everything = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), **environment}
        command = [sys.executable, "-B", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=everything, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        found: list[object] = json.loads(done.stdout)
        return found

    return called


@pytest.mark.slow
def test_it_is_compiled_once_for_the_same_sources(run: Runner) -> None:
    assert [run(), run()] == [[253, True], [253, False]]
    assert [run(2), run(2), run()] == [[506, True], [506, False], [253, False]]


@pytest.mark.slow
def test_another_processor_or_setting_has_code_of_its_own(run: Runner) -> None:
    assert [run(), run(NUMBA_OPT="1"), run(NUMBA_OPT="1"), run()] == [[253, numba] for numba in (1, 1, 0, 0)]
    other = "import llvmlite.binding as llvm\nllvm.get_host_cpu_name = lambda: 'generic'\n"
    assert [run(before=other), run(before=other), run()] == [[253, numba] for numba in (1, 0, 0)]


def spoiled(data: bytes) -> Iterator[bytes]:
    """What a loss of power, or a bad disk, makes of a file."""
    yield from (b"", data[: len(data) // 2], data[:-1], bytes(len(data)), data + b"\0")
    for at in (0, len(data) // 3, len(data) // 2, len(data) - 40, len(data) - 1):
        yield data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


@pytest.mark.slow
def test_what_is_not_whole_is_made_anew(run: Runner, tmp_path: Path) -> None:
    assert run() == [253, True]
    (path,) = (tmp_path / "cache").iterdir()
    data = path.read_bytes()
    for bad in list(spoiled(data))[::3]:
        path.write_bytes(bad)
        assert [run(), run()] == [[253, True], [253, False]]
        assert path.read_bytes() == data


def test_every_byte_of_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    code = MachineCode("relex_codec.format.fill_expand", "expand", "QqBBq")
    made = machine_code.Compiled("name", b"x" * 50)
    code._keep(made)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    assert list(code._on_disk()) == [made]
    for bad in (*(data[:length] for length in range(len(data))),
                *(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data)))):  # fmt: skip
        path.write_bytes(bad)
        assert list(code._on_disk()) == []
    other = MachineCode("relex_codec.format.fill_expand", "count_flags", "Qq")
    path.rename(next(other._places()))
    next(other._places()).write_bytes(data)
    assert list(other._on_disk()) == []  # that of another function under this one's name


@pytest.mark.slow
def test_where_nothing_can_be_kept_it_is_compiled_each_time(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    assert [run(), run()] == [[253, True]] * 2
    full = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    full += "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
    (tmp_path / "cache").unlink()
    assert run(before=full) == [253, True]
    assert list((tmp_path / "cache").iterdir()) == []


def test_code_that_needs_numba_is_refused() -> None:
    """It would end the process when it is loaded."""
    from relex_codec.core.jit import object_code

    def takes(numbers: Any, count: Any) -> int:
        return np.int64(count + numbers[0])

    def calls(count: Any) -> int:
        return np.int64(np.sqrt(np.float64(count)))

    assert object_code(takes, "Bq").code
    with pytest.raises(AssertionError, match="calls calls "):
        object_code(calls, "q")


def test_an_exception_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(count: Any) -> int:
        if count > 3:
            raise ValueError("many")
        return np.int64(count)

    from relex_codec.core.jit import object_code

    code = MachineCode("relex_codec.format.fill_expand", "raises", "q")
    monkeypatch.setattr(code, "_on_disk", lambda: iter([object_code(raises, "q")]))
    assert code(3) == 3
    with pytest.raises(AssertionError, match="raises raised"):
        code(4)


def test_codes_of_the_package_are_loaded() -> None:
    from relex_codec.format.chunks import count_flags, expand

    flags = np.array([0b1011, 1 << 63], np.uint64)
    rest, out = np.array([5, 6, 7, 8], np.uint8), np.full(128, 9, np.uint8)
    assert count_flags(flags.ctypes.data, 2) == 4
    assert expand(flags.ctypes.data, 2, rest.ctypes.data, out.ctypes.data, 7) == 1
    assert out[[0, 1, 2, 3, 127]].tolist() == [5, 6, 9, 7, 8] and (out == 9).sum() == 124
