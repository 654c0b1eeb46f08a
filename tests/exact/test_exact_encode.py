"""The exact tier from end to end: every step of a run bit for bit, whatever is in it, and what reading it costs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors
import torch

import relex_codec
from relex_codec import BaseMismatch, CheckpointError, InvalidArgument, safe_open
from relex_codec.core.dtypes import ALL_FLOATS
from relex_codec.decoding.tiers import StepTier
from relex_codec.exact.bisection import frames_of
from relex_codec.storage.source import Source
from support.checkpoints import write_checkpoint, write_run
from support.plain import FRAME_ENTRIES, Array, File, narrow, read_safetensors
from support.runs import Made, moving
from support.tensors import Tensor, bf16, f16, f32, random_bits

SAME, MOVING, FRAMED = 0, 1, 2
IN_BASE, STORED = 0, 1
STEPS = [1, 2, 4, 8, 9, 12, 15, 16, 23]
OBSERVE = 12
PIECE = 1 << 18


def bits_of(dtype: str, values: Any) -> Tensor:
    return dtype, np.array(values)


def every_kind() -> tuple[dict[str, Tensor], Callable[[int], dict[str, Tensor]]]:
    """A base, and a tensor of every kind at a step."""
    movers: dict[str, tuple[Tensor, Callable[[int], Tensor]]] = {
        "dense.weight": moving((40, 24), 21, bf16),
        "half": moving((30, 7), 22, f16),
        "single": moving((17, 9), 23, f32),
        "scalar": moving((), 24, f32),
    }
    rng = np.random.default_rng(25)
    base = {name: mover[0] for name, mover in movers.items()}
    big = bf16(rng.standard_normal(PIECE + 1000) * 0.05)
    wide = (rng.standard_normal((12, 10)) * 0.1).astype(np.float32)
    half = bf16(rng.standard_normal((6, 5)))
    late = bf16(rng.standard_normal((20, 5)))
    base |= {
        "big": big,
        "empty": bf16(np.zeros((0, 8))),
        "late": late,
        "last": late,
        "returns": late,
        "still": random_bits("BF16", (50,), 26),
        "not_finite": f32(rng.standard_normal(60)),
        "any_bits": random_bits("BF16", (300,), 27),
        "mask": f32(np.triu(np.full((6, 6), -np.inf), 1)),
        "counter": bits_of("I64", np.uint64(0)),
        "ids": bits_of("I32", np.arange(7, dtype=np.uint32)),
        "doubles": ("F64", rng.standard_normal(9).view(np.uint64)),
        "flags": random_bits("BOOL", (33,), 28),
        "codes": random_bits("F8_E4M3", (6, 3), 29),
        "small": random_bits("F8_E5M2", (40,), 30),
        "frozen_codes": random_bits("F8_E4M3", (6, 3), 31),
        "bytes": random_bits("U8", (0, 4), 32),
        "wider": f32(wide),  # bf16 in the run
        "wider_still": f32(wide),  # rounded to bf16 in the run, and no more than that
        "narrower": half,  # f32 in the run
        "retyped": bits_of("I32", np.arange(4, dtype=np.uint32)),  # i64 in the run
        "resized": bf16(np.zeros((8, 6))),
        "unused": bf16(np.ones((3, 3))),
    }
    resized, added = moving((10, 6), 33, bf16), moving((24, 12), 34, bf16)
    added_still = bf16(rng.standard_normal((7, 7)))
    widened = (half[1].astype(np.uint32) << np.uint32(16)).view(np.float32)

    def at(step: int) -> dict[str, Tensor]:
        found = {name: mover(step) for name, (_, mover) in movers.items()}
        chances = np.random.default_rng((35, step))
        moved = big[1].copy()
        where = PIECE + chances.integers(0, 1000, 30)  # the first piece never moves
        moved[where] += np.uint16(1)
        later = late[1].copy()
        later[step % 20] ^= np.uint16(step)
        strange = base["not_finite"][1].copy()
        strange[step : 2 * step] = np.array([np.nan, np.inf, -np.inf, 0], np.float32).view(np.uint32)[step % 4]
        found |= {name: base[name] for name in ("empty", "still", "mask", "frozen_codes", "bytes")}
        found |= {
            "big": ("BF16", moved),
            "late": ("BF16", later) if step > OBSERVE else late,
            "last": ("BF16", later) if step == STEPS[-1] else late,
            "returns": ("BF16", later) if step in STEPS[2:5] else late,
            "not_finite": ("F32", strange),
            "any_bits": random_bits("BF16", (300,), 100 + step),
            "counter": bits_of("I64", np.uint64(step // 4 * 10**10)),
            "ids": bits_of("I32", np.arange(7, dtype=np.uint32) - np.uint32(step)),
            "doubles": ("F64", (base["doubles"][1].view(np.float64) * (1 + step / 7)).view(np.uint64)),
            "flags": random_bits("BOOL", (33,), step),
            "codes": random_bits("F8_E4M3", (6, 3), step),
            "small": random_bits("F8_E5M2", (40,), step // 3),
            "wider": bf16(wide + 1e-3 * step),
            "wider_still": ("BF16", narrow("BF16", wide)),
            "narrower": f32(widened + 1e-5 * step),
            "retyped": bits_of("I64", np.arange(4, dtype=np.uint64) * np.uint64(step)),
            "resized": resized[1](step),
            "added": added[1](step),
            "added_still": added_still,
            "added_counter": bits_of("U16", np.array([step, 7], np.uint16)),
        }
        return found

    return base, at


MOVERS = ("dense.weight", "half", "single", "scalar", "big", "returns", "wider", "narrower")
KINDS = (
    dict.fromkeys(MOVERS, (MOVING, IN_BASE, 1))
    | dict.fromkeys(("empty", "still", "mask", "frozen_codes", "bytes", "wider_still"), (SAME, IN_BASE, 0))
    | dict.fromkeys(("late", "last"), (SAME, IN_BASE, 1))
    | dict.fromkeys(
        ("not_finite", "any_bits", "counter", "ids", "doubles", "flags", "codes", "small"), (FRAMED, IN_BASE, 1)
    )
    | {"retyped": (FRAMED, STORED, 1), "added_counter": (FRAMED, STORED, 1), "added_still": (SAME, STORED, 0)}
    | {"resized": (MOVING, STORED, 1), "added": (MOVING, STORED, 1)}
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("exact")
    base, at = every_kind()
    write_checkpoint(root / "base", base, shards=3, side={"config.json": {"model_type": "test"}, "README.md": b"# x"})
    write_run(root / "run", STEPS, at, shards=2)
    return Made(root, STEPS, base, at)


@pytest.fixture(scope="module")
def exact_file(made: Made) -> Path:
    path = made.root / "exact.relex"
    size = relex_codec.encode(made.run, path, base=made.base_path, quality="raw", observe=OBSERVE, exact=True)
    assert size == path.stat().st_size
    return path


def segments_of(file: File) -> list[int]:
    """The field of each tensor's record that says which segments hold it."""
    return [record[7] for record in file.tensors]


