"""Files that are embedded beside the weights may be large, and a few bytes may decode to many."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import relex_codec
from relex_codec import InvalidArgument
from relex_codec.integrations.transformers import side_files
from relex_codec.run.run_reader import RunReader
from relex_codec.run.step_files import StepFiles
from support.checkpoints import write_checkpoint, write_run
from support.runs import SIDE
from support.servers.runs import weights

SHAPES = {"a": (30, 20)}
SIZE = 80 << 20
WORKING = 24 << 20
"""What writing takes, beside what is written: chunks on several threads."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a text of 80 MB in it, most of which is one letter."""
    folder = tmp_path_factory.mktemp("embedded")
    data = np.full(SIZE, ord("x"), np.uint8)
    data[:: 1 << 18] = np.arange(SIZE >> 18) % 26 + 65
    write_checkpoint(folder / "base", weights(0, SHAPES), side=SIDE | {"vocab.txt": data.tobytes()})
    write_run(folder / "run", [1, 2], lambda step: weights(step, SHAPES))
    base = folder / "base"
    relex_codec.encode(folder / "run", folder / "x.relex", base=base, quality="raw", exact=True, embed_base=True)
    assert (folder / "x.relex").stat().st_size < SIZE // 100
    return folder / "x.relex"


@pytest.mark.parametrize("how", ["save", "restore"])
def test_a_large_text_does_not_fill_the_memory(file: Path, tmp_path: Path, how: str) -> None:
    with relex_codec.open(file) as run:
        run.tensor("a", 2)
        tracemalloc.start()
        try:
            if how == "save":
                run.save(tmp_path / "out", 2)
            else:
                run.restore(tmp_path / "out")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < WORKING
    there = [tmp_path / "out"] if how == "save" else [tmp_path / "out" / f"global_step_{step}" for step in (1, 2)]
    for folder in there:
        assert (folder / "vocab.txt").read_bytes() == (file.parent / "base" / "vocab.txt").read_bytes()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("save", r"the step has 83,88\d,\d{3} bytes, 80,000,000 are free in .*; choose"),
        ("restore", r"the steps have 167,77\d,\d{3} bytes, 80,000,000 are free in .*; choose"),
        ("upload", r"a file of it has 83,88\d,\d{3} bytes, 80,000,000 are free in .*; set TMPDIR"),
        (
            "load_tokenizer",
            r"the files beside the weights have 83,88\d,\d{3} bytes, .*; set TMPDIR",
        ),
    ],
)
@pytest.mark.usefixtures("memory")
def test_room_for_it_is_looked_for_first(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, message: str
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(total=10**12, free=80_000_000))
    with relex_codec.open(file) as run, RunReader(file) as reader:
        do: dict[str, Callable[[], object]] = {
            "save": lambda: run.save(tmp_path / "out", 2),
            "restore": lambda: run.restore(tmp_path / "out"),
            "upload": lambda: run.save("memory://out", 2),
            "load_tokenizer": lambda: side_files(reader, reader.container.index.layout).__enter__(),
        }
        with pytest.raises(InvalidArgument, match=message):
            do[how]()
    assert os.listdir(tmp_path) == []


def test_ranges_of_it(file: Path) -> None:
    data = (file.parent / "base" / "vocab.txt").read_bytes()
    with RunReader(file) as reader:
        files = StepFiles(reader)
        piece = 1 << 18
        for start, end in (
            (0, 1),
            (0, piece),
            (piece - 1, piece + 1),
            (5 * piece, 7 * piece),
            (SIZE - 3, SIZE + 9),
            (9, 9),
        ):
            assert files.read("vocab.txt", 1, "auto", start, end) == data[start:end], (start, end)
            assert b"".join(files.stream("vocab.txt", 1, "auto", start, end)) == data[start:end]
        tracemalloc.start()
        try:
            files.read("vocab.txt", 1, "auto", 40 << 20, (40 << 20) + 100)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()
        assert files.read("vocab.txt", 1, "auto", 0, SIZE) == data
