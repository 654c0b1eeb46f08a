"""Encoding: what is stored of each kind of tensor, the growth rule, the options."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors

import relex_codec
from relex_codec import CheckpointError, InvalidArgument
from relex_codec.decoding.tiers import StepTier
from support.checkpoints import write_checkpoint, write_run
from support.plain import Array, File, deltas, manifest_text, narrow, read_safetensors, widen
from support.runs import SIDE, Made, moving
from support.tensors import bf16, f16, f32

SAME, MOVING, FRAMED = 0, 1, 2
IN_BASE, STORED = 0, 1
QUALITIES: list[tuple[str | float, dict[str, Any]]] = [
    ("raw", {}),
    ("default", {}),
    ("micro", {}),
    ("micro", {"factor_rank": 2}),
]
Zoo = Callable[..., Path]


def decoded(run: relex_codec.Run, name: str, step: float, tier: str = "auto") -> Array:
    return run._reader.bits(name, step, tier)


def relative_error(made: Made, name: str, step: int, bits: Array) -> float:
    """|W - decoded| / |W - W0| in float64."""
    dtype, target = made.at(step)[name]
    wanted = widen(dtype, target).reshape(-1).astype(np.float64)
    origin_dtype, origin = made.base[name]
    start = widen(origin_dtype, origin).reshape(-1).astype(np.float64)
    found = widen(dtype, bits).astype(np.float64)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted - start))


# ---- What is stored of each kind of tensor ----


def test_every_kind_of_tensor_is_stored_as_it_should_be(zoo_file: Zoo) -> None:
    file = File(zoo_file("raw"))
    kinds = {name: file.kind(name) for name in file.names}
    moving_in_base = [
        "model.embed_tokens.weight", "layers.0.proj.weight", "layers.0.norm.weight", "layers.0.experts",
        "layers.1.half", "layers.1.single", "layers.1.scale", "wider",
    ]  # fmt: skip
    still = ["frozen", "odd_bits", "empty", "mask", "positions", "switch", "codes", "wider_frozen"]
    assert kinds == (
        dict.fromkeys(moving_in_base, (MOVING, IN_BASE))
        | dict.fromkeys(still, (SAME, IN_BASE))
        | {"resized": (MOVING, STORED), "added": (MOVING, STORED), "added_frozen": (SAME, STORED)}
        | {"batches_seen": (FRAMED, IN_BASE), "added_counter": (FRAMED, STORED)}
    )
    assert "unused" not in file.names


def test_the_manifest_says_what_the_run_and_the_base_are(zoo_run: Made, zoo_file: Zoo) -> None:
    manifest = File(zoo_file("default")).manifest
    assert manifest["observed"] == 7
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert manifest["base"] == {"uri": str(zoo_run.base_path), "embedded": False, "shards": shards}
    assert manifest["quality"] == {"name": "default", "growth": 0.05}
    (layout,) = manifest["layouts"]
    assert layout["shards"] == shards and layout["indexed"] is True and manifest["layout"] == 0
    assert manifest["steps"] == [[None, 0] for _ in zoo_run.steps] and manifest["left_out"] == []
    contents = {name: (zoo_run.base_path / name).read_bytes() for name in sorted(SIDE)}
    assert sorted(manifest["files"]) == [
        [name, len(data), hashlib.sha256(data).hexdigest()[:32], None, None] for name, data in contents.items()
    ]
    assert layout["files"] == list(range(len(SIDE)))
    by_name = {tensor[0]: tensor[1:] for tensor in manifest["tensors"]}
    assert by_name["wider"] == ["BF16", [12, 10], ["F32", [2]]]
    assert by_name["layers.1.scale"][:2] == ["F32", []] and by_name["layers.1.scale"][2][0] == "F32"
    assert by_name["empty"][:2] == ["BF16", [0, 8]]
    assert by_name["added"][2] is None and by_name["resized"][2] is None
    places = dict(zip(by_name, layout["tensors"], strict=True))
    for i, shard in enumerate(shards):
        for name in read_safetensors(zoo_run.base_path / shard)[0]:
            if name in by_name:
                assert by_name[name][2] in ([by_name[name][2] and by_name[name][2][0], [i]], None)
    for i, shard in enumerate(shards):
        for name in read_safetensors(zoo_run.run / "global_step_9" / shard)[0]:
            assert places[name] == i


@pytest.mark.parametrize(("quality", "options"), QUALITIES)
def test_what_does_not_move_is_exact_at_every_step(
    zoo_run: Made, zoo_file: Zoo, quality: str | float, options: dict[str, Any]
) -> None:
    exact = ["frozen", "odd_bits", "empty", "mask", "positions", "switch", "codes", "wider_frozen", "added_frozen",
             "batches_seen", "added_counter"]  # fmt: skip
    with relex_codec.open(zoo_file(quality, **options)) as run:
        for step in zoo_run.steps:
            there = zoo_run.at(step)
            for name in exact:
                np.testing.assert_array_equal(decoded(run, name, step), there[name][1].reshape(-1), err_msg=name)
        for name in ("frozen", "odd_bits", "mask"):
            for step in (3.5, 900):
                np.testing.assert_array_equal(decoded(run, name, step), zoo_run.base[name][1].reshape(-1))


@pytest.mark.slow
@pytest.mark.parametrize(("quality", "options"), QUALITIES)
def test_the_reference_decoder_reads_the_same_bits(
    zoo_run: Made, zoo_file: Zoo, reference: ModuleType, quality: str | float, options: dict[str, Any]
) -> None:
    path = zoo_file(quality, **options)
    slow = reference.RelexFile(path.read_bytes())
    slow.check_all()
    origin = {name: (dtype, list(bits.shape), bits.tobytes()) for name, (dtype, bits) in zoo_run.base.items()}
    with relex_codec.open(path) as run:
        for name in list(run.keys()):
            for step, tier in ((0, "auto"), (0.25, "line"), (9, "track"), (11.3, "track"), (23, "line"), (700, "auto")):
                found = decoded(run, name, step, tier).tobytes()
                assert found == slow.tensor(name, step, tier, origin.__getitem__), (name, step, tier)


# ---- raw: the plain float64 computation ----


def test_raw_equals_a_plain_computation_bit_for_bit(zoo_run: Made, zoo_file: Zoo) -> None:
    path = zoo_file("raw")
    file = File(path)
    checked = 0
    with relex_codec.open(path) as run:
        for name in file.names:
            if file.kind(name) != (MOVING, IN_BASE):
                continue
            origin_dtype, origin = zoo_run.base[name]
            dtype = zoo_run.at(1)[name][0]
            v, start = file.raw_vector(name), widen(origin_dtype, origin).reshape(-1)
            row = file.coefficients[file.numbers(name)[0]]
            for i, step in enumerate(zoo_run.steps):
                expected = narrow(dtype, start + v * np.float32(row[i]))
                np.testing.assert_array_equal(decoded(run, name, step), expected, err_msg=f"{name} {step}")
                checked += expected.size
            record = file.directions[file.numbers(name)[0]]
            for step in (0.5, 23, 400):
                g = np.float32(record.slope * step + record.intercept)
                np.testing.assert_array_equal(decoded(run, name, step, "line"), narrow(dtype, start + v * g))
    assert checked > 40_000


# ---- The growth rule ----


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Matrices whose deltas are sparse and rounded, dense, nearly of rank one, and with heavy tails."""
    root = tmp_path_factory.mktemp("grown")
    steps = [2, 4, 6, 8, 10]
    rng = np.random.default_rng(5)
    shape = (96, 160)
    base, drift, noise = {}, {}, {}
    for name, tail in (("sparse", 2e-4), ("dense", 6e-3), ("clean", 6e-3), ("tails", 1e-3)):
        base[name] = rng.standard_normal(shape) * 0.04
        drift[name] = rng.standard_normal(shape) * tail
        noise[name] = tail * {"clean": 0.02}.get(name, 0.35)
    drift["tails"] *= np.exp(rng.standard_normal(shape))
    base["vector"] = rng.standard_normal(3000) * 0.04
    drift["vector"], noise["vector"] = rng.standard_normal(3000) * 4e-3, 1e-3

    def at(step: int) -> dict[str, Any]:
        noises = np.random.default_rng((6, step))
        return {
            name: bf16(base[name] + drift[name] * step / 10 + noises.standard_normal(base[name].shape) * noise[name])
            for name in base
        }

    start = {name: bf16(value) for name, value in base.items()}
    write_checkpoint(root / "base", start)
    write_run(root / "run", steps, at)
    return Made(root, steps, start, at)


