"""Whether two files hold the same run."""

from __future__ import annotations

from pathlib import Path

import relex_codec
from support.tensors import bits_of


def assert_same_but_for_names(one: Path, other: Path, base: Path) -> None:
    """Check that two files hold the same weights in the same bytes, whatever files and directories are called."""
    with relex_codec.open(one, base=base) as a, relex_codec.open(other, base=base) as b:
        x, y = (file._reader.container for file in (a, b))
        assert a.steps == b.steps and list(a) == list(b) and a.observed_steps == b.observed_steps
        assert x.index.chunks["crc"].tolist() == y.index.chunks["crc"].tolist()
        assert x.index.directions.tobytes() == y.index.directions.tobytes()
        assert x.index.has_exact == y.index.has_exact
        for step in (*a.steps, a.steps[-1] + 100):
            found, expected = a.state_dict(step), b.state_dict(step)
            assert found.keys() == expected.keys()
            assert all((bits_of(found[name]) == bits_of(expected[name])).all() for name in found), step
