"""What a run's directory holds and a file does not is counted, whatever the trainer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec.checkpoints.discovery import find_run
from relex_codec.checkpoints.left_out import RestOfRun, StepFolder, files_kept, find_left_out, group_files
from relex_codec.checkpoints.series import open_series
from relex_codec.core.left_out import OTHER_FILES, OTHER_STEPS, LeftOut
from relex_codec.format.manifest import LEFT_OUT_LIMIT
from relex_codec.storage import tree
from relex_codec.storage.tree import ListedFile
from support.checkpoints import write_checkpoint, write_run
from support.commands import cli
from support.filesystems import upload
from support.tensors import Tensor, bf16


def at_step(step: int) -> dict[str, Tensor]:
    return {"w": bf16(np.arange(12.0).reshape(4, 3) + step)}


def put(root: Path, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes(size))


def rest(run: Any, **options: Any) -> dict[str, tuple[int, int]]:
    found = find_run(run, **options)
    series = open_series(found)
    result = find_left_out(run, found, lambda index: files_kept(series.checkpoint(index)))
    assert result.complete
    return {row.what: (row.files, row.bytes) for row in result.rows}


def test_trl(tmp_path: Path, memory: Any) -> None:
    write_run(tmp_path / "run", [1, 2, 3], at_step, layout="checkpoint-{}")
    for step in (1, 2, 3):
        put(tmp_path / f"run/checkpoint-{step}", {
            "optimizer.pt": 100, "scheduler.pt": 1, "rng_state_0.pth": 2, "rng_state_1.pth": 2, "trainer_state.json": 7,
            "tokenizer.json": 5, "global_step7/mp_rank_00_optim_states.pt": 9, "model.safetensors.old": 4,
        })  # fmt: skip
    put(tmp_path / "run", {"runs/May01/events.out.tfevents.17.host.1.0": 11, "README.md": 3, "tmp-checkpoint-4/x": 6})
    (tmp_path / "run" / "last").symlink_to("checkpoint-3")
    expected = {
        "optimizer.pt": (2, 200), "scheduler.pt": (2, 2), "rng_state_*.pth": (4, 8), "trainer_state.json": (2, 14),
        "global_step*/mp_rank_*_optim_states.pt": (2, 18), "model.safetensors.old": (2, 8),
        "runs/": (1, 11), "README.md": (1, 3),
    }  # fmt: skip
    upload(memory, tmp_path / "run", "/bucket/run")
    upload(memory, tmp_path / "run/checkpoint-3", "/bucket/run/last")
    step_3 = sum(file.stat().st_size for file in (tmp_path / "run/checkpoint-3").rglob("*") if file.is_file())
    others = (11, step_3 + 6)
    assert rest(tmp_path / "run", steps="1:2") == expected | {OTHER_STEPS: others}
    copied = {"last/": (10, step_3)}  # there are no links there
    assert rest("memory://bucket/run", steps="1:2") == expected | copied | {OTHER_STEPS: others}


def test_verl(tmp_path: Path) -> None:
    write_run(tmp_path, [10, 20], at_step, layout="global_step_{}/actor/huggingface")
    for step in (10, 20):
        put(tmp_path / f"global_step_{step}", {
            **{f"actor/optim_world_size_2_rank_{rank}.pt": 50 for rank in (0, 1)},
            **{f"actor/model_world_size_2_rank_{rank}.pt": 20 for rank in (0, 1)},
            "actor/huggingface/extra.bin": 1, "critic/optim_world_size_2_rank_0.pt": 30, "data.pt": 2,
        })  # fmt: skip
    put(tmp_path, {"latest_checkpointed_iteration.txt": 2, "global_step_10_merged/model.safetensors": 8})
    assert rest(tmp_path) == {
        "actor/optim_world_size_*_rank_*.pt": (4, 200), "actor/model_world_size_*_rank_*.pt": (4, 80),
        "critic/optim_world_size_*_rank_*.pt": (2, 60), "actor/huggingface/extra.bin": (2, 2), "data.pt": (2, 4),
        "latest_checkpointed_iteration.txt": (1, 2), "global_step_*_merged/": (1, 8),
    }  # fmt: skip


def test_steps_below_another_directory(tmp_path: Path) -> None:
    write_run(tmp_path / "weights", [10, 20], at_step, layout="step_{}")
    put(tmp_path, {
        "weights/step_10/STABLE": 0, "weights/step_20/STABLE": 0, "checkpoints/step_10/trainer/__0_0.distcp": 9,
        "weights/step_30/x": 5, "weights/notes.txt": 1, "logs/a.log": 2,
    })  # fmt: skip
    assert rest(tmp_path, steps="10") == {
        "checkpoints/": (1, 9), OTHER_STEPS: (4, 5 + sum(f.stat().st_size for f in tmp_path.glob("weights/step_20/*"))),
        "logs/": (1, 2), "notes.txt": (1, 1), "STABLE": (1, 0),
    }  # fmt: skip


@pytest.mark.parametrize("below", ["", "/hf"])
def test_paths_with_the_step(tmp_path: Path, memory: Any, below: str) -> None:
    write_run(tmp_path, [1, 2, 3], at_step, layout=f"m-{{}}-x{below}")
    for step in (1, 2, 3):
        put(tmp_path / f"m-{step}-x", {"optimizer.pt": 10, "in/here.bin": 1})
    put(tmp_path, {"of/somebody/else": 1000})
    upload(memory, tmp_path, "/runs")
    for place in (tmp_path, "memory://runs"):
        assert rest(f"{place}/m-{{step}}-x{below}", steps="1:2") == {"optimizer.pt": (2, 20), "in/here.bin": (2, 2)}


def test_an_index_that_is_not_read_is_not_kept(tmp_path: Path) -> None:
    write_run(tmp_path, [1], at_step)
    put(tmp_path / "global_step_1", {"model.safetensors.index.json": 0})
    (tmp_path / "global_step_1/model.safetensors.index.json").write_text('{"weight_map": {"w": "other.safetensors"}}')
    assert list(rest(tmp_path)) == ["model.safetensors.index.json"]


def test_so_many_rows_and_no_more() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    files = [ListedFile(f"{a}{b}{c}", 1) for a in letters[:2] for b in letters for c in letters]
    rows = group_files(
        [*files, ListedFile("large", 9), ListedFile("x" * 4000, 5), ListedFile("of\ud800\nnoone", None)], []
    )
    assert len(rows) == LEFT_OUT_LIMIT and rows[0] == LeftOut("large", 1, 9)
    assert rows[1].what == "x" * 197 + "..."
    assert rows[-1].what == OTHER_FILES and sum(row.files for row in rows) == len(files) + 3
    (odd,) = group_files([ListedFile("of\udcff\n\x1bnoone 12", None)], [])
    assert odd == LeftOut("of?\\n\\x1bnoone *", 1, 0)


def test_a_checkpoint_of_its_own() -> None:
    files = [ListedFile(name, 3) for name in ("model.safetensors", "a/b.txt", "a/hf/model.safetensors")]
    assert group_files(files, [StepFolder(7, "", "", {"model.safetensors"})]) == [
        LeftOut("a/b.txt", 1, 3), LeftOut("a/hf/model.safetensors", 1, 3),
    ]  # fmt: skip


def test_many_steps_cost_a_listing_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, list(range(40)), at_step)
    for step in range(40):
        put(tmp_path / f"global_step_{step}", {f"optim_{rank}.pt": 1 for rank in range(20)})
    listed: list[str] = []
    real = tree.list_directory
    monkeypatch.setattr(tree, "list_directory", lambda path, *a, **k: listed.append(path) or real(path, *a, **k))
    assert rest(tmp_path) == {"optim_*.pt": (800, 800)}
    assert len(listed) == 41


def test_encode_says_it_on_stderr(tmp_path: Path) -> None:
    run, base = write_run(tmp_path / "run", [1, 2], at_step), write_checkpoint(tmp_path / "base", at_step(0))
    done = cli("encode", run, "--base", base, "-o", tmp_path / "x.relex")
    assert "not in the file" not in done.stderr
    for step in (1, 2):
        put(run / f"global_step_{step}", {"optimizer.pt": 2000, "trainer_state.json": 10})
    done = cli("encode", run, "--base", base, "-o", tmp_path / "y.relex", "--steps", "1")
    assert done.returncode == 0, done.stderr
    first = done.stderr.splitlines()[0]
    assert re.fullmatch(
        r"not in the file: checkpoints of other steps \(2\.\d+ kB\), optimizer states \(2 kB\), "
        r"trainer's state \(10 B\)",
        first,
    ), first


def test_what_cannot_be_listed_is_said_and_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = write_run(tmp_path / "run", [1, 2], at_step), write_checkpoint(tmp_path / "base", at_step(0))
    monkeypatch.setattr("relex_codec.encoding.prepare.find_left_out", lambda *a: RestOfRun([LeftOut("x", 1, 5)], False))
    relex_codec.encode(run, tmp_path / "x.relex", base=base)
    assert "not in the file: other files (5 B), and more in directories that were not listed" in capsys.readouterr().err

    def fails(*arguments: Any) -> Any:
        raise relex_codec.CheckpointError("the server has gone")

    monkeypatch.setattr("relex_codec.encoding.prepare.find_left_out", fails)
    relex_codec.encode(run, tmp_path / "y.relex", base=base)
    assert "what else the run holds is not known: the server has gone" in capsys.readouterr().err
