"""slime's disk deltas as a run; the inputs are made by the rule that its writer documents."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

import relex_codec
from relex_codec import CheckpointError, InvalidArgument
from relex_codec.journal.deltas import find_versions
from support.checkpoints import safetensors_bytes, write_checkpoint, write_run
from support.same_runs import assert_same_but_for_names
from support.tensors import Tensor, bf16, f32

State = dict[str, Tensor]


def at(step: int) -> State:
    rng, noise = np.random.default_rng(0), np.random.default_rng(step)
    found = {"a": bf16(rng.standard_normal((600, 500))), "b": f32(rng.standard_normal(9)), "still": bf16(np.ones(4))}
    for name in ("a", "b")[: 1 + step % 2] if step else ():
        dtype, bits = found[name]
        found[name] = dtype, bits + (noise.random(bits.shape) < 0.03).astype(bits.dtype) * bits.dtype.type(step)
    return found


def adler32(raw: bytes) -> str:
    return f"{zlib.adler32(raw):08x}"


def xor(old: bytes, new: bytes) -> bytes:
    return (np.frombuffer(old, np.uint8) ^ np.frombuffer(new, np.uint8)).tobytes()


def overwrite(old: bytes, new: bytes) -> bytes:
    positions = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8)).astype("<u4")
    values = np.frombuffer(new, np.uint8)[positions]
    return np.uint32(len(positions)).tobytes() + positions.tobytes() + values.tobytes()


def write_delta(root: Path, version: int, before: State, after: State, encoding: str, /, **metadata: Any) -> Path:
    """A version as slime writes it: the tensors that changed, in two files."""
    folder = root / f"weight_v{version:06d}"
    folder.mkdir(parents=True)
    encode: Callable[[bytes, bytes], bytes] = {"xor": xor, "overwrite": overwrite}[encoding]
    changed = {name: (before[name][1].tobytes(), after[name][1].tobytes()) for name in after}
    changed = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
    weight_map = {}
    for i, (name, (old, new)) in enumerate(changed.items()):
        file = f"model-{i:05d}-of-{len(changed):05d}.safetensors"
        frame = np.frombuffer(zstandard.ZstdCompressor(level=1).compress(encode(old, new)), np.uint8)
        (folder / file).write_bytes(safetensors_bytes({name: ("U8", frame)}, {name: adler32(new)}))
        weight_map[name] = file
    index = {
        "version": f"{version:06d}", "base_version": f"{version - 1:06d}", "delta_encoding": encoding,
        "compression_format": "zstd", "checksum_format": "adler32", **metadata,
    }  # fmt: skip
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": index, "weight_map": weight_map}))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "base", at(0), shards=2)
    return tmp_path


def test_a_stream_is_its_checkpoints(place: Path) -> None:
    """XOR, overwriting, a whole checkpoint between, a version in which nothing changes."""
    states = {0: at(0), 1: at(1), 2: at(2), 3: at(3), 4: at(4), 5: at(4)}
    for version, encoding in ((1, "xor"), (2, "overwrite"), (4, "xor"), (5, "xor")):
        write_delta(place / "deltas", version, states[version - 1], states[version], encoding)
    write_checkpoint(place / "deltas" / "weight_v000003", states[3], shards=2)
    (place / "deltas" / "latest").write_text("weight_v000005")
    write_run(place / "run", range(1, 6), lambda step: states[step], shards=2)  # as the base is
    for name in ("deltas", "run"):
        relex_codec.encode(place / name, place / f"{name}.relex", base=place / "base", exact=True, base_uri="")
    assert_same_but_for_names(place / "deltas.relex", place / "run.relex", place / "base")


@pytest.mark.parametrize(("name", "package"), [("xxh3-128", "xxhash"), ("blake3", "blake3")])
def test_checksums_of_other_kinds(name: str, package: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages' own digests of what a tensor becomes; without the package, which one is needed is said."""
    made = pytest.importorskip(package)
    digest = made.xxh3_128 if package == "xxhash" else made.blake3
    monkeypatch.setitem(globals(), "adler32", lambda raw: digest(raw).hexdigest())
    write_delta(place / "deltas", 1, at(0), at(1), "xor", checksum_format=name)
    relex_codec.encode(place / "deltas", place / "x.relex", base=place / "base", exact=True)
    with relex_codec.open(place / "x.relex") as run:
        assert run.tensor("a", step=1).view(torch.int16).numpy().tobytes() == at(1)["a"][1].tobytes()
    monkeypatch.setitem(globals(), "adler32", lambda raw: digest(raw + b"x").hexdigest())
    write_delta(place / "wrong", 1, at(0), at(1), "xor", checksum_format=name)
    with pytest.raises(CheckpointError, match="does not give what its checksum says"):
        relex_codec.encode(place / "wrong", place / "y.relex", base=place / "base")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InvalidArgument, match=f"pip install {package}"):
        relex_codec.encode(place / "deltas", place / "y.relex", base=place / "base")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"delta_encoding": "sum"}, "expected xor or overwrite"),
        ({"compression_format": "lz4"}, "compression_format is not zstd"),
        ({"checksum_format": "md5"}, "expected adler32"),
        ({"version": "000009"}, "says that it is version 9, expected 1"),
        ({"base_version": "000004"}, "builds on version 4, expected 0"),
        ({"base_version": "x"}, "builds on version None"),
    ],
)
def test_what_cannot_be_read(metadata: dict[str, Any], message: str, place: Path) -> None:
    write_delta(place / "deltas", 1, at(0), at(1), "xor", **metadata)
    with pytest.raises(CheckpointError, match=message):
        relex_codec.encode(place / "deltas", place / "x.relex", base=place / "base")
    assert not (place / "x.relex").exists()


def test_a_version_that_is_missing(place: Path) -> None:
    write_delta(place / "deltas", 1, at(0), at(1), "xor")
    write_delta(place / "deltas", 3, at(2), at(3), "xor")
    with pytest.raises(CheckpointError, match="a version is missing"):
        find_versions(place / "deltas")


def test_another_base_is_noticed_by_its_checksums(place: Path) -> None:
    write_delta(place / "deltas", 1, at(3), at(1), "xor")
    with pytest.raises(CheckpointError, match="does not give what its checksum says"):
        relex_codec.encode(place / "deltas", place / "x.relex", base=place / "base")


def test_frames_that_are_damaged(place: Path) -> None:
    for encoding in ("xor", "overwrite"):
        folder = write_delta(place / encoding, 1, at(0), at(1), encoding)
        path = next(path for path in sorted(folder.glob("*.safetensors")) if path.stat().st_size > 1000)
        raw = bytearray(path.read_bytes())
        raw[-500] ^= 0xFF
        path.write_bytes(raw)
        with pytest.raises(CheckpointError, match=r"cannot be decoded|does not give"):
            relex_codec.encode(place / encoding, place / "x.relex", base=place / "base")