@pytest.fixture(scope="module")
def grown_raw(grown: Made) -> dict[str, float]:
    """Relative error of each tensor at the last step when the direction is not quantised."""
    path = grown.root / "raw.relex"
    relex_codec.encode(grown.run, path, base=grown.base_path, quality="raw")
    with relex_codec.open(path) as run:
        return {name: relative_error(grown, name, 10, decoded(run, name, 10)) for name in grown.base}


@pytest.mark.slow
@pytest.mark.parametrize(("quality", "growth"), [("fine", 0.01), ("default", 0.05), ("small", 0.2), (0.5, 0.5)])
def test_weight_error_grows_at_most_as_asked(
    grown: Made, grown_raw: dict[str, float], quality: str | float, growth: float
) -> None:
    path = grown.root / f"{quality}.relex"
    size = relex_codec.encode(grown.run, path, base=grown.base_path, quality=quality)
    with relex_codec.open(path) as run:
        error = {name: relative_error(grown, name, 10, decoded(run, name, 10)) for name in grown.base}
    file = File(path)
    for name, unquantised in grown_raw.items():
        assert unquantised > 0.01, name  # where the rule says something
        assert error[name] <= unquantised * (1 + growth) * (1 + 1e-6), name
        record = file.directions[file.numbers(name)[0]]
        assert record.error_line == pytest.approx(unquantised, rel=1e-5), name
        assert record.error_stored == pytest.approx(error[name], rel=1e-5), name
    plain = sum(bits.nbytes for _, bits in grown.base.values())
    assert size < plain / 2


