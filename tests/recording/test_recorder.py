"""Recording: what goes in comes out, bit for bit; what cannot be recorded is told and leaves the journal as it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import relex_codec
import relex_codec.journal.writer as writer_module
from relex_codec import BaseMismatch, CheckpointError, InvalidArgument
from relex_codec.core import threads
from relex_codec.journal.reader import Journal
from relex_codec.journal.verify import check_journal
from relex_codec.recording import lots, memory, rank_recorder
from support.checkpoints import safetensors_bytes, write_checkpoint, write_run
from support.commands import cli, failed
from support.plain import read_safetensors
from support.runs import Made
from support.tensors import Tensor, bf16, bits_of

State = dict[str, torch.Tensor]


def state_of(folder: Path) -> State:
    found: State = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def step_of(made: Made, step: int) -> Path:
    return made.run / f"global_step_{step}"


def read(journal: Path, base: Path, step: int) -> dict[str, np.ndarray]:
    from relex_codec.checkpoints.base_model import open_base
    from relex_codec.journal.series import JournalSeries

    series = JournalSeries(Journal(journal), open_base(base))
    return {name: series.checkpoint(list(series.steps).index(step)).read(name) for name in series.names}


def same(journal: Path, base: Path, step: int, state: State) -> bool:
    found = read(journal, base, step)
    return found.keys() == state.keys() and all((found[name] == bits_of(state[name])).all() for name in state)


@pytest.fixture
def small(tmp_path: Path) -> Callable[[int], State]:
    """A base on disk, and weights at a step."""
    rng = np.random.default_rng(3)
    start: dict[str, Tensor] = {"w": bf16(rng.standard_normal((40, 30))), "b": bf16(rng.standard_normal(30))}
    write_checkpoint(tmp_path / "base", start)
    values = state_of(tmp_path / "base")

    def at(step: int) -> State:
        generator = torch.Generator().manual_seed(step)
        return {
            name: value + 0.01 * torch.randn(value.shape, generator=generator).bfloat16()
            for name, value in values.items()
        }

    return at


@pytest.fixture(scope="module")
def recorded(zoo_run: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zoo, recorded from its directories."""
    path = tmp_path_factory.mktemp("recorded") / "zoo.journal"
    with relex_codec.Recorder(path, base=zoo_run.base_path) as recorder:
        for step in zoo_run.steps:
            recorder.add(step, step_of(zoo_run, step))
    return path


# ---- What goes in comes out ----


