"""`restore` and `verify --against` on engines: the same files and the same findings, and errors that say what of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec.engines.choice import EngineChoice
from relex_codec.errors import Corrupt, InvalidArgument
from relex_codec.run import replay_units
from relex_codec.run.compared_weights import CompareTask
from support.checkpoints import write_checkpoint
from support.commands import ELSEWHERE, cli, failed
from support.runs import SIDE
from support.tensors import Tensor, bf16, f32

STEPS = [2, 4, 6]
ENGINES = ["local", "processes"]


def weights(step: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    large = rng.standard_normal((600, 1000)) * 0.05  # three pieces
    moves = np.random.default_rng((1, step)).standard_normal(large.shape) * (step > 0)
    return {
        "large": bf16(large + 1e-4 * step + 1e-4 * moves),
        "other": bf16(large[:300] * 2 + 1e-4 * moves[:300]),
        "still": bf16(rng.standard_normal((30, 20))),
        "late": f32(rng.standard_normal(50) + (step > 5)),
        "empty": bf16(np.zeros((0, 3))),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("replayed")
    write_checkpoint(root / "base", weights(0), side=SIDE)
    for step in STEPS:
        write_checkpoint(root / "run" / f"checkpoint-{step}", weights(step), shards=2, side=SIDE)
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", exact=True)
    return root


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several units, also of small runs."""
    monkeypatch.setattr(replay_units, "SMALLEST_UNIT", 1 << 20)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_work_is_cut_into_all_parts_once(made: Path) -> None:
    with relex_codec.open(made / "x.relex") as run:
        decoder = run._reader.decoder
        tensors = {tensor.number for tensor in decoder.container.index.tensors}
        units = replay_units._units(b"", decoder, len(STEPS), tensors)
        parts = [part for unit in units for batch in unit.batches for part in batch]
        wanted = [part for batch in replay_units_batches(decoder, tensors) for part in batch]
    assert len(units) > 1 and len({unit.key for unit in units}) == len(units)
    assert parts == wanted and len(set(parts)) == len(parts)
    assert sum(unit.input_bytes for unit in units) == len(STEPS) * sum(
        one[1].nbytes for one in weights(0).values()
    )  # fmt: skip


def replay_units_batches(decoder: Any, tensors: set[int]) -> Any:
    from relex_codec.exact.replay import batches

    return batches(decoder.exact, tensors)


