"""`encode --dry-run`: nothing is written, and what is estimated is near what comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import bands


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = bands.make(tmp_path_factory.mktemp("forecast"))
    (root / "run/global_step_10/optimizer.pt").write_bytes(bytes(5000))
    return root
