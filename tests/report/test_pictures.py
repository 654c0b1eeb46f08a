"""Pictures of runs of all kinds: something sensible is drawn, and the numbers beside it are those of the file."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec import InvalidArgument
from relex_codec.report.axes import step_axis, thinned
from relex_codec.report.heat import heat_table
from relex_codec.report.numbers import Numbers, collect
from relex_codec.report.panels import PANELS, panels_of
from relex_codec.run.places import Place, place_of
from relex_codec.trust.figures import Lines, Norms
from relex_codec.trust.horizon import judge
from relex_codec.trust.scores import parse_scores
from support.checkpoints import write_checkpoint, write_run
from support.commands import cli, failed
from support.tensors import Array, Tensor, bf16

pytest.importorskip("matplotlib", reason="matplotlib (extra plot) is not installed")

Zoo = Callable[..., Path]


def pixels(png: bytes) -> Array:
    from matplotlib import image

    return np.asarray(image.imread(io.BytesIO(png)))


def colours(png: bytes) -> int:
    """How many different colours are in a picture: a plain one has a few."""
    return len(np.unique((pixels(png)[..., :3] * 31).astype(int).reshape(-1, 3), axis=0))


def encoded(root: Path, steps: list[int], at: Callable[[int], dict[str, Tensor]], **options: Any) -> Path:
    write_checkpoint(root / "base", at(0))
    write_run(root / "run", steps, at)
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", **options)
    return root / "x.relex"


RNG = np.random.default_rng(7)
START, DRIFT = RNG.standard_normal((2, 3, 24, 16))
SPEEDS: dict[str, Callable[[int], float]] = {
    "three steps": lambda step: 1e-4 * step,
    "one step": lambda step: 1e-4 * step,
    "still": lambda step: 0.0,
    "diverges": lambda step: 0.0 if step == 0 else 10.0 ** (step / 3),
    "back and forth": lambda step: 1e-3 * (-1) ** step if step else 0.0,
}
STEPS = {"one step": [40], "back and forth": [1, 2, 3, 4]}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Files of odd runs of three tensors, by what is odd about them."""
    made: dict[str, Path] = {}

    def make(case: str) -> Path:
        if case not in made:
            names = ("model.layers.0.q.weight", "model.layers.1.q.weight", "model.norm.weight")

            def at(step: int) -> dict[str, Tensor]:
                return {name: bf16(START[i] + SPEEDS[case](step) * DRIFT[i]) for i, name in enumerate(names)}

            root = tmp_path_factory.mktemp("odd")
            made[case] = encoded(root, STEPS.get(case, [10, 20, 30]), at)
        return made[case]

    return make


def large(tensors: int = 20_000, steps: int = 6) -> Numbers:
    """Numbers of a run of many tensors, as experts have them, without a file."""
    names = [f"model.layers.{i % 50}.mlp.experts.{i // 50}.up_proj.weight" for i in range(tensors)]
    rng = np.random.default_rng(1)
    slope = rng.random(tensors) + 0.1
    at = np.arange(1, steps + 1) * 10
    lines, norms = Lines(slope, np.zeros(tensors)), Norms(1e6, np.ones(tensors))
    rows = [
        {"name": name, "shape": [8, 8], "r2": 0.9, "explained_variance": 0.8, "moved": float(60 * s), "distance": 0.001,
         "error_stored": 0.3} for name, s in zip(names, slope, strict=True)
    ]  # fmt: skip
    trust = judge(lines, norms, 60, (10, 60))
    errors = np.vstack([np.linspace(0.9, 0.3, steps), np.linspace(1.5, 0.4, steps)])
    return Numbers(
        {}, at, steps, names, [place_of(name) for name in names], slope[:, None] * at, lines, rows, errors, norms,
        lines, trust, None, [],
    )  # fmt: skip


# ---- Odd runs ----


@pytest.mark.parametrize("case", SPEEDS)
def test_odd_runs_are_drawn(odd: Callable[[str], Path], case: str) -> None:
    from relex_codec.report.plots import picture

    with relex_codec.open(odd(case)) as run:
        numbers = collect(run)
    assert panels_of(numbers) == (["coefficients"] if case == "still" else list(PANELS)[:4])  # there are no scores
    assert np.isfinite(numbers.errors).any() or case == "still"
    width = 3.0 if case == "three steps" else 0.0
    found = picture(numbers, "png", list(PANELS), width=width, title=case, dpi=50)
    assert colours(found) > (20 if case == "still" else 40)


def test_many_tensors_are_drawn_small_and_soon() -> None:
    from relex_codec.report.plots import picture

    numbers = large()
    assert len(picture(numbers, "svg")) < 1_500_000
    assert colours(picture(numbers, "png", ["coefficients"], dpi=60)) > 40


def test_errors_and_scores_have_their_panels() -> None:
    from relex_codec.report.plots import picture

    rows = [
        {"step": step, "tier": tier, "score": 0.5 + step / 1e4}
        for step in (60, 300, 900)
        for tier in ("trained", "line")
    ]
    scores = parse_scores(
        json.dumps({"metric": "solved $ here", "scores": [*rows, {"step": 0, "tier": "base", "score": 0.5}]}), "x"
    )
    numbers = replace(large(50), scores=scores)
    assert panels_of(numbers) == list(PANELS)
    assert colours(picture(numbers, "png", ["scores"], dpi=60)) > colours(picture(large(50), "png", ["scores"], dpi=60))
    text = picture(numbers, "svg", ["errors", "scores"]).decode()
    assert text.startswith("<?xml") and "<image" not in text  # lines stay lines


