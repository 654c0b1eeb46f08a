"""How commands end before their time: signals, streams that nobody reads, and what the machine has not enough of."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE, Done, cli_process, failed, process
from support.tensors import bf16

WAITING = """
    import sys, time
    import relex_codec.storage.leftovers as module
    from relex_codec.storage.local_writer import AtomicFile
    inner = AtomicFile.write
    def write(self, data):
        inner(self, data)
        print("ready", flush=True)
        time.sleep(60)
    AtomicFile.write = write
    def rmtree(*arguments, **options):
        print("cleaning", flush=True)
        time.sleep({seconds})
        removing(*arguments, **options)
    removing, module.shutil.rmtree = module.shutil.rmtree, rmtree
    from relex_codec.cli.main import main
    main()
"""
"""The command line, which waits when it has begun to write, and once more before it cleans up."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a run, and ``run.relex``."""
    root = tmp_path_factory.mktemp("endings")

    def tensors(step: int) -> dict[str, Any]:
        return {"w": bf16(np.arange(600) * (1 + step / 100))}

    write_checkpoint(root / "base", tensors(0))
    write_run(root / "run", [1, 2], tensors)
    relex_codec.encode(root / "run", root / "run.relex", base=root / "base", exact=True)
    return root


@contextmanager
def decoding(made: Path, out: Path, seconds: float = 0, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A decode that has begun to write."""
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WAITING.format(seconds=seconds)), "decode", str(made / "run.relex"),
         "--step", "2", "-o", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ELSEWHERE, text=True, **options,
    )  # fmt: skip
    try:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n", worker.communicate()
        yield worker
    finally:
        worker.kill()
        worker.communicate()


@pytest.mark.parametrize(
    ("sent", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_the_first_signal_cleans_up_and_the_second_ends_at_once(
    made: Path, tmp_path: Path, sent: signal.Signals, code: int, word: str
) -> None:
    newline = "\n" if sent == signal.SIGINT else ""  # after the ^C of a terminal
    with decoding(made, tmp_path / "out") as worker:
        worker.send_signal(sent)
        assert (worker.wait(30), worker.stderr.read()) == (
            code,
            f"{newline}Error: {word}; nothing incomplete was left\n",
        )
    assert os.listdir(tmp_path) == []
    with decoding(made, tmp_path / "out", seconds=60) as worker:
        worker.send_signal(signal.SIGTERM)
        assert worker.stdout.readline() == "cleaning\n"
        assert len(os.listdir(tmp_path)) == 1
        worker.send_signal(sent)
        assert worker.wait(30) == code
        assert worker.stderr.read().startswith("Error: ended at once; the next command")
    assert len(os.listdir(tmp_path)) == 1
    done = cli_process("decode", made / "run.relex", "--step", 2, "-o", tmp_path / "out")
    assert (done.returncode, os.listdir(tmp_path)) == (0, ["out"])


def test_nohup(made: Path, tmp_path: Path) -> None:
    with decoding(made, tmp_path / "out", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as worker:
        worker.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(0.2)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 143


def test_a_terminal_that_closes(made: Path, tmp_path: Path) -> None:
    """The signal comes, and nothing more can be printed."""
    master, slave = os.openpty()
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WAITING.format(seconds=0)), "decode", str(made / "run.relex"), "--step",
         "2", "-o", str(tmp_path / "out")],
        stdin=slave, stdout=subprocess.PIPE, stderr=slave, cwd=ELSEWHERE, text=True, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    os.close(master)
    worker.send_signal(signal.SIGHUP)
    assert worker.wait(30) == 129
    worker.communicate()
    assert os.listdir(tmp_path) == []


# ---- Streams ----


def shell(command: str, *arguments: object) -> Done:
    """Run a line of the shell, where ``relex`` is the command line and ``$1`` the first argument."""
    python = f'"{sys.executable}" -c "{process(())[2]}"'
    line = command.replace("relex ", f"{python} ")
    return subprocess.run(
        ["bash", "-c", line, "bash", *map(str, arguments)], capture_output=True, text=True, cwd=ELSEWHERE
    )


needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


@needs_full
def test_a_full_disk_under_stdout(made: Path, tmp_path: Path) -> None:
    failed(shell('relex info "$1" > /dev/full', made / "run.relex"), "stdout: No space left on device", "the rest is")
    failed(shell("relex --help > /dev/full"), "No space left on device")
    done = shell('relex decode "$1" --step 2 -o "$2" > /dev/full', made / "run.relex", tmp_path / "out")
    failed(done, "all the rest is done")
    assert (tmp_path / "out" / "model.safetensors").exists()


@needs_full
@pytest.mark.parametrize("stream", ["2> /dev/full", "2>&-", "0<&- 2>&-", "2> >(exit)"])
def test_nobody_reads_stderr(made: Path, tmp_path: Path, stream: str) -> None:
    out = tmp_path / "x.relex"
    write_run(tmp_path / "run", [1, 2], lambda step: {"w": bf16(np.ones(600) + step), "new": bf16(np.ones(9) + step)})
    line = f'relex encode "$1" --base "$2" -o "$3" {stream}'
    done = shell(line, tmp_path / "run", made / "base", out)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"{out}: 2 steps")
    with relex_codec.open(out, base=made / "base") as run:
        run.verify()


def test_nobody_reads_stdout(made: Path) -> None:
    done = shell('relex info "$1" --tensors | true; exit ${PIPESTATUS[0]}', made / "run.relex")
    assert (done.returncode, done.stderr) in ((1, ""), (0, ""))  # whoever is faster
    done = shell('relex info "$1" >&-', made / "run.relex")
    assert (done.returncode, done.stderr) == (0, "")


# ---- What there is not enough of, and odd places ----


def limited(which: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (value, value))


@pytest.mark.parametrize(("what", "limit"), [("encode", 5), ("encode", 6), ("restore", 5), ("restore", 6)])
def test_too_many_open_files(made: Path, tmp_path: Path, what: str, limit: int) -> None:
    """It is not said of steps that they are broken, nor that they should be left out."""
    command = ("encode", made / "run", "--base", made / "base", "-o", tmp_path / "x.relex", "--skip-incomplete")
    if what == "restore":
        command = ("restore", made / "run.relex", "-o", tmp_path / "out")
    done = subprocess.run(
        process(command), capture_output=True, text=True, cwd=ELSEWHERE,
        preexec_fn=limited(resource.RLIMIT_NOFILE, limit),
    )  # fmt: skip
    if "Traceback" in done.stderr and "relex_codec" not in done.stderr:
        pytest.skip("Python itself does not start with so few")
    failed(done, "Too many open files", "ulimit -n")
    assert "left out" not in done.stderr and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        ("MemoryError()", "not enough memory; give it less"),
        ("MemoryError('Unable to allocate 9.0 GiB.')", "not enough memory: Unable to allocate 9.0 GiB; give it less"),
        ("OSError(24, 'Too many open files', 'x')", "Too many open files: 'x'; allow more"),
        ("OSError(116, 'Stale file handle')", "Stale file handle"),
        ('RuntimeError("can\'t start new thread")', "no more threads"),
        ('RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried")', "not enough memory"),
        ("ImportError('x.so: failed to map segment from shared object')", "not enough memory"),
    ],
)
def test_shortages_are_one_line(made: Path, raised: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from relex_codec.run.run import Run
    from support.commands import cli

    error = eval(raised)

    def fail(self: Run) -> None:
        raise error

    monkeypatch.setattr(Run, "info", fail)
    failed(cli("info", made / "run.relex"), words)


def test_other_errors_keep_their_traceback(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from relex_codec.run.run import Run
    from support.commands import cli

    def fail(self: Run) -> None:
        raise RuntimeError("nobody expected this")

    monkeypatch.setattr(Run, "info", fail)
    with pytest.raises(RuntimeError, match="nobody expected"):
        cli("info", made / "run.relex")


def test_paths_that_are_no_utf8(made: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff")
    base, file = tmp_path / f"base{odd}", tmp_path / f"{odd}.relex"
    try:
        write_checkpoint(base, {"w": bf16(np.arange(600))})
    except OSError as error:
        pytest.skip(f"this file system takes UTF-8 only: {error}")
    common = ("encode", made / "run", "--base", base, "-o", file)
    failed(cli_process(*common), "no UTF-8", "--base-uri")
    failed(cli_process(*common, "--base-uri", odd), "no UTF-8")
    done = cli_process(*common, "--base-uri", "")
    assert done.returncode == 0 and str(done.stdout).startswith(f"{tmp_path}/\\udcff.relex: 2 steps")
    done = cli_process("decode", file, "--step", 1, "--base", base, "-o", tmp_path / odd, "--json")
    assert done.returncode == 0, done.stderr
    for arguments in (("info", tmp_path / f"none{odd}"), ("decode", file, "--step", 1, "-o", tmp_path / f"{odd}d")):
        failed(cli_process(*arguments), "udcff")
    assert cli_process("decode", file, "--step", 1, "-o", "x", "--tier", odd).returncode == 2


def test_a_removed_working_directory(made: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    out = tmp_path / "x.relex"

    def run(line: str) -> Done:
        return shell(f'cd "$1" && rmdir "$1"; relex {line}; code=$?; mkdir "$1"; exit $code', gone, made, out)

    assert run('info "$2/run.relex"').returncode == 0
    assert run('encode "$2/run" --base "$2/base" -o "$3"').returncode == 0
    failed(run("info run.relex"), "does not exist")
    for line in (
        'decode "$2/run.relex" --step 1 -o out',
        'restore "$2/run.relex" -o .',
        "encode r --base b -o x.relex",
    ):
        failed(run(line), "the current directory was removed")
