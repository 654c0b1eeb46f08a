"""Tensors that no line is drawn through, in runs without ``--exact``: stored step by step, in frames of their own."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import Made
from safetensors.torch import load_file

import relex_codec
from relex_codec import BaseMismatch, Corrupt, InvalidArgument
from relex_codec.decoding.tiers import StepTier
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE, cli
from support.plain import FRAME_ENTRIES, File
from support.sources import Held
from support.tensors import Tensor, bf16, bits_of, f32, random_bits

SAME, MOVING, FRAMED = 0, 1, 2
IN_BASE, STORED = 0, 1
STEPS = [2, 4, 5, 9, 14]
PIECE = 1 << 18
FRAMED_NAMES = ("counter", "ids", "flags", "codes", "small", "doubles", "large", "added")
FLOATS = ("codes", "small", "doubles")
"""Those of numbers that training moves, which have no value between two steps."""
HELD = tuple(name for name in FRAMED_NAMES if name not in FLOATS)


def content() -> tuple[dict[str, Tensor], Callable[[int], dict[str, Tensor]]]:
    """A base, and a run at a step: one tensor moves along a line, eight change without one, three stay."""
    rng = np.random.default_rng(1)
    start, drift = rng.standard_normal((2, 12, 10)) * 0.1
    large = rng.integers(0, 200, PIECE + 50).astype(np.uint8)
    base: dict[str, Tensor] = {
        "w": bf16(start),
        "counter": ("I64", np.array(7, np.uint64)),
        "ids": ("I32", np.arange(6, dtype=np.uint32).reshape(2, 3)),
        "flags": random_bits("BOOL", (33,), 2),
        "codes": random_bits("F8_E4M3", (6, 3), 3),
        "small": random_bits("F8_E5M2", (40,), 4),
        "doubles": ("F64", rng.standard_normal(9).view(np.uint64)),
        "large": ("U8", large),
        "frozen_ids": ("I64", np.arange(5, dtype=np.uint64)),
        "none": ("I32", np.zeros((0, 4), np.uint32)),
        "mask": f32(np.triu(np.full((6, 6), -np.inf), 1)),
    }

    def at(step: int) -> dict[str, Tensor]:
        grown = large.copy()
        grown[PIECE + step : PIECE + step + 9] += np.uint8(step)  # its first piece never changes
        return base | {
            "w": bf16(start + drift * step / 20),
            "counter": ("I64", np.array(step // 3 * 10**12, np.uint64)),
            "ids": ("I32", (np.arange(6, dtype=np.uint32) - np.uint32(step)).reshape(2, 3)),
            "flags": random_bits("BOOL", (33,), step),
            "codes": random_bits("F8_E4M3", (6, 3), 3 if step == 2 else 50 + step),  # the base's at first
            "small": random_bits("F8_E5M2", (40,), step // 5),
            "doubles": ("F64", (base["doubles"][1].view(np.float64) * (1 + step)).view(np.uint64)),
            "large": ("U8", grown),
            "added": ("U16", np.array([step, 7], np.uint16)),
        }

    return base, at


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("framed")
    base, at = content()
    write_checkpoint(root / "base", base)
    write_run(root / "run", STEPS, at)
    return Made(root, STEPS, base, at)


@pytest.fixture(scope="module")
def path(made: Made) -> Path:
    out, base = made.root / "x.relex", made.base_path
    # tests open its bytes as if they lay elsewhere, so its base is named by a whole path
    assert relex_codec.encode(made.run, out, base=base, base_uri=str(base)) == out.stat().st_size
    return out


def same(run: relex_codec.Run, name: str, step: float, tier: str, expected: Tensor) -> None:
    found = bits_of(run.tensor(name, step, tier=tier))
    np.testing.assert_array_equal(found, expected[1].reshape(-1), err_msg=f"{name} {step} {tier}")


# ---- What is stored, and that it comes back ----


def test_what_is_stored(path: Path) -> None:
    file = File(path)
    assert file.manifest["exact"] is False
    assert list(file.shapes)[-3:] == list(FRAME_ENTRIES)
    records = {name: (*row[:2], row[7]) for name, row in zip(file.names, file.tensors, strict=True)}
    assert records == (
        dict.fromkeys(FRAMED_NAMES, (FRAMED, IN_BASE, 1))
        | {"w": (MOVING, IN_BASE, 0), "added": (FRAMED, STORED, 1)}
        | dict.fromkeys(("frozen_ids", "none", "mask"), (SAME, IN_BASE, 0))
    )
    assert len(file.entries["relex.data.frames"]) < 4000


def test_every_tier_gives_the_last_stored_step(made: Made, path: Path) -> None:
    """Of floats there is a value at stored steps only: what goes with them may be extrapolated."""
    reads = [(step, step, tier) for step in STEPS for tier in ("auto", "track", "line")]  # stored
    reads += [(3, 2, "auto"), (8.9, 5, "track"), (8.9, 5, "line"), (13.5, 9, "auto")]  # between
    reads += [(1, 2, "auto"), (0.5, 2, "line"), (-4, 2, "line"), (0, 2, "line")]  # before
    reads += [(15, 14, "auto"), (1e9, 14, "line")]  # beyond
    with relex_codec.open(path) as run:
        for step, stored, tier in reads:
            there = made.at(stored)
            for name in (*HELD, "frozen_ids", "none", "mask"):
                same(run, name, step, tier, there[name])
            for name in FLOATS:
                if step in STEPS:
                    same(run, name, step, tier, there[name])
                else:
                    with pytest.raises(InvalidArgument, match=f"'{name}' is stored step by step and has no line"):
                        run.tensor(name, step, tier=tier)
        for name in HELD:  # the base lacks `added`, so it is not step 0
            same(run, name, 0, "auto", made.at(2)[name])
        run.verify()


def test_whole_steps_and_parts_of_tensors(made: Made, path: Path, tmp_path: Path) -> None:
    there = made.at(9)
    with relex_codec.open(path) as run:
        assert run.save(tmp_path / "out", 9) == "track"
        for lo, hi in ((PIECE - 3, PIECE + 20), (PIECE + 1, PIECE + 2), (5, 9), (4, 4)):
            found = run.tensor("large", 10, index=slice(lo, hi))
            np.testing.assert_array_equal(bits_of(found), there["large"][1][lo:hi])
        resident = run.resident(slices={"large": slice(PIECE - 3, PIECE + 20)})
        held = resident.state_dict(9)
        for whole in (lambda: run.save(tmp_path / "between", 10), lambda: resident.state_dict(10)):
            with pytest.raises(InvalidArgument, match="'codes' is stored step by step and has no line"):
                whole()
        assert not (tmp_path / "between").exists()
    with relex_codec.safe_open(path, "np", step=10) as handle:
        np.testing.assert_array_equal(handle.get_slice("ids")[1], there["ids"][1][1].view(np.int32))
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name in FRAMED_NAMES:
        expected = there[name][1].reshape(-1)
        np.testing.assert_array_equal(bits_of(written[name]), expected, err_msg=name)
        if name == "large":
            expected = expected[PIECE - 3 : PIECE + 20]
        np.testing.assert_array_equal(bits_of(held[name]), expected, err_msg=name)


def test_the_reference_decoder_reads_the_same(made: Made, path: Path, reference: ModuleType) -> None:
    slow = reference.RelexFile(path.read_bytes())
    slow.check_all()
    origin = {name: (dtype, list(bits.shape), bits.tobytes()) for name, (dtype, bits) in made.base.items()}
    for step, stored in ((1, 2), (4, 4), (8.9, 5), (99, 14)):
        for name in FRAMED_NAMES:
            if name != "large":  # slowly, as the name says
                expected = made.at(stored)[name][1].tobytes()
                if name in FLOATS and step not in STEPS:
                    with pytest.raises(reference.InvalidArgument, match="has no line"):
                        slow.tensor(name, step, "auto", origin.__getitem__)
                else:
                    assert slow.tensor(name, step, "auto", origin.__getitem__) == expected, (name, step)


def test_a_base_inside(made: Made, tmp_path: Path) -> None:
    relex_codec.encode(made.run, tmp_path / "x.relex", base=made.base_path, embed_base=True)
    data = (tmp_path / "x.relex").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relex_codec.decoding.base_locator.open_base", None)
        with relex_codec.open(tmp_path / "x.relex") as run:
            for name in HELD:
                same(run, name, 5.5, "auto", made.at(5)[name])
            for name in FLOATS:
                same(run, name, 5, "auto", made.at(5)[name])
            entry = run._reader.entry("ids")
            origin = run._reader.decoder.read(entry, StepTier(0.0, "base"))
            np.testing.assert_array_equal(origin, made.base["ids"][1].reshape(-1))
            run.verify()
    assert data == (tmp_path / "x.relex").read_bytes()


def test_another_base_is_found_out(made: Made, path: Path, tmp_path: Path) -> None:
    other = made.base | {"ids": ("I32", made.base["ids"][1] + np.uint32(1))}
    write_checkpoint(tmp_path / "other", other)
    with relex_codec.open(path, base=tmp_path / "other") as run:
        for step in (0, 4, 99):
            with pytest.raises(BaseMismatch, match="'ids'"):
                run.tensor("ids", step)
        same(run, "codes", 4, "auto", made.at(4)["codes"])
        same(run, "added", 4, "auto", made.at(4)["added"])


# ---- It is no exact tier ----


def test_tier_exact_is_refused(path: Path, tmp_path: Path) -> None:
    with relex_codec.open(path) as run:
        assert [run.tier(step) for step in (0, 2, 4, 99)] == ["line", "track", "track", "line"]
        for call in (
            lambda: run.tensor("ids", 4, tier="exact"),
            lambda: run.state_dict(4, tier="exact"),
            lambda: list(run.iter_steps()),
            lambda: run.restore(tmp_path / "out"),
            lambda: run.check_exact(),
        ):
            with pytest.raises(InvalidArgument, match="encoded without --exact"):
                call()
    assert not (tmp_path / "out").exists()


def test_fitting_again_is_refused(made: Made, path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    write_checkpoint(tmp_path / "global_step_20", made.at(20))
    with pytest.raises(InvalidArgument, match="no exact tier"):
        relex_codec.append(path, [tmp_path / "global_step_20"], refit=True)
    assert path.read_bytes() == before


def test_what_a_user_is_told(path: Path) -> None:
    done = cli("info", path)
    assert "\nexact " not in done.stdout
    assert "12, of which 1 move, 8 are stored step by step; " in done.stdout
    document = json.loads(cli("info", path, "--json").stdout)
    assert document["tiers"] == ["line", "track"] and document["exact"] is None
    entries = File(path).entries
    assert document["bytes"]["exact"] == sum(len(entries[name]) for name in FRAME_ENTRIES)
    assert sum(document["bytes"].values()) == 2 * document["bytes"]["total"] == 2 * path.stat().st_size
    kinds = {row["name"]: (row["kind"], row["origin"]) for row in document["tensor_rows"]}
    assert kinds["ids"] == ("framed", "base") and kinds["added"] == ("framed", "file")


# ---- Other runs ----


def test_only_framed_tensors(tmp_path: Path) -> None:
    base: dict[str, Tensor] = {"n": ("I16", np.arange(5, dtype=np.uint16)), "b": random_bits("F8_E4M3", (7,), 1)}

    def at(step: int) -> dict[str, Tensor]:
        return {"n": ("I16", base["n"][1] * np.uint16(step)), "b": random_bits("F8_E4M3", (7,), step)}

    write_checkpoint(tmp_path / "base", base)
    write_run(tmp_path / "run", [3, 4, 9], at)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
    file = File(tmp_path / "x.relex")
    assert not file.directions and not file.chunks
    with relex_codec.open(tmp_path / "x.relex") as run:
        for step, stored in ((1, 3), (3, 3), (8, 4), (9, 9), (50, 9)):
            same(run, "n", step, "auto", at(stored)["n"])
            if step == stored:
                same(run, "b", step, "auto", at(stored)["b"])
        for name in base:  # all of it is in the base
            same(run, name, 0, "auto", base[name])
        run.verify()


@pytest.mark.parametrize("steps", [[5], [0], [0, 7]])
def test_one_step_and_step_0(tmp_path: Path, steps: list[int]) -> None:
    base: dict[str, Tensor] = {"w": bf16(np.arange(4)), "n": ("I32", np.arange(3, dtype=np.uint32))}

    def at(step: int) -> dict[str, Tensor]:
        return {"w": bf16(np.arange(4) + 1), "n": ("I32", np.arange(3, dtype=np.uint32) + np.uint32(step + 1))}

    write_checkpoint(tmp_path / "base", base)
    write_run(tmp_path / "run", steps, at)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
    with relex_codec.open(tmp_path / "x.relex") as run:
        for step in steps:
            same(run, "n", step, "line", at(step)["n"])
        same(run, "n", 0, "auto", base["n"])


def test_without_framed_tensors_there_are_no_frames(made: Made, tmp_path: Path) -> None:
    """And encoding compiles nothing: the first import of numba takes seconds."""
    names = ("w", "frozen_ids", "mask")
    write_run(tmp_path / "run", STEPS, lambda step: {name: made.at(step)[name] for name in names})
    script = f"""
        import sys
        import relex_codec
        relex_codec.encode({str(tmp_path / "run")!r}, {str(tmp_path / "x.relex")!r}, base={str(made.base_path)!r})
        print("numba" in sys.modules)
    """
    found = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in script.splitlines())],
        cwd=ELSEWHERE, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert found.stdout == "False\n", found.stderr
    file = File(tmp_path / "x.relex")
    assert not file.shapes.keys() & set(FRAME_ENTRIES)
    assert file.manifest["exact"] is False


def test_memory(tmp_path: Path) -> None:
    """Frames take a piece of all steps at a time; what stays as it is takes slices, however many steps there are."""
    steps = list(range(1, 11))
    values = np.random.default_rng(0).integers(0, 1 << 40, PIECE, np.uint64)
    base: dict[str, Tensor] = {"w": bf16(np.zeros(4)), "n": ("I64", values)}

    def at(step: int, moves: bool) -> dict[str, Tensor]:
        changed = values.copy()
        if moves and step == 10:
            changed[-1] += np.uint64(1)
        return {"w": bf16(np.arange(4) * step), "n": ("I64", changed)}

    write_checkpoint(tmp_path / "base", base)
    for moves in (False, True):
        write_run(tmp_path / "run", steps, lambda step: at(step, moves))  # noqa: B023 (called at once)
        arguments = tmp_path / "run", tmp_path / f"{moves}.relex"
        if not moves:
            relex_codec.encode(*arguments, base=tmp_path / "base", memory="64MB")
            continue
        with pytest.raises(InvalidArgument, match=r"'n', which is stored step by step, .* 70 MB, memory is 64 MB"):
            relex_codec.encode(*arguments, base=tmp_path / "base", memory="64MB")
        assert not arguments[1].exists()
        relex_codec.encode(*arguments, base=tmp_path / "base", memory="128MB")
    with relex_codec.open(tmp_path / "False.relex") as still, relex_codec.open(tmp_path / "True.relex") as run:
        same(still, "n", 10, "line", base["n"])
        same(run, "n", 9, "line", base["n"])
        same(run, "n", 10, "line", at(10, True)["n"])


# ---- Rules of the records ----


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], relex_codec.Run]:
    """Open bytes as if they were a file."""

    def open_bytes(data: bytes) -> relex_codec.Run:
        monkeypatch.setattr("relex_codec.run.run_reader.open_source", lambda path, options: Held(data))
        return relex_codec.open("held.relex")

    return open_bytes


def with_record(file: File, name: str, at: int, value: bytes) -> dict[str, bytes]:
    """The table of tensors with other bytes in one record."""
    data = bytearray(file.entries["relex.tensors"])
    begin = 32 * file.names.index(name) + at
    data[begin : begin + len(value)] = value
    return {"relex.tensors": bytes(data)}


def test_records_that_break_a_rule(path: Path, opened: Callable[[bytes], relex_codec.Run]) -> None:
    file = File(path)
    one = struct.pack("<I", 1)
    opened(file.rebuilt({})).close()
    for name, at, value in (
        ("ids", 0, b"\3"),  # a kind that is none
        ("ids", 1, b"\2"),  # an origin that is none
        ("ids", 2, b"\1\0"),  # directions
        ("ids", 4, one),  # where they begin
        ("ids", 20, bytes(4)),  # in no segment
        ("ids", 20, b"\2\0\0\0"),  # in one that is not there
        ("w", 20, one),  # moving, and in the frames of a file without the exact tier
        ("frozen_ids", 20, one),
        ("none", 20, one),
        ("ids", 0, b"\0"),  # the same at every step, and in the frames
    ):
        with pytest.raises(Corrupt, match=rf"relex\.tensors: the record of '{name}'"):
            opened(file.rebuilt(with_record(file, name, at, value)))


def test_frames_are_there_where_they_are_needed(
    made: Made, path: Path, tmp_path: Path, opened: Callable[[bytes], relex_codec.Run]
) -> None:
    def manifest(file: File, exact: object) -> dict[str, bytes]:
        return {"relex.manifest": json.dumps(file.manifest | {"exact": exact}).encode()}

    file = File(path)
    names = ("w", "none")
    write_run(tmp_path / "run", STEPS, lambda step: {name: made.at(step)[name] for name in names})
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=made.base_path)
    plain = File(tmp_path / "x.relex")
    with pytest.raises(Corrupt, match="has no frames"):
        opened(plain.rebuilt(manifest(plain, True)))
    for exact in (0, None, "true"):
        with pytest.raises(Corrupt, match="exact is"):
            opened(plain.rebuilt(manifest(plain, exact)))
    for name in FRAME_ENTRIES:
        del file.shapes[name]
    with pytest.raises(Corrupt, match="has no frames, which its tensors need"):
        opened(file.rebuilt({}))
    relex_codec.encode(tmp_path / "run", tmp_path / "y.relex", base=made.base_path, exact=True)
    exact = File(tmp_path / "y.relex")
    with pytest.raises(Corrupt, match="has frames of nothing"):
        opened(exact.rebuilt(manifest(exact, False)))


def test_an_empty_framed_tensor_needs_no_frames(
    made: Made, path: Path, tmp_path: Path, opened: Callable[[bytes], relex_codec.Run]
) -> None:
    """An encoder has no reason to make one."""
    write_run(tmp_path / "run", STEPS, lambda step: {name: made.at(step)[name] for name in ("w", "none")})
    base = made.base_path
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=base, base_uri=str(base))
    for file in (File(tmp_path / "x.relex"), File(path)):
        run = opened(file.rebuilt(with_record(file, "none", 0, b"\2")))
        for step, tier in ((0, "auto"), (4, "auto"), (3, "track"), (99, "line")):
            assert run.tensor("none", step, tier=tier).shape == (0, 4)
        assert run.state_dict(4)["none"].shape == (0, 4)
        held = run.resident(slices={"large": slice(3)} if "large" in file.names else None)
        assert held.state_dict(4)["none"].shape == (0, 4)
        run.verify()
