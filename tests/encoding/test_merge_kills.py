"""A kill before and after each call to the operating system of `merge`: parts stay, and the file is whole or not there.

`benchmarks/engines.py` kills whole commands at random moments.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import relex_codec
from support import bands
from support.commands import ELSEWHERE

KILLS = """
    import os, sys
    from pathlib import Path
    import relex_codec
    from support.killing import in_fork

    folder, old = Path(sys.argv[1]), sys.argv[2] == "over another file"
    parts = [folder / f"x.relex.part-{number}-of-2" for number in (1, 2)]
    before, right = [part.read_bytes() for part in parts], (folder / "one.relex").read_bytes()
    out = folder / "out" / "x.relex"
    out.parent.mkdir()

    def merge():
        relex_codec.merge(parts, out, overwrite=old)

    def prepare():
        out.unlink(missing_ok=True)
        if old:
            out.write_bytes(b"old")

    prepare()
    code, calls = in_fork(merge)
    assert code == 0 and calls > 10 and out.read_bytes() == right, (code, calls)
    killed = 0
    # copying in the middle is the same call again and again; what is new comes at both ends
    for at in sorted({*range(8), *range(8, calls - 12, 4), *range(max(8, calls - 12), calls)} & {*range(calls)}):
        for after in (False, True) if at == calls - 1 else (False,):
            prepare()
            code, _ = in_fork(merge, at, after=after)
            assert code == -9, (at, after, code)
            killed += 1
            found = out.read_bytes() if out.exists() else None
            assert found in (right, b"old" if old else None), (at, after)
            assert [part.read_bytes() for part in parts] == before
    prepare()
    merge()
    assert out.read_bytes() == right and os.listdir(out.parent) == ["x.relex"], os.listdir(out.parent)
    print(killed)
"""


@pytest.mark.parametrize("what", ["to a new place", "over another file"])
def test_killed_merges_leave_all_or_nothing(what: str, tmp_path: Path) -> None:
    bands.make(tmp_path)

    def encode(name: str, shard: str | None = None) -> None:
        relex_codec.encode(
            tmp_path / "run", tmp_path / name, base=tmp_path / "base", exact=True, base_uri="base", shard=shard
        )

    encode("one.relex")
    encode("x.relex", "1/2")
    encode("x.relex", "2/2")
    code = f"import sys; sys.path[:0] = {sys.path!r}\n{textwrap.dedent(KILLS)}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), what], cwd=ELSEWHERE, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