def assert_all_steps(run: relex_codec.Run, made: Made) -> None:
    for step in made.steps:
        there = made.at(step)
        assert sorted(run.keys()) == sorted(there)
        for name, (_, bits) in there.items():
            np.testing.assert_array_equal(
                run._reader.bits(name, step, "exact"), bits.reshape(-1), err_msg=f"{name} {step}"
            )


# ---- What is stored, and that it comes back ----


def test_every_kind_of_tensor_is_stored_as_it_should_be(exact_file: Path) -> None:
    file = File(exact_file)
    records = zip(file.names, file.tensors, segments_of(file), strict=True)
    assert {name: (kind, origin, segment) for name, (kind, origin, *_), segment in records} == KINDS
    assert list(file.shapes)[-3:] == list(FRAME_ENTRIES)
    assert file.shapes["relex.exact.segments"] == ("U8", [1, 48])
    assert file.shapes["relex.exact.frames"] == ("U8", [len(STEPS), 24])
    assert file.manifest["exact"] is True


def test_every_step_comes_back_bit_for_bit(made: Made, exact_file: Path) -> None:
    with relex_codec.open(exact_file) as run:
        assert run.steps == STEPS and run.observed_steps == [step for step in STEPS if step <= OBSERVE]
        assert_all_steps(run, made)
        for step in STEPS:
            assert run.tier(step) == run.tier(step, tier="exact") == "exact"
            for name, (_, bits) in made.at(step).items():
                np.testing.assert_array_equal(run._reader.bits(name, step), bits.reshape(-1))
        run.verify()
        run.check_base()


