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
from hypothesis import settings

import relex_codec
from support import specification
from support.checkpoints import write_checkpoint, write_run
from support.faulty import Faulty
from support.filesystems import empty_memory
from support.runs import SIDE, Made, zoo
from support.shared import made_once

pytest_plugins = ["support.servers.fixtures", "support.servers.runs", "support.hub_server"]


def pytest_configure() -> None:
    """Without a GPU Triton's kernels run in its interpreter, which it asks for when it is imported: so before that."""
    assert "triton" not in sys.modules
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


# Times say nothing on a machine that others use as well. Examples stay random in CI too: fixed ones would only
# repeat the run before, and what fails is printed in a form that can be run again anywhere.
settings.register_profile("relex", deadline=None, print_blob=True)
settings.load_profile("relex")


SERVERS = {
    "stores",
    "nginx_server",
    "hub",
    "web",
    "own_web",
    "place",
    "proxied",
    "replaceable",
    "reports",
    "saved_by_ranks",
}
"""Fixtures that start servers or processes of a group, or have others started."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs servers, by the fixtures that it takes: no test can be forgotten."""
    for item in items:
        if isinstance(item, pytest.Function) and SERVERS & set(item.fixturenames):
            item.add_marker("servers")


@pytest.fixture(scope="session")
def zoo_run(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every kind of tensor, seven uneven steps, base and checkpoints in three shards."""
    base, at = zoo()
    steps = [1, 2, 5, 9, 14, 20, 23]

    def make(root: Path) -> None:
        write_checkpoint(root / "base", base, shards=3, side=SIDE)
        write_run(root / "run", steps, at, shards=3)

    return Made(made_once(tmp_path_factory, "zoo", make), steps, base, at)


@pytest.fixture(scope="session")
def zoo_file(zoo_run: Made, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Encode the zoo: ``zoo_file("raw", rank=2)``; each combination once a test run."""

    def make(quality: str | float = "raw", **options: Any) -> Path:
        def encode(path: Path) -> None:
            base = zoo_run.base_path  # which the file finds from wherever a test puts it
            size = relex_codec.encode(zoo_run.run, path, base=base, base_uri=str(base), quality=quality, **options)
            assert size == path.stat().st_size

        name = f"{quality}-" + "-".join(f"{k}={v}" for k, v in sorted(options.items()))
        return made_once(tmp_path_factory, f"{name}.relex", encode)

    return make


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The reference decoder, which shares no code with the package."""
    return specification.ref


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
