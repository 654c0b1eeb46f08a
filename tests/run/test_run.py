"""Reading: tiers, steps, tensors, slices, modules, checkpoints written out."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relex_codec
from relex_codec import BaseMismatch, CheckpointError, InvalidArgument
from relex_codec.decoding.read_plan import WindowPlan
from relex_codec.kernels.interface import DecodeJob
from relex_codec.storage.open import open_source
from relex_codec.storage.source import Source
from support.checkpoints import write_checkpoint, write_run
from support.filesystems import empty_memory
from support.plain import File, narrow, read_safetensors, track, widen
from support.runs import SIDE, Made
from support.tensors import bf16, bits_of, f32

Zoo = Callable[..., Path]
TORCH = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I64": torch.int64, "I32": torch.int32,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip


# ---- Tiers and steps ----


def test_tiers_are_chosen_by_the_step(zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw")) as run:
        # the base lacks tensors of the run, so nothing that it has is step 0
        for step, tier in ((0, "line"), (1, "track"), (1.5, "track"), (23, "track"), (0.9, "line"), (23.01, "line")):
            assert run.tier(step) == tier
            assert run.tier(step, tier="line") == "line"
        assert run.tier(-4) == "line"
        for step in (0, 0.99, 23.5):
            with pytest.raises(InvalidArgument, match="from step 1 to 23"):
                run.tier(step, tier="track")
        for step in (np.nan, np.inf, -np.inf):
            with pytest.raises(InvalidArgument, match="finite"):
                run.tier(step)
        with pytest.raises(InvalidArgument, match="'exact'"):
            run.tier(3, tier="exact")
        with pytest.raises(InvalidArgument, match="'best'"):
            run.tensor("frozen", 3, tier="best")


@pytest.mark.parametrize("tier", ["track", "line"])
def test_steps_between_and_beyond(zoo_run: Made, zoo_file: Zoo, tier: str) -> None:
    file = File(zoo_file("raw"))
    steps = (1, 1.25, 2, 3.7, 5, 6.999, 22.5, 23) if tier == "track" else (-10, 0, 0.3, 23, 24, 1234.5)
    with relex_codec.open(zoo_file("raw")) as run:
        for name in ("layers.0.proj.weight", "layers.1.half", "layers.1.single", "layers.1.scale", "wider"):
            number = file.numbers(name)[0]
            record, row = file.directions[number], file.coefficients[number]
            origin_dtype, origin = zoo_run.base[name]
            for step in steps:
                g = (
                    np.float32(record.slope * step + record.intercept)
                    if tier == "line"
                    else track(zoo_run.steps, row, step)
                )
                x = widen(origin_dtype, origin).reshape(-1) + file.raw_vector(name) * g
                expected = narrow(run._reader.entry(name).dtype, x)
                np.testing.assert_array_equal(run._reader.bits(name, step, tier), expected, err_msg=f"{name} {step}")


def test_step_0_is_the_base_itself_even_if_the_run_has_a_step_0(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    start = ("BF16", rng.integers(0, 1 << 16, (20, 8)).astype(np.uint16))  # any bits, NaNs among them
    finite = np.isfinite(widen(*start))
    moved = start[1] ^ (finite & (rng.random((20, 8)) < 0.5)).astype(np.uint16)
    write_checkpoint(tmp_path / "base", {"w": start})
    write_run(tmp_path / "run", [0, 4], lambda step: {"w": ("BF16", moved if step else moved ^ finite)})
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality="raw")
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert run.tier(0) == "base" and run.tier(0, tier="track") == "track"
        np.testing.assert_array_equal(run._reader.bits("w", 0), start[1].reshape(-1))
        np.testing.assert_array_equal(run._reader.bits("w", -0.0), start[1].reshape(-1))
        assert (run._reader.bits("w", 0, "track") != start[1].reshape(-1)).any()


def test_what_is_stored_step_by_step_is_that_of_the_last_stored_step(zoo_run: Made, zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw")) as run:
        for step, stored in ((1, 1), (8.9, 5), (9, 9), (13, 9), (23, 23), (9999, 23), (0.5, 1)):
            for name in ("batches_seen", "added_counter"):
                np.testing.assert_array_equal(run._reader.bits(name, step), zoo_run.at(stored)[name][1].reshape(-1))
            assert run.tier(0) == "line"  # and not the base, which lacks a tensor
        np.testing.assert_array_equal(run._reader.bits("batches_seen", 0), zoo_run.at(1)["batches_seen"][1])


def test_a_step_too_far_out_is_refused(zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw")) as run:
        with pytest.raises(InvalidArgument, match="too far out"):
            run.tensor("layers.0.proj.weight", 1e60)
        run.tensor("frozen", 1e60)  # needs no coefficient


# ---- Run ----


def test_what_a_run_tells(zoo_run: Made, zoo_file: Zoo) -> None:
    run = relex_codec.open(zoo_file("raw"))
    with run:
        assert run.steps == run.observed_steps == zoo_run.steps
        assert all(type(step) is int for step in run.steps)
        assert set(run.keys()) == set(zoo_run.at(1))
        entry = run._reader.entry("layers.0.experts")
        assert (entry.dtype, entry.shape) == ("BF16", (4, 16, 24))
        assert "steps 1 to 23" in repr(run)
        for call in (run._reader.entry, lambda name: run.tensor(name, 3), lambda name: run._reader.bits(name, 3)):
            with pytest.raises(InvalidArgument, match="no tensor 'nothing'"):
                call("nothing")
    with pytest.raises(InvalidArgument, match="is closed"):
        run._reader.bits("layers.0.proj.weight", 3)


@pytest.mark.parametrize("step", [0, 9, 11.5, 100])
def test_state_dict_and_tensor_are_the_bits(zoo_file: Zoo, step: float) -> None:
    with relex_codec.open(zoo_file("default")) as run:
        state = run.state_dict(step)
        assert list(state) == run.keys()
        for name, tensor in state.items():
            entry = run._reader.entry(name)
            assert (tensor.dtype, tuple(tensor.shape)) == (TORCH[entry.dtype], entry.shape)
            assert tensor.is_contiguous() and tensor.device.type == "cpu"
            np.testing.assert_array_equal(bits_of(tensor), run._reader.bits(name, step))
            np.testing.assert_array_equal(bits_of(run.tensor(name, step=step)), run._reader.bits(name, step))


def test_results_belong_to_the_caller(zoo_run: Made, zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw", embed_base=True, rank=2)) as run:
        for name in ("layers.0.proj.weight", "frozen", "added_frozen", "batches_seen"):
            before = run._reader.bits(name, 9).copy()
            run.tensor(name, 9).zero_()
            np.testing.assert_array_equal(run._reader.bits(name, 9), before)


@pytest.mark.slow
def test_ranges_of_elements_are_those_of_the_whole(large: Path) -> None:
    piece = 1 << 18
    with relex_codec.open(large) as run:
        for name in run:
            whole, size = run._reader.bits(name, 7), run._reader.entry(name).size
            for lo, hi in (
                (0, 0),
                (0, 1),
                (5, 5),
                (piece - 1, piece + 1),
                (piece, 2 * piece),
                (size - 3, size),
                (17, size),
            ):
                np.testing.assert_array_equal(
                    run._reader.bits(name, 7, "auto", lo, hi), whole[lo:hi], err_msg=f"{name} {lo}"
                )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two tensors of three pieces each, one with factors."""
    root = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    shape = (1500, 500)
    start = rng.standard_normal((2, *shape)) * 0.02
    drift = np.stack([np.outer(rng.standard_normal(1500), rng.standard_normal(500)), rng.standard_normal(shape)]) * 2e-3

    def at(step: int) -> dict[str, Any]:
        return {name: bf16(start[i] + drift[i] * step / 8) for i, name in enumerate(("factors", "codes"))}

    write_checkpoint(root / "base", {name: bf16(start[i]) for i, name in enumerate(("factors", "codes"))})
    write_run(root / "run", [4, 8], at)
    relex_codec.encode(root / "run", root / "big.relex", base=root / "base", quality="small")
    file = File(root / "big.relex")
    assert file.directions[file.numbers("factors")[0]].rank > 0
    assert file.directions[file.numbers("codes")[0]].packing > 1
    return root / "big.relex"


