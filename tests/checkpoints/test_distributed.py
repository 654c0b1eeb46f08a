"""What ranks leave: torch.distributed checkpoints, shards of FSDP, slices of safetensors, read where they lie."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed

if not torch.distributed.is_available():
    pytest.skip("this torch is built without torch.distributed", allow_module_level=True)

import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from relex_codec.checkpoints import dcp as dcp_reader
from relex_codec.checkpoints.boxed import BoxedCheckpoint
from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.checkpoints.dcp import allowed_of_metadata, open_dcp
from relex_codec.checkpoints.discovery import find_run
from relex_codec.checkpoints.opening import open_reader, telling_file
from relex_codec.checkpoints.pickle_machine import Machine
from relex_codec.checkpoints.shards import box_of_rank, open_shards
from relex_codec.checkpoints.torch_values import Cut
from relex_codec.checkpoints.unpickling import unpickle_beginning
from relex_codec.errors import CheckpointError, RelexError, Truncated
from support import saving_ranks
from support.checkpoints import safetensors_bytes
from support.filesystems import upload
from support.servers.fixtures import Bucket
from support.shared import made_once
from support.spoiled import mutated
from support.tensors import Tensor, bf16, bits_of, random_bits
from support.torch_dcp import ALONE, QUIET
from support.torch_files import as_torch, state_dict, write_shards

pytestmark = [QUIET, pytest.mark.filterwarnings("ignore:Detected an existing checkpoint")]
MODEL = {
    "model.embed.weight": random_bits("BF16", (37, 8), 1),
    "model.norm.weight": random_bits("F32", (5,), 2),
    "model.layers.0.w": random_bits("BF16", (3, 4, 5), 3),
    "model.layers.0.long": random_bits("F16", (9000,), 4),
    "model.count": random_bits("I64", (), 5),
}


def check(reader: TensorReader, expected: dict[str, Tensor]) -> None:
    """Every tensor, whole and in slices."""
    assert set(reader.tensors) == set(expected)
    for name, (dtype, bits) in expected.items():
        info, flat = reader.info(name), bits.reshape(-1)
        assert (info.dtype, info.shape) == (dtype, bits.shape)
        size = bits.size
        for lo, hi in ((size // 3, size), (0, size), (0, min(3, size)), (size // 2, min(size // 2 + 11, size))):
            assert np.array_equal(reader.read(name, lo, hi), flat[lo:hi]), (name, lo, hi)


def located(folder: Path | str) -> str:
    """The file of a folder that tells what kind of checkpoint it is."""
    name = telling_file(os.listdir(folder))
    assert name is not None
    return f"{folder}/{name}"


# ---- torch.distributed.checkpoint ----

PREFIXES: dict[str, Callable[[Any], Any]] = {
    "": lambda model: {**model, "optimizer": {"state": {"model.norm.weight.exp_avg": torch.zeros(7)}}},
    "model.": lambda model: {"model": model},
    "app.model.": lambda model: {
        "app": {
            "model": model,
            "optimizers": {"state": {name: {"exp_avg": torch.zeros(3)} for name in model}},
            "scheduler": {"last_epoch": 3},
        }
    },
    "state.model.": lambda model: {"state": {"model": model, "optim": model}},
    "module.": lambda model: {"module": model, "ema": model, "rng": torch.zeros(3, dtype=torch.uint8)},
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("where", ["local", "memory"])
def test_distributed_checkpoints(tmp_path: Path, memory: Any, prefix: str, where: str) -> None:
    saved = PREFIXES[prefix](state_dict(MODEL))
    dcp.save(saved, checkpoint_id=tmp_path / "step_1", **ALONE)
    (tmp_path / "step_1" / "config.json").write_text("{}")
    upload(memory, tmp_path, "/run")
    ((_, path),) = find_run(tmp_path if where == "local" else "memory://run", allow_pickle=True)
    assert path == (f"{tmp_path}/step_1/.metadata" if where == "local" else "memory://run/step_1/.metadata")
    reader = open_reader(path, names=MODEL)
    check(reader, MODEL)
    assert list(reader.tensors) == list(MODEL)
    assert (reader.side_files, reader.read_file("config.json")) == (["config.json"], b"{}")
    with pytest.raises(
        CheckpointError, match=r"torch\.distributed checkpoint.*pass --allow-pickle \(allow_pickle=True"
    ):
        find_run(tmp_path if where == "local" else "memory://run")


def test_what_is_not_the_models_is_counted(tmp_path: Path) -> None:
    dcp.save(PREFIXES["app.model."](state_dict(MODEL)), checkpoint_id=tmp_path, **ALONE)
    reader = open_dcp(f"{tmp_path}/.metadata", names=MODEL)
    assert reader.notes[0] == "not read: 5 tensors that are not the model's, 60 bytes, of app.optimizers"
    assert reader.notes[1].startswith("not read: 1 values that are not the model's, ")
    assert reader.notes[1].endswith(" bytes, of app.scheduler")


def test_accelerate_puts_weights_below_the_configuration(tmp_path: Path) -> None:
    below = tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0"
    dcp.save({"model": state_dict(MODEL)}, checkpoint_id=below, **ALONE)
    dcp.save({"optimizer": {"x": torch.zeros(3)}}, checkpoint_id=tmp_path / "checkpoint-5" / "optimizer_0", **ALONE)
    (tmp_path / "checkpoint-5" / "tokenizer.json").write_text("{}")
    (tmp_path / "checkpoint-5" / "optimizer.pt").write_bytes(b"")
    ((_, path),) = find_run(tmp_path, allow_pickle=True)
    assert path == f"{below}/.metadata"
    reader = open_reader(path, names=MODEL)
    check(reader, MODEL)
    assert reader.side_files == ["tokenizer.json"]


def test_a_distributed_checkpoint_that_is_not_complete(tmp_path: Path) -> None:
    dcp.save({"model": state_dict(MODEL)}, checkpoint_id=tmp_path, **ALONE)
    data = tmp_path / "__0_0.distcp"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with pytest.raises(Truncated, match=r"__0_0\.distcp has .* bytes, \.metadata says"):
        open_dcp(f"{tmp_path}/.metadata")
    data.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        open_dcp(f"{tmp_path}/.metadata")
    data.write_bytes(b"\0" * len(whole))
    reader = open_dcp(f"{tmp_path}/.metadata", names=MODEL)
    with pytest.raises(RelexError, match="no directory of a zip archive"):
        reader.read("model.norm.weight")
    (tmp_path / ".metadata").write_bytes((tmp_path / ".metadata").read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="has a pickle that"):
        open_dcp(f"{tmp_path}/.metadata")


def change_metadata(folder: Path, change: Callable[[Any], None]) -> str:
    """Change the metadata of a checkpoint, as torch reads and writes them."""
    path = folder / ".metadata"
    found = pickle.loads(path.read_bytes())
    change(found)
    path.write_bytes(pickle.dumps(found))
    return str(path)


def test_metadata_that_cannot_be(tmp_path: Path) -> None:
    def saved() -> Path:
        dcp.save({"model": state_dict(MODEL)}, checkpoint_id=tmp_path, **ALONE)
        return tmp_path

    key = "model.model.embed.weight"

    def place(metadata: Any) -> Any:
        return next(place for index, place in metadata.storage_data.items() if index.fqn == key)

    changes: dict[str, Callable[[Any], Any]] = {
        "expected files beside it": lambda m: setattr(place(m), "relative_path", "../../etc/passwd"),
        r"tensor 'model\.embed\.weight' is not whole": lambda m: setattr(
            m.state_dict_metadata[key].chunks[0], "sizes", torch.Size([36, 8])),
        r"'model\.model\.embed\.weight' has dtype 'torch\.complex32'": lambda m: setattr(
            m.state_dict_metadata[key].properties, "dtype", torch.complex32),
        "written through extensions": lambda m: setattr(place(m), "transform_descriptors", ["zstd"]),
        r"nothing says where 'model\.model\.embed\.weight' from \[0, 0\] on lies": lambda m: m.storage_data.pop(
            next(index for index in m.storage_data if index.fqn == key)),
        "does not say where its tensors lie": lambda m: setattr(m, "storage_data", None),
        "bytes, .metadata says": lambda m: setattr(place(m), "length", 1 << 60),
    }  # fmt: skip
    for message, change in changes.items():
        path = change_metadata(saved(), change)
        with pytest.raises(RelexError, match=message):
            open_dcp(path, names=MODEL)
    path = change_metadata(saved(), lambda m: setattr(place(m), "length", 10))
    with pytest.raises(RelexError, match=r"from byte .* on has 10 bytes and no directory"):
        open_dcp(path, names=MODEL).read("model.embed.weight")

    def swap(metadata: Any) -> None:
        other = next(p for index, p in metadata.storage_data.items() if index.fqn.endswith("norm.weight"))
        place(metadata).offset, place(metadata).length = other.offset, other.length

    path = change_metadata(saved(), swap)
    with pytest.raises(CheckpointError, match=r"has F32 \[5\], expected BF16 \[37, 8\] of 'model\.embed\.weight'"):
        open_dcp(path, names=MODEL).read("model.embed.weight")
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(CheckpointError, match="is not that of torch"):
        open_dcp(path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(os.system))
    with pytest.raises(CheckpointError, match=r"names '(posix|nt)\.system'"):
        open_dcp(path)


def test_spoiled_metadata_and_chunks(tmp_path: Path) -> None:
    dcp.save({"model": {"a": torch.arange(6.0), "b": torch.arange(4)}}, checkpoint_id=tmp_path, **ALONE)
    chances = random.Random(1)
    for name in (".metadata", "__0_0.distcp"):
        path = tmp_path / name
        whole = path.read_bytes()
        for _ in range(400):
            path.write_bytes(mutated(whole, chances))
            try:
                reader = open_dcp(f"{tmp_path}/.metadata")
                for tensor in reader.tensors:
                    reader.read(tensor)
            except RelexError:
                continue
        path.write_bytes(whole)


# ---- shards of FSDP ----


@pytest.mark.parametrize("mesh", [(1,), (2,), (4,), (7,)])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_shards_of_verl(tmp_path: Path, memory: Any, mesh: tuple[int, ...], where: str) -> None:
    """Uneven ones, also empty ones, and a plain tensor on every rank."""
    write_shards(tmp_path / "global_step_1" / "actor", MODEL, mesh)
    upload(memory, tmp_path, "/run")
    ((_, path),) = find_run(tmp_path if where == "local" else "memory://run", allow_pickle=True)
    assert path.endswith(f"/global_step_1/actor/model_world_size_{mesh[0]}_rank_0.pt")
    reader = open_reader(path, names=MODEL)
    check(reader, MODEL)
    assert reader.read_file("config.json") == b'{"model_type": "test"}'
    with pytest.raises(CheckpointError, match=r"verl\.model_merger .*; or pass --allow-pickle"):
        find_run(tmp_path if where == "local" else "memory://run")


def test_padding_is_removed(tmp_path: Path) -> None:
    check(open_shards(located(write_shards(tmp_path, MODEL, (4,), pad=True))), MODEL)


def test_groups_that_are_replicated(tmp_path: Path) -> None:
    """HSDP: each row of the mesh has everything."""
    write_shards(tmp_path, MODEL, (2, 3), names=("ddp", "fsdp"))
    check(open_shards(located(tmp_path)), MODEL)


def test_columns(tmp_path: Path) -> None:
    tensors = {"w": random_bits("BF16", (6, 10)), "v": random_bits("F32", (4, 3, 5))}
    write_shards(tmp_path, tensors, (4,), placements=lambda name: [Shard(1)])
    check(open_shards(located(tmp_path)), tensors)


@pytest.mark.parametrize(
    ("mesh", "placements"),
    [
        ((2, 2), [Shard(0), Shard(1)]), ((2, 3), [Shard(1), Shard(0)]), ((2, 2), [Shard(0), Replicate()]),
        ((3, 2), [Shard(0), Shard(0)]), ((2, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
        ((2, 2, 2), [Replicate(), _StridedShard(0, split_factor=2), Shard(0)]),
        ((2, 2, 2), [_StridedShard(1, split_factor=2), Shard(0), Shard(1)]),
    ],
)  # fmt: skip
def test_tensors_that_are_cut_along_several_dimensions_of_the_mesh(tmp_path: Path, mesh: Any, placements: Any) -> None:
    """Tensor parallelism below FSDP, and groups of ranks that hold the same."""
    tensors = {"w": random_bits("BF16", (12, 16)), "v": random_bits("F32", (8, 4, 3))}
    names = ("a", "b", "c")[: len(mesh)]
    check(
        open_shards(located(write_shards(tmp_path, tensors, mesh, names=names, placements=lambda _: placements))),
        tensors,
    )


@pytest.mark.parametrize(
    ("mesh", "placements", "message"),
    [
        ((2,), [Partial()], "placed as .*Partial.*, expected Shard or Replicate"),
        ((2, 2), [_StridedShard(0, split_factor=4), Shard(0)], r"_StridedShard\(0, split_factor=4\) on a mesh of"),
        ((2, 2), [_StridedShard(0, split_factor=2), Shard(1)], r"_StridedShard\(0, split_factor=2\) on a mesh of"),
    ],
)
def test_placements_that_are_refused(tmp_path: Path, mesh: Any, placements: Any, message: str) -> None:
    names = ("a", "b")[: len(mesh)]
    write_shards(tmp_path, {"w": random_bits("BF16", (6, 10))}, mesh, names=names, placements=lambda _: placements)
    with pytest.raises(CheckpointError, match=f"'w' is .*{message}"):
        open_shards(located(tmp_path))


def test_tensors_that_no_rank_shards(tmp_path: Path) -> None:
    tensors = {"w": random_bits("BF16", (6, 10)), "mask": random_bits("BOOL", (3, 3))}
    check(open_shards(located(write_shards(tmp_path, tensors, (3,), plain=["mask"]))), tensors)
    everywhere = write_shards(tmp_path / "r", tensors, (2,), placements=lambda _: [Replicate()])
    check(open_shards(located(everywhere)), tensors)

    def other(rank: int, state: dict[str, Any]) -> None:
        state["mask"] = state["mask"] ^ (torch.arange(9).reshape(3, 3) == 4 * rank)

    reader = open_shards(located(write_shards(tmp_path, tensors, (2,), plain=["mask"], change=other)))
    assert reader.read("mask", 0, 0).size == 0
    with pytest.raises(CheckpointError, match=r"'mask' is not sharded and differs between .*rank_0\.pt and .*rank_1"):
        reader.read("mask")


def test_ranks_that_do_not_fit_together(tmp_path: Path) -> None:
    def written(change: Callable[[int, dict[str, Any]], None]) -> str:
        return located(write_shards(tmp_path, MODEL, (2,), change=change))

    name = "model.norm.weight"
    changes: dict[str, Callable[[int, dict[str, Any]], Any]] = {
        rf"'{name}' is not of one kind on all 2 ranks": lambda rank, s: rank and s.update({name: torch.zeros(5)}),
        f"'{name}' is not of one kind on all": lambda rank, s: rank and s.pop(name),
        f"'{name}' is not in the shard of rank 0": lambda rank, s: rank or s.pop(name),
        r"'model\.count' is not sharded and has other shapes": lambda rank, s: s.update(
            {"model.count": torch.zeros(rank + 1)}),
    }  # fmt: skip
    for message, change in changes.items():
        with pytest.raises(CheckpointError, match=message):
            open_shards(written(change), names=MODEL)
    (tmp_path / "model_world_size_2_rank_1.pt").unlink()
    (tmp_path / "run").mkdir()
    folder = tmp_path / "run" / "global_step_1"
    write_shards(folder / "actor", MODEL, (3,))
    (folder / "actor" / "model_world_size_3_rank_1.pt").unlink()
    with pytest.raises(
        CheckpointError, match=r"is incomplete: shard model_world_size_3_rank_1\.pt is missing \(1 of 3\)"
    ):
        find_run(tmp_path / "run", allow_pickle=True)
    write_shards(folder / "actor", MODEL, (2,))
    with pytest.raises(
        CheckpointError, match="shards of 2 groups of ranks, of world sizes 2, 3, expected those of one"
    ):
        find_run(tmp_path / "run", allow_pickle=True)


def test_parts_are_those_of_torch() -> None:
    for length in range(12):
        for ranks in range(1, 6):
            parts = [part.shape[0] for part in torch.chunk(torch.zeros(length, 2), ranks)]
            parts += [0] * (ranks - len(parts))
            found = [box_of_rank((length, 2), [Cut(0, 0)], (ranks,), (rank,)) for rank in range(ranks)]
            assert [box.sizes[0] for box in found] == parts
            assert [box.offsets[0] for box in found] == [min(sum(parts[:rank]), length) for rank in range(ranks)]


# ---- slices of safetensors ----


def write_slices(folder: Path, parts: list[dict[str, tuple[list[int], Tensor]]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts, 1):
        described = {name: {"saved_offsets": offsets} for name, (offsets, _) in part.items()}
        metadata = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(described)}
        data = safetensors_bytes({name: tensor for name, (_, tensor) in part.items()}, metadata)
        (folder / f"shard-{number:05d}-model-00001-of-00001.safetensors").write_bytes(data)
    return located(folder)


def test_slices(tmp_path: Path) -> None:
    dtype, bits = random_bits("BF16", (6, 4))
    parts = [
        {"w": ([0, 0], (dtype, bits[:4, :3])), "n": ([0], bf16([1.0, 2]))},
        {"w": ([4, 0], (dtype, bits[4:])), "optimizer.x": ([0], bf16([1.0]))},
        {"w": ([0, 3], (dtype, bits[:4, 3:]))},
    ]
    reader = open_reader(write_slices(tmp_path, parts))
    check(reader, {"w": (dtype, bits), "n": bf16([1.0, 2])})
    assert reader.may_be_slices
    assert reader.notes == ["not read: 1 slices that are not the model's, 2 bytes, of optimizer"]
    for part, message in (
        ({"w": ([0], (dtype, bits[:4, 3:]))}, "'w' has 1 offsets"),
        ({"w": ([0, -1], (dtype, bits[:4, 3:]))}, "does not say where its slices begin"),
        ({"w": ([0, 2], (dtype, bits[:4, 3:]))}, "'w' is not whole: two parts of it overlap"),
        ({"w": ([0, 3], random_bits("F32", (4, 1)))}, "not of one dtype"),
        ({}, "'w' is not whole: parts of it have 20 of its 24"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_reader(write_slices(tmp_path, [*parts[:2], part]))


# ---- an object store ----


def test_an_object_store(moto_bucket: Bucket, tmp_path: Path) -> None:
    """A slice costs a slice: requests have the ranges that are wanted, and nothing is read of optimizer states."""
    big = {"model.w": random_bits("BF16", (3000, 512), 1), "model.n": random_bits("BF16", (512,), 2)}
    states = {"app": {"model": state_dict(big), "optimizers": {"state": {"exp_avg": torch.zeros(900_000)}}}}
    dcp.save(states, checkpoint_id=tmp_path / "step_1" / "trainer", **ALONE)
    write_shards(tmp_path / "step_2" / "actor", big, (3,))
    (tmp_path / "step_3").mkdir()
    torch.save(state_dict(big), tmp_path / "step_3" / "pytorch_model.bin")
    moto_bucket.upload(tmp_path, "run")
    bits = big["model.w"][1].reshape(-1)
    for _, path in find_run(moto_bucket.url("run"), moto_bucket.options, allow_pickle=True):
        before = len(moto_bucket.proxy.seen)
        reader = open_reader(path, moto_bucket.options, names=big)
        assert np.array_equal(reader.read("model.w", 700_000, 760_000), bits[700_000:760_000])
        seen = [one for one in moto_bucket.proxy.seen[before:] if one.method == "GET" and one.range]
        assert len(seen) <= 9
        assert 120_000 <= sum(one.sent for one in seen) <= 120_000 + 3 * 140_000  # and both ends of three files
        check(reader, big)


# ---- two real ranks ----


@pytest.fixture(scope="module")
def saved_by_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks saved (saving_ranks.py)."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch is built without gloo")
    if not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip(f"torch {torch.__version__} has no public fully_shard, 2.6 has")

    def make(root: Path) -> None:
        root.mkdir(exist_ok=True)
        saving_ranks.start(2, root)

    return made_once(tmp_path_factory, "saved-by-ranks", make)


@pytest.mark.parametrize("kind", ["fsdp2", "fsdp1", "fsdp1 on a mesh", "dcp", "slices"])
def test_what_two_ranks_save(saved_by_ranks: Path, kind: str) -> None:
    if not (saved_by_ranks / kind).exists():
        pytest.skip(f"torch {torch.__version__} has no HuggingFaceStorageWriter")
    expected = saving_ranks.trained()
    reader = open_reader(located(saved_by_ranks / kind), names=expected)
    assert isinstance(reader, BoxedCheckpoint)
    assert set(reader.tensors) == set(expected)
    for name, tensor in expected.items():
        assert reader.info(name).shape == tuple(tensor.shape)
        assert np.array_equal(reader.read(name), bits_of(tensor)), name
    if kind == "dcp":
        assert any("app.optimizers" in note for note in reader.notes)


def test_as_torch_gives_the_bits() -> None:
    for dtype, bits in MODEL.values():
        assert np.array_equal(bits_of(as_torch((dtype, bits))), bits.reshape(-1))


# ---- metadata that begin as those of an earlier step ----


def saved_steps(root: Path) -> list[Path]:
    """Three steps whose metadata differ in path and identifier only."""
    paths = [root / f"step_{step}" for step in (1, 2, 3)]
    for number, path in enumerate(paths):
        shifted = {name: (dtype, bits + bits.dtype.type(number)) for name, (dtype, bits) in MODEL.items()}
        dcp.save({"model": state_dict(shifted)}, checkpoint_id=path, **ALONE)
    return paths


def test_metadata_are_parsed_once_where_only_their_end_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = saved_steps(tmp_path)
    parsed: list[str] = []
    begin = unpickle_beginning

    def counted(data: bytes, where: str, **options: Any) -> Any:
        parsed.append(where)
        return begin(data, where, **options)

    monkeypatch.setattr(dcp_reader, "unpickle_beginning", counted)
    known: dict[bytes, Any] = {}
    readers = [open_dcp(f"{path}/.metadata", names=MODEL, known=known) for path in paths]
    assert len(parsed) == 1
    for number, reader in enumerate(readers):
        check(reader, {name: (dtype, bits + bits.dtype.type(number)) for name, (dtype, bits) in MODEL.items()})
    assert readers[0].tensors is readers[2].tensors
    check(open_dcp(f"{paths[0]}/.metadata", names=[], known=known), {f"model.{name}": MODEL[name] for name in MODEL})
    assert len(parsed) == 2
    (paths[2] / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(Truncated, match=r"step_3/__0_0\.distcp has 0 bytes"):
        open_dcp(f"{paths[2]}/.metadata", names=MODEL, known=known)


def test_ends_of_metadata_that_change_what_was_said_before(tmp_path: Path) -> None:
    """Whatever the end does, the result is that of the whole."""
    paths = saved_steps(tmp_path)
    path = paths[1] / ".metadata"
    raw = path.read_bytes()
    at = raw.rindex(b"\x8c\x0cstorage_meta")
    machine = Machine(raw[:at] + b".", 0, allowed_of_metadata, None)
    machine.run()
    places = machine.stack[machine.stack.index("storage_data") + 1]
    number = next(n for n, value in machine.memo.items() if value is places)
    name = b"\x8c\x0cstorage_meta"
    ends = {
        r"names 'os\.system'": name + b"cos\nsystem\nub.",
        "nothing says where": name + b"N\x8c\x0cstorage_data}ub.",
        "has a place that is none": name + b"j" + number.to_bytes(4, "little") + b"K\x00K\x00sub.",
        "damaged": name + b"Nub",
        "is not that of torch": name + b"Nub0N.",
        "does not say where its tensors lie": name + b"NubNb.",
    }
    for message, end in ends.items():
        path.write_bytes(raw[:at] + end)
        known: dict[bytes, Any] = {}
        check(open_dcp(f"{paths[0]}/.metadata", names=MODEL, known=known), MODEL)
        for shared in (known, None):
            with pytest.raises(CheckpointError, match=message):
                open_dcp(str(path), names=MODEL, known=shared)


# ---- adapters within shards ----

WRAPPED = {
    "base_model.model.model.norm.weight": random_bits("BF16", (5,), 2),
    "base_model.model.model.q_proj.base_layer.weight": random_bits("BF16", (8, 6), 3),
    "base_model.model.model.q_proj.lora_A.default.weight": random_bits("BF16", (2, 6), 4),
    "base_model.model.model.q_proj.lora_B.default.weight": random_bits("BF16", (8, 2), 5),
    "base_model.model.model.embed.lora_embedding_A.default": random_bits("BF16", (2, 9), 6),
    "base_model.model.score.original_module.weight": random_bits("BF16", (3, 6), 7),
    "base_model.model.score.modules_to_save.default.weight": random_bits("BF16", (3, 6), 8),
}
ADAPTER = {
    "base_model.model.model.q_proj.lora_A.weight": WRAPPED["base_model.model.model.q_proj.lora_A.default.weight"],
    "base_model.model.model.q_proj.lora_B.weight": WRAPPED["base_model.model.model.q_proj.lora_B.default.weight"],
    "base_model.model.model.embed.lora_embedding_A": WRAPPED["base_model.model.model.embed.lora_embedding_A.default"],
    "base_model.model.score.weight": WRAPPED["base_model.model.score.modules_to_save.default.weight"],
}
BASE_NAMES = ["model.norm.weight", "model.q_proj.weight", "model.embed.weight", "score.weight"]


def test_an_adapter_within_a_wrapped_model(tmp_path: Path) -> None:
    actor = write_shards(tmp_path / "run" / "global_step_1" / "actor", WRAPPED, (2,))
    (actor / "lora_train_meta.json").write_text('{"r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"}')
    reader = open_reader(located(actor), names=BASE_NAMES)
    assert reader.is_adapter
    check(reader, ADAPTER)
    assert list(reader.notes) == ["not read: 3 tensors of the base, which an adapter leaves as they are"]
    assert list(reader.side_files) == ["adapter_config.json"]
    config = json.loads(reader.read_file("adapter_config.json"))
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 4, ["embed", "q_proj"])
    assert reader.file_sizes() == {"adapter_config.json": len(reader.read_file("adapter_config.json"))}
    # without the base's tensors, everything is the adapter's
    alone = {name: value for name, value in WRAPPED.items() if "lora_" in name}
    only = write_shards(tmp_path / "only" / "global_step_1" / "actor", alone, (2,))
    (only / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    found = open_reader(located(only), names=BASE_NAMES)
    check(found, {name: value for name, value in ADAPTER.items() if "lora_" in name})
    assert found.read_file("adapter_config.json") == b'{"peft_type": "LORA"}'


def test_an_adapter_whose_configuration_lies_with_the_run(tmp_path: Path) -> None:
    step = tmp_path / "run" / "checkpoint-3"
    dcp.save({"model": state_dict(ADAPTER)}, checkpoint_id=step / "pytorch_model_fsdp_0", **ALONE)
    path = located(step / "pytorch_model_fsdp_0")
    (tmp_path / "adapter_config.json").write_text("{}")  # which is no part of the run
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json; write it once into {tmp_path}/run, with"):
        open_reader(path, names=BASE_NAMES)
    (tmp_path / "run" / "adapter_config.json").write_text('{"peft_type": "LORA", "bias": "all"}')
    reader = open_reader(path, names=BASE_NAMES)
    check(reader, ADAPTER)
    assert reader.read_file("adapter_config.json") == b'{"peft_type": "LORA", "bias": "all"}'


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [
        ('{"r": 0, "lora_alpha": 4}', {}, "says no rank and alpha above 0"),
        ('{"r": true, "lora_alpha": 4}', {}, "says no rank and alpha above 0"),
        ("[]", {}, r"lora_train_meta\.json of checkpoint"),
        ('{"bias": "all"}', {}, "with biases that are trained"),
        ('{"r": 2, "lora_alpha": 4}', {"base_model.model.model.q_proj.lora_A.two.weight": (2, 6)}, "has 2 adapters"),
    ],
)
def test_adapters_that_cannot_be_told(tmp_path: Path, config: str, more: dict[str, Any], message: str) -> None:
    tensors = WRAPPED | {name: random_bits("BF16", shape, 9) for name, shape in more.items()}
    actor = write_shards(tmp_path / "global_step_1" / "actor", tensors, (2,))
    (actor / ("adapter_config.json" if "bias" in config else "lora_train_meta.json")).write_text(config)
    with pytest.raises(CheckpointError, match=message):
        open_reader(located(actor), names=BASE_NAMES)