@pytest.mark.parametrize("exact", [True, False])
def test_encoding_a_journal_is_encoding_its_checkpoints(
    exact: bool, recorded: Path, zoo_run: Made, tmp_path: Path
) -> None:
    """A journal has weights only: it is as checkpoints in the base's shards and without files of their own."""
    shards = {path.name: read_safetensors(path)[0] for path in sorted(zoo_run.base_path.glob("*.safetensors"))}
    in_base, last = {name for shard in shards.values() for name in shard}, max(shards)
    for step in zoo_run.steps:
        folder = tmp_path / f"run/global_step_{step}"
        folder.mkdir(parents=True)
        at = zoo_run.at(step)
        places = {}
        for file, shard in shards.items():
            mine = {name: at[name] for name in at if name in shard or (name not in in_base and file == last)}
            (folder / file).write_bytes(safetensors_bytes(mine))
            places |= dict.fromkeys(mine, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    checkpoints = tmp_path / "run/global_step_{step}"
    for name, run in (("a", recorded), ("b", checkpoints)):
        relex_codec.encode(run, tmp_path / f"{name}.relex", base=zoo_run.base_path, exact=exact, base_uri="base")
    assert (tmp_path / "a.relex").read_bytes() == (tmp_path / "b.relex").read_bytes()
    chosen: dict[str, dict[str, Any]] = {"c": {"steps": "2:20", "exclude_steps": "9"}, "d": {"steps": "2,5,14,20"}}
    for name, run in (("c", recorded), ("d", checkpoints)):
        relex_codec.encode(run, tmp_path / f"{name}.relex", base=zoo_run.base_path, base_uri="base", **chosen[name])
    assert (tmp_path / "c.relex").read_bytes() == (tmp_path / "d.relex").read_bytes()


@pytest.mark.parametrize("background", [True, False])
def test_state_dicts_modules_and_directories(background: bool, zoo_run: Made, tmp_path: Path) -> None:
    class Module(torch.nn.Module):
        def __init__(self, state: State) -> None:
            super().__init__()
            for number, (name, value) in enumerate(state.items()):
                self.register_buffer(f"b{number}", value)
                names[f"module.b{number}"] = name

    names: dict[str, str | None] = {}
    path = tmp_path / "j"
    with relex_codec.Recorder(path, base=zoo_run.base_path, background=background) as recorder:
        for step in zoo_run.steps[:4]:
            state = state_of(step_of(zoo_run, step))
            recorder.add(step, state if step % 2 else step_of(zoo_run, step))
            for value in state.values():
                value.zero_()  # training goes on
        recorder.flush()
        assert recorder.last_step == zoo_run.steps[3]
    module = torch.nn.ModuleDict({"module": Module(state_of(step_of(zoo_run, zoo_run.steps[4])))})
    plain = {key.removeprefix("module."): name for key, name in names.items()}
    with relex_codec.Recorder(path, prefix="module.", names=plain, background=background) as recorder:  # goes on
        recorder.add(zoo_run.steps[4], module)
    check_journal(Journal(path))
    for step in zoo_run.steps[:5]:
        assert same(path, zoo_run.base_path, step, state_of(step_of(zoo_run, step)))


def test_finish_writes_the_archive(small: Callable[[int], State], tmp_path: Path) -> None:
    with relex_codec.Recorder(tmp_path / "j", base=tmp_path / "base") as recorder:
        for step in (1, 2, 5):
            recorder.add(step, small(step))
        size = recorder.finish(tmp_path / "x.relex")
        assert size == (tmp_path / "x.relex").stat().st_size
        with pytest.raises(InvalidArgument, match="is closed"):
            recorder.add(6, small(6))
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert run.steps == [1, 2, 5]
        for name, value in run.state_dict(2).items():
            assert torch.equal(value, small(2)[name])


def test_tied_weights_and_what_is_left_out(small: Callable[[int], State], tmp_path: Path) -> None:
    def tied(step: int) -> dict[str, Any]:
        state = small(step)
        return {"head": state["w"], **state, "layer._extra_state": None, "cache": torch.ones(3)}

    with relex_codec.Recorder(tmp_path / "j", base=tmp_path / "base", names={"cache": None}) as recorder:
        recorder.add(1, tied(1))
    assert same(tmp_path / "j", tmp_path / "base", 1, small(1))


def test_a_base_of_another_dtype(tmp_path: Path) -> None:
    values = torch.randn(300, 7)
    write_checkpoint(tmp_path / "base", {"w": ("F32", values.numpy().view(np.uint32))})
    state = {"w": values.bfloat16()}
    with relex_codec.Recorder(tmp_path / "j", base=tmp_path / "base") as recorder:
        recorder.add(1, state)
    assert same(tmp_path / "j", tmp_path / "base", 1, state)
    assert (tmp_path / "j" / "0000-00000.data").stat().st_size < 100  # nothing but a digest, and an index
    with (
        pytest.raises(InvalidArgument, match=r"is BF16 \[300, 7\] there"),
        relex_codec.Recorder(tmp_path / "j") as recorder,
    ):
        recorder.add(2, {"w": values})


@pytest.mark.parametrize("background", [True, False])
def test_float32_weights_as_trainers_save_them(background: bool, small: Callable[[int], State], tmp_path: Path) -> None:
    def masters(step: int) -> State:
        return {name: value.float() * (1 + 1e-3 * step) for name, value in small(step).items()}

    rounded = {step: {name: value.bfloat16() for name, value in masters(step).items()} for step in (1, 2)}
    at = {name: ("F32", bits_of(value).reshape(value.shape)) for name, value in masters(2).items()}
    write_checkpoint(tmp_path / "step_2", at)
    options: dict[str, Any] = {"base": tmp_path / "base", "dtype": "base", "background": background}
    with relex_codec.Recorder(tmp_path / "j", **options) as recorder:
        recorder.add(1, masters(1))
        recorder.add(2, tmp_path / "step_2", verify=True)
    assert all(same(tmp_path / "j", tmp_path / "base", step, state) for step, state in rounded.items())
    with pytest.raises(InvalidArgument, match="expected state or base"):
        relex_codec.Recorder(tmp_path / "j", dtype="bfloat16")


# ---- The commands ----


def test_the_commands_read_a_journal(recorded: Path, zoo_run: Made, tmp_path: Path) -> None:
    shown = cli("info", recorded)
    assert shown.returncode == 0 and "steps     7, 1 to 23" in shown.stdout, shown
    assert "layers.0.proj.weight  BF16  [48, 64]  base" in cli("info", recorded, "--tensors").stdout
    assert '"journal": true' in cli("info", recorded, "--json").stdout
    done = cli("verify", recorded, "--base", zoo_run.base_path)
    assert done.returncode == 0 and "all 7 steps" in done.stdout and "is its base" in done.stdout, done
    assert cli("decode", recorded, "--step", 9, "-o", tmp_path / "a").returncode == 0
    relex_codec.encode(recorded, tmp_path / "x.relex", base=zoo_run.base_path, exact=True)
    with relex_codec.open(tmp_path / "x.relex") as run:
        run.save(tmp_path / "b", 9)
    assert json.loads((tmp_path / "a" / "relex.json").read_bytes())["step"] == 9
    names = sorted(path.name for path in (tmp_path / "a").iterdir() if path.name != "relex.json")
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    failed(cli("decode", recorded, "--step", 10, "-o", tmp_path / "c"), "has no step 10, it has 1:23")
    failed(
        cli("decode", recorded, "--step", 9, "--tier", "line", "-o", tmp_path / "c"), "tier line is for .relex files"
    )
    for option in (["--merge"], ["--max-distance", 0.4], ["--fit", "log"], ["--along", "secant"]):
        failed(cli("decode", recorded, "--step", 9, "-o", tmp_path / "c", *option), f"{option[0]}", "for .relex files")
    weights = sorted((tmp_path / "a").glob("*.safetensors"))
    kept = weights[0].read_bytes()
    weights[0].write_bytes(b"x")
    failed(cli("decode", recorded, "--step", 9, "-o", tmp_path / "a"), "is not empty")
    assert weights[0].read_bytes() == b"x"
    assert cli("decode", recorded, "--step", 9, "-o", tmp_path / "a", "-f").returncode == 0
    assert weights[0].read_bytes() == kept
    over = ["-o", zoo_run.base_path, "--base", zoo_run.base_path, "-f"]
    failed(cli("decode", recorded, "--step", 9, *over), "the base is there")
    failed(cli("verify", recorded, "--against", zoo_run.run), "--against is for .relex files")
    failed(cli("verify", tmp_path / "x.relex", "--against", recorded), "is a journal, expected checkpoints")
    failed(cli("append", tmp_path / "x.relex", recorded), "is a journal, expected checkpoints")


def test_another_base_is_refused(recorded: Path, zoo_run: Made, tmp_path: Path) -> None:
    shutil.copytree(zoo_run.base_path, tmp_path / "base")
    path = tmp_path / "base" / "model-00001-of-00003.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BaseMismatch):
        relex_codec.encode(recorded, tmp_path / "x.relex", base=tmp_path / "base")
    failed(cli("verify", recorded, "--base", tmp_path / "base"), "does not match")


def test_damage_is_found(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded, tmp_path / "j")
    path = tmp_path / "j" / "0000-00000.data"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    failed(cli("verify", tmp_path / "j"), "checksum")


# ---- What cannot be ----


def test_steps_that_are_added_twice_or_out_of_order(small: Callable[[int], State], tmp_path: Path) -> None:
    with relex_codec.Recorder(tmp_path / "j", base=tmp_path / "base") as recorder:
        recorder.add(5, small(5))
        with pytest.raises(InvalidArgument, match="step 5 is recorded already"):
            recorder.add(5, small(5))
        with pytest.raises(InvalidArgument, match="step 4 is before the last one"):
            recorder.add(4, small(4))
        for bad in (-1, 1.5, True, 1 << 54):
            with pytest.raises(InvalidArgument, match="expected an integer"):
                recorder.add(bad, small(6))  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="compares with a directory"):
            recorder.add(6, small(6), verify=True)
        recorder.add(6, small(6))
    assert Journal(tmp_path / "j").numbers == [5, 6]
    assert same(tmp_path / "j", tmp_path / "base", 6, small(6))


