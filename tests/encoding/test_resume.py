"""Work directories and parts: kills lose nothing, what changed is named, and parts make the file of one process."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec.encoding import pipeline, unit_plan
from relex_codec.encoding.parts import Shard
from relex_codec.encoding.units import TensorsUnit
from relex_codec.errors import Corrupt, InvalidArgument
from support import bands
from support.checkpoints import write_checkpoint
from support.commands import ELSEWHERE
from support.tensors import bf16

SMALL = {"WHOLE": 4 << 20, "SMALLEST_UNIT": 1 << 20, "LARGEST_UNIT": 4 << 20}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of its own, which may be changed, cut into small units, and ``one.relex`` of one process."""
    for name, value in SMALL.items():
        monkeypatch.setattr(unit_plan, name, value)
    bands.make(tmp_path)
    encode(tmp_path, "one.relex")
    return tmp_path


def encode(root: Path, name: str, **options: Any) -> None:
    options = {"exact": True, "base_uri": "base", **options}
    relex_codec.encode(root / "run", root / name, base=root / "base", **options)


def interrupted(root: Path, monkeypatch: pytest.MonkeyPatch, after: int, **options: Any) -> None:
    """Encode with a work directory, until so many units are done."""
    original = pipeline.run_units

    def some(*arguments: Any) -> Any:
        for number, done in enumerate(original(*arguments)):
            if number == after:
                raise KeyboardInterrupt
            yield done

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_units", some)
        with pytest.raises(KeyboardInterrupt):
            encode(root, "x.relex", work_dir=root / "work", **options)


def count_units(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the keys of the units that are done in this process from now on."""
    done: list[str] = []
    for kind in (TensorsUnit, pipeline.BandUnit, pipeline.FinishUnit):
        original = kind.run

        def run(self: Any, *arguments: Any, original: Any = original) -> None:
            done.append(self.key)
            original(self, *arguments)

        monkeypatch.setattr(kind, "run", run)
    return done


def test_what_is_finished_is_not_done_again(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(made, monkeypatch, 3, workers=1, engine="local")
    assert f"what is finished stays in {made / 'work'}: the same command goes on" in capsys.readouterr().err
    assert not (made / "x.relex").exists()
    kept = {path.stem for path in (made / "work").glob("*.unit")}
    assert len(kept) >= 3
    done = count_units(monkeypatch)
    encode(made, "x.relex", work_dir=made / "work", engine="local", workers=2, memory="512MB")  # others than before
    assert not kept & set(done) and len(done) == len(set(done)) > 1
    assert (made / "x.relex").read_bytes() == (made / "one.relex").read_bytes()
    assert not (made / "work").exists()


def test_a_damaged_result_is_done_again(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(made, monkeypatch, 3, engine="local")
    first = sorted((made / "work").glob("*.unit"))[0]
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    done = count_units(monkeypatch)
    encode(made, "x.relex", work_dir=made / "work", keep_work_dir=True, engine="local")
    assert first.stem in done
    assert "it is done again" in capsys.readouterr().err
    assert (made / "x.relex").read_bytes() == (made / "one.relex").read_bytes()
    assert first.exists()


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "written again": (
        lambda root: os.utime(root / "run/global_step_20/model.safetensors", ns=(1, 1)),
        r"step 20 changed since work directory .*: model.safetensors was written again: give what was given before",
    ),
    "other size": (
        lambda root: (root / "run/global_step_10/config.json").write_text("{ }" * 9),
        "step 10 changed since .*: config.json has 27 bytes, .* before",
    ),
    "new step": (
        lambda root: shutil.copytree(root / "later/global_step_50", root / "run/global_step_50"),
        "step 50 is new in the run since",
    ),
    "step gone": (
        lambda root: shutil.rmtree(root / "run/global_step_30"),
        "step 30 is no longer part of the run since",
    ),
    "base": (
        lambda root: os.utime(root / "base/model.safetensors", ns=(1, 1)),
        "base changed since .*: model.safetensors was written again",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_inputs_are_named(made: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    interrupted(made, monkeypatch, 1, engine="local")
    make, message = CHANGES[change]
    make(made)
    with pytest.raises(InvalidArgument, match=message):
        encode(made, "x.relex", work_dir=made / "work", engine="local")


def test_a_header_that_changed_is_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a copy kept size and time of the file."""
    interrupted(made, monkeypatch, 1, engine="local")
    path = made / "run/global_step_20/model.safetensors"
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(b'"shape": [40, 30]', b'"shape": [30, 40]').replace(b'"a"', b'"A"', 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InvalidArgument, match=r"step 20 changed since .*: the header was written again"):
        encode(made, "x.relex", work_dir=made / "work", engine="local")


def test_other_options_are_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(made, monkeypatch, 1, engine="local")
    for option, value, shown in (("quality", "fine", "--quality"), ("exact", False, "--exact"), ("rank", 2, "--rank")):
        with pytest.raises(InvalidArgument, match=f"was begun with {shown} .*, now it is .*: give what was given"):
            encode(made, "x.relex", work_dir=made / "work", engine="local", **{option: value})


def test_directories_that_are_not_taken(made: Path) -> None:
    (made / "full").mkdir()
    (made / "full" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidArgument, match="is no work directory, and not empty"):
        encode(made, "x.relex", work_dir=made / "full")
    (made / "full" / "plan.json").write_text(json.dumps([1]))
    with pytest.raises(InvalidArgument, match="is no work directory"):
        encode(made, "x.relex", work_dir=made / "full")
    assert (made / "full" / "notes.txt").read_text() == "mine"
    with pytest.raises(InvalidArgument, match="no work directory to keep"):
        encode(made, "x.relex", keep_work_dir=True)


COMMAND = """
    import sys
    from relex_codec.encoding import unit_plan
    from relex_codec.cli.main import main
    unit_plan.WHOLE, unit_plan.SMALLEST_UNIT, unit_plan.LARGEST_UNIT = {sizes}
    main()
"""


def command(root: Path, *more: str, name: str = "x.relex") -> list[str]:
    code = "\n".join(line[4:] for line in COMMAND.format(sizes=tuple(SMALL.values())).splitlines())
    return [
        sys.executable, "-c", code, "encode", str(root / "run"), "--base", str(root / "base"), "--base-uri", "base",
        "--exact", "-o", str(root / name), "--work-dir", str(root / "work"), *more,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "processes"])