class Counting(Source):
    """A source that counts what is read of it."""

    def __init__(self, inner: Source) -> None:
        self.inner, self.path, self.size = inner, inner.path, inner.size
        self.ranges: list[tuple[int, int]] = []

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.ranges += [r for r in ranges if r[0] < r[1]]
        return self.inner.read_many(ranges)

    def taken(self) -> list[tuple[int, int]]:
        ranges, self.ranges = self.ranges, []
        return ranges


def test_a_row_slice_reads_and_decodes_a_part(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = File(large)
    source = Counting(open_source(large))
    monkeypatch.setattr("relex_codec.run.run_reader.open_source", lambda path, options: source)
    decoded: list[int] = []
    with relex_codec.open(large) as run:
        opening = source.taken()
        assert len(opening) <= 2
        prepare = run._reader.decoder._prepare

        def counting(jobs: Sequence[DecodeJob]) -> Any:
            decoded.extend(job.window.hi - job.window.lo for job in jobs)
            return prepare(jobs)

        run._reader.decoder._prepare = counting
        data = file.places["relex.data.directions"]
        record = file.directions[file.numbers("codes")[0]]
        run._reader.bits("codes", 5, "auto", 10 * 500, 12 * 500)
        reads = [r for r in source.taken() if r[0] >= data[0]]
        first = file.chunks[record.chunk]
        assert reads == [(first[0], first[0] + first[1])]  # the first chunk of the three
        assert decoded == [2 * 500]
        decoded.clear()
        run._reader.bits("codes", 5, "auto", 1499 * 500, 1500 * 500)
        reads = [r for r in source.taken() if r[0] >= data[0]]
        third = file.chunks[record.chunk + 2]
        assert reads == [(third[0], third[0] + third[1])] and decoded == [500]
        decoded.clear()
        run._reader.bits("codes", 5)
        assert sum(decoded) == 1500 * 500
        assert sum(b - a for a, b in source.taken()) > 2 * first[1]


def test_one_tensor_reads_only_its_own_bytes(zoo_file: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zoo_file("raw")
    file = File(path)
    source = Counting(open_source(path))
    monkeypatch.setattr("relex_codec.run.run_reader.open_source", lambda path, options: source)
    with relex_codec.open(path) as run:
        source.taken()
        run.tensor("frozen", 12)
        run.tensor("wider_frozen", 0)
        assert source.taken() == []  # the base's alone
        run.tensor("layers.0.proj.weight", 12)
        record = file.directions[file.numbers("layers.0.proj.weight")[0]]
        allowed = [(c[0], c[0] + c[1]) for c in file.chunks[record.chunk : record.chunk + 4]]
        assert set(source.taken()) <= set(allowed)


def test_threads_read_at_the_same_time(zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("default")) as run:
        wanted = {(name, step): run._reader.bits(name, step) for name in run for step in (3, 77)}
    with relex_codec.open(zoo_file("default")) as run, ThreadPoolExecutor(8) as pool:
        start = threading.Barrier(8, timeout=20)

        def read(worker: int) -> bool:
            start.wait()
            return all((run._reader.bits(*key) == value).all() for key, value in wanted.items())

        assert all(pool.map(read, range(8)))


def test_reading_through_fsspec(zoo_run: Made, zoo_file: Zoo) -> None:
    with empty_memory() as filesystem:
        filesystem.pipe_file("/x/run.relex", zoo_file("raw").read_bytes())
        with relex_codec.open("memory://x/run.relex") as run, relex_codec.open(zoo_file("raw")) as local:
            for name in run:
                np.testing.assert_array_equal(run._reader.bits(name, 4), local._reader.bits(name, 4))
            run.verify()


def test_a_missing_file_and_device(tmp_path: Path, zoo_file: Zoo) -> None:
    with pytest.raises(InvalidArgument, match="does not exist"):
        relex_codec.open(tmp_path / "no.relex")
    with pytest.raises(InvalidArgument, match="device 'nonsense'"):
        relex_codec.open(zoo_file("raw"), device="nonsense")


# ---- The base ----


def test_a_moved_base_is_given(zoo_run: Made, tmp_path: Path) -> None:
    shutil.copytree(zoo_run.base_path, tmp_path / "old")
    relex_codec.encode(zoo_run.run, tmp_path / "x.relex", base=tmp_path / "old", quality="raw", steps="1:2")
    os.rename(tmp_path / "old", tmp_path / "new")
    with relex_codec.open(tmp_path / "x.relex") as run:
        with pytest.raises(CheckpointError, match="pass --base"):
            run._reader.bits("frozen", 2)
        run._reader.bits("added_frozen", 2)  # stored in the file
        run.verify()
    with relex_codec.open(tmp_path / "x.relex", base=tmp_path / "new") as run:
        np.testing.assert_array_equal(run._reader.bits("frozen", 2), zoo_run.base["frozen"][1].reshape(-1))
        run.check_base()


def test_a_wrong_base_is_refused_by_the_first_tensor_that_differs(zoo_run: Made, zoo_file: Zoo, tmp_path: Path) -> None:
    names = [name for name in File(zoo_file("raw")).names if name in zoo_run.base and name != "resized"]
    for i, wrong in enumerate(("layers.0.norm.weight", "switch", "layers.1.scale", "odd_bits")):
        other = dict(zoo_run.base)
        flipped = other[wrong][1].copy().reshape(-1)
        flipped[-1] ^= 1
        other[wrong] = (other[wrong][0], flipped.reshape(other[wrong][1].shape))
        last = names[-1]
        other[last] = (other[last][0], other[last][1] ^ 1)
        write_checkpoint(tmp_path / str(i), other, shards=3, side=SIDE)
        with relex_codec.open(zoo_file("raw"), base=tmp_path / str(i)) as run:
            with pytest.raises(BaseMismatch, match=f"'{wrong}' differs"):
                run.check_base()
            with pytest.raises(BaseMismatch, match=f"'{wrong}'"):
                run.tensor(wrong, 5)
            with pytest.raises(BaseMismatch, match=f"'{wrong}'"):
                run.state_dict(5)
            with pytest.raises(BaseMismatch, match=f"'{wrong}'"):
                run.save(tmp_path / "out", 5)
            assert not (tmp_path / "out").exists()
            run.tensor("frozen", 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [(None, "'frozen' is missing"), (bf16(np.zeros((16, 32))), r"'frozen' is BF16 \[16, 32\]"),
     (f32(np.zeros((32, 16))), "'frozen' is F32")],
)  # fmt: skip
def test_a_base_of_another_form_is_refused(
    zoo_run: Made, zoo_file: Zoo, tmp_path: Path, change: Any, message: str
) -> None:
    other = {name: tensor for name, tensor in zoo_run.base.items() if name != "frozen"}
    if change is not None:
        other["frozen"] = change
    write_checkpoint(tmp_path / "base", other)
    with relex_codec.open(zoo_file("raw"), base=tmp_path / "base") as run, pytest.raises(BaseMismatch, match=message):
        run.tensor("layers.0.norm.weight", 5)


# ---- load_into ----


class Model(torch.nn.Module):
    """Two matrices and a buffer; the head may be tied to the embedding."""

    def __init__(self, tied: bool = False, width: int = 6) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(10, width, dtype=torch.bfloat16)
        self.head = torch.nn.Linear(width, 10, bias=False, dtype=torch.bfloat16)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Path]:
    """A file with some of the model's tensors."""

    def make(names: tuple[str, ...]) -> Path:
        root = tmp_path_factory.mktemp("model")
        rng = np.random.default_rng(5)
        start = {name: rng.standard_normal((10, 6)) for name in ("embed.weight", "head.weight", "extra")}

        def at(step: int) -> dict[str, Any]:
            found = {name: bf16(start[name] * (1 + step / 50)) for name in start if name in names}
            return found | ({"count": ("I64", np.array(step, np.uint64))} if "count" in names else {})

        write_checkpoint(root / "base", at(0))
        write_run(root / "run", [2, 5], at)
        relex_codec.encode(root / "run", root / "x.relex", base=root / "base", quality="raw")
        return root / "x.relex"

    return make


def test_load_into(model_file: Any) -> None:
    with relex_codec.open(model_file(("embed.weight", "head.weight", "count"))) as run:
        model = Model()
        places = {name: p.data_ptr() for name, p in model.state_dict().items()}
        for step in (2, 3.5, 40, 0):
            run.load_into(model, step)
            for name, value in model.state_dict().items():
                np.testing.assert_array_equal(bits_of(value), run._reader.bits(name, step), err_msg=name)
                assert value.data_ptr() == places[name]
        assert model.embed.weight.requires_grad


def test_load_into_tied_modules(model_file: Any) -> None:
    for name in ("embed.weight", "head.weight"):
        with relex_codec.open(model_file((name, "count"))) as run:
            model = Model(tied=True)
            run.load_into(model, 5)
            assert model.head.weight is model.embed.weight
            np.testing.assert_array_equal(bits_of(model.head.weight), run._reader.bits(name, 5))
            untied = Model()
            with pytest.raises(InvalidArgument, match="1 missing"):
                run.load_into(untied, 5)


@pytest.mark.parametrize(
    ("names", "width", "message"),
    [
        (("embed.weight", "count"), 6, "lacks 'head.weight'"),
        (("embed.weight", "head.weight", "count", "extra"), 6, "module lacks 'extra'"),
        (("embed.weight", "head.weight", "count"), 7, r"\[10, 7\] in the module, \[10, 6\] in the file"),
    ],
)
def test_a_module_that_does_not_fit_is_left_unchanged(model_file: Any, names: Any, width: int, message: str) -> None:
    with relex_codec.open(model_file(names)) as run:
        model = Model(width=width)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(InvalidArgument, match=message):
            run.load_into(model, 5)
        with pytest.raises(InvalidArgument):
            run.load_into(Model(), 50, tier="track")
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])


