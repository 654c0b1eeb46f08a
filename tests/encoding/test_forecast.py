"""`encode --dry-run`: nothing is written, and what is estimated is near what comes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import relex_codec
from relex_codec.encoding.forecast import sample_of
from support import bands
from support.commands import cli, failed


def test_what_is_told_is_near_what_comes(tmp_path: Path) -> None:
    bands.make(tmp_path)
    (tmp_path / "run/global_step_10/optimizer.pt").write_bytes(bytes(5000))
    arguments = ["encode", tmp_path / "run", "--base", tmp_path / "base", "--exact", "-o", tmp_path / "x.relex"]
    before = sorted(path.name for path in tmp_path.iterdir())
    told = json.loads(cli(*arguments, "--dry-run", "--json").stdout)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    size = relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", exact=True)
    assert 0.8 * size < told["bytes"] < 1.2 * size
    assert told["steps"] == bands.STEPS
    assert told["tensors"] == {"line": 5, "stored": 1, "copies": 0}
    assert told["processor_seconds"] > 0
    assert told["left_out"] == [{"what": "optimizer.pt", "files": 1, "bytes": 5000}]
    shown = cli(*arguments, "--dry-run").stdout.splitlines()
    kinds = "5 with a line, 1 stored as they are, 0 copies of others"
    assert shown[0] == f"4 steps of {told['parameters']:,} parameters; tensors: {kinds}"
    assert shown[-1] == "not in the file: optimizer states (5 kB)"


def test_what_encode_refuses_is_refused(tmp_path: Path) -> None:
    bands.make(tmp_path)
    arguments = ["encode", tmp_path / "run", "--base", tmp_path / "base", "-o", tmp_path / "x.relex", "--dry-run"]
    failed(cli(*arguments, "--rank", "0"), "rank is 0, expected at least 1")


@pytest.mark.parametrize(
    ("sizes", "expected"), [([], []), ([0, 0], []), ([7], [0]), ([1] * 8, list(range(8))), ([1, 100, 1], [1])]
)
def test_samples_are_where_the_bytes_are(sizes: list[int], expected: list[int]) -> None:
    assert sample_of(sizes) == expected
