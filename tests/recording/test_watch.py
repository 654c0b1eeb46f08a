"""Watching a run: complete checkpoints are archived and verified, and only then, if that was asked for, deleted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import relex_codec
from relex_codec import InvalidArgument
from relex_codec.checkpoints.base_model import open_base
from relex_codec.cli.main import group
from relex_codec.journal.reader import Journal
from relex_codec.journal.series import JournalSeries
from relex_codec.recording import watch as module
from relex_codec.recording.target import target_of
from relex_codec.recording.watch import Watcher
from support.checkpoints import write_checkpoint
from support.commands import ELSEWHERE, cli, failed, process
from support.tensors import Tensor, bf16


def weights(step: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    noise = np.random.default_rng(step)
    shapes = {"a": (30, 20), "b": (7,)}
    return {
        n: bf16(rng.standard_normal(shape) + 0.01 * step * noise.standard_normal(shape)) for n, shape in shapes.items()
    }


def save(run: Path, step: int, content: int | None = None) -> Path:
    """A checkpoint as trainers write it, with what training goes on with."""
    folder = run / f"checkpoint-{step}"
    write_checkpoint(folder, weights(step if content is None else content), shards=2)
    (folder / "optimizer.pt").write_bytes(b"state")
    return folder


def archived(journal: Path, base: Path, step: int, content: int | None = None) -> bool:
    series = JournalSeries(Journal(journal), open_base(base), [step])
    expected = weights(step if content is None else content)
    return all((series.checkpoint(0).read(n) == bits.reshape(-1)).all() for n, (_, bits) in expected.items())


class Place:
    """A run that is watched."""

    def __init__(self, root: Path) -> None:
        self.run, self.base, self.journal = root / "run", root / "base", root / "j"
        self.run.mkdir()
        write_checkpoint(self.base, weights(0))
        self.said: list[str] = []

    def watcher(self, **options: Any) -> Watcher:
        options = {"settled": 0.0, "delete_verified": True, **options}
        return Watcher(self.run, self.journal, base=self.base, say=self.said.append, **options)

    def look(self, **options: Any) -> list[int]:
        """Look until nothing is done; returns the steps that the journal has."""
        watcher = self.watcher(**options)
        try:
            while watcher.look():
                pass
        finally:
            watcher._recorder.close()
        return Journal(self.journal).numbers

    def held(self, step: int) -> bool:
        """Whether the weight files of a step are all there."""
        return len(list((self.run / f"checkpoint-{step}").glob("*.safetensors"))) == 2


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_checkpoints_are_taken_as_they_appear(place: Place) -> None:
    watcher = place.watcher(delete_verified=False)
    assert not watcher.look() and "has no checkpoints" in place.said[-1]
    assert not watcher.look() and len(place.said) == 1  # that is said once
    save(place.run, 1)
    assert watcher.look() and not watcher.look()
    half = save(place.run, 2)
    shard = half / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    for left in (None, whole[: len(whole) // 2]):
        shard.unlink() if left is None else shard.write_bytes(left)
        assert not watcher.look()
        assert Journal(place.journal).numbers == [1]
    save(place.run, 3)  # the trainer went on: an earlier one that is not complete is waited for
    assert not watcher.look() and "checkpoint-2" in place.said[-1]
    shard.write_bytes(whole)
    assert watcher.look() and watcher.look() and not watcher.look()
    watcher._recorder.close()
    assert Journal(place.journal).numbers == [1, 2, 3]
    assert all(archived(place.journal, place.base, step) and place.held(step) for step in (1, 2, 3))


def test_files_must_be_at_rest_or_marked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    watcher = place.watcher(settled=5.0)
    folder = save(place.run, 1)
    assert not watcher.look()
    now += 4
    (folder / "optimizer.pt").write_bytes(b"more state")
    assert not watcher.look()
    now += 4
    assert not watcher.look()
    now += 2
    assert watcher.look()
    marked = save(place.run, 2)
    (marked / "STABLE").touch()
    (folder / "STABLE").touch()
    assert watcher.look()
    watcher._recorder.close()
    assert Journal(place.journal).numbers == [1, 2]


def test_a_step_that_stays_incomplete_is_left_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    (save(place.run, 1) / "model-00001-of-00002.safetensors").unlink()
    save(place.run, 2)
    watcher = place.watcher()
    assert not watcher.look()
    now += module.PATIENCE
    assert watcher.look()
    assert any(line.startswith("left out: ") and "checkpoint-1" in line for line in place.said)
    watcher._recorder.close()
    assert Journal(place.journal).numbers == [2]
    assert (place.run / "checkpoint-1" / "model-00002-of-00002.safetensors").exists()  # never archived, never deleted


def test_what_is_deleted(place: Place) -> None:
    for step in (1, 2, 3):
        save(place.run, step)
    assert place.look() == [1, 2, 3]
    assert [place.held(step) for step in (1, 2, 3)] == [False, False, True]
    for step in (1, 2, 3):
        names = {path.name for path in (place.run / f"checkpoint-{step}").iterdir()}
        assert {"optimizer.pt", "config.json"} <= names
        assert archived(place.journal, place.base, step)
    save(place.run, 4)
    assert place.look(also=["optimizer.*"]) == [1, 2, 3, 4]
    assert (place.run / "checkpoint-1" / "optimizer.pt").exists()  # it was deleted without that
    assert not (place.run / "checkpoint-3" / "optimizer.pt").exists()
    assert (place.run / "checkpoint-4" / "optimizer.pt").exists()


def test_nothing_is_deleted_unasked(place: Place) -> None:
    for step in (1, 2):
        save(place.run, step)
    place.look(delete_verified=False)
    assert place.held(1) and place.held(2)
    with pytest.raises(InvalidArgument, match="give both"):
        place.watcher(delete_verified=False, also=["optimizer.pt"])
    with pytest.raises(InvalidArgument, match="local directories"):
        Watcher("s3://bucket/run", place.journal, base=place.base)
    place.look()  # asked now, by another process
    assert not place.held(1) and place.held(2)


def test_what_the_journal_lacks_is_not_deleted(place: Place) -> None:
    """A journal whose step is another one than the checkpoint: the run went back, and is recorded again from there."""
    for step in (1, 2, 3):
        save(place.run, step)
    place.look(delete_verified=False)
    save(place.run, 2, content=22)
    shutil.rmtree(place.run / "checkpoint-3")
    save(place.run, 4)
    assert place.look() == [1, 2, 4]
    assert any("written again with other weights" in line for line in place.said)
    assert archived(place.journal, place.base, 2, content=22) and archived(place.journal, place.base, 4)
    assert Journal(place.journal).left_behind == [2, 3]
    assert [place.held(step) for step in (1, 2, 4)] == [False, False, True]


def test_a_checkpoint_that_changes_while_it_is_archived(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    save(place.run, 1)
    real = module.Recorder.add

    def add(self: Any, step: int, folder: str, **options: Any) -> None:
        real(self, step, folder, **options)
        save(place.run, step, content=11)

    with monkeypatch.context() as patch:
        patch.setattr(module.Recorder, "add", add)
        with pytest.raises(relex_codec.CheckpointError, match="changed while it was archived"):
            place.look()
    assert place.held(1)
    assert place.look() == [1]
    assert archived(place.journal, place.base, 1, content=11)


class Crash(BaseException):
    """The process ends here."""


def test_a_crash_between_any_two_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every file operation in turn the process ends; the next one goes on, and no step is lost in between."""
    ended = 0
    while True:
        root = tmp_path / str(ended)
        root.mkdir()
        place = Place(root)
        for step in (1, 2, 3):
            save(place.run, step)
        left = iter(range(ended))

        def crashing(real: Any, left: Iterator[int] = left) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(left, None) is None:
                    raise Crash
                return real(*arguments, **options)

            return call

        crashed = False
        with monkeypatch.context() as patch:
            for name in ("unlink", "rename", "replace", "fsync", "pwrite"):
                patch.setattr(os, name, crashing(getattr(os, name)))
            try:
                place.look()
            except Crash:
                crashed = True
        for step in (1, 2, 3):
            there = (place.journal / "journal.json").exists() and step in Journal(place.journal).numbers
            assert place.held(step) or (there and archived(place.journal, place.base, step)), (ended, step)
        assert place.look() == [1, 2, 3]
        assert all(archived(place.journal, place.base, step) for step in (1, 2, 3))
        assert [place.held(step) for step in (1, 2, 3)] == [False, False, True]
        if not crashed:
            break
        ended += 1
    assert ended > 30


