"""Two programs that write one file, in processes of their own: nobody's step is lost, and neither is a whole run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec import InvalidArgument
from relex_codec.storage.leftovers import make_file
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE, cli, failed
from support.tensors import bf16

STEPS = [10, 20, 30, 40, 50]
WAITING = """
    import os, sys, time
    from relex_codec.format.writer import FileWriter
    finish = FileWriter.finish
    def waiting(self, *arguments):
        open(os.environ["READY"], "w").close()
        while not os.path.exists(os.environ["GO"]):
            time.sleep(0.01)
        return finish(self, *arguments)
    FileWriter.finish = waiting
    from relex_codec.cli.main import main
    main()
"""
"""The command line, which waits when it has read everything and is about to write."""


def tensors(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    start, drift = rng.standard_normal((24, 32)), rng.standard_normal((24, 32))
    return {"w": bf16(start + 0.002 * step * drift)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, a run of five steps, and ``three.relex`` of its first three."""
    root = tmp_path_factory.mktemp("two-writers")
    write_checkpoint(root / "base", tensors(0))
    write_run(root / "run", STEPS, tensors)
    base = root / "base"  # which the file finds from wherever a test puts it
    relex_codec.encode(root / "run", root / "three.relex", base=base, base_uri=str(base), steps="10:30", exact=True)
    return root


