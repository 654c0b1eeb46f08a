"""Writing stored steps back out: a run like the one that was encoded, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec import BaseMismatch, CheckpointError, Corrupt, InvalidArgument
from relex_codec.exact import replay
from relex_codec.exact.bisection import frames_of
from relex_codec.exact.tier_reader import ExactTier, Key
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE, cli, cli_process, failed
from support.plain import read_safetensors
from support.runs import SIDE, Made
from support.tensors import Tensor, bf16, f32

Zoo = Callable[..., Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(folder: Path, made: Made, steps: list[int]) -> None:
    """Each step has the bits of the checkpoint that was encoded."""
    names = {name for name in os.listdir(folder) if name != "relex.json"}  # which commands write
    assert names == {f"global_step_{step}" for step in steps}
    for step in steps:
        found: dict[str, Any] = {}
        for shard in (folder / f"global_step_{step}").glob("*.safetensors"):
            found |= read_safetensors(shard)[0]
        expected = made.at(step)
        assert found.keys() == expected.keys()
        for name, (dtype, bits) in expected.items():
            assert found[name][0] == dtype and found[name][1].shape == bits.shape
            assert found[name][1].tobytes() == bits.tobytes(), (name, step)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run of 20 steps with a tensor of two pieces; ``x.relex`` has twelve, and the others in two further segments."""
    root = tmp_path_factory.mktemp("grown")
    rng = np.random.default_rng(0)
    start, drift = (rng.standard_normal((6, 1 << 16)) * scale for scale in (0.05, 2e-3))

    def at(step: int) -> dict[str, Tensor]:
        return {
            "w": bf16(start + drift * step),
            "norm": f32(1 + drift[0, :200] * step),
            "late": bf16(start[1, :99] + drift[1, :99] * max(0, step - 14)),
            "still": bf16(start[2, :50]),
            "count": ("I32", np.array([step, 9], np.uint32)),
        }

    steps = list(range(2, 42, 2))
    write_checkpoint(root / "base", at(0))
    write_run(root / "run", steps, at)
    file = root / "x.relex"
    relex_codec.encode(root / "run", file, base=root / "base", quality="micro", steps="2:24", exact=True)
    for group in (range(26, 34, 2), range(34, 42, 2)):
        relex_codec.append(file, [root / "run" / f"global_step_{step}" for step in group])
    return Made(root, steps, at(0), at)


# ---- What is written ----


