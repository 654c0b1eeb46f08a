"""Recording and watching, killed at random moments, and what must be there afterwards.

usage: python -m support.killed record|watch FOLDER TIMES SEED [SECONDS]. Each process that is killed is a copy of this
one, which has everything loaded: so kills come in the middle of the work, not of imports.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from relex_codec.checkpoints.base_model import open_base
from relex_codec.journal.reader import Journal, is_journal
from relex_codec.journal.series import JournalSeries
from relex_codec.journal.verify import check_journal
from relex_codec.recording.recorder import Recorder
from relex_codec.recording.watch import Watcher

from .checkpoints import write_checkpoint
from .tensors import Tensor, bf16

SHAPES = {"a": (200, 300), "b": (90, 7), "c": (11,)}


def weights(step: int) -> dict[str, Tensor]:
    """Weights at a step: some of them move."""
    found = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        start = np.random.default_rng(number).standard_normal(shape).astype(np.float32)
        noise = np.random.default_rng((step, number))
        dtype, bits = bf16(start)
        found[name] = dtype, bits + (noise.random(shape) < 0.02).astype(np.uint16) * np.uint16(step % 5)
    return found


def state(step: int) -> dict[str, torch.Tensor]:
    """The same as tensors."""
    return {n: torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16) for n, (_, bits) in weights(step).items()}


def record(root: Path) -> None:
    """Record steps without end; say of each, in a file, that it is committed, when that is so."""
    with Recorder(root / "j", base=root / "base") as recorder, open(root / "said", "ab", buffering=0) as said:
        step = (recorder.last_step or 0) + 1
        while True:
            recorder.add(step, state(step))
            recorder.flush()
            said.write(b"%d\n" % step)
            step += 1


def watch(root: Path) -> None:
    """Watch a run, and delete what may go."""
    options = {"delete_verified": True, "settled": 0.0, "interval": 0.01, "say": lambda line: None}
    Watcher(root / "run", root / "j", base=root / "base", **options).run(threading.Event())  # type: ignore[arg-type]


def train(root: Path, last: int) -> None:
    """Write the checkpoints of a run that are not there yet."""
    for step in range(1, last + 1):
        folder = root / "run" / f"checkpoint-{step}"
        if not folder.exists():
            write_checkpoint(folder, weights(step), shards=2)


def killed_at_random(work: Callable[[Path], None], root: Path, seconds: float) -> None:
    """Do the work in a copy of this process, and kill it after so many seconds."""
    child = os.fork()
    if child == 0:
        try:
            work(root)
        finally:
            os._exit(3)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"it ended by itself with {os.waitstatus_to_exitcode(status)}"


def numbers(root: Path) -> list[int]:
    """The steps that the journal has."""
    return Journal(root / "j").numbers if is_journal(root / "j") else []


def check(root: Path) -> None:
    """Every step of the journal has its weights."""
    journal = Journal(root / "j")
    check_journal(journal)
    series = JournalSeries(journal, open_base(root / "base"))
    for name in SHAPES:
        for row, step in zip(series.read(name), series.steps, strict=True):
            assert (row == weights(step)[name][1].reshape(-1)).all(), (step, name)


def main(what: str, folder: str, times: str, seed: str, seconds: str = "0.6") -> None:
    """Kill so many times, after up to so many seconds each.

    Then no committed step is lost, and nothing is deleted that is not archived.
    """
    torch.set_num_threads(1)
    root, chances = Path(folder), random.Random(int(seed))
    write_checkpoint(root / "base", weights(0))
    (root / "run").mkdir()
    (root / "said").touch()
    with Recorder(root / "warm", base=root / "base") as recorder:  # compiled code is loaded once
        recorder.add(1, state(1))
        recorder.add(2, state(2))
    lost = 0
    for time_ in range(int(times)):
        if what == "record":
            killed_at_random(record, root, chances.random() * float(seconds))
            said = [int(line) for line in (root / "said").read_text().split()]
            found = numbers(root)
            assert found == list(range(1, len(found) + 1)), found
            assert not said or found[-1] >= said[-1], (found[-1], said[-1])
            lost += Journal(root / "j").unfinished > 0 if is_journal(root / "j") else 0
        else:
            train(root, 3 * (time_ + 1))
            killed_at_random(watch, root, chances.random() * float(seconds))
            found = numbers(root)
            for step in range(1, 3 * (time_ + 1) + 1):
                there = len(list((root / "run" / f"checkpoint-{step}").glob("*.safetensors"))) == 2
                assert there or step in found, step
    check(root)
    deleted = [path for path in (root / "run").iterdir() if not list(path.glob("*.safetensors"))]
    assert {int(path.name.partition("-")[2]) for path in deleted} <= set(numbers(root))
    sys.stdout.write(f"{times} kills: {len(numbers(root))} steps, {len(deleted)} deleted, {lost} tails\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
