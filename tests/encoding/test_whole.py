"""Tensors of many pieces: the quality rule holds for all of the tensor, not only for what the search samples."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import relex_codec
from relex_codec import InvalidArgument
from support.checkpoints import write_checkpoint, write_run
from support.tensors import Array, bf16

SHAPE = (4096, 512)  # eight pieces of 2^18
STEPS = [1, 2, 3, 4, 5, 6]


def wide(tensor: tuple[str, Array]) -> Array:
    return (tensor[1].astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one piece moves", "one piece moves more"])
def test_the_rule_holds_where_pieces_differ(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(5)
    start = rng.standard_normal(SHAPE)
    scale = np.full(SHAPE, 0.0 if kind == "one piece moves" else 1e-3)
    scale[2560:3072] = 2e-2
    drift, noise = rng.standard_normal(SHAPE) * scale, rng.standard_normal((6, *SHAPE)) * scale
    at = {step: {"embed": bf16(start + step * drift + noise[step - 1])} for step in STEPS}
    write_checkpoint(tmp_path / "base", {"embed": bf16(start)})
    write_run(tmp_path / "run", STEPS, lambda step: at[step])
    target, origin = wide(at[6]["embed"]).ravel(), wide(bf16(start)).ravel()
    errors = {}
    for quality in ("raw", "default"):
        file = tmp_path / f"{quality}.relex"
        relex_codec.encode(tmp_path / "run", file, base=tmp_path / "base", quality=quality)
        with relex_codec.open(file) as run:
            found = wide(("BF16", run._reader.bits("embed", 6, "track")))
            recorded = run.info()["tensor_rows"][0]["error_stored"]
        errors[quality] = np.linalg.norm(found - target) / np.linalg.norm(target - origin)
        assert recorded == pytest.approx(errors[quality], rel=1e-4)  # of the whole tensor
    assert errors["default"] <= errors["raw"] * 1.05 + 1e-6


def small(tmp_path: Path, name: str = "w") -> Path:
    rng = np.random.default_rng(2)
    start, drift = rng.standard_normal((16, 16)), rng.standard_normal((16, 16))
    write_checkpoint(tmp_path / "base", {name: bf16(start)})
    write_run(tmp_path / "run", STEPS, lambda step: {"w": bf16(start + 0.01 * step * drift)})
    return tmp_path / "run.relex"


def test_a_base_with_other_names_is_refused(tmp_path: Path) -> None:
    file = small(tmp_path, "other.w")
    with pytest.raises(InvalidArgument, match=r"share no tensor.*'w'.*'other\.w'.*--rename OLD=NEW"):
        relex_codec.encode(tmp_path / "run", file, base=tmp_path / "base")
    assert not file.exists()


def test_outputs_are_not_called_safetensors(tmp_path: Path) -> None:
    small(tmp_path)
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    with pytest.raises(InvalidArgument, match=r"NAME\.relex"):
        relex_codec.encode(tmp_path / "run", tmp_path / "base" / "model.safetensors", base=tmp_path / "base")
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before


def test_modules_on_meta_are_refused(tmp_path: Path) -> None:
    file = small(tmp_path)
    relex_codec.encode(tmp_path / "run", file, base=tmp_path / "base", quality="raw")
    module = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.empty(16, 16, device="meta"))})
    with relex_codec.open(file) as run, pytest.raises(InvalidArgument, match="to_empty"):
        run.load_into(module, 3)


def test_devices_without_values_are_refused(tmp_path: Path) -> None:
    file = small(tmp_path)
    relex_codec.encode(tmp_path / "run", file, base=tmp_path / "base", quality="raw")
    with pytest.raises(InvalidArgument, match="meta"):
        relex_codec.open(file, device="meta")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_forgotten_runs_close_their_files(tmp_path: Path) -> None:
    file = small(tmp_path)
    relex_codec.encode(tmp_path / "run", file, base=tmp_path / "base", quality="raw")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        relex_codec.open(file)._reader.bits("w", 3)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("scratch", ["file://{}", "{}"])
def test_scratch_files_lie_beside_the_output(tmp_path: Path, scratch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    small(tmp_path)
    output = scratch.format(tmp_path / "run.relex")
    relex_codec.encode(tmp_path / "run", output, base=tmp_path / "base", memory="64MB")
    assert sorted(os.listdir(tmp_path)) == ["base", "run", "run.relex"]


@pytest.mark.parametrize("quality", ["default", "raw", "micro"])
def test_one_tensor_at_one_step_is_one_read(tmp_path: Path, quality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    start = rng.standard_normal((200, 150))
    drift = rng.standard_normal((200, 2)) @ rng.standard_normal((2, 150)) + rng.standard_normal((200, 150))
    write_checkpoint(tmp_path / "base", {"w": bf16(start)})
    write_run(tmp_path / "run", STEPS, lambda step: {"w": bf16(start + 0.02 * step * drift)})
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality=quality)
    with relex_codec.open(tmp_path / "x.relex") as run:
        source, reads = run._reader.container.source, []
        read_many = source.read_many
        monkeypatch.setattr(source, "at_hand", False)  # as a store: what a local file has is read where it is used
        monkeypatch.setattr(source, "read_many", lambda ranges: (reads.append(len(ranges)), read_many(ranges))[1])
        run._reader.bits("w", 3.5)
    assert len(reads) == 1
