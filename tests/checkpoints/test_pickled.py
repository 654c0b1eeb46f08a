"""Files of torch.save: read in ranges, without loading them, and without running anything in them."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relex_codec.checkpoints import torch_archive
from relex_codec.checkpoints.boxed import BoxedCheckpoint
from relex_codec.checkpoints.opening import open_reader
from relex_codec.checkpoints.pickled import open_pickled
from relex_codec.checkpoints.zip_directory import data_begin, read_directory
from relex_codec.errors import CheckpointError, RelexError, Truncated
from support.spoiled import mutated
from support.tensors import bits_of, random_bits
from support.torch_files import TORCH, as_torch, state_dict

KINDS = {dtype: random_bits(dtype, (5, 7), number) for number, dtype in enumerate(TORCH)}
OLD = {"_use_new_zipfile_serialization": False}
WAYS = {"zip": {}, "legacy": OLD, "protocol 4": {"pickle_protocol": 4}}


def save(path: Path, value: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path, **options)
    return path


def check(reader: BoxedCheckpoint, expected: dict[str, torch.Tensor]) -> None:
    """Every tensor, whole and in slices."""
    assert set(reader.tensors) == set(expected)
    for name, tensor in expected.items():
        wanted = bits_of(tensor)
        assert reader.info(name).shape == tuple(tensor.shape)
        assert np.array_equal(reader.read(name), wanted), name
        for lo, hi in ((0, 1), (1, 4), (len(wanted) // 2, len(wanted)), (len(wanted), len(wanted))):
            if hi <= len(wanted):
                assert np.array_equal(reader.read(name, lo, hi), wanted[lo:hi]), name


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("where", ["local", "memory"])
def test_every_dtype(tmp_path: Path, memory: Any, options: dict[str, Any], where: str) -> None:
    tensors = state_dict({**KINDS, "scalar": random_bits("F32", ()), "none": random_bits("BF16", (0, 4))})
    path = save(tmp_path / "pytorch_model.bin", tensors, **options)
    if options is OLD:
        tensors = {name: t for name, t in tensors.items() if t.dtype not in (torch.uint16, torch.uint32, torch.uint64)}
        tensors = {name: t for name, t in tensors.items() if "float8" not in str(t.dtype)}
        save(path, tensors, **options)
    if where == "memory":
        memory.pipe_file("/run/pytorch_model.bin", path.read_bytes())
    check(open_pickled(str(path) if where == "local" else "memory://run/pytorch_model.bin"), tensors)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_tensors_that_share_storages(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = as_torch(random_bits("BF16", (8, 12)))
    tensors = {
        "whole": whole, "tied": whole, "rows": whole[2:5], "columns": whole[:, 3:7], "transposed": whole.T,
        "every second": whole[::2, ::3], "vector": whole.reshape(-1)[5:50], "permuted": whole.reshape(2, 4, 12)[:, ::3],
    }  # fmt: skip
    check(open_pickled(str(save(tmp_path / "m.pt", tensors, **options))), tensors)


def test_parameters_and_modules(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = module.state_dict()
    assert type(state) is OrderedDict
    check(open_pickled(str(save(tmp_path / "a.pt", state))), dict(state))
    parameters = dict(module.named_parameters())
    parameters["0.weight"].extra = 3  # type: ignore[attr-defined]  # kept beside it in the file
    check(open_pickled(str(save(tmp_path / "b.pt", parameters))), parameters)


def test_the_model_within_what_a_trainer_saves(tmp_path: Path) -> None:
    model = {"model.norm.weight": torch.arange(4.0), "lm_head.weight": torch.arange(6.0).reshape(2, 3)}
    saved = {
        "module": OrderedDict(model), "epoch": 3, "args": {"lr": 0.5, "betas": (0.9, 0.99)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}, "exp_avg": torch.zeros(5)},
    }  # fmt: skip
    reader = open_pickled(str(save(tmp_path / "s.pt", saved)), names=model)
    check(reader, model)
    assert reader.notes == [
        "not read: 1 tensors that are not the model's, 20 bytes, of optimizer",
        "not read: 3 values that are not the model's, 0 bytes, of args, epoch",
    ]
    assert set(open_pickled(str(save(tmp_path / "t.pt", {"model": model})), names=model).tensors) == set(model)
    twice = {"a": model, "b": model}
    with pytest.raises(CheckpointError, match=r"has the model 2 times, under 'a\.' and 'b\.'"):
        open_pickled(str(save(tmp_path / "u.pt", twice)), names=model)


def test_shards_with_an_index(tmp_path: Path) -> None:
    parts = [state_dict({"a": KINDS["BF16"], "b": KINDS["F32"]}), state_dict({"c": KINDS["F16"]})]
    weight_map = {}
    for number, part in enumerate(parts, 1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        save(tmp_path / name, part)
        weight_map.update(dict.fromkeys(part, name))
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {**weight_map, "tied": "pytorch_model-00001-of-00002.bin"}}))
    (tmp_path / "config.json").write_text("{}")
    reader = open_pickled(str(index))
    check(reader, {**parts[0], **parts[1]})
    assert (reader.absent, reader.side_files, reader.read_file("config.json")) == (["tied"], ["config.json"], b"{}")
    assert reader.file_sizes() == {"config.json": 2}
    save(tmp_path / "pytorch_model-00002-of-00002.bin", {**parts[1], "a": parts[0]["a"]})
    with pytest.raises(CheckpointError, match="has tensor 'a' twice"):
        open_pickled(str(index))
    for weight_map, message in (
        ({"a": "../x.bin"}, r"names '\.\./x\.bin', expected files beside it"),
        ({"a": "x.safetensors"}, "names 'x.safetensors'"),
        ({}, "no weight_map"),
        ({"a": 3}, "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            open_pickled(str(index))


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/relex_codec_was_here",)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"w": Evil()}, r"names '(posix|nt)\.system', expected only what describes tensors; nothing of it was run"),
        ({"w": torch.nn.Linear(1, 1)}, r"names 'torch\.nn\.modules\.linear\.Linear'"),
        ({"w": np.arange(3)}, "names 'numpy"),
        ([1, 2], "holds no state dict"),
        (torch.zeros(3), "holds no state dict"),
        ({"x": 3}, "has no tensors of a model"),
        ({"w": torch.zeros(3).to_sparse()}, r"names 'torch\._utils\._rebuild_sparse_tensor'"),
        ({"w": torch.zeros(3, dtype=torch.complex128)}, "a storage of 'ComplexDoubleStorage', whose dtype cannot be"),
        ({"w": torch.zeros(1).expand(10**6)}, "'w' shares memory with itself: 1000000 elements in 1 places"),
    ],
    ids=["os.system", "module", "numpy", "list", "tensor", "nothing", "sparse", "complex128", "expanded"],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, options: dict[str, Any], value: Any, message: str) -> None:
    path = save(tmp_path / "x.pt", value, **options)
    with pytest.raises(CheckpointError, match=message):
        open_pickled(str(path))
    assert not Path("/tmp/relex_codec_was_here").exists()


def made_by_hand(path: Path, pickled: bytes, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> str:
    """Write an archive with this pickle; the members are those of a directory ``x``."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", **members}.items():
            archive.writestr(f"x/{name}", data)
    return str(path)


