"""The base: where it is found, and that no byte of a wrong one is returned."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from relex_codec.checkpoints import base_model as module
from relex_codec.checkpoints.base_model import BaseReader, ExpectedTensor, open_base, parts_of
from relex_codec.core.digests import digest
from relex_codec.errors import BaseMismatch, CheckpointError, Corrupt, InvalidArgument
from relex_codec.format.constants import PIECE
from relex_codec.format.manifest import BaseRange
from relex_codec.storage.hub import revisions
from support.checkpoints import write_checkpoint
from support.filesystems import empty_memory, upload
from support.tensors import bf16, random_bits

SIZE = 2 * PIECE + 1000
TENSORS = {
    "big": random_bits("BF16", (SIZE,), 1),
    "square": random_bits("F32", (512, 512), 2),
    "scalar": random_bits("F32", (), 3),
    "empty": random_bits("I64", (0,), 4),
}


def piece_digests(bits):
    """FORMAT.md section 9 in plain words: half a SHA-256 of each 2^18 elements; uint8 [pieces, 16]."""
    flat = bits.reshape(-1)
    cuts = [flat[at : at + PIECE].tobytes() for at in range(0, flat.size, PIECE)]
    halves = b"".join(hashlib.sha256(cut).digest()[:16] for cut in cuts)
    return np.frombuffer(halves, np.uint8).reshape(-1, 16)


def expected(tensors=TENSORS):
    return [ExpectedTensor(name, dtype, bits.shape, piece_digests(bits)) for name, (dtype, bits) in tensors.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("base"), TENSORS, shards=2)


def test_digests_are_those_of_the_text(folder):
    found = open_base(folder)
    for name, (_, bits) in TENSORS.items():
        size = found.info(name).size
        digests = [digest(found.read(name, lo, min(lo + PIECE, size))) for lo in range(0, size, PIECE)]
        assert digests == [row.tobytes() for row in piece_digests(bits)]
        assert len(digests) == {"big": 3, "empty": 0}.get(name, 1)
    assert digest(b"").hex() == "e3b0c44298fc1c149afbf4c8996fb924"


def test_what_matches_is_returned(folder):
    reader = BaseReader(open_base(folder), expected())
    flat = {name: bits.reshape(-1) for name, (_, bits) in TENSORS.items()}
    slices = [("big", 0, SIZE), ("big", 5, 6), ("big", PIECE - 1, PIECE + 1), ("big", 2 * PIECE, SIZE),
              ("big", PIECE, 2 * PIECE), ("big", 7, 7), ("square", 0, 512 * 512), ("square", 512, 1024),
              ("scalar", 0, 1), ("empty", 0, 0)]  # fmt: skip
    for name, lo, hi in slices:
        found = reader.read(name, lo, hi)
        assert found.dtype == flat[name].dtype
        assert np.array_equal(found, flat[name][lo:hi])
    assert np.array_equal(reader.read("big"), flat["big"])
    with ThreadPoolExecutor(4) as pool:
        for (name, lo, hi), found in zip(slices, pool.map(lambda s: reader.read(*s), slices), strict=True):
            assert np.array_equal(found, flat[name][lo:hi])
    for lo, hi in ((0, SIZE + 1), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="which has"):
            reader.read("big", lo, hi)


def test_a_single_other_bit_is_refused_where_it_is_used(tmp_path):
    tensors = dict(TENSORS)
    changed = TENSORS["big"][1].copy()
    changed[PIECE + 17] ^= 1
    tensors["big"] = ("BF16", changed)
    reader = BaseReader(open_base(write_checkpoint(tmp_path / "other", tensors)), expected())
    assert np.array_equal(reader.read("big", 0, PIECE), changed[:PIECE])
    found, wanted = piece_digests(changed)[1].tobytes().hex(), expected()[0].digests[1].tobytes().hex()
    for read in (lambda: reader.read("big", PIECE + 900, PIECE + 901), lambda: reader.read("big", 0, SIZE)):
        with pytest.raises(BaseMismatch) as caught:
            read()
        message = str(caught.value)
        assert message.startswith(f"base {tmp_path}/other does not match: tensor 'big' differs (digest {found[:12]}")
        assert wanted[:12] in message
        assert message.endswith("pass --base with the base that the run was trained from")


def test_bytes_are_checked_at_every_read(tmp_path):
    small = {"w": bf16(np.arange(8.0))}
    folder = write_checkpoint(tmp_path, small)
    reader = BaseReader(open_base(folder), expected(small))
    reader.read("w")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)
    with pytest.raises((BaseMismatch, CheckpointError), match=r"differs|changed while"):
        reader.read("w")
    with pytest.raises(BaseMismatch, match="'w' differs"):
        BaseReader(open_base(folder), expected(small)).read("w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"big": None}, r"tensor 'big' is missing \(BF16 \[525288\] expected\)"),
        (
            {"square": random_bits("F32", (256, 1024), 2)},
            r"'square' is F32 \[256, 1024\] \(F32 \[512, 512\] expected\)",
        ),
        ({"scalar": random_bits("I32", (), 3)}, r"'scalar' is I32 \[\] \(F32 \[\] expected\)"),
    ],
)
def test_another_model_is_refused_before_anything_is_read(tmp_path, change, message):
    tensors = {name: tensor for name, tensor in {**TENSORS, **change}.items() if tensor is not None}
    found = open_base(write_checkpoint(tmp_path, tensors))
    with pytest.raises(BaseMismatch, match=message):
        BaseReader(found, expected())


def test_what_has_no_digests_is_not_returned(folder):
    reader = BaseReader(open_base(folder), expected()[:1])
    assert set(reader.tensors) == set(TENSORS)
    with pytest.raises(ValueError, match="'square' is not one of the 1 tensors that can be checked"):
        reader.read("square")


def test_too_few_digests_are_corrupt(folder):
    with pytest.raises(Corrupt, match="'big' has 2 digests, expected 3"):
        BaseReader(open_base(folder), [ExpectedTensor("big", "BF16", (SIZE,), expected()[0].digests[:2])])


# Origins in parts


def fused(*sources):
    """An origin of parts of "big", with the right digests."""
    flat = TENSORS["big"][1].reshape(-1)
    bits = np.concatenate([flat[first : first + count] for first, count in sources])
    ranges = tuple(BaseRange(0, "big", (SIZE,), first, count) for first, count in sources)
    return bits, ExpectedTensor("fused", "BF16", bits.shape, piece_digests(bits), ranges)


def test_parts_of_origins():
    sources = [BaseRange(0, "a", (4,), 1, 3), BaseRange(0, "b", (2, 3), 0, 6), BaseRange(0, "a", (4,), 0, 1)]
    parts = [(part.name, part.first, part.at, part.elements) for part in parts_of(sources, 2, 10)]
    assert parts == [("a", 3, 0, 1), ("b", 0, 1, 6), ("a", 0, 7, 1)]
    assert list(parts_of(sources, 4, 4)) == [] and [part.first for part in parts_of(sources, 4, 5)] == [1]


@pytest.mark.parametrize("where", ["local", "memory"])
def test_an_origin_is_read_from_all_of_its_sources(folder, where):
    bits, expectation = fused((SIZE - PIECE - 7, PIECE + 7), (3, PIECE), (PIECE, 1))
    with empty_memory() as memory:
        upload(memory, folder, "/base")
        reader = BaseReader(open_base(folder if where == "local" else "memory://base"), [*expected(), expectation])
        number = len(TENSORS)
        for lo, hi in ((0, len(bits)), (PIECE + 6, PIECE + 8), (5, 5), (2 * PIECE + 7, len(bits))):
            assert np.array_equal(reader.read_origin(number, lo, hi), bits[lo:hi])
        out = np.empty(len(bits), np.uint16)
        reader.read_origin(number, 0, len(bits), check=False, out=out)
        assert np.array_equal(out, bits)


def test_a_tensor_of_the_base_is_read_from_the_origins_that_have_it(folder):
    flat = TENSORS["big"][1].reshape(-1)
    first, second = fused((100, PIECE))[1], fused((5, 7), (PIECE + 50, 1000))[1]
    reader = BaseReader(open_base(folder), [first, second])
    for lo, hi in ((100, 200), (PIECE, PIECE + 1050), (5, 12), (200, PIECE + 60), (7, 7)):
        assert np.array_equal(reader.read("big", lo, hi), flat[lo:hi]), (lo, hi)
    for lo, hi in ((0, 6), (11, 13), (100, PIECE + 1051)):
        with pytest.raises(ValueError, match="of 'big' is not one of those that can be checked"):
            reader.read("big", lo, hi)


def test_a_source_with_other_bits_is_refused(tmp_path):
    changed = TENSORS["big"][1].copy()
    changed[PIECE + 17] ^= 1
    other = write_checkpoint(tmp_path / "other", TENSORS | {"big": ("BF16", changed)})
    bits, expectation = fused((PIECE, 100), (0, PIECE))
    reader = BaseReader(open_base(other), [expectation])
    assert np.array_equal(reader.read_origin(0, PIECE, PIECE + 100), bits[PIECE:])
    with pytest.raises(BaseMismatch, match="tensor 'fused' differs"):
        reader.read_origin(0, 50, 51)


# Where it is


def test_local_and_remote_bases(tmp_path, folder, monkeypatch):
    with empty_memory() as memory:
        upload(memory, write_checkpoint(tmp_path / "m", TENSORS), "/models/m")
        for uri in ("memory://models/m", "memory://models/m/model.safetensors"):
            found = open_base(uri)
            assert found.path == uri
            assert np.array_equal(BaseReader(found, expected()).read("big", 5, 9), TENSORS["big"][1][5:9])
    for uri in (tmp_path / "none", "memory://none"):
        with pytest.raises(CheckpointError, match="does not exist"):
            open_base(uri)
    monkeypatch.chdir(folder.parent)
    assert open_base(folder.name).shards == open_base(f"file://{folder}").shards


def test_the_hub_without_its_package(monkeypatch):
    monkeypatch.setattr(revisions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidArgument, match=r"hf://org/name needs huggingface_hub: pip install 'relex-codec\[hub\]'"):
        open_base("hf://org/name")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Hub cache with one model, and no network."""
    if importlib.util.find_spec("huggingface_hub") is None:
        pytest.skip("huggingface_hub is not installed")
    import huggingface_hub.constants
    import huggingface_hub.file_download

    repo = tmp_path / "models--org--name"
    snapshot = write_checkpoint(repo / "snapshots" / COMMIT, TENSORS, shards=2)
    write_checkpoint(snapshot / "sub", TENSORS)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v1").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    opened = []

    def remote(uri, options=None, likely=()):
        opened.append(str(uri))
        if str(uri).startswith("hf://"):
            raise CheckpointError("no network in tests")
        return original(uri, options)

    original = module.open_checkpoint
    monkeypatch.setattr(module, "open_checkpoint", remote)
    return snapshot, opened