def test_the_zoo_comes_back_bit_for_bit(zoo_run: Made, zoo_file: Callable[..., Path]) -> None:
    with relex_codec.open(zoo_file("raw", exact=True)) as run:
        assert_all_steps(run, zoo_run)
        run.verify()


def test_the_other_tiers_are_what_they_were(zoo_run: Made, zoo_file: Callable[..., Path]) -> None:
    with relex_codec.open(zoo_file("raw")) as old, relex_codec.open(zoo_file("raw", exact=True)) as new:
        assert old.keys() == new.keys()
        for name in old:
            for step, tier in ((0, "auto"), (3.5, "auto"), (9, "track"), (9, "line"), (11.3, "track"), (900, "auto")):
                np.testing.assert_array_equal(
                    old._reader.bits(name, step, tier), new._reader.bits(name, step, tier), err_msg=name
                )


def test_the_reference_decoder_reads_the_same_bits(made: Made, exact_file: Path, reference: ModuleType) -> None:
    slow = reference.RelexFile(exact_file.read_bytes())
    origin = {name: (dtype, list(bits.shape), bits.tobytes()) for name, (dtype, bits) in made.base.items()}
    for step in (2, 15, 23):
        for name, (_, bits) in made.at(step).items():
            if name != "big":  # slowly, as the name says
                assert slow.tensor(name, step, "exact", origin.__getitem__) == bits.tobytes(), (name, step)


def test_tensors_state_dicts_and_files(made: Made, exact_file: Path, tmp_path: Path) -> None:
    def raw(value: torch.Tensor) -> bytes:
        return value.reshape(-1).view(torch.uint8).numpy().tobytes()

    with relex_codec.open(exact_file) as run:
        for step, tier in ((4, "exact"), (23, "auto")):
            there = made.at(step)
            state = run.state_dict(step, tier=tier)
            assert list(state) == run.keys()
            for name, value in state.items():
                assert tuple(value.shape) == there[name][1].shape and raw(value) == there[name][1].tobytes(), name
            assert raw(run.tensor("codes", step, tier=tier)) == there["codes"][1].tobytes()
        assert run.save(tmp_path / "out", 9) == "exact"
    written: dict[str, tuple[str, Array]] = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        written |= read_safetensors(path)[0]
    assert {name: bits.tobytes() for name, (_, bits) in written.items()} == {
        name: bits.tobytes() for name, (_, bits) in made.at(9).items()
    }
    with safetensors.safe_open(next((tmp_path / "out").glob("*00001-of*.safetensors")), "pt") as one:
        assert set(one.keys()) <= set(made.at(9))


def test_slices_read_the_rows_they_need(made: Made, exact_file: Path) -> None:
    with safe_open(exact_file, "np", step=15, tier="exact") as handle:
        there = made.at(15)
        big = there["big"][1].reshape(-1)
        weight = there["dense.weight"][1]
        for name, bits, index in (
            ("single", there["single"][1], (slice(3, 9), slice(None, None, 2))),
            ("single", there["single"][1], -1),
            ("half", there["half"][1], (slice(None), 3)),
            ("doubles", there["doubles"][1], slice(2, 100, 3)),
            ("ids", there["ids"][1], 6),
            ("single", there["single"][1], slice(5, 5)),
        ):
            found = handle.get_slice(name)[index]
            assert found.tobytes() == bits[index].tobytes()
    with safe_open(exact_file, "pt", step=15) as handle:  # auto
        for lo, hi in ((0, 1), (PIECE - 2, PIECE + 3), (PIECE, PIECE + 1), (PIECE + 990, PIECE + 1000)):
            found = handle.get_slice("big")[lo:hi]
            np.testing.assert_array_equal(found.view(torch.int16).numpy().view(np.uint16), big[lo:hi])
        found = handle.get_slice("dense.weight")[7:9, ::5]
        np.testing.assert_array_equal(found.view(torch.int16).numpy().view(np.uint16), weight[7:9, ::5])
        assert handle.get_tensor("scalar").item() == there["scalar"][1].view(np.float32).item()


