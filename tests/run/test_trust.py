"""How far a run may be believed: distances of open files, what decoding says and writes, other curves, the secant."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec import InvalidArgument
from relex_codec.trust.figures import step_at
from relex_codec.trust.horizon import TYPICAL
from support.checkpoints import write_checkpoint, write_run
from support.commands import cli, failed
from support.plain import narrow, widen
from support.runs import Made
from support.tensors import Tensor, bf16, f32

Zoo = Callable[..., Path]
SHARED = Path(__file__).resolve().parents[3] / "shared"
STEPS = [10, 20, 30, 40]


def tensors(step: float) -> dict[str, Tensor]:
    """Two float32 tensors on lines, one that stays, a mask of infinities, and counters."""
    rng = np.random.default_rng(3)
    found: dict[str, Tensor] = {}
    for name, shape in (("layers.0.w", (30, 20)), ("layers.1.w", (50,)), ("still", (8, 8))):
        start, drift = rng.standard_normal(shape), rng.standard_normal(shape) * 1e-4
        found[name] = f32(start + (0 if name == "still" else step) * drift)
    found["mask"] = f32(np.where(np.eye(4) > 0, 0, -np.inf))
    found["bias"] = f32(np.full((4, 4), -3.4e38))
    found["count"] = ("I64", np.array([abs(int(step))], np.uint64))
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `tensors` makes it, and its exact file ``run.relex`` of unquantised directions."""
    root = tmp_path_factory.mktemp("trusted")
    write_checkpoint(root / "base", tensors(0))
    write_run(root / "run", STEPS, tensors)
    relex_codec.encode(root / "run", root / "run.relex", base=root / "base", quality="raw", exact=True)
    return root


def slowly(step: float) -> float:
    """D by its definition: what the weights of `tensors` have moved by, over the base's own size."""
    moved = size = 0.0
    for name, (dtype, _) in tensors(0).items():
        if dtype == "F32" and name not in ("mask", "bias"):
            start, then = (x[1].view(np.float32).astype(np.float64) for x in (tensors(0)[name], tensors(step)[name]))
            moved, size = moved + np.abs(then - start).sum(), size + np.abs(start).sum()
    return moved / size


@pytest.mark.parametrize("step", [40, 60, 500, -20])
def test_distance_is_what_the_weights_move_by(made: Path, step: float) -> None:
    with relex_codec.open(made / "run.relex") as run:
        found = run.trust(step)
    assert found.distance == pytest.approx(slowly(step), rel=1e-4)
    assert found.window_distance == pytest.approx(slowly(40), rel=1e-4)
    assert found.observed == (10, 40)
    assert found.peak_steps is not None
    assert slowly(found.peak_steps[0]) == pytest.approx(0.0022, rel=0.05) or found.peak_steps[0] == 40
    assert slowly(found.peak_steps[1]) == pytest.approx(0.0049, rel=0.05)