# ---- The command ----


def test_the_command_writes_a_file_at_the_end(place: Place, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(place.run, step)
    common = ("watch", place.run, "--base", place.base, "--settled", 0)
    for wrong, words in (
        (("-o", tmp_path / "x.relex"), "give --until-step"),
        (("-o", tmp_path / "y", "--delete-also", "optimizer.pt"), "give both"),
    ):
        done = cli(*common, *wrong)
        assert done.returncode == 2 and words in done.stderr and not (tmp_path / "y").exists(), done
    done = cli(*common, "-o", tmp_path / "x.relex", "--until-step", 2, "--json")
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["steps"] == [1, 2]
    assert "step 2: archived and verified" in done.stderr
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert run.steps == [1, 2]
    assert Journal(tmp_path / "x.journal").numbers == [1, 2]
    failed(cli(*common, "-o", tmp_path / "x.relex", "--until-step", 3), "it is there already")
    again = cli(*common, "-o", tmp_path / "x.journal", "--until-step", 3, "--delete-verified")
    assert again.returncode == 0 and "3 steps, 1 to 3" in again.stdout, again
    assert [place.held(step) for step in (1, 2, 3)] == [False, False, True]


def test_terminated_it_ends_cleanly(place: Place) -> None:
    save(place.run, 1)
    command = process(["watch", place.run, "--base", place.base, "-o", place.journal, "--settled", 0])
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ELSEWHERE)
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and not (place.journal / module.NOTES).exists():
            time.sleep(0.1)
        watching.send_signal(signal.SIGTERM)
        out, errors = watching.communicate(timeout=60)
    finally:
        watching.kill()
        watching.wait()
    assert watching.returncode == 0, errors
    assert "1 steps, 1 to 1, stopped" in out
    assert Journal(place.journal).numbers == [1] and Journal(place.journal).unfinished == 0