def test_pictures_are_the_same_each_time() -> None:
    from relex_codec.report.plots import picture

    for form in ("png", "svg"):
        assert picture(large(20), form, ["errors"]) == picture(large(20), form, ["errors"])


# ---- The numbers ----


def test_numbers_are_those_of_the_file(zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw", rank=2, observe=14)) as run:
        numbers, coefficients, info = collect(run), run.coefficients(), run.info()
        trust = run.trust(14)
    assert (numbers.last, numbers.observed) == (14, 5)
    assert numbers.trust == trust and numbers.info == info
    for i, name in enumerate(numbers.names):
        np.testing.assert_array_equal(numbers.coefficients[i], coefficients.values[coefficients.names.index(name)])
    read = np.load(io.BytesIO(numbers.as_npz()), allow_pickle=False)
    assert read["names"].tolist() == numbers.names and read["steps"].tolist() == [1, 2, 5, 9, 14, 20, 23]
    np.testing.assert_array_equal(read["coefficients"], numbers.coefficients)
    np.testing.assert_allclose(read["peak_steps"], trust.peak_steps)
    by_name = {row["name"]: row for row in info["tensor_rows"]}
    assert read["r2"].tolist() == [by_name[name]["r2"] for name in numbers.names]


def test_together_is_a_line_where_all_are() -> None:
    numbers = large(30)
    rows, all_together = numbers.normalised()
    np.testing.assert_allclose(rows[:, -1], 1)
    np.testing.assert_allclose(all_together, numbers.steps / 60)
    np.testing.assert_allclose(numbers.line_together(np.array([60.0, 600.0])), [1, 10])
    assert numbers.distances(np.array([60.0]))[0] == pytest.approx(60 * numbers.lines.slope.sum() / 1e6)


def test_heat_tables() -> None:
    places = [Place(i % 3, f"kind{i}") for i in range(60)] + [Place(None, "embed")]
    found = heat_table(places, np.arange(61.0))
    assert (len(found.kinds), found.left_out, found.layers) == (40, 21, [0, 1, 2, None])
    assert np.isfinite(found.values).sum() == 40
    none = heat_table([], np.zeros(0))
    assert (none.kinds, none.layers, none.values.shape) == ([], [], (0, 0))


def test_axes() -> None:
    wide = step_axis(large(30))
    assert wide.log and wide.low < 60 < wide.high
    assert thinned(0).tolist() == [] and thinned(1).tolist() == [0] and thinned(1000, 3).tolist() == [0, 500, 999]


# ---- From Python and from the command line ----


def test_plot_gives_axes(odd: Callable[[str], Path]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with relex_codec.open(odd("three steps")) as run:
        axes = run.plot()
        assert axes.get_xlabel() == "step"
        labels = {text.get_text() for text in axes.get_legend().get_texts()}
        assert {"line", "line, extrapolated", "observed", "best step, by six small runs"} <= labels
        again = run.plot(what="coefficients", tensor="model.norm.weight", axes=axes)
        assert again is axes and "model.norm.weight" in axes.get_title()
        with pytest.raises(InvalidArgument, match="expected one of coefficients"):
            run.plot(what="everything")
        with pytest.raises(InvalidArgument, match="no tensor 'nothing' moves"):
            run.plot(tensor="nothing")
    pyplot.close("all")


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_the_command(odd: Callable[[str], Path], tmp_path: Path, form: str) -> None:
    out = tmp_path / f"run.{form}"
    done = cli("plot", odd("three steps"), "-o", out)
    assert done.returncode == 0, done.stderr
    assert f"{out}: " in done.stdout and out.stat().st_size > 5000
    assert np.load(tmp_path / "run.npz")["steps"].tolist() == [10, 20, 30]
    failed(cli("plot", odd("three steps"), "-o", out), "it exists", "-f")
    document = json.loads(cli("plot", odd("three steps"), "-o", out, "-f", "--what", "movement", "--json").stdout)
    assert document["output"] == str(out)
    failed(cli("plot", odd("three steps"), "-o", tmp_path / "run.gif"), ".png, .svg or .pdf")
    failed(cli("plot", odd("three steps"), "-o", tmp_path / "y.png", "--tensor", "nothing"), "no tensor 'nothing'")
    assert not (tmp_path / "y.png").exists() and not (tmp_path / "y.npz").exists()


def test_without_its_base_there_is_no_band(odd: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "alone.relex").write_bytes(odd("three steps").read_bytes())
    with relex_codec.open(tmp_path / "alone.relex") as run:
        stored = run.info()["trust"] is not None
    done = cli("plot", tmp_path / "alone.relex", "-o", tmp_path / "x.png")
    assert done.returncode == 0
    assert stored or re.search(
        "note: not in the picture: how far the line may be believed: .* does not exist", done.stderr
    )


def test_few_large_numbers_leave_colours_for_the_others() -> None:
    from relex_codec.report.heat import log_low

    assert log_low(np.array([[1.0, 2.0], [3.0, np.nan]])) is None and log_low(np.full((1, 1), np.nan)) is None
    assert log_low(np.array([[0.0, 1.0, 2.0, 3.0, 900.0]])) == 1.0
    assert log_low(np.array([[1e-9, 1.0, 1.0, 900.0]])) == 0.09  # four powers of ten are enough