def test_kills_lose_nothing(made: Path, engine: str) -> None:
    """After some units more each time, and a moment: at most the units in flight are done again."""
    chance, before, kills = random.Random(engine), set[str](), 0
    for _ in range(4):
        began = subprocess.Popen(
            command(made, "--engine", engine, "--workers", "2"), stderr=subprocess.PIPE, cwd=ELSEWHERE
        )
        with began:
            wanted = len(before) + chance.randint(0, 2)
            while began.poll() is None and len(units_in(made)) < wanted:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.5))
            began.send_signal(signal.SIGKILL)
            error = began.communicate()[1].decode()
        if began.returncode == 0:
            break
        assert began.returncode == -signal.SIGKILL, error
        if (made / "x.relex").exists():  # everything was done, and the directory was on its way out
            break
        now = units_in(made)
        assert before <= now
        before, kills = now, kills + 1
    done = subprocess.run(command(made, "--engine", engine, "-f"), capture_output=True, text=True, cwd=ELSEWHERE)
    assert done.returncode == 0, done.stderr
    assert kills > 0 or engine == "local"
    assert (made / "x.relex").read_bytes() == (made / "one.relex").read_bytes()
    left = {path.name for path in made.iterdir()} - {"base", "run", "later", "one.relex", "x.relex"}
    assert left == set()


def units_in(root: Path) -> set[str]:
    return {path.name for path in (root / "work").glob("*.unit")}


@pytest.mark.slow
def test_two_processes_on_one_work_directory(made: Path) -> None:
    with subprocess.Popen(command(made, "--engine", "local"), stderr=subprocess.PIPE, cwd=ELSEWHERE) as first:
        while not (made / "work" / "plan.json").exists():
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.002)
        first.send_signal(signal.SIGSTOP)  # so that it is at work, however long the second takes to begin
        second = subprocess.run(
            command(made, name="y.relex"), stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ELSEWHERE
        )  # fmt: skip
        first.kill()
    assert second.returncode == 1
    assert "another process works in" in second.stderr.strip().splitlines()[-1]