def test_framed_tensors_in_the_other_tiers(made: Made, exact_file: Path) -> None:
    with relex_codec.open(exact_file) as run:
        refused = 0
        for name in ("not_finite", "any_bits", "counter", "flags", "added_counter"):
            floats = made.at(1)[name][0] in ALL_FLOATS
            for step, tier, stored in ((3, "line", 2), (0.5, "line", 1), (11, "track", 9), (100, "auto", 23)):
                if floats:
                    with pytest.raises(InvalidArgument, match=f"'{name}' is stored step by step and has no line"):
                        run._reader.bits(name, step, tier)
                    refused += 1
                else:
                    found = run._reader.bits(name, step, tier)
                    np.testing.assert_array_equal(found, made.at(stored)[name][1].reshape(-1))
            for tier in ("line", "track"):
                np.testing.assert_array_equal(run._reader.bits(name, 9, tier), made.at(9)[name][1].reshape(-1))
        assert refused
        for name in ("not_finite", "counter", "ids"):
            origin = run._reader.decoder.read(run._reader.entry(name), StepTier(0.0, "base"))
            np.testing.assert_array_equal(origin, made.base[name][1].reshape(-1))
        for step, tier in ((16, "line"), (15, "track"), (0, "auto")):  # it did not move while it was observed
            np.testing.assert_array_equal(run._reader.bits("late", step, tier), made.base["late"][1].reshape(-1))


def test_weights_that_are_not_finite(made: Made, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not finite"):
        relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, quality="raw")
    assert not (tmp_path / "x.relex").exists()


def test_infinities_that_only_rounding_makes_are_not_framed(tmp_path: Path) -> None:
    """A base whose numbers overflow in the run's dtype: the deltas are not finite, but nothing ever moves."""
    large = f32(np.array([3.4028e38, 1, 2, np.nan], np.float32))
    rounded: Tensor = ("BF16", narrow("BF16", large[1].view(np.float32)))
    write_checkpoint(tmp_path / "base", {"a": large, "w": bf16(np.zeros(6))})
    write_run(tmp_path / "run", [1, 2], lambda step: {"a": rounded, "w": bf16(np.arange(6) + step)})
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality="raw", exact=True)
    with relex_codec.open(tmp_path / "x.relex") as run:
        for step in (1, 2):
            np.testing.assert_array_equal(run._reader.bits("a", step), rounded[1])


@pytest.mark.parametrize("steps", [[5], [0, 5], [0], [3, 4]])
def test_short_runs_and_step_0(tmp_path: Path, steps: list[int]) -> None:
    base: dict[str, Tensor] = {"w": bf16(np.arange(12).reshape(3, 4)), "n": ("I32", np.arange(3, dtype=np.uint32))}

    def at(step: int) -> dict[str, Tensor]:
        counted = np.arange(3, dtype=np.uint32) + np.uint32(step)
        return {"w": bf16(np.arange(12).reshape(3, 4) * (1.5 + step)), "n": ("I32", counted)}

    made = Made(tmp_path, steps, base, at)
    write_checkpoint(made.base_path, base)
    write_run(made.run, steps, at)
    relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, quality="raw", exact=True)
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert_all_steps(run, made)
        assert run.tier(0) == ("exact" if steps[0] == 0 else "base")
        expected = made.at(0) if steps[0] == 0 else base
        np.testing.assert_array_equal(run._reader.bits("w", 0), expected["w"][1].reshape(-1))
        run.verify()


def test_a_run_that_never_moves(tmp_path: Path) -> None:
    base: dict[str, Tensor] = {"w": bf16(np.arange(12)), "n": ("I32", np.arange(3, dtype=np.uint32))}
    made = Made(tmp_path, [1, 2, 3], base, lambda step: base)
    write_checkpoint(made.base_path, base)
    write_run(made.run, made.steps, made.at)
    relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, exact=True)
    assert segments_of(File(tmp_path / "x.relex")) == [0, 0]
    assert File(tmp_path / "x.relex").entries["relex.data.frames"] == b""
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert_all_steps(run, made)
        run.verify()


# ---- The base ----