def test_norms_that_are_stored_and_norms_that_are_read(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of directions that are not quantised both are the same, and who has to read them says so."""
    with relex_codec.open(made / "run.relex") as run:
        stored = run.trust(60)
        assert run.info()["trust"]["stored"] is True
        assert run.tensor_info("layers.0.w")["distance"] == pytest.approx(stored.window_distance, rel=0.2)
    monkeypatch.setattr("relex_codec.run.trusted.stored_norms", lambda container: None)
    with relex_codec.open(made / "run.relex") as run:
        assert run.info()["trust"] is None and run.tensor_info("layers.0.w")["distance"] is None
        read = run.trust(60)
        assert run.info()["trust"]["stored"] is False
    assert (stored.stored, read.stored) == (True, False)
    assert read.distance == pytest.approx(stored.distance, rel=1e-5)
    assert any("quantised" in word for word in read.words) and not any("quantised" in word for word in stored.words)


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"observe": 9}, {"embed_base": True}])
def test_runs_of_every_kind_of_tensor(zoo_file: Zoo, options: dict[str, Any]) -> None:
    with relex_codec.open(zoo_file("raw", **options)) as run:
        near, far = run.trust(24), run.trust(2400)
    assert near.distance is not None and far.distance is not None
    assert 0 < near.distance < far.distance
    assert far.observed == (1, 9 if "observe" in options else 23)


def test_steps_that_are_none(made: Path) -> None:
    with relex_codec.open(made / "run.relex") as run:
        for step in ("many", float("nan"), float("inf")):
            with pytest.raises(InvalidArgument, match="finite number"):
                run.trust(step)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="above 0"):
            run.step_within(100, max_distance=0)
        assert slowly(run.step_within(10_000, max_distance=0.01)) == pytest.approx(0.01, rel=0.05)
        assert run.step_within(45, max_distance=0.5) == 45


# ---- What decode says ----


def decode(made: Path, out: Path, step: float, *more: object) -> tuple[list[str], dict[str, Any]]:
    """Return what is said on stderr, and ``relex.json``."""
    done = cli("decode", made / "run.relex", "--step", step, "-o", out, *more)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("note: ", "warning: "))]
    return lines, json.loads((out / "relex.json").read_text())


def test_beyond_the_observed_steps(made: Path, tmp_path: Path) -> None:
    with relex_codec.open(made / "run.relex") as run:
        at = {distance: round(run.step_within(1e6, max_distance=distance)) for distance in (0.002, 0.004, 0.03)}
        told = run.trust(at[0.03])
    lines, document = decode(made, tmp_path / "a", at[0.004] - 1)
    assert 2 <= len(lines) <= 4 and lines[0].startswith("note: step ") and "score it first" in lines[0]
    lines, document = decode(made, tmp_path / "b", at[0.03])
    assert lines[0].startswith("warning: ") and f"steps {told.peak_steps[0]:.0f} to" in lines[0].replace(",", "")
    assert document["trust"] == told.as_dict()
    assert [line.partition(": ")[2] for line in lines] == document["notes"] == list(told.words)
    assert (document["tier"], document["along"], document["step"]) == ("line", "line", at[0.03])
    assert document["observed"] == document["stored"] == [10, 40]
    assert document["file"] == "run.relex" and len(document["digest"]) == 64
    assert document["producer"] == f"relex-codec {relex_codec.__version__}"
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == {"model_type": "test"}


def test_too_far_is_refused_unless_asked_for(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    failed(cli("decode", made / "run.relex", "--step", 8_000_000, "-o", out), "--far", "--max-distance", "8,000,000")
    assert not out.exists()
    lines, document = decode(made, out, 8_000_000, "--far")
    assert lines[0].startswith("warning: ") and document["trust"]["level"] == "refused"
    done = cli("decode", made / "run.relex", "--step", 8_000_000, "-o", tmp_path / "b", "--max-distance", 0.4, "--json")
    taken = json.loads(done.stdout)
    assert taken["asked"] == 8_000_000 and slowly(taken["step"]) == pytest.approx(0.004, rel=0.05)
    assert json.loads((tmp_path / "b" / "relex.json").read_text())["step"] == taken["step"]
    lines = cli("decode", made / "run.relex", "--step", 9e6, "-o", tmp_path / "c", "--max-distance", 0.4).stderr
    assert f"took step {taken['step']:,.0f}" in lines


@pytest.mark.parametrize(
    ("step", "word"), [(-30, "before the base"), (25, "between the stored steps 20 and 30"), (4, "before the first")]
)
def test_steps_that_no_checkpoint_has(made: Path, tmp_path: Path, step: float, word: str) -> None:
    lines, document = decode(made, tmp_path / "out", step)
    assert any(word in line for line in lines) and any(word in line for line in document["notes"])


@pytest.mark.parametrize("step", [0, 20])
def test_steps_of_the_run_need_no_word(made: Path, tmp_path: Path, step: float) -> None:
    lines, document = decode(made, tmp_path / "out", step)
    assert (lines, document["notes"], document["trust"], document["along"]) == ([], [], None, None)


def test_only_the_command_writes_a_note_unasked(made: Path, tmp_path: Path) -> None:
    with relex_codec.open(made / "run.relex") as run:
        run.save(tmp_path / "a", 50)
        run.save(tmp_path / "b", 50, provenance=True)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    assert (tmp_path / "b" / "relex.json").exists()


def test_scores_beside_the_file(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "copy.relex"
    file.write_bytes((made / "run.relex").read_bytes())
    rows = [{"step": step, "tier": "line", "score": score} for step, score in ((50, 1), (60, 3), (70, 2), (90, 1))]
    with relex_codec.open(file, base=made / "base") as run:
        assert run.scores() is None and run.trust(65).band_source == "runs"
        (tmp_path / "copy.scores.json").write_text(json.dumps({"metric": "solved", "scores": rows}))
        found = run.trust(65)
        assert found.band_source == "scores" and found.level == "score"
        assert found.peak_steps == pytest.approx((50, 70), rel=1e-6)
        (tmp_path / "copy.scores.json").write_text("{}")
        with pytest.raises(InvalidArgument, match=r"copy\.scores\.json has no list 'scores'"):
            run.trust(65)


# ---- Other curves, and the secant ----


def test_curves_decode_what_they_predict(tmp_path: Path) -> None:
    start, drift = np.random.default_rng(4).standard_normal((2, 12, 9))

    def at(step: int) -> dict[str, Tensor]:
        return {"w": f32(start + 1e-4 * step**2 * drift)}

    write_checkpoint(tmp_path / "base", at(0))
    write_run(tmp_path / "run", STEPS, at)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", quality="raw")
    with relex_codec.open(tmp_path / "x.relex") as run:
        for fit, factor in (("poly:2", 60**2), ("window:2", 40**2 + 20 * 70)):
            out = tmp_path / fit.replace(":", "")
            assert run.save(out, 60, along=fit) == "line"
            with relex_codec.safe_open(tmp_path / "x.relex", "np", step=60) as handle:
                line = handle.get_tensor("w")
            from safetensors.numpy import load_file

            found = load_file(out / "model.safetensors")["w"]
            np.testing.assert_allclose(found, start + 1e-4 * factor * drift, rtol=1e-4, atol=1e-5)
            assert np.abs(found - line).max() > 1e-3
        with pytest.raises(InvalidArgument, match="is for tier 'line'"):
            run.save(tmp_path / "no", 20, along="poly:2")
        with pytest.raises(InvalidArgument, match="expected line"):
            run.save(tmp_path / "no", 60, along="spline")
        with pytest.raises(InvalidArgument, match="without --exact"):
            run.save(tmp_path / "no", 60, along="secant")
    assert not (tmp_path / "no").exists()
    told = json.loads(cli("info", tmp_path / "x.relex", "--fits", "--json").stdout)["fits"]
    assert [row["fit"] for row in told] == ["line", "log"]  # for the others, two of four steps are too few
    lines = cli("info", tmp_path / "x.relex", "--fits").stdout.splitlines()
    assert lines[-2].split() == ["line", f"{told[0]['error']:.4f}", f"{told[0]['last']:.4f}"]


def test_the_secant_goes_on_as_training_went(zoo_run: Made, zoo_file: Zoo, tmp_path: Path) -> None:
    with relex_codec.open(zoo_file("micro", exact=True)) as run:
        assert run.save(tmp_path / "out", 40, along="secant", provenance=True) == "line"
        entries = {name: run._reader.entry(name) for name in run}
        with pytest.raises(InvalidArgument, match="begins at the last observed step, 23"):
            run.save(tmp_path / "no", 20, tier="line", along="secant")
    from support.plain import read_safetensors

    middle, last = zoo_run.at(14), zoo_run.at(23)
    checked = 0
    for shard in (tmp_path / "out").glob("*.safetensors"):
        for name, (dtype, bits) in read_safetensors(shard)[0].items():
            wanted = last[name][1]
            if dtype in ("BF16", "F16", "F32"):
                end, before = widen(dtype, wanted), widen(dtype, middle[name][1])
                with np.errstate(all="ignore"):
                    there = narrow(dtype, end + np.float32(17 / 9) * (end - before)).reshape(wanted.shape)
                wanted = np.where(wanted == middle[name][1], wanted, there)
                checked += 1
            np.testing.assert_array_equal(bits.reshape(-1), wanted.reshape(-1), err_msg=name)
            assert entries[name].dtype == dtype
    assert checked > 8
    document = json.loads((tmp_path / "out" / "relex.json").read_text())
    assert document["along"] == "secant" and document["trust"]["distance"] > 0
    assert document["trust"]["peak_steps"] is None


def test_options_that_do_not_go_together(made: Path, tmp_path: Path) -> None:
    for more in (("--fit", "log", "--along", "secant"), ("--fit", "log", "--max-distance", 1)):
        assert cli("decode", made / "run.relex", "--step", 99, "-o", tmp_path / "out", *more).returncode == 2


# ---- Small and odd runs ----


@pytest.mark.parametrize("case", ["one step", "still", "diverges"])
def test_odd_runs_have_words(tmp_path: Path, case: str) -> None:
    rng = np.random.default_rng(5)
    start, drift = rng.standard_normal((2, 40, 8))

    def at(step: int) -> dict[str, Tensor]:
        return {"w": bf16(start + drift * {"one step": 1e-3 * step, "still": 0, "diverges": 3.0**step}[case])}

    steps = [7] if case == "one step" else [1, 2, 30]
    write_checkpoint(tmp_path / "base", at(0) if case != "diverges" else {"w": bf16(start)})
    write_run(tmp_path / "run", steps, at)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base", exact=True)
    with relex_codec.open(tmp_path / "x.relex") as run:
        found = run.trust(60)
    assert found.level == {"one step": "refused", "still": "still", "diverges": "refused"}[case]
    done = cli("decode", tmp_path / "x.relex", "--step", 60, "-o", tmp_path / "out", "--far")
    assert (done.returncode, found.words[0] in done.stderr) == (0, True)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "trust" / "sparse-dense.json").exists(), reason="there is no ../shared/trust")
@pytest.mark.parametrize(("name", "window"), [("sparse", 20), ("dense", 10)])
def test_real_runs_are_as_far_as_was_measured(tmp_path: Path, name: str, window: int) -> None:
    pack = SHARED / "runs" / f"addition-{name}.runpack"
    command = [sys.executable, SHARED / "runs" / "unpack.py", pack, tmp_path, "--limit", str(window)]
    subprocess.run(command, check=True, timeout=120)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
    document = json.loads((SHARED / "trust" / "sparse-dense.json").read_text())
    with relex_codec.open(tmp_path / "x.relex") as run:
        found = run.trust(window)
        from relex_codec.run.norms import lines_of

        peak = step_at(lines_of(run._reader.container.index), run._measured(), TYPICAL)
    assert found.stored
    assert found.distance == pytest.approx(document["norms"][name][str(window)]["l1_line"], rel=0.01)
    assert peak == pytest.approx(document["peaks"][name][str(window)]["predicted"]["L1"], rel=0.05)