@pytest.mark.slow
def test_a_looser_rule_gives_a_smaller_file(grown: Made, grown_raw: dict[str, float]) -> None:
    names = ("raw", "fine", "default", "small", "0.5")
    missing = [name for name in names if not (grown.root / f"{name}.relex").exists()]
    for name in missing:
        relex_codec.encode(grown.run, grown.root / f"{name}.relex", base=grown.base_path, quality=name)
    sizes = [(grown.root / f"{name}.relex").stat().st_size for name in names]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)


@pytest.mark.slow
def test_directions_hold_the_rule_together(grown: Made, tmp_path: Path) -> None:
    names = ("dense", "vector")
    write_checkpoint(tmp_path / "base", {name: grown.base[name] for name in names})
    write_run(tmp_path / "run", grown.steps, lambda step: {name: grown.at(step)[name] for name in names})
    errors = []
    for quality in ("raw", 0.1):
        path = tmp_path / f"{quality}.relex"
        relex_codec.encode(tmp_path / "run", path, base=tmp_path / "base", quality=quality, rank=2)
        with relex_codec.open(path) as run:
            errors.append({name: relative_error(grown, name, 10, decoded(run, name, 10)) for name in names})
    for name in names:
        assert errors[0][name] < errors[1][name] <= errors[0][name] * 1.1 * (1 + 1e-6), name


