"""No output goes over the base that a file is decoded with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import relex_codec
from relex_codec import InvalidArgument
from support.checkpoints import write_checkpoint, write_run
from support.tensors import Tensor, bf16


def weights(step: int) -> dict[str, Tensor]:
    return {"w": bf16(np.arange(60).reshape(6, 10) * (1 + step * 1e-2))}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint-1", weights(0))
    write_run(tmp_path / "run", [1, 2, 3], weights, layout="checkpoint-{}")
    return tmp_path


def test_weights_of_the_base_are_not_replaced(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = place / "checkpoint-1"
    relex_codec.encode(place / "run", place / "x.relex", base=base, exact=True)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    (place / "link").symlink_to(base)
    monkeypatch.chdir(base)
    with relex_codec.open(place / "x.relex") as run:
        for output in (base, place / "link", "."):
            with pytest.raises(InvalidArgument, match="the base is there"):
                run.save(output, 2, overwrite=True)
        with pytest.raises(InvalidArgument, match="the base is there"):
            run.restore(place, overwrite=True)
        run.restore(place, steps="2:3", overwrite=True)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_a_base_that_is_in_the_file_may_be_replaced(place: Path) -> None:
    base = place / "checkpoint-1"
    relex_codec.encode(place / "run", place / "x.relex", base=base, exact=True, embed_base=True)
    with relex_codec.open(place / "x.relex") as run:
        run.save(base, 2, overwrite=True)
        assert run.check_exact() == 3
