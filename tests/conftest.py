"""Runs and files that several test modules read; made once a session, never changed."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import relex_codec
from support.checkpoints import write_checkpoint, write_run
from support.faulty import Faulty
from support.filesystems import empty_memory
from support.reference import script
from support.runs import SIDE, Made, zoo

pytest_plugins = ["support.servers.fixtures", "support.servers.runs", "support.hub_server"]


def pytest_configure() -> None:
    """Without a GPU Triton's kernels run in its interpreter, which it asks for when it is imported: so before that."""
    assert "triton" not in sys.modules
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def zoo_run(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every kind of tensor, seven uneven steps, base in three shards, checkpoints in two."""
    root = tmp_path_factory.mktemp("zoo")
    base, at = zoo()
    steps = [1, 2, 5, 9, 14, 20, 23]
    write_checkpoint(root / "base", base, shards=3, side=SIDE)
    write_run(root / "run", steps, at, shards=2)
    return Made(root, steps, base, at)


@pytest.fixture(scope="session")
def zoo_file(zoo_run: Made, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Encode the zoo: ``zoo_file("raw", rank=2)``; each combination once."""
    folder = tmp_path_factory.mktemp("zoo_files")
    known: dict[str, Path] = {}

    def make(quality: str | float = "raw", **options: Any) -> Path:
        key = f"{quality}-" + "-".join(f"{k}={v}" for k, v in sorted(options.items()))
        if key not in known:
            path = folder / f"{key}.relex"
            size = relex_codec.encode(zoo_run.run, path, base=zoo_run.base_path, quality=quality, **options)
            assert size == path.stat().st_size
            known[key] = path
        return known[key]

    return make


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The reference decoder, which shares no code with the package."""
    return script("reference_decoder")


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's memory filesystem, empty before and after."""
    with empty_memory() as filesystem:
        yield filesystem


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files wait for their upload, also in new processes."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    Faulty.reset()
    return folder