def test_tensors_that_change(small: Callable[[int], State], tmp_path: Path) -> None:
    with relex_codec.Recorder(tmp_path / "j", base=tmp_path / "base") as recorder:
        recorder.add(1, small(1))
        state = small(2)
        wrong: list[tuple[Any, str]] = [
            ({**state, "w": state["w"][:7]}, r"'w' is BF16 \[7, 30\], expected BF16 \[40, 30\]"),
            ({**state, "w": state["w"].float()}, "'w' is F32"),
            ({"w": state["w"]}, "'b' is part of the steps before"),
            ({**state, "new": state["b"].clone()}, "'new' is not part"),
            ({**state, "w": 3}, "'w', a int"),
            ({**state, "w": state["w"].to("meta")}, "meta device"),
            ({**state, "w": state["w"].to_sparse()}, "not supported"),
            ({**state, "w": torch.empty(0, dtype=torch.bfloat16)}, "ZeRO-3 saved placeholders"),
            ({}, "no tensors"),
            (3, "cannot record a int"),
        ]
        for bad, message in wrong:
            with pytest.raises(InvalidArgument, match=message):
                recorder.add(2, bad)
        recorder.add(2, state)
    assert Journal(tmp_path / "j").numbers == [1, 2]
    assert same(tmp_path / "j", tmp_path / "base", 2, small(2))