@contextmanager
def slow(tmp_path: Path, *arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command that is about to write; it goes on when ``tmp_path / "go"`` is there."""
    ready = tmp_path / "ready"
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WAITING), *map(str, arguments)],
        env={**os.environ, **environment, "READY": str(ready), "GO": str(tmp_path / "go")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ELSEWHERE, text=True,
    )  # fmt: skip
    try:
        while not ready.exists():
            assert worker.poll() is None, worker.communicate()
            time.sleep(0.01)
        yield worker
    finally:
        worker.kill()
        worker.communicate()


def finished(worker: subprocess.Popen[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Let the command go on, and return how it ended."""
    (tmp_path / "go").touch()
    out, err = worker.communicate(timeout=60)
    return subprocess.CompletedProcess(worker.args, worker.returncode, out, err)


def steps_of(file: Any, options: Any = None) -> list[int]:
    with relex_codec.open(file, storage_options=options) as run:
        run.verify()
        return run.steps


@pytest.fixture
def place(tmp_path: Path, made: Path) -> Path:
    (tmp_path / "place").mkdir()
    shutil.copy(made / "three.relex", tmp_path / "place" / "run.relex")
    return tmp_path / "place"


def test_two_appends(made: Path, place: Path, tmp_path: Path) -> None:
    file, fourth, fifth = place / "run.relex", made / "run" / "global_step_40", made / "run" / "global_step_50"
    with slow(tmp_path, "append", file, fourth) as first:
        failed(cli("append", file, fifth), "another process is doing that", "try again")
        assert steps_of(file) == STEPS[:3]
        done = finished(first, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert cli("append", file, fifth).returncode == 0
    assert steps_of(file) == STEPS
    assert os.listdir(place) == ["run.relex"]


def test_an_append_that_is_killed_holds_nobody_up(made: Path, place: Path, tmp_path: Path) -> None:
    file = place / "run.relex"
    with slow(tmp_path, "append", file, made / "run" / "global_step_40") as first:
        first.send_signal(signal.SIGKILL)
        first.wait(30)
        assert steps_of(file) == STEPS[:3]
        relex_codec.append(file, [made / "run" / "global_step_40", made / "run" / "global_step_50"])
    assert steps_of(file) == STEPS


def test_an_append_to_what_is_replaced_meanwhile(made: Path, place: Path, tmp_path: Path) -> None:
    file = place / "run.relex"
    with slow(tmp_path, "append", file, made / "run" / "global_step_40") as first:
        relex_codec.encode(made / "run", file, base=made / "base", steps="10,50", exact=True, overwrite=True)
        theirs = file.read_bytes()
        failed(finished(first, tmp_path), "another program replaced it while it was being read", "append again")
    assert file.read_bytes() == theirs
    assert os.listdir(place) == ["run.relex"]


def test_two_encodes(made: Path, tmp_path: Path, place: Path) -> None:
    file = place / "new.relex"
    command = ("encode", made / "run", "--base", made / "base", "-o", file)
    with slow(tmp_path, *command, "--steps", "10:20") as first:
        assert cli(*command).returncode == 0
        theirs = file.read_bytes()
        failed(finished(first, tmp_path), "another program wrote it meanwhile", "left as it is", "new-2.relex")
    assert file.read_bytes() == theirs
    assert steps_of(place / "new-2.relex") == [10, 20]
    assert sorted(os.listdir(place)) == ["new-2.relex", "new.relex", "run.relex"]


def test_a_shorter_run_does_not_replace_an_archive(made: Path, place: Path, tmp_path: Path) -> None:
    """The old checkpoints were deleted, and the same command came again."""
    file, before = place / "run.relex", (place / "run.relex").read_bytes()
    write_run(tmp_path / "left", [40, 50], tensors)
    command = ("encode", tmp_path / "left", "--exact", "--base", made / "base", "-o", file)
    failed(cli(*command), "3 steps, 10 to 30, of the same base", "`relex-codec append` adds further steps", "-f")
    other = ("encode", "/none", "--exact", "--base", "/none", "-o", file)  # nothing was read
    failed(cli(*other), "3 steps, 10 to 30, of another base", "-f")
    assert file.read_bytes() == before
    with pytest.raises(InvalidArgument, match="it exists and holds 3 steps"):
        relex_codec.append(
            file, [tmp_path / "left" / "global_step_40"], output=made / "three.relex", base=made / "base"
        )
    assert cli("append", file, *(tmp_path / "left").iterdir()).returncode == 0
    assert steps_of(file) == STEPS
    assert cli(*command, "-f").returncode == 0
    assert steps_of(file) == [40, 50]
    (place / "note.relex").write_text("no archive")
    failed(cli(*command[:-1], place / "note.relex"), "it exists; -f")
    (place / "link.relex").symlink_to(file)
    failed(cli(*command[:-1], place / "link.relex"), "it exists and holds 2 steps")


def test_what_is_left_over_goes_even_where_the_file_is_there(made: Path, place: Path) -> None:
    """As after a kill between the two names that a complete file has for a moment."""
    path, fd = make_file(str(place / "run.relex"), 0o600)
    os.close(fd)
    failed(cli("encode", "/none", "--base", "/none", "-o", place / "run.relex"), "it exists")
    assert os.listdir(place) == ["run.relex"] and not os.path.exists(path)


def test_names_of_outputs(made: Path, place: Path) -> None:
    checkpoint, before = made / "run" / "global_step_40", (made / "base" / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "config.json", "thesis.tex"):
        for force in ((), ("-f",)):
            output = made / "base" / name
            failed(cli("encode", "/none", "--base", "/none", "-o", output, *force), name, "is called NAME.relex")
            failed(cli("append", place / "run.relex", checkpoint, "-o", output, *force), name, "is called NAME.relex")
    assert (made / "base" / "model.safetensors").read_bytes() == before
    assert cli("append", place / "run.relex", checkpoint, "-o", place / "Other.RELEX").returncode == 0
    assert (steps_of(place / "Other.RELEX"), steps_of(place / "run.relex")) == (STEPS[:4], STEPS[:3])
    done = cli("append", place / "run.relex", checkpoint, "-f")
    assert done.returncode == 2 and "-f is for the file that -o names" in done.stderr
    with pytest.raises(InvalidArgument, match="overwrite is for another output"):
        relex_codec.append(place / "run.relex", [checkpoint], overwrite=True)
    (place / "run").symlink_to("run.relex")  # the file itself by another name
    relex_codec.append(place / "run", [checkpoint], output=place / "run.relex")
    assert steps_of(place / "run.relex") == STEPS[:4] and (place / "run").is_symlink()


def test_two_appends_to_an_object(made: Path, tmp_path: Path, moto_bucket: Any) -> None:
    url, options = moto_bucket.url("run.relex"), moto_bucket.options
    moto_bucket.put("run.relex", (made / "three.relex").read_bytes())
    environment = {
        "AWS_ENDPOINT_URL": options["endpoint_url"], "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "TMPDIR": str(tmp_path),
    }  # fmt: skip
    with slow(tmp_path, "append", url, made / "run" / "global_step_40", **environment) as first:
        relex_codec.append(url, [made / "run" / "global_step_50"], storage_options=options)
        failed(finished(first, tmp_path), "another program replaced it while it was being read", "append again")
    assert steps_of(url, options) == [*STEPS[:3], 50]
    assert sorted(os.listdir(tmp_path)) == ["go", "ready"]  # nothing waits to be uploaded


def test_two_encodes_to_an_object(made: Path, tmp_path: Path, moto_bucket: Any) -> None:
    url, options = moto_bucket.url("new.relex"), moto_bucket.options
    environment = {
        "AWS_ENDPOINT_URL": options["endpoint_url"], "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "TMPDIR": str(tmp_path),
    }  # fmt: skip
    command = ("encode", made / "run", "--base", made / "base", "-o", url, "--steps", "10:20")
    with slow(tmp_path, *command, **environment) as first:
        relex_codec.encode(made / "run", url, base=made / "base", base_uri=str(made / "base"), storage_options=options)
        done = finished(first, tmp_path)
        failed(done, "another program wrote it meanwhile", "the file itself is complete: upload")
    assert steps_of(url, options) == STEPS
    assert steps_of(done.stderr.strip().rpartition(" ")[2]) == [10, 20]
    with pytest.raises(InvalidArgument, match=r"5 steps, 10 to 50, of the same base.*without --exact"):
        relex_codec.encode(made / "run", url, base=made / "base", storage_options=options)
    relex_codec.encode(made / "run", url, base=made / "base", steps="30", overwrite=True, storage_options=options)
    with pytest.raises(InvalidArgument, match=r"it exists and holds step 30; -f"):  # of a base that it cannot name
        relex_codec.encode(made / "run", url, base=made / "base", storage_options=options)
    assert steps_of(url, options) == [30]