def test_a_damaged_tensor_leaves_the_module_unchanged(model_file: Any, tmp_path: Path) -> None:
    path = model_file(("embed.weight", "head.weight", "count"))
    data = bytearray(path.read_bytes())
    file = File(path)
    data[file.chunks[file.directions[1].chunk][0] + 3] ^= 1
    (tmp_path / "bad.relex").write_bytes(data)
    with relex_codec.open(tmp_path / "bad.relex", base=path.parent / "base") as run:
        model = Model()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(relex_codec.Corrupt):
            run.load_into(model, 5)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])


# ---- save ----


@pytest.mark.parametrize(
    ("step", "tier", "from_"),
    [
        (0, "auto", "line"),
        (9, "auto", "track"),
        (11.5, "auto", "track"),
        (9, "line", "line"),
        (300, "auto", "line"),
    ],
)
def test_save_writes_what_the_step_looks_like(
    zoo_run: Made, zoo_file: Zoo, tmp_path: Path, step: float, tier: str, from_: str
) -> None:
    out = tmp_path / "deep" / "out"
    with relex_codec.open(zoo_file("raw")) as run:
        assert run.save(out, step, tier=tier) == from_
        wanted = {name: run._reader.bits(name, step, tier) for name in run}
        entries = {name: run._reader.entry(name) for name in run}
    original = zoo_run.run / "global_step_23"
    assert sorted(os.listdir(out)) == sorted({*os.listdir(original), *SIDE})
    for name, content in SIDE.items():
        assert (out / name).read_bytes() == (content if isinstance(content, bytes) else json.dumps(content).encode())
    place, total = {}, 0
    for shard in sorted(out.glob("*.safetensors")):
        tensors, metadata = read_safetensors(shard)
        assert metadata == {"format": "pt"}
        assert set(tensors) == set(read_safetensors(original / shard.name)[0])
        for name, (dtype, bits) in tensors.items():
            assert (dtype, bits.shape) == (entries[name].dtype, entries[name].shape)
            np.testing.assert_array_equal(bits.reshape(-1), wanted[name], err_msg=name)
            assert name not in place
            place[name] = shard.name
            total += bits.nbytes
    assert place.keys() == wanted.keys()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": total}, "weight_map": place}