def test_micro_keeps_factors_only(zoo_run: Made, zoo_file: Zoo) -> None:
    for options, rank in (({}, 8), ({"factor_rank": 2}, 2)):
        file = File(zoo_file("micro", **options))
        for name in file.names:
            if file.kind(name)[0] != MOVING:
                continue
            shape = file.shape(name)
            record = file.directions[file.numbers(name)[0]]
            if len(shape) >= 2 and min(shape[-2:]) >= 8:
                assert (record.rank, record.packing) == (min(rank, min(shape[-2:]) // 2), 0), name
            elif len(shape) < 2:
                assert record.rank == 0 and record.packing != 0, name
    sizes = [zoo_file("micro", factor_rank=2).stat().st_size, zoo_file("micro").stat().st_size]
    assert sizes[0] < sizes[1] < zoo_file("raw").stat().st_size


def test_micro_factors_are_close_to_the_best_of_their_rank(grown: Made) -> None:
    path = grown.root / "micro.relex"
    relex_codec.encode(grown.run, path, base=grown.base_path, quality="micro", factor_rank=12)
    relex_codec.encode(grown.run, grown.root / "raw12.relex", base=grown.base_path, quality="raw")
    file = File(grown.root / "raw12.relex")
    micro = File(path)
    for name in ("dense", "tails"):
        v = file.raw_vector(name).reshape(96, 160).astype(np.float64)
        u, s, w = np.linalg.svd(v, full_matrices=False)
        best = np.linalg.norm(v - (u[:, :12] * s[:12]) @ w[:12])
        values = micro.factor_values(name).astype(np.float64)
        stored = values[: 12 * 96].reshape(12, 96).T @ values[12 * 96 :].reshape(12, 160)
        assert np.linalg.norm(v - stored) <= best * 1.02, name


def test_the_mix_is_found_per_tensor(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    low = rng.standard_normal((128, 2)) @ rng.standard_normal((2, 256)) * 4e-3
    full = rng.standard_normal((128, 256)) * 4e-3
    start = {name: rng.standard_normal((128, 256)) * 0.05 for name in ("low", "full")}

    def at(step: int) -> dict[str, Any]:
        noise = np.random.default_rng(step).standard_normal((2, 128, 256)) * 1.5e-3
        return {"low": f32(start["low"] + low * step + noise[0]), "full": f32(start["full"] + full * step + noise[1])}

    write_checkpoint(tmp_path / "base", {name: f32(value) for name, value in start.items()})
    write_run(tmp_path / "run", [1, 2, 3], at)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
    file = File(tmp_path / "x.relex")
    low_record, full_record = (file.directions[file.numbers(name)[0]] for name in ("low", "full"))
    assert low_record.rank >= 2  # what has low rank is stored as factors
    assert full_record.rank == 0 and full_record.packing in (2, 3, 4, 5)  # what has not is coded


# ---- Options ----


def test_observe_fits_on_the_first_steps_and_keeps_coefficients_of_all(zoo_run: Made, zoo_file: Zoo) -> None:
    path = zoo_file("raw", observe=10)
    file = File(path)
    assert file.manifest["observed"] == 4 and file.steps == zoo_run.steps
    with relex_codec.open(path) as run:
        assert (run.steps, run.observed_steps) == (zoo_run.steps, [1, 2, 5, 9])
    for name in ("layers.0.proj.weight", "layers.1.half", "layers.0.experts"):
        origin_dtype, origin = zoo_run.base[name]
        delta = deltas(zoo_run.at(1)[name][0], zoo_run.bits(name), origin_dtype, origin)
        row = file.coefficients[file.numbers(name)[0]]
        np.testing.assert_allclose(row, delta @ file.raw_vector(name).astype(np.float64), rtol=1e-6, atol=1e-7)


def test_steps_are_chosen(zoo_run: Made, tmp_path: Path) -> None:
    relex_codec.encode(zoo_run.run, tmp_path / "x.relex", base=zoo_run.base_path, quality="raw", steps="2:20:2")
    assert File(tmp_path / "x.relex").steps == [2, 14, 20]


@pytest.mark.parametrize(
    "layout",
    ["global_step_{}", "checkpoint-{}", "step_{}", "step-{}", "global_step{}_hf", "iter_{:07d}",
     "global_step_{}/actor/huggingface", "global_step_{}/huggingface", "global_step_{}/actor"],
)  # fmt: skip
@pytest.mark.parametrize("shards", [1, 2])
def test_layouts(tmp_path: Path, layout: str, shards: int) -> None:
    start, at = moving((12, 9), 30, bf16)
    other, _ = moving((4,), 31, f32)
    base = {"a": start, "b": other}
    write_checkpoint(tmp_path / "base", base)
    for step in (3, 10, 12):
        write_checkpoint(tmp_path / "run" / layout.format(step), {"a": at(step), "b": other}, shards=shards)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality="raw")
    file = File(tmp_path / "x.relex")
    assert file.steps == [3, 10, 12]
    delta = deltas("BF16", [at(step)[1] for step in (3, 10, 12)], "BF16", start[1])
    expected = delta @ file.raw_vector("a").astype(np.float64)
    np.testing.assert_allclose(file.coefficients[0], expected, rtol=1e-6)
    assert file.kind("b") == (SAME, IN_BASE)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_that_are_omitted_stay_omitted(tmp_path: Path, tied: bool) -> None:
    embed, at = moving((20, 8), 33, bf16)
    head, head_at = moving((20, 8), 34, bf16)

    def model(step: int) -> dict[str, Any]:
        return {"embed": at(step)} | ({} if tied else {"lm_head": head_at(step)})

    write_checkpoint(tmp_path / "base", {"embed": embed} | ({} if tied else {"lm_head": head}))
    write_run(tmp_path / "run", [1, 2, 3], model)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality="raw")
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert run.keys() == ["embed"] if tied else ["embed", "lm_head"]
        run.save(tmp_path / "out", 2)
    assert list(read_safetensors(tmp_path / "out" / "model.safetensors")[0]) == (
        ["embed"] if tied else ["embed", "lm_head"]
    )


def test_a_base_in_one_file_without_directory(zoo_run: Made, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", zoo_run.base)
    single = tmp_path / "base" / "model.safetensors"
    relex_codec.encode(zoo_run.run, tmp_path / "x.relex", base=single, quality="raw", steps="1:5")
    file = File(tmp_path / "x.relex")
    assert file.manifest["base"]["uri"] == "./base/model.safetensors"
    assert file.manifest["base"]["shards"] == ["model.safetensors"]
    own = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert file.manifest["layouts"][0]["shards"] == own and file.manifest["layouts"][0]["indexed"] is True


def test_an_embedded_base_stands_alone(zoo_run: Made, tmp_path: Path, zoo_file: Zoo, reference: ModuleType) -> None:
    shutil.copytree(zoo_run.base_path, tmp_path / "base")
    path = tmp_path / "x.relex"
    relex_codec.encode(zoo_run.run, path, base=tmp_path / "base", quality="raw", embed_base=True)
    shutil.rmtree(tmp_path / "base")
    with relex_codec.open(path) as run, relex_codec.open(zoo_file("raw")) as usual:
        run.verify()
        assert run.keys() == usual.keys()
        for name in list(run.keys()):
            for step in (0, 7.5, 23, 60):
                np.testing.assert_array_equal(decoded(run, name, step), decoded(usual, name, step), err_msg=name)
            if name in zoo_run.base and zoo_run.base[name][1].shape == run._reader.entry(name).shape:
                origin = run._reader.decoder.origins.read_span(entry := run._reader.entry(name), 0, entry.size)
                np.testing.assert_array_equal(origin, zoo_run.base[name][1].reshape(-1), err_msg=name)
        run.save(tmp_path / "out", 9)
        usual.save(tmp_path / "usual", 9)
    for name in os.listdir(tmp_path / "usual"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "usual" / name).read_bytes(), name
    assert set(SIDE) < set(os.listdir(tmp_path / "out")) == set(os.listdir(tmp_path / "usual"))
    slow = reference.RelexFile(path.read_bytes())
    slow.check_all()
    assert slow.tensor("odd_bits", 3) == zoo_run.base["odd_bits"][1].tobytes()


def test_a_given_base_comes_before_an_embedded_one(zoo_run: Made, tmp_path: Path) -> None:
    path = tmp_path / "x.relex"
    relex_codec.encode(zoo_run.run, path, base=zoo_run.base_path, quality="raw", steps="1:5", embed_base=True)
    other = dict(zoo_run.base) | {"frozen": bf16(np.zeros((32, 16)))}
    write_checkpoint(tmp_path / "other", other)
    with relex_codec.open(path, base=tmp_path / "other") as run:
        with pytest.raises(relex_codec.BaseMismatch, match="'frozen'"):
            run._reader.bits("frozen", 5)
        run._reader.bits("layers.0.norm.weight", 5)


@pytest.mark.slow
def test_encoding_twice_gives_the_same_bytes(zoo_run: Made, zoo_file: Zoo, tmp_path: Path) -> None:
    for quality, options in (("default", {}), ("micro", {"factor_rank": 2}), ("raw", {"embed_base": True, "rank": 2})):
        first = zoo_file(quality, **options).read_bytes()
        base, again = zoo_run.base_path, tmp_path / f"{quality}.relex"
        relex_codec.encode(zoo_run.run, again, base=base, base_uri=str(base), quality=quality, **options)
        assert again.read_bytes() == first


def test_an_existing_file_is_replaced_and_nothing_else_is_left(zoo_run: Made, tmp_path: Path) -> None:
    path = tmp_path / "x.relex"
    path.write_bytes(b"old")
    size = relex_codec.encode(
        zoo_run.run, str(path), base=str(zoo_run.base_path), quality="raw", steps="1:2", overwrite=True
    )
    assert os.listdir(tmp_path) == ["x.relex"] and path.stat().st_size == size > 3


def test_safetensors_lists_the_file(zoo_run: Made, zoo_file: Zoo) -> None:
    with safetensors.safe_open(zoo_file("default"), "np") as f:
        assert f.metadata()["format"] == "relex"
        assert set(f.keys()) >= {"relex.root", "relex.steps", "relex.manifest", "relex.coefficients"}
        np.testing.assert_array_equal(f.get_tensor("relex.steps"), np.array(zoo_run.steps, np.int64))
        manifest = json.loads(manifest_text(f.get_tensor("relex.manifest").tobytes()))
        assert len(manifest["tensors"]) == f.get_slice("relex.tensors").get_shape()[0]
        assert f.get_slice("relex.coefficients").get_shape()[1] == len(zoo_run.steps)


# ---- Few steps ----


def simple(root: Path, steps: list[int], make: Callable[[Any], Any] = bf16, scale: float = 1.0) -> Made:
    """One matrix that moves along one direction."""
    rng = np.random.default_rng(40)
    start, drift = rng.standard_normal((24, 16)) * 0.1, rng.standard_normal((24, 16)) * 0.01
    root.mkdir(exist_ok=True)
    base = {"w": make(start * scale)}

    def at(step: int) -> dict[str, Any]:
        return {"w": make((start + drift * step) * scale)}

    write_checkpoint(root / "base", base)
    write_run(root / "run", steps, at)
    return Made(root, steps, base, at)


@pytest.mark.parametrize("quality", ["raw", "default"])
def test_one_step_gives_that_step_and_a_line_through_the_base(tmp_path: Path, quality: str) -> None:
    made = simple(tmp_path, [4], f32)
    relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, quality=quality)
    file = File(tmp_path / "x.relex")
    record = file.directions[0]
    assert record.intercept == 0 and record.slope == pytest.approx(file.coefficients[0, 0] / 4, rel=1e-12)
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert relative_error(made, "w", 4, decoded(run, "w", 4)) < (1e-5 if quality == "raw" else 0.011)
        assert relative_error(made, "w", 12, decoded(run, "w", 12)) < (1e-5 if quality == "raw" else 0.011)
        assert run.tier(4) == "track" and run.tier(12) == "line"


def test_one_step_that_is_step_0(tmp_path: Path) -> None:
    made = simple(tmp_path, [0], f32)
    rng = np.random.default_rng(1)
    write_checkpoint(tmp_path / "run" / "global_step_0", {"w": f32(rng.standard_normal((24, 16)))})
    relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, quality="raw")
    record = File(tmp_path / "x.relex").directions[0]
    assert record.slope == 0 and np.isfinite(record.intercept)
    with relex_codec.open(tmp_path / "x.relex") as run:
        np.testing.assert_array_equal(decoded(run, "w", 0), made.base["w"][1].reshape(-1))  # auto: the base