@pytest.mark.parametrize("uri", ["hf://org/name", f"hf://org/name@{COMMIT}", "hf://org/name@v1", "hf://models/org/name",
                                 "hf://org/name/", "hf://org/name@main/sub"])  # fmt: skip
def test_the_cache_of_the_hub_comes_first(cache, uri):
    snapshot, opened = cache
    found = open_base(uri)
    assert found.path == uri
    assert opened == [str(snapshot / "sub" if uri.endswith("sub") else snapshot)]
    assert json.loads(found.read_file("config.json")) == {"model_type": "test"}
    assert np.array_equal(BaseReader(found, expected()).read("scalar"), TENSORS["scalar"][1].reshape(-1))


def test_an_incomplete_cache_is_passed_over(cache):
    snapshot, opened = cache
    for uri in ("hf://org/other", "hf://org/name@v2", "hf://datasets/org/name", "hf://org/name/model.safetensors"):
        with pytest.raises(CheckpointError, match="no network"):
            open_base(uri)
        assert opened[-1] == uri
    next(snapshot.glob("model-00002*")).unlink()
    with pytest.raises(CheckpointError, match="no network"):
        open_base("hf://org/name")
    assert opened[-2:] == [str(snapshot), "hf://org/name"]
    (snapshot / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no network"):
        open_base("hf://org/name")
    assert opened[-2:] == ["hf://org/name", "hf://org/name"]
