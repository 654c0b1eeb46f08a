"""A kill before and after each call to the operating system: nothing is lost, and the next run leaves nothing over.

`benchmarks/robustness.py` does the same with whole commands.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support.commands import ELSEWHERE

KILLS = """
    import os, shutil, sys
    from pathlib import Path
    from relex_codec.storage.leftovers import ScratchDirectory
    from relex_codec.storage.local_directory import AtomicDirectory
    from relex_codec.storage.local_writer import AtomicFile
    from support.killing import in_fork

    what, place = sys.argv[1], Path(sys.argv[2])
    out = place / "out"
    NAMES = ("model.safetensors", "step/a", "config.json")

    def prepare():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if what == "replaced file":
            out.write_bytes(b"old")
        if what in ("empty directory", "replaced directory"):
            out.mkdir()
        if what == "replaced directory":
            (out / "model.safetensors").write_bytes(b"old")
            (out / "notes").write_bytes(b"kept")

    def work():
        if what.endswith("file"):
            with AtomicFile(out) as file:
                file.write(b"new")
            return
        replaced = ["model.safetensors"] if what == "replaced directory" else None
        with AtomicDirectory(out, replaced=replaced) as directory:
            os.mkdir(os.path.join(directory.path, "step"))
            for name in NAMES:
                with directory.file(name) as file:
                    file.write(b"new")

    def found():
        files = (path for path in place.rglob("*") if path.is_file() and ".tmp-relex-" not in str(path))
        return {str(path.relative_to(place)): path.read_bytes() for path in files}

    prepare()
    code, calls = in_fork(work)
    right = found()
    assert code == 0 and calls > 5 and b"new" in right.values(), (code, calls, right)
    killed = 0
    for at in range(calls):
        for after in (False, True) if at == calls - 1 else (False,):  # the next call begins where this one ends
            prepare()
            before = found()
            code, _ = in_fork(work, at, after=after)
            assert code == -9, (at, after, code)
            killed += 1
            left = found()
            if what.endswith("file") or what == "directory":
                assert left in (before, right), (at, after, left)
            for name, data in left.items():
                assert data in (before.get(name), right.get(name)), (at, after, name)
            if what == "replaced directory":
                assert left["out/notes"] == b"kept"
            code, _ = in_fork(work)
            assert code == 0 or (code == 1 and left == right and "directory" in what), (at, after, code)
            assert found() == right, (at, after, found())
            names = [str(path) for path in place.rglob("*") if ".tmp-relex-" in path.name]
            assert not names, (at, after, names)
    print(killed)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("what", ["file", "replaced file", "directory", "empty directory", "replaced directory"])
def test_a_kill_at_each_call(what: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLS), what, str(tmp_path / "place")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ELSEWHERE, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10