def test_save_of_a_run_without_index(zoo_run: Made, tmp_path: Path) -> None:
    write_run(tmp_path / "run", [1, 2], zoo_run.at)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=zoo_run.base_path, quality="raw")
    with relex_codec.open(tmp_path / "x.relex") as run:
        run.save(tmp_path / "out", 2)
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*SIDE, "model.safetensors"])


def test_save_refuses_what_is_there(zoo_file: Zoo, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("keep")
    with relex_codec.open(zoo_file("raw")) as run:
        for name in ("full", "file"):
            with pytest.raises(InvalidArgument, match="exists"):
                run.save(tmp_path / name, 5)
        run.save(tmp_path / "empty", 5)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep" and (tmp_path / "file").read_text() == "keep"
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "full"]


def test_save_appears_only_when_it_is_complete(zoo_file: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with relex_codec.open(zoo_file("raw")) as run:
        decode = run._reader.decoder.decode_window
        seen: list[list[str]] = []
        held: list[int] = []

        def watched(plan: WindowPlan, steps: Any) -> Any:
            seen.append(sorted(os.listdir(tmp_path)))
            hidden = tmp_path / seen[-1][0]
            held.append(sum(f.stat().st_size for f in hidden.rglob("*") if f.is_file()))
            if plan.tensor.name == stop:
                raise relex_codec.Corrupt("as if")
            return decode(plan, steps)

        monkeypatch.setattr(run._reader.decoder, "decode_window", watched)
        stop = run.keys()[-1]
        with pytest.raises(relex_codec.Corrupt, match="as if"):
            run.save(tmp_path / "out", 5)
        assert os.listdir(tmp_path) == []
        stop = ""
        held.clear()
        run.save(tmp_path / "out", 5)
    assert all(len(names) == 1 and names[0].startswith(".out.tmp-") for names in seen)
    assert held == sorted(held) and len(set(held)) > 10  # tensor by tensor
    assert os.listdir(tmp_path) == ["out"]


def test_transformers_opens_what_is_saved(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    drift = {name: torch.randn_like(p) * 2e-3 for name, p in model.named_parameters()}
    for step in (10, 20, 30):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(drift[name] + torch.randn_like(p) * 2e-4)
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality="raw")
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert "lm_head.weight" not in run
        for step in (20, 45):
            run.save(tmp_path / str(step), step)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(step)).to(torch.bfloat16)
            state = run.state_dict(step)
            for name, value in loaded.state_dict().items():
                expected = state["model.embed_tokens.weight" if name == "lm_head.weight" else name]
                assert torch.equal(value, expected), name
            fresh = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").to(torch.bfloat16)
            assert not torch.equal(fresh.lm_head.weight, loaded.lm_head.weight)
            run.load_into(fresh, step)
            tokens = torch.arange(12)[None]
            with torch.no_grad():
                assert torch.equal(fresh(tokens).logits, loaded(tokens).logits)


def test_elements_and_steps_that_are_none(zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw"), device=None) as run:
        for lo, hi in ((-1, 4), (3, 2), (0, 65), (65, 66)):
            with pytest.raises(InvalidArgument, match="which has 64"):
                run._reader.bits("layers.0.norm.weight", 2, "auto", lo, hi)
        for step in (None, "abc", 10**400, float("nan")):
            with pytest.raises(InvalidArgument, match="expected a finite number"):
                run.tier(step)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="device"):
        relex_codec.open(zoo_file("raw"), device=3.5)
