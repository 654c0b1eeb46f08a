"""Runs that tests put on servers, made once a session, and what opens them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import relex_codec
from relex_codec.storage.header_cache import HEADER_CACHE
from support.checkpoints import write_checkpoint, write_run
from support.runs import Made
from support.shared import made_once
from support.tensors import Tensor, bf16

from .fixtures import Bucket

SHAPES = {"a": (1500, 1200), "b": (1000, 3000), "norm": (700,), "c": (2200, 1000), "still": (500, 300)}
STEPS = [2, 5, 6]


def weights(step: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    found = {}
    for i, (name, shape) in enumerate(shapes.items()):
        rng = np.random.default_rng(i)
        start, drift = (rng.standard_normal(shape, np.float32) * scale for scale in (0.05, 2e-3))
        found[name] = bf16(start + drift * step * (name != "still"))
    return found


@pytest.fixture(scope="session")
def cloud_run(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run whose file and base are several large reads each; the file beside the run is ``run.relex``."""

    def make(root: Path) -> None:
        write_checkpoint(root / "base", weights(0), shards=2)
        write_run(root / "run", STEPS, weights)
        relex_codec.encode(root / "run", root / "run.relex", base=root / "base", quality="raw")

    return Made(made_once(tmp_path_factory, "cloud", make), STEPS, weights(0), weights)


@pytest.fixture(scope="session")
def cloud_exact_run(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run with many steps, kept bit for bit."""
    shapes = {"a": (600, 1000), "b": (300, 900), "norm": (50,)}
    steps = list(range(1, 17))

    def at(step: int) -> dict[str, Tensor]:
        return weights(step, shapes)

    def make(root: Path) -> None:
        write_checkpoint(root / "base", at(0), shards=2)
        write_run(root / "run", steps, at)
        relex_codec.encode(root / "run", root / "run.relex", base=root / "base", quality="micro", exact=True)

    return Made(made_once(tmp_path_factory, "cloud_exact", make), steps, at(0), at)


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    """Nothing is known of any object when the test begins."""
    HEADER_CACHE.clear()
    yield
    HEADER_CACHE.clear()


def uploaded(bucket: Bucket, made: Made) -> Callable[[], relex_codec.Run]:
    """Put file and base of a run into a bucket; returns what opens it there."""
    bucket.put("run.relex", (made.root / "run.relex").read_bytes())
    bucket.upload(made.base_path, "base")
    options = bucket.options
    return lambda: relex_codec.open(bucket.url("run.relex"), base=bucket.url("base"), storage_options=options)