def test_an_embedded_base_is_enough(made: Made, exact_file: Path) -> None:
    path = made.root / "embedded.relex"
    relex_codec.encode(
        made.run, path, base=made.base_path, quality="raw", observe=OBSERVE, exact=True, embed_base=True
    )  # fmt: skip
    moved = made.root / "gone"
    made.base_path.rename(moved)
    try:
        with relex_codec.open(path) as run:
            assert_all_steps(run, made)
            run.verify()
        with pytest.raises(relex_codec.RelexError), relex_codec.open(exact_file) as run:
            run._reader.bits("half", 4)
    finally:
        moved.rename(made.base_path)
    with relex_codec.open(path, base=made.base_path) as run:
        np.testing.assert_array_equal(run._reader.bits("half", 4), made.at(4)["half"][1].reshape(-1))
    embedded, alone = File(path).entries["relex.data.frames"], File(exact_file).entries["relex.data.frames"]
    assert embedded == alone


def test_a_wrong_base_is_noticed(made: Made, exact_file: Path, tmp_path: Path) -> None:
    """What is restored from it is wrong and refused, or right all the same."""
    for name in ("half", "flags", "still", "late", "wider", "wider_still", "counter"):
        dtype, bits = made.base[name]
        other = bits.copy().reshape(-1)
        other[0] ^= other.dtype.type(1)
        write_checkpoint(tmp_path / name, made.base | {name: (dtype, other.reshape(bits.shape))}, shards=3)
        with relex_codec.open(exact_file, base=tmp_path / name) as run:
            refused = {}
            for step in STEPS:
                try:
                    np.testing.assert_array_equal(
                        run._reader.bits(name, step, "exact"), made.at(step)[name][1].reshape(-1)
                    )
                except BaseMismatch as error:
                    refused[step] = str(error)
            assert STEPS[-1] in refused or name == "wider"  # where rounding forgets the lowest bit
            assert all(repr(name) in message for message in refused.values())
            np.testing.assert_array_equal(run._reader.bits("ids", 8, "exact"), made.at(8)["ids"][1])
            np.testing.assert_array_equal(run._reader.bits("added", 8, "exact"), made.at(8)["added"][1].reshape(-1))
    write_checkpoint(tmp_path / "random", made.base | {"half": random_bits("F16", (30, 7), 77)}, shards=3)
    with relex_codec.open(exact_file, base=tmp_path / "random") as run:
        for step in STEPS:
            with pytest.raises(BaseMismatch, match="half"):
                run._reader.bits("half", step)
    with relex_codec.open(exact_file) as run:
        for name in ("half", "flags"):  # nothing that was wrong is kept
            np.testing.assert_array_equal(run._reader.bits(name, 8), made.at(8)[name][1].reshape(-1))


# ---- Steps and tiers that there are not ----


def test_steps_that_are_not_stored(exact_file: Path) -> None:
    with relex_codec.open(exact_file) as run:
        for step, nearest in ((10, "9"), (3, r"[24]"), (0, "1"), (100, "23"), (8.25, "8"), (-5, "1")):
            with pytest.raises(InvalidArgument, match=f"exact.*nearest is {nearest}$"):
                run._reader.bits("half", step, "exact")
            with pytest.raises(InvalidArgument, match="exact"):
                run.tier(step, tier="exact")
        assert run.tier(10) == "track" and run.tier(17) == "line" and run.tier(15) == "exact"
        with pytest.raises(InvalidArgument):
            run._reader.bits("half", float("nan"), "exact")


def test_files_without_the_tier(zoo_file: Callable[..., Path]) -> None:
    with relex_codec.open(zoo_file("raw")) as run:
        assert run.tier(9) == "track"
        with pytest.raises(InvalidArgument, match="exact"):
            run._reader.bits("frozen", 9, "exact")
    with pytest.raises(InvalidArgument, match="exact"):
        safe_open(zoo_file("raw"), step=9, tier="exact")


# ---- Groups, threads, memory ----


