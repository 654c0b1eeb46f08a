"""Comparisons against numpy on whole tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import relex_codec
from relex_codec import CheckpointError, InvalidArgument
from relex_codec.run.places import place_of
from relex_codec.run.sums import PairSums, sums_of
from support.checkpoints import write_checkpoint, write_run
from support.commands import cli, failed
from support.plain import widen
from support.runs import Made
from support.tensors import Array, Tensor, bf16, f32

Zoo = Callable[..., Path]
FLOATS = ("BF16", "F16", "F32")


def values(tensor: Tensor) -> Array:
    return widen(*tensor).astype(np.float64).reshape(-1)


def test_two_steps_of_every_kind_of_tensor(zoo_run: Made, zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("micro", exact=True)) as run:
        document = run.compare(5, 20)
        assert [row["name"] for row in document["tensors"]] == run.keys()
        assert run.compare(5, 20, tier="line")["total"] != document["total"]
    first, second = zoo_run.at(5), zoo_run.at(20)
    assert (document["a"], document["b"]) == ("step 5 from tier exact", "step 20 from tier exact")
    checked = 0
    for row in document["tensors"]:
        (dtype, a), (_, b) = first[row["name"]], second[row["name"]]
        assert row["weights"] == a.size
        xor = (a ^ b).reshape(-1).view(np.uint8)
        assert row["weights_differ"] == (pytest.approx((a != b).mean()) if a.size else None)
        assert row["bits_differ"] == (pytest.approx(np.unpackbits(xor).mean()) if a.size else None)
        base = zoo_run.base.get(row["name"])
        if dtype not in FLOATS or base is None or base[0] != dtype or base[1].shape != a.shape:
            continue
        start, x, y = (values((dtype, bits)) for bits in (base[1], a, b))
        with np.errstate(invalid="ignore"):
            good = np.isfinite(start) & np.isfinite(x) & np.isfinite(y)
        start, x, y = start[good], x[good], y[good]
        assert row["moved_a"] == pytest.approx(np.linalg.norm(x - start))
        assert row["difference"] == pytest.approx(np.linalg.norm(y - x))
        size = np.linalg.norm(start)
        assert row["relative_difference"] == (pytest.approx(np.linalg.norm(y - x) / size) if size else None)
        lengths = np.linalg.norm(x - start) * np.linalg.norm(y - start)
        if lengths:
            angle = math.degrees(math.acos(np.clip((x - start) @ (y - start) / lengths, -1, 1)))
            assert row["angle"] == pytest.approx(angle, abs=1e-4)
            checked += 1
        else:
            assert row["angle"] is None
    assert checked >= 6
    total = document["total"]
    assert total["weights"] == sum(row["weights"] for row in document["tensors"])
    for part in ("by_kind", "by_layer"):
        assert sum(row["weights"] for row in document[part]) == total["weights"]
        assert sum(row["difference"] ** 2 for row in document[part]) == pytest.approx(total["difference"] ** 2)
    assert [row["layer"] for row in document["by_layer"]] == [0, 1, None]


def test_against_a_checkpoint(zoo_run: Made, zoo_file: Zoo) -> None:
    there = zoo_run.run / "global_step_20"
    with relex_codec.open(zoo_file("micro", exact=True)) as run:
        same, near = run.compare_with_checkpoint(there, 20), run.compare_with_checkpoint(there, 20, tier="track")
        decoded = {name: run._reader.bits(name, 20, "track") for name in run}
    assert same["total"]["weights_equal"] == same["total"]["bits_equal"] == 1
    assert same["total"]["relative_error"] == same["total"]["largest_ulps"] == 0 and same["only_in_one"] == []
    wanted = zoo_run.at(20)
    for row in near["tensors"]:
        dtype, bits = wanted[row["name"]]
        found = decoded[row["name"]]
        if not bits.size:
            assert row["weights_equal"] is None
            continue
        assert row["weights_equal"] == pytest.approx((found == bits.reshape(-1)).mean())
        if row["name"] == "layers.0.proj.weight":
            start, x, y = values(zoo_run.base[row["name"]]), values((dtype, found)), values((dtype, bits))
            assert row["relative_error"] == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(y - start))
            assert row["largest_ulps"] == max(
                abs(ordered(int(a)) - ordered(int(b))) for a, b in zip(found, bits.reshape(-1), strict=True)
            )
            assert row["largest_ulps"] > 0


def ordered(bits: int) -> int:
    """Number of a BF16 value among all of them."""
    return -(bits & 0x7FFF) if bits & 0x8000 else bits


def test_a_checkpoint_of_other_tensors(zoo_run: Made, zoo_file: Zoo, tmp_path: Path) -> None:
    step = zoo_run.at(20)
    write_checkpoint(tmp_path / "part", {"layers.1.half": step["layers.1.half"], "more": bf16([1.0, 2.0])})
    write_checkpoint(tmp_path / "none", {"more": bf16([1.0, 2.0])})
    with relex_codec.open(zoo_file("micro", exact=True)) as run:
        found = run.compare_with_checkpoint(tmp_path / "part", 20)
        assert [row["name"] for row in found["tensors"]] == ["layers.1.half"]
        assert {"more", "frozen"} < set(found["only_in_one"])
        with pytest.raises(InvalidArgument, match="share no tensor"):
            run.compare_with_checkpoint(tmp_path / "none", 20)
        with pytest.raises(CheckpointError):
            run.compare_with_checkpoint(tmp_path / "nowhere", 20)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a``, ``b`` and ``c``: runs of one base, of which b goes as a but twice as far, and c its own way; and ``d``."""
    root = tmp_path_factory.mktemp("twins")
    rng = np.random.default_rng(0)
    start, way, other = rng.standard_normal((3, 20, 12))

    def run(name: str, base: str, speed: float, along: Array) -> None:
        def at(step: int) -> dict[str, Tensor]:
            origin = start if base == "base" else start + 1
            return {"layers.0.w": f32(origin + speed * step * along), "norm": f32(origin[0] - speed * step * along[0])}

        write_checkpoint(root / base, at(0))
        write_run(root / name, [5, 10], at)
        relex_codec.encode(root / name, root / f"{name}.relex", base=root / base, quality="raw")

    run("a", "base", 1e-3, way)
    run("b", "base", 2e-3, way)
    run("c", "base", 1e-3, other)
    run("d", "other", 1e-3, way)
    return root


