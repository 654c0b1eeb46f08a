"""One checkpoint: its files, its tensors, slices of them; and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from relex_codec.checkpoints import safetensors as module
from relex_codec.checkpoints.safetensors import open_checkpoint
from relex_codec.errors import CheckpointError, Truncated
from relex_codec.format.safetensors_header import build
from support.checkpoints import checkpoint_files, safetensors_bytes, write_checkpoint
from support.filesystems import upload
from support.tensors import WIDTH, random_bits

TENSORS = {
    "b.weight": random_bits("BF16", (5, 7), 1),
    "a.weight": random_bits("F32", (300,), 2),
    "scalar": random_bits("F16", (), 3),
    "empty": random_bits("I64", (0, 3), 4),
    "mask": random_bits("BOOL", (11,), 5),
    "complex": random_bits("C64", (2, 2), 6),
}


def check_tensors(found, tensors=TENSORS):
    assert set(found.tensors) == set(tensors)
    for name, (dtype, bits) in tensors.items():
        info = found.info(name)
        assert (info.name, info.dtype, info.shape, info.size) == (name, dtype, bits.shape, bits.size)
        flat = bits.reshape(-1)
        read = found.read(name)
        assert read.dtype == np.dtype(f"<u{WIDTH[dtype]}")
        assert np.array_equal(read, flat)
        half = bits.size // 2
        assert np.array_equal(found.read(name, half, bits.size), flat[half:])
        assert np.array_equal(found.read(name, 0, half), flat[:half])
        assert found.read(name, half, half).size == 0


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("index", [None, False, True])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_checkpoints_sharded_or_not(tmp_path, memory, shards, index, where):
    folder = write_checkpoint(tmp_path / "c", TENSORS, shards=shards, index=index)
    upload(memory, folder, "/c")
    found = open_checkpoint(folder if where == "local" else "memory://c")
    assert found.indexed is (shards > 1 if index is None else index)
    assert found.shards == sorted(found.shards)
    assert len(found.shards) == shards
    assert list(found.tensors) == list(TENSORS)  # the helper cuts consecutive tensors
    assert found.side_files == ["config.json"]
    assert json.loads(found.read_file("config.json")) == {"model_type": "test"}
    check_tensors(found)
    requests = [("mask", 2, 5), ("b.weight", 0, 35), ("a.weight", 100, 101), ("empty", 0, 0), ("scalar", 0, 1)]
    for name, lo, hi in requests:
        assert np.array_equal(found.read(name, lo, hi), TENSORS[name][1].reshape(-1)[lo:hi])


def test_the_order_is_that_of_shards_and_of_data(tmp_path):
    files = {"model-00002-of-00002.safetensors": ["a"], "model-00001-of-00002.safetensors": ["z", "m"]}
    for file, names in files.items():
        (tmp_path / file).write_bytes(safetensors_bytes({name: random_bits("U8", (3,)) for name in names}))
    found = open_checkpoint(tmp_path)
    assert list(found.tensors) == ["z", "m", "a"]
    assert [info.shard for info in found.tensors.values()] == [0, 0, 1]


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors"])
def test_a_single_file(tmp_path, memory, name):
    data = checkpoint_files(TENSORS)["model.safetensors"]
    (tmp_path / name).write_bytes(data)
    (tmp_path / "other.safetensors").write_bytes(b"not looked at")
    memory.pipe_file(f"/d/{name}", data)
    for path in (tmp_path / name, f"memory://d/{name}", f"file://{tmp_path}/{name}"):
        found = open_checkpoint(path)
        assert (found.shards, found.indexed, found.side_files) == ([name], False, [])
        check_tensors(found)


def test_one_file_of_another_name_and_state_beside_it(tmp_path):
    data = checkpoint_files(TENSORS)["model.safetensors"]
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(data)
    for name in ("adapter_model.safetensors", "optimizer.safetensors", ".hidden.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert open_checkpoint(tmp_path).shards == ["diffusion_pytorch_model.safetensors"]


def test_model_safetensors_comes_before_others(tmp_path):
    write_checkpoint(tmp_path, TENSORS)
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    assert open_checkpoint(tmp_path).shards == ["model.safetensors"]


def test_side_files(tmp_path):
    carried = ["LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt",
               "modeling_x.py", "qwen.tiktoken", "tokenizer.json", "tokenizer.model"]  # fmt: skip
    left = ["trainer_state.json", "optimizer.pt", "rng_state.pth", "training_args.bin", ".hidden.json",
            "with space.json", "pytorch_model.bin.index.json", "events.out", "model.gguf"]  # fmt: skip
    write_checkpoint(tmp_path, TENSORS, index=True, side=dict.fromkeys(carried + left, b"x"))
    (tmp_path / "sub.json").mkdir()
    found = open_checkpoint(tmp_path)
    assert found.side_files == carried
    assert found.read_file("LICENSE") == b"x"


def edit_index(folder, edit):
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def break_index(**weights):
    return lambda folder: edit_index(folder, lambda c: c["weight_map"].update(weights))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
BROKEN = {
    "missing shard": (lambda f: (f / SECOND).unlink(), f"names {SECOND}, which is missing"),
    "index without map": (lambda f: edit_index(f, lambda c: c.pop("weight_map")), "has no weight_map"),
    "index of numbers": (break_index(x=1), "has no weight_map"),
    "index of lists": (lambda f: edit_index(f, lambda c: c.update(weight_map=[])), "has no weight_map"),
    "index empty": (lambda f: edit_index(f, lambda c: c.update(weight_map={})), "lists no tensors"),
    "index not JSON": (lambda f: (f / "model.safetensors.index.json").write_text("{"), "not valid JSON"),
    "index leaves": (break_index(x="../other.safetensors"), "names '../other.safetensors'"),
    "index of pickles": (break_index(x="pytorch_model.bin"), "names 'pytorch_model.bin'"),
    "tensor twice, and no index that chooses": (
        lambda f: [
            (f / SECOND).write_bytes(safetensors_bytes({"b.weight": TENSORS["b.weight"]})),
            edit_index(f, lambda c: c["weight_map"].pop("b.weight")),
        ],
        f"'b.weight' twice: in {FIRST} and {SECOND}; remove the one",
    ),
    "LFS pointer": (
        lambda f: (f / FIRST).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        rf"{FIRST} is a git-LFS pointer, expected the file itself.*git lfs pull",
    ),
    "LFS pointer for the index": (
        lambda f: (f / "model.safetensors.index.json").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "index.json is a git-LFS pointer",
    ),
    "link to nowhere": (
        lambda f: [(f / SECOND).unlink(), (f / SECOND).symlink_to("../../blobs/0123")],
        rf"{SECOND} is a link to \.\./\.\./blobs/0123, which does not exist; restore that",
    ),
    "index that leads nowhere": (
        lambda f: [
            (f / "model.safetensors.index.json").unlink(),
            (f / "model.safetensors.index.json").symlink_to("../gone"),
        ],
        r"index\.json is a link to \.\./gone, which does not exist",
    ),
    "broken header": (lambda f: (f / FIRST).write_bytes(b"\x02" + bytes(7) + b"[]"), f"{FIRST} is a JSON list"),
    "not safetensors": (lambda f: (f / FIRST).write_bytes(b"\x80\x04" * 50), f"{FIRST} is not a safetensors file"),
    "4-bit": (
        lambda f: (f / FIRST).write_bytes(
            b"\x3c" + bytes(7) + b'{"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}' + b"\0"
        ),
        "'w' of .* has dtype 'F4'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_checkpoints_are_named(tmp_path, damage, message):
    folder = write_checkpoint(tmp_path / "ckpt", TENSORS, shards=2)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(folder)
    assert "ckpt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_shards(tmp_path):
    write_checkpoint(tmp_path, TENSORS, shards=2)
    data = (tmp_path / SECOND).read_bytes()
    for size in (0, 5, 30, len(data) - 1):
        (tmp_path / SECOND).write_bytes(data[:size])
        with pytest.raises(Truncated, match=SECOND):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no weights.*it is empty"),
        (["config.json", "notes.txt"], r"expected model\.safetensors.*found config\.json, notes\.txt"),
        (["pytorch_model.bin", "config.json"], r"pickled files only \(pytorch_model\.bin\).*save_pretrained"),
        (["model_world_size_2_rank_0.pt"], r"nothing is unpickled.*verl\.model_merger"),
        ([".metadata", "__0_0.distcp"], r"torch\.distributed checkpoint.*dcp_to_torch"),
        (["adapter_model.safetensors"], "adapter only.*merge"),
        (["a.safetensors", "b.safetensors"], r"2 safetensors files \(a\.safetensors, b\.safetensors\).*ambiguous"),
        (["a-00001-of-00002.safetensors"], r"shard a-00002-of-00002\.safetensors is missing"),
        (["a-00001-of-00002.safetensors", "b-00002-of-00002.safetensors"], "ambiguous"),
        (["my model.safetensors"], "rename it"),
    ],
)
def test_what_is_not_a_checkpoint(tmp_path, names, message):
    (tmp_path / "c").mkdir()
    for name in names:
        (tmp_path / "c" / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path / "c")
    assert "\n" not in str(caught.value)


def test_paths_that_are_nothing(tmp_path, memory):
    (tmp_path / "model.bin").write_bytes(b"")
    for path, message in [
        (tmp_path / "none", "does not exist"),
        ("memory://none", "does not exist"),
        (tmp_path / "none.safetensors", "does not exist"),
        ("memory://none/model.safetensors", "does not exist"),
        (tmp_path / "model.bin", "not called .safetensors"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)
    (tmp_path / "model.safetensors").write_bytes(build([], {"format": "pt"}))
    with pytest.raises(CheckpointError, match="has no tensors"):
        open_checkpoint(tmp_path)


def test_slices_out_of_bounds_and_unknown_names(tmp_path):
    found = open_checkpoint(write_checkpoint(tmp_path, TENSORS))
    for lo, hi in ((0, 36), (-1, 3), (36, 36)):
        with pytest.raises(ValueError, match="which has 35"):
            found.read("b.weight", lo, hi)
    with pytest.raises(CheckpointError, match="no tensor 'x'"):
        found.read("x")


def test_long_headers_take_a_second_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_READ", 16)
    check_tensors(open_checkpoint(write_checkpoint(tmp_path, TENSORS)))
