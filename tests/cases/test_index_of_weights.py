"""The index as transformers reads it: what it lists and nobody has, copies, left-over files; from public reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relex_codec
from relex_codec.checkpoints.safetensors import open_checkpoint
from relex_codec.errors import CheckpointError
from support.checkpoints import safetensors_bytes, write_checkpoint, write_run
from support.commands import cli, failed
from support.tensors import Tensor, bf16

EMBEDDING, HEAD, LAYER = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def at_step(step: int, head: bool = False) -> dict[str, Tensor]:
    rng = np.random.default_rng(5)
    found = {name: bf16(rng.standard_normal((8, 6)) + 0.01 * step) for name in (EMBEDDING, LAYER)}
    return {**found, HEAD: found[EMBEDDING]} if head else found


def change_index(folder: Path, entries: dict[str, str]) -> None:
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"].update(entries)
    (folder / INDEX).write_text(json.dumps(content))


def encode(root: Path, *options: Any) -> Any:
    return cli("encode", root / "run", "--base", root / "base", "-o", root / "x.relex", "--quality", "raw", *options)


def check_exact(root: Path, steps: list[int]) -> None:
    with relex_codec.open(root / "x.relex") as run:
        assert run.steps == steps
        for step in steps:
            for name, (_, bits) in at_step(step).items():
                found = run.tensor(name, step=step, tier="exact").view(torch.int16)
                assert np.array_equal(found.numpy().view(np.uint16), bits)


@pytest.mark.parametrize("listed", ["base", "run"])
def test_a_tied_head_that_is_listed_and_that_no_shard_holds(tmp_path: Path, listed: str) -> None:
    write_checkpoint(tmp_path / "base", at_step(0), shards=2)
    write_run(tmp_path / "run", [1, 2, 3], at_step, layout="step-{}", shards=2)
    for folder in [tmp_path / "base"] if listed == "base" else sorted((tmp_path / "run").iterdir()):
        change_index(folder, {HEAD: SECOND})
    done = encode(tmp_path, "--exact")
    assert done.returncode == 0, done.stderr
    note = [line for line in done.stderr.splitlines() if "which no file has" in line]
    assert len(note) == 1
    assert "'lm_head.weight'" in note[0]
    assert note[0].startswith(f"base {tmp_path}" if listed == "base" else "step 1 and 2 more")
    check_exact(tmp_path, [1, 2, 3])


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_the_run_lost_is_needed_unless_it_is_tied(tmp_path: Path, tied: bool) -> None:
    write_checkpoint(tmp_path / "base", at_step(0, head=True))
    side = {"config.json": {"text_config": {"tie_word_embeddings": tied}}}
    write_run(tmp_path / "run", [1, 2], at_step, shards=2, side=side)
    for folder in (tmp_path / "run").iterdir():
        change_index(folder, {HEAD: SECOND})
    done = encode(tmp_path, "--exact")
    if tied:
        assert done.returncode == 0, done.stderr
        check_exact(tmp_path, [1, 2])
    else:
        failed(done, "step 1 is incomplete", "'lm_head.weight'", "none of its files has", "save it again")


@pytest.mark.parametrize("broken", ["base", "run"])
def test_a_weight_that_was_lost_is_needed(tmp_path: Path, broken: str) -> None:
    write_checkpoint(tmp_path / "base", at_step(0), shards=2)
    write_run(tmp_path / "run", [1, 2], at_step, shards=2)
    for folder in [tmp_path / "base"] if broken == "base" else (tmp_path / "run").iterdir():
        (folder / SECOND).write_bytes(safetensors_bytes({"model.norm.weight": bf16(np.ones(3))}))
    failed(encode(tmp_path), f"{LAYER!r}", "none of its files has", "base" if broken == "base" else "step 1")


def test_a_tensor_is_where_a_shard_has_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, at_step(1), shards=2)
    change_index(tmp_path, {LAYER: FIRST, EMBEDDING: SECOND})
    found = open_checkpoint(tmp_path)
    assert np.array_equal(found.read(LAYER), at_step(1)[LAYER][1].reshape(-1))
    assert not found.absent


@pytest.mark.parametrize("chosen", [FIRST, SECOND])
def test_the_index_chooses_among_copies(tmp_path: Path, chosen: str) -> None:
    write_checkpoint(tmp_path, at_step(1), shards=2)
    other = at_step(9)
    parts = {FIRST: {EMBEDDING: at_step(1)[EMBEDDING], LAYER: other[LAYER]}, SECOND: {LAYER: at_step(1)[LAYER]}}
    for file, part in parts.items():
        (tmp_path / file).write_bytes(safetensors_bytes(part))
    change_index(tmp_path, {LAYER: chosen})
    found = open_checkpoint(tmp_path)
    assert list(found.tensors) == [EMBEDDING, LAYER]
    assert found.info(LAYER).shard == [FIRST, SECOND].index(chosen)
    assert np.array_equal(found.read(LAYER), parts[chosen][LAYER][1].reshape(-1))


@pytest.mark.parametrize("index", ["of other files", "broken"])
def test_model_safetensors_beside_a_left_over_index(tmp_path: Path, index: str) -> None:
    write_checkpoint(tmp_path / "base", at_step(0))
    for step in (1, 2):
        folder = write_checkpoint(tmp_path / "run" / f"checkpoint-{step}", at_step(9), shards=2)
        write_checkpoint(folder, at_step(step))
        if index == "broken":
            (folder / INDEX).write_text("{")
    done = encode(tmp_path, "--exact")
    assert done.returncode == 0, done.stderr
    note = next(line for line in done.stderr.splitlines() if line.startswith("step 1 and 1 more"))
    assert f"{INDEX} is not that of model.safetensors, which is read as transformers does" in note
    assert f"not read: {FIRST}, {SECOND}" in note
    check_exact(tmp_path, [1, 2])


def test_names_that_begin_with_a_dot_and_a_slash(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, at_step(1), shards=2)
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"] = {name: f"./{file}" for name, file in content["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(content))
    found = open_checkpoint(folder)
    assert found.shards == [FIRST, SECOND]
    assert found.indexed
    change_index(folder, {"x": "./../y.safetensors"})
    with pytest.raises(CheckpointError, match=r"names '\.\./y\.safetensors'"):
        open_checkpoint(folder)


def test_weights_that_no_index_names_are_told_once(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", at_step(0))
    shutil.copy(tmp_path / "base" / "model.safetensors", tmp_path / "base" / "consolidated.safetensors")
    write_run(tmp_path / "run", [1, 2, 3], at_step, shards=2)
    for step in (2, 3):
        folder = tmp_path / "run" / f"global_step_{step}"
        shutil.copy(folder / FIRST, folder / "model-00001-of-00004.safetensors")
        (folder / "adapter_model.safetensors").write_bytes(b"")
    done = encode(tmp_path, "--exact")
    notes = [line for line in done.stderr.splitlines() if "not read" in line]
    assert [line.split(": ")[0] for line in notes] == [f"base {tmp_path}/base", "step 2 and 1 more"]
    assert "consolidated.safetensors" in notes[0]
    assert "adapter_model.safetensors, model-00001-of-00004.safetensors" in notes[1]
    check_exact(tmp_path, [1, 2, 3])
    folder = write_checkpoint(tmp_path / "later" / "global_step_4", at_step(4))
    shutil.copy(folder / "model.safetensors", folder / "mtp.safetensors")
    done = cli("append", tmp_path / "x.relex", folder)
    assert "step 4: not read: mtp.safetensors" in done.stderr
    check_exact(tmp_path, [1, 2, 3, 4])