def tensor_pickle(shape: tuple[int, ...], strides: tuple[int, ...], count: int, first: int = 0) -> bytes:
    """A state dict with one tensor ``w`` of float32 in storage ``0``, by hand."""

    def tuple_of(*parts: bytes) -> bytes:
        return b"(" + b"".join(parts) + b"t"

    def number(value: int) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    storage = tuple_of(
        b"X\x07\x00\x00\x00storage", b"ctorch\nFloatStorage\n", b"X\x01\x00\x00\x000", b"X\x03\x00\x00\x00cpu",
        number(count),
    )  # fmt: skip
    args = [storage + b"Q", number(first), tuple_of(*map(number, shape)), tuple_of(*map(number, strides)), b"\x89}"]
    return b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n" + tuple_of(*args) + b"Rs."


def test_sizes_that_cannot_be(tmp_path: Path) -> None:
    data = {"data/0": np.arange(6, dtype=np.float32).tobytes()}
    path = tmp_path / "x.pt"
    reader = open_pickled(made_by_hand(path, tensor_pickle((2, 3), (3, 1), 6), data))
    assert np.array_equal(reader.read("w").view(np.float32), np.arange(6))
    for shape, strides, count, first, message in (
        ((2, 4), (4, 1), 6, 0, "'w' needs 8 elements of a storage of 24 bytes"),
        ((2, 3), (3, 1), 6, 1, "needs 7 elements"),
        ((2, 3), (1 << 60, 1), 6, 0, "needs 1152921504606846979 elements"),
        ((1 << 40, 1 << 40), (1, 1), 6, 0, "more than 281474976710655 elements"),
        ((2,) * 70, (1,) * 70, 6, 0, "more than|shape"),
        ((0, 1 << 62), (1, 1), 6, 0, "more than"),
        ((2, 3), (3,), 6, 0, "has a shape that is none"),
        ((-2, 3), (3, 1), 6, 0, "has a shape that is none"),
        ((2, 3), (3, 1), 7, 0, "refers to storage '0' of 28 bytes, the archive has 24"),
        ((2, 3), (3, 1), 1 << 62, 0, "refers to storage '0' of"),
        ((2, 3), (3, 1), -6, 0, "refers to a storage that is none"),
    ):
        made_by_hand(path, tensor_pickle(shape, strides, count, first), data)
        with pytest.raises(CheckpointError, match=message):
            open_pickled(str(path))
    with pytest.raises(CheckpointError, match="refers to storage '0' of 24 bytes, the archive lacks it"):
        open_pickled(made_by_hand(path, tensor_pickle((2, 3), (3, 1), 6), {}))
    with pytest.raises(CheckpointError, match=r"has 'x/data\.pkl' compressed, expected an archive of torch\.save"):
        open_pickled(made_by_hand(path, tensor_pickle((2, 3), (3, 1), 6) + b"\0" * 999, data, zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match="byte order b'big', expected little"):
        open_pickled(made_by_hand(path, tensor_pickle((2, 3), (3, 1), 6), {**data, "byteorder": b"big"}))
    with pytest.raises(CheckpointError, match="is a TorchScript archive"):
        open_pickled(made_by_hand(path, tensor_pickle((2, 3), (3, 1), 6), {**data, "constants.pkl": b""}))


def test_files_that_end_early_or_are_something_else(tmp_path: Path) -> None:
    for options, ends in ((WAYS["zip"], Truncated), (OLD, RelexError)):
        path = save(
            tmp_path / "x.pt",
            state_dict(
                KINDS | {"more": random_bits("F32", (90, 90))} if not options else {"w": random_bits("F32", (90, 90))}
            ),
            **options,
        )
        whole = path.read_bytes()
        for cut in (len(whole) - 1, len(whole) // 2, 5000, 100, 30):
            path.write_bytes(whole[:cut])
            with pytest.raises(ends):
                open_pickled(str(path))
    path.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match="extra bytes at the end"):
        open_pickled(str(path))
    for content, message in (
        (b"", "is no file of torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-LFS pointer"),
        (b"PK\x03\x04", "no directory of a zip archive"),
        (pickle.dumps({"w": 1}), "is no file of torch.save, expected one"),
    ):
        path.write_bytes(content)
        with pytest.raises(RelexError, match=message):
            open_pickled(str(path))
    with pytest.raises(CheckpointError, match="does not exist"):
        open_pickled(str(tmp_path / "no.pt"))


@pytest.mark.parametrize("options", [WAYS["zip"], OLD], ids=["zip", "legacy"])
def test_spoiled_files_are_errors_or_other_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    chances = random.Random(4)
    value = {"w": torch.arange(12.0).reshape(3, 4), "v": torch.arange(3, dtype=torch.bfloat16)}
    path = save(tmp_path / "x.pt", value, **options)
    whole = path.read_bytes()
    for _ in range(1200):
        path.write_bytes(mutated(whole, chances))
        try:
            reader = open_pickled(str(path))
            for name in reader.tensors:
                reader.read(name)
        except RelexError:
            continue


def test_a_long_legacy_pickle_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_archive, "_LEGACY_FIRST", 50)
    tensors = state_dict({f"layer.{i}.weight": random_bits("BF16", (2, 3), i) for i in range(40)})
    check(open_pickled(str(save(tmp_path / "x.bin", tensors, **OLD))), tensors)


