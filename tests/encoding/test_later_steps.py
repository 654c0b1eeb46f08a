"""Appending at the cost of what is new: everything that is there is copied, and new steps are projected."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec import CheckpointError, InvalidArgument
from relex_codec.encoding import later_units
from relex_codec.encoding.appended_series import RestoredStep
from relex_codec.encoding.stored_vectors import StoredVectors
from relex_codec.format import constants as f
from support import plain
from support.checkpoints import write_checkpoint, write_run
from support.plain import Array
from support.tensors import Tensor, bf16, f32

STEPS = [2, 4, 6, 8, 10, 12]
OLD = "2:8"


def tensors(step: int) -> dict[str, Tensor]:
    """Matrices, one of them large enough for compiled code; one that moves late, an integer, one not in the base."""
    rng = np.random.default_rng(3)
    found = {}
    for name, shape in (("w", (40, 64)), ("large", (300, 700)), ("norm", (64,))):
        start, drift = rng.standard_normal(shape) * 0.05, rng.standard_normal(shape) * 2e-3
        found[name] = bf16(start + step * drift + np.roll(drift, step) * step / 8)
    late = rng.standard_normal((7, 9))
    found["late"] = bf16(late + (step > 9) * 0.1)
    found["masked"] = bf16(np.where(np.arange(300) < 100, -np.inf, 0.01 * step))
    found["wide"] = f32(rng.standard_normal((5, 6)) + step * 1e-3 * rng.standard_normal((5, 6)))
    found["count"] = ("I64", np.array([step], np.uint64))
    found["late_count"] = ("I64", np.array([step > 9], np.uint64))
    if step:
        found["extra"] = bf16(rng.standard_normal((4, 8)) + step * 1e-2)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, and files of its first four."""
    root = tmp_path_factory.mktemp("later")
    write_checkpoint(root / "base", tensors(0))
    write_run(root / "run", STEPS, tensors)
    kinds: dict[str, dict[str, Any]] = {
        "exact": {"exact": True}, "lossy": {}, "two": {"rank": 2, "observe": 6}, "micro": {"quality": "micro"},
    }  # fmt: skip
    for name, options in kinds.items():
        relex_codec.encode(root / "run", root / f"{name}.relex", base=root / "base", steps=OLD, **options)
    return root


def copy(made: Path, target: Path, kind: str) -> Path:
    shutil.copy(made / f"{kind}.relex", target / "run.relex")
    return target / "run.relex"


def paths(made: Path, *steps: int) -> list[Path]:
    return [made / "run" / f"global_step_{step}" for step in steps]


def entry(file: Path, name: str) -> bytes:
    with relex_codec.open(file) as run:
        place = run._reader.container.index.entries[name]
        return run._reader.container.source.read(place.begin, place.end)


def wide(tensor: Tensor) -> Array:
    return plain.widen(*tensor).astype(np.float64).reshape(-1)


@pytest.mark.parametrize("kind", ["exact", "lossy", "two", "micro"])
def test_what_is_there_stays_and_new_steps_are_projected(made: Path, tmp_path: Path, kind: str) -> None:
    file, before = copy(made, tmp_path, kind), made / f"{kind}.relex"
    relex_codec.append(file, paths(made, 10, 12), base=made / "base")
    for name in (f.DATA_DIRECTIONS, f.DATA_BASE, f.NORMS, f.DIGESTS):
        assert entry(file, name) == entry(before, name), name
    with relex_codec.open(before) as one, relex_codec.open(file, base=made / "base") as other:
        old, new = one._reader.container.index, other._reader.container.index
        assert other.steps == STEPS and other.observed_steps == one.observed_steps
        for column in ("slope", "intercept", "scale", "shift", "error_stored", "r2"):
            assert np.array_equal(old.directions[column], new.directions[column], equal_nan=True), column
        checked = 0
        for tensor in new.tensors:
            numbers = list(tensor.directions)
            if not numbers:
                continue
            rows = other._reader.container.coefficients(numbers[0], len(numbers))
            kept = one._reader.container.coefficients(numbers[0], len(numbers))
            assert np.array_equal(rows[:, :4], kept)
            start = wide(tensors(0 if tensor.in_base else 2)[tensor.name])
            stored = StoredVectors(other._reader.container, tensor)
            vectors = [stored.piece(j, 0).astype(np.float64) for j in range(len(numbers))]
            for i, step in ((4, 10), (5, 12)):
                with np.errstate(invalid="ignore"):
                    delta = np.nan_to_num(wide(tensors(step)[tensor.name]) - start)  # infinities that stay
                expected = np.linalg.lstsq(np.stack(vectors, axis=1), delta, rcond=None)[0]
                np.testing.assert_allclose(rows[:, i], expected, rtol=1e-6, atol=1e-6 * np.linalg.norm(delta))
            checked += 1
        assert checked == 6
        other.verify()