def test_all_steps_come_back(grown: Made, tmp_path: Path) -> None:
    with relex_codec.open(grown.root / "x.relex") as run:
        assert run.restore(tmp_path / "deep" / "out") == grown.steps
    check(tmp_path / "deep" / "out", grown, grown.steps)
    assert os.listdir(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("options", [{}, {"embed_base": True}], ids=["base", "embedded"])
def test_files_are_those_of_save(zoo_run: Made, zoo_file: Zoo, tmp_path: Path, options: Any) -> None:
    (tmp_path / "out").mkdir()  # an empty directory will do
    with relex_codec.open(zoo_file("micro", exact=True, **options)) as run:
        assert run.restore(tmp_path / "out") == zoo_run.steps
        for step in zoo_run.steps:
            run.save(tmp_path / str(step), step, tier="exact")
            there = tmp_path / "out" / f"global_step_{step}"
            assert contents(there) == contents(tmp_path / str(step))
            assert {*SIDE, "model.safetensors.index.json"} < set(os.listdir(there))
            modes = {path.stat().st_mode for path in (*there.iterdir(), *(tmp_path / str(step)).iterdir())}
            assert len(modes) == 1
    check(tmp_path / "out", zoo_run, zoo_run.steps)


def test_files_of_the_run_are_not_those_of_a_given_base(zoo_run: Made, zoo_file: Zoo, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", zoo_run.base, shards=3, side={"LICENSE": b"mine"})
    with relex_codec.open(zoo_file("micro", exact=True, embed_base=True), base=tmp_path / "base") as run:
        run.restore(tmp_path / "out", steps="9")
    there = tmp_path / "out" / "global_step_9"
    assert not (there / "LICENSE").exists()
    assert (there / "tokenizer.json").read_bytes() == SIDE["tokenizer.json"]


@pytest.mark.slow
def test_a_restored_run_is_encoded_again(grown: Made, tmp_path: Path) -> None:
    with relex_codec.open(grown.root / "x.relex") as run:
        run.restore(tmp_path / "run")
    for name, root in (("again", tmp_path / "run"), ("first", grown.run)):
        relex_codec.encode(root, tmp_path / f"{name}.relex", base=grown.base_path, quality="raw", exact=True)
    assert (tmp_path / "again.relex").read_bytes() == (tmp_path / "first.relex").read_bytes()


def test_step_0_is_the_stored_one(tmp_path: Path) -> None:
    at = {0: bf16(np.ones((4, 4))), 1: bf16(np.full((4, 4), 1.5))}
    made = Made(tmp_path, [0, 1], {"w": bf16(np.zeros((4, 4)))}, lambda step: {"w": at[step]})
    write_checkpoint(tmp_path / "base", made.base)
    write_run(tmp_path / "run", made.steps, made.at)
    relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, quality="raw", exact=True)
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert run.restore(tmp_path / "out") == [0, 1]
        assert run.tier(0) == "exact"
        assert run._reader.bits("w", 0).tolist() == [0x3F80] * 16  # and not those of the base
    check(tmp_path / "out", made, [0, 1])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("10:16", [10, 12, 14, 16]), ("2:40:12", [2, 14, 26, 38]), ("30", [30]), (":5", [2, 4]), ("36:", [36, 38, 40]),
     ("1:40:3", [4, 10, 16, 22, 28, 34, 40])],
)  # fmt: skip
def test_some_steps_decode_no_more_than_they_need(
    grown: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, expected: list[int]
) -> None:
    fetched: Counter[Key] = Counter()
    fetch = ExactTier.fetch

    def counting(self: ExactTier, keys: Any) -> Any:
        fetched.update(keys)
        return fetch(self, keys)

    monkeypatch.setattr(ExactTier, "fetch", counting)
    with relex_codec.open(grown.root / "x.relex") as run:
        assert run.restore(tmp_path / "out", steps=spec) == expected
        tier = run._reader.decoder.exact
    check(tmp_path / "out", grown, expected)
    needed: set[tuple[int, int]] = set()
    for number in (grown.steps.index(step) + 1 for step in expected):
        while number:
            segment = tier.segments[tier.segment_of(number)]
            frames = frames_of(number - segment.first, segment.count)
            needed |= {(tier.segment_of(number), frame) for frame in (0, *frames)}
            number = segment.left
    assert {(key.segment, key.step) for key in fetched} == needed
    assert set(fetched.values()) == {1}  # batches are the groups


def test_small_batches_on_several_threads(grown: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "BATCH_WORDS", 1)
    monkeypatch.setattr(replay, "cpu_count", lambda: 4)
    with relex_codec.open(grown.root / "x.relex") as run:
        run.restore(tmp_path / "out")
    check(tmp_path / "out", grown, grown.steps)


def test_few_files_are_open_at_a_time(grown: Made, tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import resource, sys
        import relex_codec
        with relex_codec.open(sys.argv[1]) as run:
            run._reader.bits("w", 2)  # what is imported and compiled
            resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
            print(len(run.restore(sys.argv[2])))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, grown.root / "x.relex", tmp_path / "out"],
        cwd=ELSEWHERE, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == "20\n", done.stderr


# ---- What is refused ----