def test_two_steps(tmp_path: Path) -> None:
    made = simple(tmp_path, [4, 7], f32)
    relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, quality="raw")
    with relex_codec.open(tmp_path / "x.relex") as run:
        for step in (4, 5, 5.5, 7, 30):
            exact = widen(*made.at(7)["w"]) * 0 + widen(*made.at(step)["w"])
            found = widen("F32", decoded(run, "w", step)).reshape(exact.shape)
            np.testing.assert_allclose(found, exact, atol=1e-6)


def test_unevenly_spaced_steps_fit_the_step_numbers(tmp_path: Path) -> None:
    made = simple(tmp_path, [1, 2, 3, 100, 1000], f32)
    relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, quality="raw")
    record = File(tmp_path / "x.relex").directions[0]
    drift = np.random.default_rng(40)
    drift.standard_normal((24, 16))
    expected = np.linalg.norm(drift.standard_normal((24, 16)) * 0.01)
    assert record.slope == pytest.approx(expected, rel=1e-6)
    assert abs(record.intercept) < 1e-4 * expected
    assert record.r2 == pytest.approx(1, abs=1e-6) and record.explained == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("make", "scale"), [(bf16, 1), (f16, 1), (f32, 1), (f32, 1e-35), (f32, 1e30), (bf16, 1e-38)])