def test_two_runs_of_one_base(twins: Path) -> None:
    rng = np.random.default_rng(0)
    _, way, other = rng.standard_normal((3, 20, 12))
    with relex_codec.open(twins / "a.relex") as run:
        with relex_codec.open(twins / "b.relex") as twin:
            found = run.compare_with_run(twin)
        assert found["total"]["cosine"] == pytest.approx(1, abs=1e-5)
        assert found["total"]["moved_b"] == pytest.approx(2 * found["total"]["moved_a"], rel=1e-4)
        with relex_codec.open(twins / "c.relex") as stranger:
            found = run.compare_with_run(stranger)
        wanted = (way * other).sum() / np.linalg.norm(way) / np.linalg.norm(other)
        assert found["tensors"][0]["cosine"] == pytest.approx(wanted, abs=1e-4)
        assert [row["layer"] for row in found["by_layer"]] == [0, None]
        with relex_codec.open(twins / "d.relex") as foreign, pytest.raises(InvalidArgument, match="different bases"):
            run.compare_with_run(foreign)


# ---- The command ----


def test_the_command(twins: Path) -> None:
    file = twins / "a.relex"
    document = json.loads(cli("compare", file, "--steps", "5,10", "--json").stdout)
    with relex_codec.open(file) as run:
        assert document == run.compare(5, 10)
    text = cli("compare", file, "--steps", "5,10", "--tensors").stdout
    assert "angle" in text and "layers.0.w" in text and "bits differ" in text
    against = cli("compare", file, "--against", twins / "a" / "global_step_10", "--step", 10)
    assert "ULPs" in against.stdout and against.returncode == 0
    assert "cosine" in cli("compare", file, twins / "c.relex").stdout
    failed(cli("compare", file, twins / "d.relex"), "different bases", "'layers.0.w'")
    for wrong in ((), ("--steps", "5"), ("--steps", "5,x"), ("--against", "x"), ("--step", 5), ("x", "--steps", "1,2")):
        assert cli("compare", file, *wrong).returncode == 2, wrong


# ---- Parts ----


def test_sums_of_odd_numbers() -> None:
    tops = np.array([0x7F80, 0x7FC0, 0x3F80, 0x8000, 0x0000], np.uint16)  # inf, NaN, 1, -0, 0
    other = np.array([0x7F80, 0x3F80, 0x3F81, 0x0000, 0x8001], np.uint16)
    found = sums_of(tops, tops, other, "BF16")
    assert (found.elements, found.elements_differ, found.bits) == (5, 4, 80)
    assert found.ulps == 65536  # NaN on one side
    found = sums_of(tops[2:], tops[2:], other[2:], "BF16")
    assert found.ulps == 1  # also from 0 to the smallest below it, and nothing between the zeros
    assert found.difference == pytest.approx(2.0**-14)
    nothing = PairSums().as_steps()
    assert nothing["angle"] is None and nothing["weights_differ"] is None


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.0.input_layernorm.weight", 0, "input_layernorm"),
        ("transformer.h.11.attn.c_attn.bias", 11, "attn.c_attn.bias"),
        ("model.layers.3.mlp.experts.7.down_proj.weight", 3, "mlp.experts.*.down_proj"),
        ("lm_head.weight", None, "lm_head"),
        ("model.layers.3", None, "model.layers.*"),
        ("w", None, "w"),
        ("", None, ""),
    ],
)
def test_places(name: str, layer: int | None, kind: str) -> None:
    assert place_of(name) == (layer, kind)
