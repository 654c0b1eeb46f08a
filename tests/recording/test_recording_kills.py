"""kill -9 at random moments: no committed step is lost, and nothing is deleted that is not archived."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import ELSEWHERE

TIMES = 10
"""Here; benchmarks/journal.py kills 50 times."""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["record", "watch"])
def test_nothing_is_lost(what: str, tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-W", "ignore", "-m", "support.killed", what, str(tmp_path), str(TIMES), "1"]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ELSEWHERE, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.fullmatch(r"10 kills: (\d+) steps, (\d+) deleted, (\d+) tails\n", done.stdout)
    assert found is not None
    assert int(found[1]) >= 3  # they did work
    assert int(found[2]) > 0 or what == "record"