def test_float_dtypes_and_extreme_scales(tmp_path: Path, make: Callable[[Any], Any], scale: float) -> None:
    made = simple(tmp_path, [1, 5, 9], make, scale)
    for quality in ("raw", "default"):
        relex_codec.encode(made.run, tmp_path / f"{quality}.relex", base=made.base_path, quality=quality)
        with relex_codec.open(tmp_path / f"{quality}.relex") as run:
            assert relative_error(made, "w", 9, decoded(run, "w", 9)) < 0.12


def test_a_run_of_another_dtype_than_the_base(zoo_run: Made, zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw")) as run:
        assert run._reader.entry("wider").dtype == "BF16"
        start = widen(*zoo_run.base["wider"])
        at_base = run._reader.decoder.read(run._reader.entry("wider"), StepTier(0.0, "base"))
        np.testing.assert_array_equal(at_base, narrow("BF16", start).reshape(-1))
        found = widen("BF16", decoded(run, "wider", 20)).reshape(start.shape)
        np.testing.assert_allclose(found, start + 0.02, atol=3e-3)


def test_what_moves_only_after_the_observed_steps_stays(tmp_path: Path) -> None:
    start, at = moving((10, 10), 50, bf16)
    write_checkpoint(tmp_path / "base", {"w": start})
    write_run(tmp_path / "run", [1, 2, 3, 4], lambda step: {"w": start if step < 3 else at(step)})
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality="raw", observe=2)
    assert File(tmp_path / "x.relex").kind("w") == (SAME, IN_BASE)