# ---- Parts ----


@pytest.mark.parametrize("count", [1, 3, 20])
def test_parts_make_the_file_of_one_process(made: Path, count: int) -> None:
    for number in range(1, count + 1):
        encode(made, "x.relex", shard=f"{number}/{count}", base_uri=None)
    encode(made, "two.relex", base_uri=None)
    parts = [made / f"x.relex.part-{number}-of-{count}" for number in range(count, 0, -1)]
    size = relex_codec.merge(parts, made / "x.relex")
    assert (made / "x.relex").read_bytes() == (made / "two.relex").read_bytes()
    assert size == (made / "x.relex").stat().st_size
    with pytest.raises(InvalidArgument, match="it exists"):
        relex_codec.merge(parts, made / "x.relex")


def test_parts_that_do_not_fit(made: Path) -> None:
    for number in (1, 2, 3):
        encode(made, "x.relex", shard=f"{number}/3")
    one, two, three = (made / f"x.relex.part-{number}-of-3" for number in (1, 2, 3))
    out = made / "y.relex"
    with pytest.raises(InvalidArgument, match=r"part 2 of 3 is missing: encode it with --shard"):
        relex_codec.merge([one, three], out)
    with pytest.raises(InvalidArgument, match=r"is part 2 of 3, and so is .*: give each once"):
        relex_codec.merge([one, two, two, three], out)
    encode(made, "z.relex", shard="2/3", quality="fine")
    with pytest.raises(InvalidArgument, match=r"begun with --quality"):
        relex_codec.merge([one, made / "z.relex.part-2-of-3", three], out)
    encode(made, "z.relex", shard="2/4")
    with pytest.raises(InvalidArgument, match=r"is one of 4 parts, .* one of 3"):
        relex_codec.merge([one, made / "z.relex.part-2-of-4", three], out)
    with pytest.raises(InvalidArgument, match=r"is no part of a file"):
        relex_codec.merge([made / "one.relex"], out)
    with pytest.raises(InvalidArgument, match=r"does not exist"):
        relex_codec.merge([made / "none"], out)
    data = two.read_bytes()
    two.write_bytes(data[:-5])
    with pytest.raises(InvalidArgument, match=r"was cut off"):
        relex_codec.merge([one, two, three], out)
    two.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(Corrupt, match=r"does not match its checksum"):
        relex_codec.merge([one, two, three], out)
    assert not out.exists()
    with pytest.raises(InvalidArgument, match=r"part-1-of-3: it exists; -f"):
        encode(made, "x.relex", shard="1/3")


def test_parts_of_runs_that_differ(made: Path) -> None:
    encode(made, "x.relex", shard="1/2")
    write_checkpoint(made / "run/global_step_20", {**bands.weights(20), "c": bf16(np.ones(700))})
    encode(made, "x.relex", shard="2/2")
    with pytest.raises(InvalidArgument, match=r"step 20 changed since .*part-2-of-2 is of another encoding"):
        relex_codec.merge([made / "x.relex.part-1-of-2", made / "x.relex.part-2-of-2"], made / "x.relex")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "3", "WORLD_SIZE": "4"}, Shard(4, 4)),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}, Shard(1, 8)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "0"}, Shard(8, 8)),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "RANK": "0", "WORLD_SIZE": "1"}, Shard(4, 4)),
    ],
)
def test_shards_of_job_arrays(environment: dict[str, str], expected: Shard) -> None:
    assert Shard.parse("auto", environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("0/3", {}, "expected I/N"),
        ("4/3", {}, "expected I/N"),
        ("half", {}, "expected I/N"),
        ("auto", {}, "none of SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, RANK and WORLD_SIZE is set"),
        ("auto", {"RANK": "1"}, "RANK is set, but not WORLD_SIZE"),
        ("auto", {"RANK": "4", "WORLD_SIZE": "4"}, "part 5 of 4"),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"},
            "without gaps",
        ),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_STEP": "2"},
            "counts in steps of 2",
        ),
    ],
)  # fmt: skip
def test_shards_that_cannot_be(text: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Shard.parse(text, environment)