def test_the_coefficient_is_that_of_the_direction_before_it_was_quantised(made: Path, tmp_path: Path) -> None:
    """So a later step joins the line of the observed ones, though the stored direction is shorter than 1."""
    relex_codec.encode(made / "run", tmp_path / "raw.relex", base=made / "base", steps="2:12", observe=8, quality="raw")
    file = copy(made, tmp_path, "lossy")
    relex_codec.append(file, paths(made, 10, 12), base=made / "base")
    with relex_codec.open(file) as one, relex_codec.open(tmp_path / "raw.relex") as other:
        number = one._reader.container.index.tensor("large").directions[0]
        found, expected = (run._reader.container.coefficients(number)[0] for run in (one, other))
    np.testing.assert_allclose(found[4:], expected[4:], rtol=0.01)


@pytest.mark.parametrize("kind", ["exact", "lossy"])
def test_tiers_of_new_steps(made: Path, tmp_path: Path, kind: str) -> None:
    file = copy(made, tmp_path, kind)
    relex_codec.append(file, paths(made, 10, 12), base=made / "base")
    with relex_codec.open(file, base=made / "base") as run:
        assert run.tier(12) == ("exact" if kind == "exact" else "line")
        errors = run._reader.container.errors()
        moving = [t.name for t in run._reader.container.index.tensors if t.kind == f.MOVING]
        for tier, row in zip(("track", "line"), errors, strict=True):
            for step, found in zip(STEPS, row, strict=True):
                miss = delta = 0.0
                for name in moving:
                    start, target = wide(tensors(2 if name == "extra" else 0)[name]), wide(tensors(step)[name])
                    with np.errstate(invalid="ignore"):
                        decoded = wide((tensors(step)[name][0], run._reader.bits(name, step, tier)))
                        miss += (np.nan_to_num(decoded - target) ** 2).sum()
                        delta += (np.nan_to_num(start - target) ** 2).sum()
                assert found == pytest.approx(np.sqrt(miss / delta), rel=1e-4), (tier, step)
        for step in STEPS:  # integers have every step in either file
            for name, (dtype, bits) in tensors(step).items():
                if kind == "exact" or dtype == "I64":
                    tier = "exact" if kind == "exact" else "track"
                    assert np.array_equal(run._reader.bits(name, step, tier), bits.reshape(-1)), (name, step)


def test_one_by_one_is_all_at_once(made: Path, tmp_path: Path) -> None:
    one, other = copy(made, tmp_path, "exact"), tmp_path / "other.relex"
    relex_codec.append(one, paths(made, 10, 12), output=other, base=made / "base")
    relex_codec.append(one, paths(made, 10), base=made / "base")
    relex_codec.append(one, paths(made, 12), base=made / "base")
    assert entry(one, f.COEFFICIENTS) == entry(other, f.COEFFICIENTS)
    with relex_codec.open(one, base=made / "base") as run:
        assert run._reader.container.index.segments == 3
        for name, (_, bits) in tensors(12).items():
            assert np.array_equal(run._reader.bits(name, 12), bits.reshape(-1)), name
        run.verify()