# ---- Weights that are not finite ----


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_tensor_and_step(tmp_path: Path, value: float) -> None:
    made = simple(tmp_path, [3, 6, 8], f32)
    bad = widen(*made.at(6)["w"]).copy()
    bad[5, 7] = value
    write_checkpoint(tmp_path / "run" / "global_step_6", {"w": f32(bad)})
    with pytest.raises(CheckpointError, match=r"'w' of step 6 .*not finite.*--exclude-steps 6, or .*--exact"):
        relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path)
    assert not (tmp_path / "x.relex").exists()
    write_checkpoint(tmp_path / "run" / "global_step_8", {"w": f32(bad)})
    with pytest.raises(CheckpointError, match=r"'w' of steps 6,8 .*leave them out with --exclude-steps 6,8, or"):
        relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path)
    relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, exclude_steps="6,8")  # as it said
    assert File(tmp_path / "x.relex").steps == [3]


def test_infinities_of_the_base_stay_where_others_move(tmp_path: Path) -> None:
    made = simple(tmp_path, [3, 6, 8], bf16)
    mask = np.triu(np.ones((24, 16), bool), 4)
    start = np.where(mask, 0xFF80, made.base["w"][1]).astype(np.uint16)  # -inf
    write_checkpoint(tmp_path / "base", {"w": ("BF16", start)})
    for step in made.steps:
        bits = np.where(mask, 0xFF80, made.at(step)["w"][1]).astype(np.uint16)
        write_checkpoint(tmp_path / "run" / f"global_step_{step}", {"w": ("BF16", bits)})
    for quality in ("raw", "default", "micro"):
        relex_codec.encode(made.run, tmp_path / f"{quality}.relex", base=tmp_path / "base", quality=quality)
        with relex_codec.open(tmp_path / f"{quality}.relex") as run:
            for step in (0, 3, 4.5, 50):
                found = decoded(run, "w", step).reshape(24, 16)
                assert (found[mask] == 0xFF80).all()
                assert np.isfinite(widen("BF16", found[~mask])).all()
            if quality == "raw":
                wanted = widen(*made.at(8)["w"])[~mask]
                got = widen("BF16", decoded(run, "w", 8)).reshape(24, 16)[~mask]
                np.testing.assert_allclose(got, wanted, atol=4e-3)