@pytest.mark.parametrize("limit", [1, 500, 1 << 40])
def test_any_size_of_groups(made: Made, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("relex_codec.exact.segments.group_limit", lambda steps: min(limit, 0xFFFFFFFF))
    path = made.root / f"limit{limit}.relex"
    relex_codec.encode(made.run, path, base=made.base_path, quality="raw", observe=OBSERVE, exact=True)
    file = File(path)
    groups = int.from_bytes(file.entries["relex.exact.segments"][16:20], "little")
    tensors = zip(file.manifest["tensors"], segments_of(file), strict=True)
    held = [dtype for (_, dtype, *_), segment in tensors if segment]
    assert groups == len(held) + 1 if limit == 1 else len(set(held)) <= groups < len(held)
    with relex_codec.open(path) as run:
        assert_all_steps(run, made)
        run.verify()


def test_threads_do_not_change_the_file(made: Made, exact_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(function: Callable[[Any], Any], values: Any) -> list[Any]:
        values = list(values)
        return [function(value) for value in reversed(values)][::-1]

    def many(function: Callable[[Any], Any], values: Any) -> list[Any]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(function, values))

    expected = File(exact_file)
    for way in (backwards, many):
        monkeypatch.setattr("relex_codec.exact.segment_writer.parallel_map", way)
        path = made.root / f"{way.__name__}.relex"
        relex_codec.encode(made.run, path, base=made.base_path, quality="raw", observe=OBSERVE, exact=True)
        assert all(File(path).entries[name] == expected.entries[name] for name in FRAME_ENTRIES)


def test_many_readers_at_once(made: Made, exact_file: Path) -> None:
    names = ("half", "single", "codes", "any_bits", "big", "wider")
    expected = {(name, step): made.at(step)[name][1].tobytes() for name in names for step in (2, 9, 23)}
    with relex_codec.open(exact_file) as run, ThreadPoolExecutor(6) as pool:
        keys = list(expected) * 3
        assert list(pool.map(lambda key: run._reader.bits(key[0], key[1]).tobytes(), keys)) == [
            expected[key] for key in keys
        ]


def test_what_is_kept_in_memory_is_bounded(made: Made, exact_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (1, 20_000):
        monkeypatch.setattr("relex_codec.exact.tier_reader.CACHE", limit)
        with relex_codec.open(exact_file) as run, ThreadPoolExecutor(4) as pool:
            names = [name for name in ("half", "single", "codes", "flags", "counter", "doubles") for _ in range(4)]
            for step in STEPS:
                for name, bits in zip(names, pool.map(lambda name: run._reader.bits(name, step), names), strict=True):  # noqa: B023
                    np.testing.assert_array_equal(bits, made.at(step)[name][1].reshape(-1))
            tier = run._reader.decoder.exact
            assert 0 < tier._blobs.nbytes <= limit + 200_000


def test_a_budget_that_is_too_small(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relex_codec.core.sizes.SMALLEST_MEMORY", 0)
    need = 3 * (len(STEPS) + 1) * PIECE * 2
    with pytest.raises(InvalidArgument, match=rf"{len(STEPS)} steps needs {-(-need // 10**6)} MB.*--memory"):
        relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, exact=True, memory=need - 1)
    assert not list(tmp_path.iterdir())
    relex_codec.encode(
        made.run, tmp_path / "x.relex", base=made.base_path, quality="raw", exact=True, memory=need
    )  # fmt: skip
    with relex_codec.open(tmp_path / "x.relex") as run:
        np.testing.assert_array_equal(run._reader.bits("big", 15), made.at(15)["big"][1].reshape(-1))


def test_what_moves_little_takes_little(tmp_path: Path) -> None:
    """200,000 weights in nine steps, of which one in 300 moves by a code each step."""
    rng = np.random.default_rng(1)
    found = [bf16(rng.standard_normal(200_000) * 0.05)[1]]
    for _ in STEPS:
        bits = found[-1].copy()
        bits[rng.integers(0, len(bits), len(bits) // 300)] += np.uint16(1)
        found.append(bits)
    write_checkpoint(tmp_path / "base", {"w": ("BF16", found[0])})
    write_run(tmp_path / "run", STEPS, lambda step: {"w": ("BF16", found[1 + STEPS.index(step)])})
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", exact=True)
    bound = 200_000 / 300 * (np.log2(300) + 2) / 8 * len(STEPS)  # bits of a place, and of a direction
    assert len(File(tmp_path / "x.relex").entries["relex.data.frames"]) < bound + 10_000


# ---- What is read ----


class Counted(Source):
    """A file in memory that remembers what was read of it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size, self.path = data, len(data), "counted.relex"
        self.ranges: list[tuple[int, int]] = []

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self._check(ranges)
        self.ranges += [(a, b) for a, b in ranges if b > a]
        return [self.data[a:b] for a, b in ranges]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], tuple[relex_codec.Run, Counted]]:
    def open_counted(path: Path, base: Path) -> tuple[relex_codec.Run, Counted]:
        source = Counted(path.read_bytes())
        monkeypatch.setattr("relex_codec.run.run_reader.open_source", lambda path, options: source)
        monkeypatch.setattr("relex_codec.format.reader.FIRST_READ", 4096)  # less than all of a small file
        return relex_codec.open("counted.relex", base=base), source

    return open_counted


def touched(source: Counted, file: File, entries: Sequence[str] = FRAME_ENTRIES) -> list[tuple[int, int]]:
    """What was read of `entries`, and forget everything."""
    found = []
    for low, high in source.ranges:
        for entry in entries:
            begin, end = file.places[entry]
            if max(low, begin) < min(high, end):
                found.append((max(low, begin), min(high, end)))
    source.ranges.clear()
    return sorted(set(found))


def test_other_tiers_read_nothing_of_it(made: Made, exact_file: Path, counted: Any) -> None:
    file = File(exact_file)
    run, source = counted(exact_file, made.base_path)
    assert not touched(source, file)
    for name in run:
        framed = KINDS[name][0] == FRAMED
        for step, tier in ((0, "line"), (9, "line"), (9, "track"), (11, "auto"), (300, "auto")):
            if framed and step != 9 and made.at(9)[name][0] in ALL_FLOATS:
                continue  # there is nothing of it there
            run._reader.bits(name, step, tier)
            assert framed or not touched(source, file), (name, step, tier)
            source.ranges.clear()


def blob_ranges(file: File, group: int, step: int) -> Iterator[tuple[int, int]]:
    """Index and blob of a group in the blocks that step number `step` of the only segment needs."""
    record = np.frombuffer(file.entries["relex.exact.segments"], "<u8").reshape(-1, 6)[0]
    frames = np.frombuffer(file.entries["relex.exact.frames"], "<u8").reshape(-1, 3)
    groups = int.from_bytes(file.entries["relex.exact.segments"][16:20], "little")
    for number in (0, *frames_of(step, len(frames))):
        position = int(frames[number - 1][0] if number else record[3])
        index = file.data[position : position + 12 * groups]
        ends = [12 * groups, *(int.from_bytes(index[i : i + 8], "little") for i in range(0, len(index), 12))]
        yield position, position + 12 * groups
        blob = position + ends[group], position + ends[group + 1]
        assert zlib.crc32(file.data[slice(*blob)]) == int.from_bytes(index[12 * group + 8 : 12 * group + 12], "little")
        yield blob


def test_one_tensor_reads_its_group_only(made: Made, counted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relex_codec.exact.segments.group_limit", lambda steps: 1)
    path = made.root / "single.relex"
    relex_codec.encode(made.run, path, base=made.base_path, quality="raw", observe=OBSERVE, exact=True)
    file = File(path)
    sizes = {name: int(np.prod(file.shape(name), dtype=np.int64)) for name in file.names}
    held = [name for name, segment in zip(file.names, segments_of(file), strict=True) if segment]
    firsts = np.cumsum([0] + [-(-sizes[name] // PIECE) for name in held])
    for name, step in (("half", 4), ("codes", 23), ("added_counter", 15), ("late", 1)):
        run, source = counted(path, made.base_path)
        run._reader.bits(name, step, "exact")
        read = touched(source, file, ["relex.data.frames"])
        group = int(firsts[held.index(name)])
        expected = {blob for blob in blob_ranges(file, group, STEPS.index(step) + 1) if blob[1] > blob[0]}
        assert set(read) == expected
        run._reader.bits(name, step, "exact")
        assert not touched(source, file)  # kept
    run, source = counted(path, made.base_path)
    run._reader.bits("big", 16, "exact", PIECE + 5, PIECE + 7)  # the second piece only
    expected = set(blob_ranges(file, int(firsts[held.index("big")]) + 1, 8))
    assert set(touched(source, file, ["relex.data.frames"])) == expected
    run._reader.bits("still", 16, "exact")  # no segment holds it
    assert not touched(source, file)


def test_indexes_are_read_once(made: Made, exact_file: Path, counted: Any) -> None:
    run, source = counted(exact_file, made.base_path)
    run._reader.bits("half", 23, "exact")
    touched(source, File(exact_file))
    run._reader.bits("single", 23, "exact")
    once = touched(source, File(exact_file))
    run._reader.bits("single", 23, "exact")
    run._reader.bits("scalar", 23, "exact")  # of the same group
    assert once and not touched(source, File(exact_file))