def test_old_steps_are_not_restored(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the one that the new segment begins from, and only in frames."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("restores an old step")

    monkeypatch.setattr(RestoredStep, "read_into", refuse)
    asked = []
    original = later_units.project_tensor

    def spy(decoder: Any, *args: Any) -> Any:
        read = decoder.read
        if not asked:
            monkeypatch.setattr(
                decoder, "read", lambda tensor, step, *a: (asked.append(step), read(tensor, step, *a))[1]
            )
        return original(decoder, *args)

    monkeypatch.setattr(later_units, "project_tensor", spy)
    for kind in ("lossy", "exact"):
        relex_codec.append(copy(made, tmp_path, kind), paths(made, 10), base=made / "base")
    assert {step.tier for step in asked} <= {"exact", "track"}
    assert len({step.step for step in asked}) == 1


def test_a_run_is_taken_from_where_the_file_ends(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, said in (("exact", "step 8 is the same there"), ("lossy", "not compared")):
        file = copy(made, tmp_path, kind)
        relex_codec.append(file, [made / "run"], base=made / "base")
        message = capsys.readouterr().err
        assert "4 steps, 2 to 8, are in" in message and said in message
        with relex_codec.open(file) as run:
            assert run.steps == STEPS
    with pytest.raises(InvalidArgument, match=r"all 6 steps are in .* already, whose last step is 12: nothing"):
        relex_codec.append(file, [made / "run"], base=made / "base")
    with pytest.raises(InvalidArgument, match=r"step 4 is in .* already"):
        relex_codec.append(file, paths(made, 4), base=made / "base")


@pytest.mark.parametrize("name", ["w", "late", "count"])
def test_a_step_that_is_another_one_now_is_refused(made: Path, tmp_path: Path, name: str) -> None:
    file = copy(made, tmp_path, "exact")
    before = file.read_bytes()
    other = tensors(8)
    dtype, bits = other[name]
    bits = bits.copy()
    bits.reshape(-1)[-1] ^= bits.dtype.type(1)
    write_checkpoint(tmp_path / "run" / "global_step_8", {**other, name: (dtype, bits)})
    write_checkpoint(tmp_path / "run" / "global_step_10", tensors(10))
    with pytest.raises(CheckpointError, match=f"other weights in tensor '{name}' than .* has of step 8"):
        relex_codec.append(file, [tmp_path / "run"], base=made / "base")
    assert file.read_bytes() == before


def test_weights_that_are_no_numbers_are_refused(made: Path, tmp_path: Path) -> None:
    for name, size in (("w", 2560), ("large", 210_000)):
        bad = tensors(10)
        bits = bad[name][1].copy().reshape(-1)
        bits[size - 3] = 0x7FC0
        bad[name] = ("BF16", bits.reshape(bad[name][1].shape))
        write_checkpoint(tmp_path / name / "step_10", bad)
        with pytest.raises(CheckpointError, match=f"'{name}' of step 10 has weights that are not finite.*--refit"):
            relex_codec.append(copy(made, tmp_path, "lossy"), [tmp_path / name / "step_10"], base=made / "base")


def test_what_a_file_without_frames_loses_is_said(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relex_codec.append(copy(made, tmp_path, "lossy"), paths(made, 10), base=made / "base")
    assert "'late' stood still at the steps that lines were fitted on, and moves now" in capsys.readouterr().err
    relex_codec.append(copy(made, tmp_path, "exact"), paths(made, 10), base=made / "base")
    assert "stood still" not in capsys.readouterr().err


def test_a_damaged_chunk_is_not_copied(made: Path, tmp_path: Path) -> None:
    file = copy(made, tmp_path, "lossy")
    with relex_codec.open(file) as run:
        place = run._reader.container.index.entries[f.DATA_DIRECTIONS]
    data = bytearray(file.read_bytes())
    data[place.end - 1] ^= 1
    file.write_bytes(data)
    with pytest.raises(relex_codec.Corrupt):
        relex_codec.append(file, paths(made, 10), base=made / "base")
    assert file.read_bytes() == bytes(data)