def test_arguments_that_cannot_be(grown: Made, zoo_file: Zoo, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with relex_codec.open(zoo_file("raw")) as run, pytest.raises(InvalidArgument, match=r"no exact tier.*--exact"):
        run.restore(tmp_path / "out")
    with relex_codec.open(grown.root / "x.relex") as run:
        for spec, message in (("41:", "leaves nothing, there is 2 to 40"), ("3", "leaves nothing"), ("a:b", "A:B:K")):
            with pytest.raises(InvalidArgument, match=message):
                run.restore(tmp_path / "out", steps=spec)
        with pytest.raises(InvalidArgument, match="exists and is not empty"):
            run.restore(tmp_path / "full")
        with pytest.raises(InvalidArgument, match="https:// is for reading"):
            run.restore("https://host/out")
    assert sorted(os.listdir(tmp_path)) == ["full"]


def test_a_wrong_base_is_refused(grown: Made, tmp_path: Path) -> None:
    for wrong in ("w", "still"):
        other = dict(grown.base)
        changed = other[wrong][1].copy()
        changed.reshape(-1)[-1] ^= 1
        other[wrong] = other[wrong][0], changed
        write_checkpoint(tmp_path / wrong, other)
        run = relex_codec.open(grown.root / "x.relex", base=tmp_path / wrong)
        with run, pytest.raises(BaseMismatch, match=f"'{wrong}' differs"):
            run.restore(tmp_path / "out", steps="4:8")
    assert sorted(os.listdir(tmp_path)) == ["still", "w"]
    run = relex_codec.open(grown.root / "x.relex", base=tmp_path / "none")
    with run, pytest.raises(CheckpointError, match="does not exist"):
        run.restore(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_frame_leaves_nothing(grown: Made, tmp_path: Path) -> None:
    data = bytearray((grown.root / "x.relex").read_bytes())
    with relex_codec.open(grown.root / "x.relex") as run:
        data[int(run._reader.decoder.exact.frame_records[8]["position"]) + 50] ^= 1  # of step 18
    (tmp_path / "bad.relex").write_bytes(data)
    with relex_codec.open(tmp_path / "bad.relex", base=grown.base_path) as run:
        with pytest.raises(Corrupt, match=r"relex\.data\.frames, at byte \d+"):
            run.restore(tmp_path / "out")
        assert os.listdir(tmp_path) == ["bad.relex"]
        assert run.restore(tmp_path / "out", steps="24:40:8") == [24, 32, 40]  # which do not need it
    check(tmp_path / "out", grown, [24, 32, 40])


# ---- Full disks and interruptions ----


@pytest.mark.parametrize("share", [0, 0.3, 0.99999])
def test_a_full_disk_leaves_nothing(grown: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    with relex_codec.open(grown.root / "x.relex") as run:
        left = int(share * 20 * sum(bits.nbytes for _, bits in grown.at(2).values()))
        lock, pwrite = threading.Lock(), os.pwrite

        def limited(fd: int, data: Any, at: int) -> int:
            nonlocal left
            with lock:
                if left == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                part = memoryview(data)[:left]  # a full disk writes a part first
                left -= len(part)
            return pwrite(fd, part, at)

        monkeypatch.setattr("relex_codec.run.restore.os.pwrite", limited)
        with pytest.raises(InvalidArgument, match=r"cannot write .*out: No space left.*nothing was changed"):
            run.restore(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_too_little_room_is_said_at_once(grown: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    with relex_codec.open(grown.root / "x.relex") as run:
        monkeypatch.setattr("relex_codec.run.restore.shutil.disk_usage", lambda path: usage._replace(free=10**6))
        with pytest.raises(InvalidArgument, match=r"the steps have 15,\d{3},\d{3} bytes, 1,000,000 are free"):
            run.restore(tmp_path / "out")
        assert os.listdir(tmp_path) == []
        run.restore(tmp_path / "one", steps="2")
        monkeypatch.setattr("relex_codec.run.restore.shutil.disk_usage", lambda path: usage._replace(total=0, free=0))
        run.restore(tmp_path / "out", steps="2:4")  # a file system that does not tell


SCRIPT = """
import os, sys, time
import relex_codec.run.restore
from relex_codec.cli.main import main
pwrite = os.pwrite
calls = 0
def slow(*args):
    global calls
    calls += 1
    if calls == 60:
        print("there", flush=True)
    if calls > 60:
        time.sleep(0.02)
    return pwrite(*args)
relex_codec.run.restore.os.pwrite = slow
main()
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_an_interrupted_restore_leaves_nothing(grown: Made, tmp_path: Path, sent: signal.Signals) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "restore", str(grown.root / "x.relex"), "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ELSEWHERE, text=True,
    )  # fmt: skip
    try:
        assert worker.stdout is not None and worker.stderr is not None
        assert worker.stdout.readline() == "there\n"
        assert not (tmp_path / "out").exists()
        worker.send_signal(sent)
        assert worker.wait(30) == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[sent]
        if sent is not signal.SIGKILL:
            assert "nothing incomplete was left" in worker.stderr.read()
            assert os.listdir(tmp_path) == []
        assert not (tmp_path / "out").exists()
        assert all(name.startswith(".out.tmp-") for name in os.listdir(tmp_path))  # which no search for runs takes
    finally:
        worker.kill()
        worker.communicate()


# ---- The commands ----


def test_from_the_command_line(grown: Made, zoo_file: Zoo, tmp_path: Path) -> None:
    file = grown.root / "x.relex"
    done = cli_process("restore", file, "-o", tmp_path / "out", "--steps", "4:20:8")
    assert done.returncode == 0
    assert "restore" not in done.stderr  # the bar vanishes where there is no terminal
    assert done.stdout == f"{tmp_path / 'out'}: 3 steps, 4 to 20, bit for bit\n"
    check(tmp_path / "out", grown, [4, 12, 20])
    shutil.move(grown.base_path, tmp_path / "base")
    try:
        failed(cli("restore", file, "-o", tmp_path / "two"), "pass --base")
        done = cli("restore", file, "-o", tmp_path / "two", "--steps", "6", "--base", tmp_path / "base", "--json")
    finally:
        shutil.move(tmp_path / "base", grown.base_path)
    document = json.loads(done.stdout)
    (row,) = document["left_out"]  # as it was when the run was encoded
    assert row["what"] == "checkpoints of other steps"
    assert document == {
        "file": str(file),
        "steps": [6],
        "output": str(tmp_path / "two"),
        "left_out": [row],
    }
    check(tmp_path / "two", grown, [6])
    failed(cli("restore", file, "-o", tmp_path / "out"), "not empty")
    failed(cli("restore", file, "-o", tmp_path / "x", "--steps", "99"), "leaves nothing")
    failed(cli("restore", zoo_file("raw"), "-o", tmp_path / "x"), "no exact tier")
    assert cli("restore", file).returncode == 2
    assert sorted(os.listdir(tmp_path)) == ["out", "two"]


def test_decode_takes_the_exact_tier(grown: Made, tmp_path: Path) -> None:
    file = grown.root / "x.relex"
    cases = [(30, "auto", "exact"), (30, "exact", "exact"), (30, "track", "track"), (0, "auto", "base")]
    for number, (step, tier, used) in enumerate([*cases, (23, "auto", "track"), (31, "auto", "line")]):
        out = tmp_path / str(number) / "global_step_30"
        done = cli("decode", file, "--step", step, "--tier", tier, "-o", out, "--json", "--far")
        assert json.loads(done.stdout)["tier"] == used, done.stderr
        if used == "exact":
            check(out.parent, grown, [30])
    failed(cli("decode", file, "--step", 31, "--tier", "exact", "-o", tmp_path / "x"), "stored steps only", "30")
    assert "exact where it is stored so" in " ".join(cli("decode", "--help").stdout.split())


def test_progress_is_shown_on_a_terminal_only(
    grown: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with relex_codec.open(grown.root / "x.relex") as run:
        run.restore(tmp_path / "quiet", progress=True)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        run.restore(tmp_path / "shown", progress=True)
        assert "restore" in capsys.readouterr().err
        run.restore(tmp_path / "off")
        assert capsys.readouterr().err == ""