def test_what_a_recorder_needs(small: Callable[[int], State], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        relex_codec.Recorder(tmp_path / "j", base=tmp_path / "none")
    assert not (tmp_path / "j").exists()
    with pytest.raises(InvalidArgument, match="does not say where its base is; pass base"):
        relex_codec.Recorder(tmp_path / "j")
    shutil.rmtree(tmp_path / "j")
    with relex_codec.Recorder(tmp_path / "j", base=tmp_path / "base") as recorder:
        with pytest.raises(InvalidArgument, match="another recorder does"):
            relex_codec.Recorder(tmp_path / "j", base=tmp_path / "base")
        with pytest.raises(InvalidArgument, match="share no tensor"):
            recorder.add(1, {"other": torch.ones(3)})
        recorder.add(1, small(1))
    write_checkpoint(tmp_path / "other", {"w": bf16(np.ones((40, 30))), "b": bf16(np.ones(30))})
    with pytest.raises(BaseMismatch), relex_codec.Recorder(tmp_path / "j", base=tmp_path / "other") as recorder:
        recorder.add(2, small(2))


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk(
    background: bool, small: Callable[[int], State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def full(fd: int, data: Any, at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    recorder = relex_codec.Recorder(tmp_path / "j", base=tmp_path / "base", background=background)
    recorder.add(1, small(1))
    recorder.flush()
    monkeypatch.setattr(writer_module.os, "pwrite", full)

    def add() -> None:
        recorder.add(2, small(2))
        recorder.flush()

    with pytest.raises(InvalidArgument, match=r"step 2 is not recorded: .*No space left on device; free some space"):
        add()
    monkeypatch.setattr(writer_module.os, "pwrite", real)
    recorder.add(2, small(2))
    recorder.add(3, small(3))
    recorder.close()
    recorder.close()
    assert Journal(tmp_path / "j").numbers == [1, 2, 3]
    assert all(same(tmp_path / "j", tmp_path / "base", step, small(step)) for step in (1, 2, 3))


def test_a_disk_that_fills_up_while_a_step_is_compared(
    small: Callable[[int], State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More changed than may wait: `add` waits for the thread that writes, which fails, and says so at once."""
    monkeypatch.setattr(rank_recorder, "LEAST_ROOM", 1)
    monkeypatch.setattr(lots, "LOTS", 0.5)  # one at a time
    real, calls = os.pwrite, []

    def add(recorder: relex_codec.Recorder) -> None:
        recorder.add(2, small(2))
        recorder.flush()

    def full(fd: int, data: Any, at: int) -> int:
        calls.append(at)
        raise OSError(errno.ENOSPC, "No space left on device")

    with relex_codec.Recorder(tmp_path / "j", base=tmp_path / "base") as recorder:
        recorder.add(1, small(1))
        recorder.flush()
        monkeypatch.setattr(writer_module, "BUFFER", 1)
        monkeypatch.setattr(writer_module.os, "pwrite", full)
        with pytest.raises(InvalidArgument, match="step 2 is not recorded"):
            add(recorder)
        assert calls
        monkeypatch.setattr(writer_module.os, "pwrite", real)
        recorder.add(2, small(2))
    assert same(tmp_path / "j", tmp_path / "base", 2, small(2))


def test_what_goes_wrong_while_a_step_is_compared(
    small: Callable[[int], State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption in the middle: the thread that writes ends, and the step that is held is read again."""
    real = memory.find_changes

    def interrupted(*arguments: Any, **options: Any) -> Any:
        real(*arguments, **options)  # what is held is the new step already
        raise KeyboardInterrupt

    with relex_codec.Recorder(tmp_path / "j", base=tmp_path / "base") as recorder:
        recorder.add(1, small(1))
        with monkeypatch.context() as patch:
            patch.setattr(memory, "find_changes", interrupted)
            with pytest.raises(KeyboardInterrupt):
                recorder.add(2, small(2))
        recorder.add(2, small(2))
        recorder.add(3, small(3))
    assert Journal(tmp_path / "j").numbers == [1, 2, 3] and Journal(tmp_path / "j").unfinished == 0
    assert all(same(tmp_path / "j", tmp_path / "base", step, small(step)) for step in (1, 2, 3))


def test_memory_is_the_step_before_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what is held anyway, a step takes little: no second copy, on either thread."""
    monkeypatch.setattr(threads, "cpu_count", lambda: 1)  # each further thread has room for what it finds
    rng = np.random.default_rng(0)
    write_checkpoint(tmp_path / "base", {f"w{i}": bf16(rng.standard_normal((2048, 1024))) for i in range(8)})
    state = state_of(tmp_path / "base")
    size = sum(value.nbytes for value in state.values())
    with relex_codec.Recorder(tmp_path / "j", base=tmp_path / "base") as recorder:
        recorder.add(1, state)
        recorder.flush()
        for value in state.values():
            value[:, ::100] *= 1.01
        tracemalloc.start()
        try:
            recorder.add(2, state)
            recorder.flush()
            taken = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert same(tmp_path / "j", tmp_path / "base", 2, state)
    assert taken < size / 8, (taken, size)


def test_errors_on_exit(
    small: Callable[[int], State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*arguments: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def begun(name: str) -> relex_codec.Recorder:
        recorder = relex_codec.Recorder(tmp_path / name, base=tmp_path / "base")
        recorder.add(1, small(1))
        recorder.flush()
        return recorder

    first, second = begun("a"), begun("b")
    monkeypatch.setattr(writer_module.os, "fsync", failing)
    with pytest.raises(InvalidArgument, match="step 2 is not recorded"), first:
        first.add(2, small(2))

    def train() -> None:
        with second:
            second.add(2, small(2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # what training raises comes through, the rest is said
        train()
    assert "the recorder failed too: step 2 is not recorded" in capsys.readouterr().err
    monkeypatch.undo()
    assert Journal(tmp_path / "a").numbers == Journal(tmp_path / "b").numbers == [1]


def test_going_on_after_an_earlier_step(small: Callable[[int], State], tmp_path: Path) -> None:
    """A trainer that was killed resumes from its last checkpoint, and makes the steps after it again."""
    path = tmp_path / "j"
    with relex_codec.Recorder(path, base=tmp_path / "base") as recorder:
        for step in (1, 2, 3, 4):
            recorder.add(step, small(step))
    with relex_codec.Recorder(path, after=2) as recorder:
        pass  # nothing was recorded: nothing is left behind
    assert Journal(path).numbers == [1, 2, 3, 4]
    with relex_codec.Recorder(path, after=2) as recorder:
        assert recorder.last_step == 2
        recorder.add(3, small(33))
        recorder.add(10, small(10))
    journal = Journal(path)
    assert (journal.numbers, journal.left_behind) == ([1, 2, 3, 10], [3, 4])
    assert same(path, tmp_path / "base", 3, small(33)) and same(path, tmp_path / "base", 10, small(10))
    with relex_codec.Recorder(path, after=0) as recorder:
        assert recorder.last_step is None
        recorder.add(1, small(11))
    assert Journal(path).numbers == [1]
    assert same(path, tmp_path / "base", 1, small(11))


def test_weights_below_the_directory_of_a_step(small: Callable[[int], State], tmp_path: Path) -> None:
    write_run(
        tmp_path / "run",
        [1],
        lambda step: {name: ("BF16", bits_of(v).reshape(v.shape)) for name, v in small(1).items()},
    )
    shutil.move(tmp_path / "run" / "global_step_1", tmp_path / "deep" / "actor" / "huggingface")
    with relex_codec.Recorder(tmp_path / "j", base=tmp_path / "base") as recorder:
        recorder.add(1, tmp_path / "deep")
        with pytest.raises(CheckpointError):
            recorder.add(2, tmp_path / "run")
    assert same(tmp_path / "j", tmp_path / "base", 1, small(1))