def test_archives_beyond_4_gb_have_their_sizes_elsewhere() -> None:
    """The directory of an archive with a member of 5 GB, whose bytes nobody has."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", b"abc")
        info = zipfile.ZipInfo("x/data/0")
        archive.writestr(info, b"")
        info.file_size = info.compress_size = 5 << 30
        archive.start_dir += 5 << 30
        archive.fp.seek(0, 2)  # type: ignore[union-attr]
        archive._didModify = False
        end = io.BytesIO()
        start, archive.fp = archive.start_dir, end
        end.tell = lambda: start + len(end.getvalue())  # type: ignore[method-assign]
        archive._write_end_record()  # type: ignore[attr-defined]
        archive.fp = buffer
    raw, size = end.getvalue(), start + len(end.getvalue())

    def read(begin: int, stop: int) -> bytes:
        assert begin >= start - (64 << 10)
        return b"\0" * max(0, start - begin) + raw[max(0, begin - start) : stop - start]

    members = read_directory(read, size, "x")
    assert (members["x/data/0"].size, members["x/data.pkl"].size) == (5 << 30, 3)


def test_headers_that_are_none() -> None:
    member = read_directory(lambda a, b: archive()[a:b], len(archive()), "x")["x/a"]
    assert archive()[data_begin(member, archive()[:30], "x") :].startswith(b"content")
    with pytest.raises(CheckpointError, match="no member of its zip archive begins at byte 0"):
        data_begin(member, b"PK\x03\x05" + archive()[4:30], "x")


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as found:
        found.writestr("x/a", b"content")
    return buffer.getvalue()


def test_equal_tables_are_shared(tmp_path: Path) -> None:
    known: dict[bytes, Any] = {}
    readers = [
        open_reader(str(save(tmp_path / f"{i}.pt", {"w": torch.full((4, 4), float(i))})), known=known) for i in range(3)
    ]
    assert all(reader.tensors is readers[0].tensors for reader in readers)
    assert [float(reader.read("w").view(np.float32)[0]) for reader in readers] == [0, 1, 2]