def test_stopped_before_its_last_step_it_says_so(place: Place, tmp_path: Path) -> None:
    """A script that goes on when the file is there must not go on."""
    save(place.run, 1)
    command = process(
        ["watch", place.run, "--base", place.base, "-o", tmp_path / "x.relex", "--until-step", 9, "--settled", 0]
    )
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ELSEWHERE)
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and not (tmp_path / "x.journal" / module.NOTES).exists():
            time.sleep(0.1)
        watching.send_signal(signal.SIGINT)
        out, errors = watching.communicate(timeout=60)
    finally:
        watching.kill()
        watching.wait()
    assert watching.returncode == 130, errors
    assert "1 steps, 1 to 1, stopped" in out and "stopped before step 9; the same command goes on" in errors
    assert not (tmp_path / "x.relex").exists()


def test_a_step_that_comes_late_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, with what to do; it is never archived and never deleted."""
    monkeypatch.setattr(module, "LATE_AGAIN", 0)
    for step in (1, 2, 5):
        save(place.run, step)
    watcher = place.watcher()
    while watcher.look():
        pass
    shutil.rmtree(place.run / "checkpoint-2")  # whose weights are gone anyway
    save(place.run, 3)
    for _ in range(2):
        assert not watcher.look()
    late = [line for line in place.said if line.startswith("left out: step 3")]
    assert len(late) == 1 and "after step 5 was archived" in late[0] and "watch into another journal" in late[0]
    save(place.run, 4)
    save(place.run, 6)
    assert watcher.look() and not watcher.look()
    stop = threading.Event()
    stop.set()
    assert watcher.run(stop).left_out == [3, 4]
    assert Journal(place.journal).numbers == [1, 2, 5, 6]
    assert place.held(3) and place.held(4) and not place.held(5)


def test_where_a_run_goes(memory: Any, tmp_path: Path) -> None:
    assert target_of("runs/j") == ("runs/j", None)
    assert target_of("runs/x.relex") == ("runs/x.journal", "runs/x.relex")
    assert target_of("memory://b/runs/x.RELEX") == ("x.journal", "memory://b/runs/x.RELEX")
    memory.pipe_file("/b/there.relex", b"")
    (tmp_path / "there.relex").touch()
    for there in ("memory://b/there.relex", tmp_path / "there.relex"):
        with pytest.raises(InvalidArgument, match=r"there\.relex: it is there already"):
            target_of(there)


def test_a_file_at_a_url(place: Place, memory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for step in (1, 2):
        save(place.run, step)
    monkeypatch.chdir(tmp_path)
    arguments = ["watch", str(place.run), "--base", str(place.base), "-o", "memory://b/x.relex"]
    found = CliRunner().invoke(group, [*arguments, "--until-step", "2", "--settled", "0"], catch_exceptions=False)
    assert not found.exit_code, found.output
    assert Journal(tmp_path / "x.journal").numbers == [1, 2]
    with relex_codec.open("memory://b/x.relex", base=place.base) as run:
        assert run.steps == [1, 2]