@pytest.mark.parametrize("engine", ENGINES)
def test_restored_files_are_those_of_the_run(made: Path, tmp_path: Path, engine: str) -> None:
    with relex_codec.open(made / "x.relex") as run:
        assert run.restore(tmp_path / "plain") == STEPS
        assert run.restore(tmp_path / "out", workers=2, engine=engine) == STEPS
        run.restore(tmp_path / "some", workers=1, engine=engine, steps="4")
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
    assert contents(tmp_path / "some") == {
        name: data for name, data in contents(tmp_path / "plain").items() if name.startswith("checkpoint-4/")
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_what_differs_is_found_by_every_engine(made: Path, tmp_path: Path, engine: str) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    changed = weights(4)
    for name, places in (("large", [0, 1, 300_000]), ("other", [7]), ("late", [49])):
        changed[name][1].reshape(-1)[places] ^= 1
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    write_checkpoint(tmp_path / "run" / "checkpoint-4", changed, shards=2, side=SIDE)
    with relex_codec.open(made / "x.relex") as run:
        same = run.verify_against(made / "run", workers=2, engine=engine)
        assert same.ok and same == run.verify_against(made / "run")
        other = run.verify_against(tmp_path / "run", workers=2, engine=engine)
        assert other == run.verify_against(tmp_path / "run")
    assert [(one.step, one.name, one.what.split(" of ")[0]) for one in other.differences] == [
        (4, "large", "has 3"),
        (4, "late", "has 1"),
        (4, "other", "has 1"),
    ]


def test_an_appended_file_with_its_base_within(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=made / "base", exact=True, embed_base=True)
    write_checkpoint(tmp_path / "run" / "checkpoint-8", weights(8), shards=2, side=SIDE)
    relex_codec.append(tmp_path / "x.relex", [tmp_path / "run"])
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert run.verify_against(tmp_path / "run", workers=2, engine="processes").ok
        run.restore(tmp_path / "plain")
        run.restore(tmp_path / "out", workers=2, engine="processes")
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_to_a_url(made: Path, memory: Any) -> None:
    with relex_codec.open(made / "x.relex") as run:
        run.restore("memory://plain")
        run.restore("memory://out", workers=2, engine="processes")
    found = {name.removeprefix("/out/"): memory.cat(name) for name in memory.find("/out")}
    assert len(found) > 3
    assert found == {name.removeprefix("/plain/"): memory.cat(name) for name in memory.find("/plain")}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_file_is_named_and_nothing_is_left(made: Path, tmp_path: Path, engine: str) -> None:
    with relex_codec.open(made / "x.relex") as run:
        tier = run._reader.decoder.exact
        begin, length = tier._block(0, 2)
    spoiled = bytearray((made / "x.relex").read_bytes())
    spoiled[begin + length - 3] ^= 16
    (tmp_path / "x.relex").write_bytes(spoiled)
    with relex_codec.open(tmp_path / "x.relex", base=made / "base") as run:
        with pytest.raises(Corrupt, match=r"x\.relex"):
            run.restore(tmp_path / "out", workers=2, engine=engine)
        with pytest.raises(Corrupt, match=r"x\.relex"):
            run.verify_against(made / "run", workers=2, engine=engine)
    assert os.listdir(tmp_path) == ["x.relex"]


def test_a_checkpoint_that_goes_away_is_named(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    with relex_codec.open(made / "x.relex") as run:
        steps = tuple((step, str(tmp_path / "run" / f"checkpoint-{step}")) for step in STEPS)
        task = CompareTask(run._reader, (1, 2, 3), steps)
        decoder, tensors = run._reader.decoder, {0, 1}
        shutil.rmtree(tmp_path / "run" / "checkpoint-4")
        with pytest.raises(FileNotFoundError, match="checkpoint-4") as raised:
            list(replay_units.replayed_by_units(EngineChoice("processes", 2), task, decoder, 3, tensors))
    assert isinstance(raised.value, relex_codec.RelexError)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(made: Path, tmp_path: Path) -> None:
    code = f"""
        import os, signal, threading, time
        import relex_codec
        from relex_codec.engines import processes
        from relex_codec.run import replay_units
        replay_units.SMALLEST_UNIT = 1 << 20
        begun = processes._Worker.begin
        killed = []
        def begin(self, task):
            begun(self, task)
            if not killed:
                killed.append(self.process.pid)
                os.kill(self.process.pid, signal.SIGKILL)
        processes._Worker.begin = begin
        if __name__ == "__main__":
            with relex_codec.open({str(made / "x.relex")!r}) as run:
                run.restore({str(tmp_path / "out")!r}, workers=2, engine="processes")
            assert killed
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ELSEWHERE)
    with relex_codec.open(made / "x.relex") as run:
        run.restore(tmp_path / "plain")
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_the_commands(made: Path, tmp_path: Path) -> None:
    file, out = str(made / "x.relex"), tmp_path / "out"
    cli("restore", file, "-o", str(out), "--workers", "2", "--engine", "processes")
    assert len(contents(out)) > 3
    said = cli("verify", file, "--against", str(out), "--workers", "1", "--engine", "local").stdout
    assert said == cli("verify", file, "--against", str(out), "--workers", "2", "--engine", "processes").stdout
    failed(cli("restore", file, "-o", str(tmp_path / "no"), "--engine", "gpu"), "engine is 'gpu'")
    for ignored in (("--workers", "2"), ("--engine", "processes"), ("--address", "here")):
        done = cli("verify", file, *ignored)
        assert done.returncode == 2 and "with --against RUN" in done.stderr


def test_what_ray_cannot_write_is_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relex_codec.engines.choice.find_spec", lambda name: True)
    with (
        relex_codec.open(made / "x.relex") as run,
        pytest.raises(InvalidArgument, match="with the engine 'ray': its workers fill files of a directory that all"),
    ):
        run.restore("memory://out", engine="ray")
