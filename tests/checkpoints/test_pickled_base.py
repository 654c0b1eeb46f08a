"""A base in files of torch.save: embedded, or refused with what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relex_codec
from relex_codec.checkpoints.pickled_base import open_base_to_encode
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint
from relex_codec.errors import CheckpointError, MissingCheckpoint
from support.checkpoints import write_checkpoint
from support.filesystems import upload
from support.tensors import Tensor, bf16
from support.torch_files import state_dict

SHAPES = {"model.embed.weight": (30, 8), "model.norm.weight": (8,)}


def weights(step: int) -> dict[str, Tensor]:
    random = np.random.default_rng(0)
    start = {name: random.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    return {name: bf16(value + 1e-3 * step * np.ones_like(value)) for name, value in start.items()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (1, 2):
        write_checkpoint(tmp_path / "run" / f"step_{step}", weights(step))
    return tmp_path / "run"


def pickled(folder: Path, name: str = "pytorch_model.bin") -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(state_dict(weights(0)), folder / name)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.mark.parametrize("given", ["directory", "file", "other name", "memory"])
def test_it_is_embedded(tmp_path: Path, run: Path, memory: Any, given: str) -> None:
    name = "policy.pt" if given == "other name" else "pytorch_model.bin"
    folder = pickled(tmp_path / "base", name)
    upload(memory, folder, "/base")
    base = {"file": folder / name, "memory": "memory://base"}.get(given, folder)
    relex_codec.encode(run, tmp_path / "x.relex", base=base, embed_base=True, allow_pickle=True, exact=True)
    same = write_checkpoint(tmp_path / "safetensors", weights(0))
    relex_codec.encode(run, tmp_path / "y.relex", base=same, embed_base=True, exact=True)
    with relex_codec.open(tmp_path / "x.relex") as ours, relex_codec.open(tmp_path / "y.relex") as theirs:
        assert list(ours) == list(theirs)
        for step in (0, 1, 2):
            for tensor in SHAPES:
                a, b = ours.tensor(tensor, step=step), theirs.tensor(tensor, step=step)
                assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        ours.save(tmp_path / "out", 1)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_other_processes_open_it_too(tmp_path: Path, run: Path) -> None:
    options: dict[str, Any] = {
        "base": pickled(tmp_path / "base"), "embed_base": True, "allow_pickle": True, "exact": True,
    }  # fmt: skip
    relex_codec.encode(run, tmp_path / "x.relex", **options)
    relex_codec.encode(run, tmp_path / "y.relex", engine="processes", workers=2, work_dir=tmp_path / "work", **options)
    assert (tmp_path / "x.relex").read_bytes() == (tmp_path / "y.relex").read_bytes()


@pytest.mark.parametrize("options", [{}, {"embed_base": True}, {"allow_pickle": True}])
def test_it_is_refused_where_a_file_would_refer_to_it(tmp_path: Path, run: Path, options: dict[str, bool]) -> None:
    folder = pickled(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"is pickled \(pytorch_model\.bin\).*embed it") as caught:
        relex_codec.encode(run, tmp_path / "x.relex", base=folder, **options)
    assert f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}-safetensors')" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.relex").exists()


def test_other_bases_are_opened_as_they_were(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "both", weights(0))
    pickled(folder)  # safetensors come first, as in transformers
    assert isinstance(open_base_to_encode(folder, None, embed=True, allow_pickle=True), SafetensorsCheckpoint)
    with pytest.raises(MissingCheckpoint, match="nowhere"):
        open_base_to_encode(tmp_path / "nowhere", None, embed=True, allow_pickle=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has no weights"):
        open_base_to_encode(tmp_path / "empty", None, embed=True, allow_pickle=True)