# ---- Arguments that cannot be ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "good"}, "quality is 'good'"),
        ({"quality": 0}, "quality is 0"),
        ({"quality": -0.1}, "quality is -0.1"),
        ({"quality": float("nan")}, "quality is nan"),
        ({"quality": float("inf")}, "quality is inf"),
        ({"factor_rank": 4}, "factor rank"),
        ({"quality": "micro", "factor_rank": 0}, "factor rank is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"memory": "63MB"}, "at least 64MB"),
        ({"memory": "lots"}, "memory is 'lots'"),
        ({"observe": 0}, "no step up to 0"),
        ({"steps": "30:40"}, "30"),
        ({"steps": "1:5,30"}, "'30' leaves nothing"),
        ({"exclude_steps": "30"}, "exclude-steps '30' names none of what there is, 1 to 23"),
        ({"exclude_steps": ":"}, "exclude-steps ':' leaves nothing of 1 to 23"),
    ],
)
def test_arguments_that_cannot_be(zoo_run: Made, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        relex_codec.encode(zoo_run.run, tmp_path / "x.relex", base=zoo_run.base_path, **options)
    assert os.listdir(tmp_path) == []


def test_an_output_that_cannot_be_written(zoo_run: Made, tmp_path: Path) -> None:
    (tmp_path / "folder.relex").mkdir()
    for output in (tmp_path / "no" / "x.relex", tmp_path, tmp_path / "folder.relex", "s3://bucket/x.relex"):
        with pytest.raises(InvalidArgument, match="cannot write"):
            relex_codec.encode(zoo_run.run, output, base=zoo_run.base_path, quality="raw")


def test_incomplete_checkpoints_are_refused_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = simple(tmp_path, [1, 2, 3], bf16)
    broken = tmp_path / "run" / "global_step_2" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.raises(relex_codec.RelexError, match=r"step 2: .*global_step_2.*--exclude-steps 2$"):
        relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, quality="raw")
    assert not (tmp_path / "x.relex").exists()
    relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, quality="raw", skip_incomplete=True)
    assert File(tmp_path / "x.relex").steps == [1, 3]
    captured = capsys.readouterr()
    assert "global_step_2" in captured.err and captured.out == ""
