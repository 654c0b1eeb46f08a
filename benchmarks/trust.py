"""How far lines hold: scores of lines drawn through many windows of real runs, and what their distance predicts.

usage: python benchmarks/trust.py RUNS_DIR [--work DIR] [--sparse 5,20,60 ...] [--dense 5,20,40 ...]

RUNS_DIR is as for sizes.py. Each window (the first so many steps of a run) is encoded alone, and its line is scored at
steps around the one at which its distance D is 0.41 %, on 1024 problems: by the mean probability of the right answer,
which is smoother than the share of problems solved, and by that share. Writes benchmarks/results/trust.json, trust.md
and trust.png (matplotlib).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sizes import RESULTS, unpacked

import relex_codec
from relex_codec.report import palette as colour
from relex_codec.run.norms import lines_of
from relex_codec.trust.figures import distance, step_at
from relex_codec.trust.horizon import MEASURED, TYPICAL

PROBLEMS = 1024
AROUND = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 0.7, 1.0, 1.4, 2.0, 2.8)
"""Steps that are scored, as multiples of the predicted peak; none before the end of the window."""
STYLES: dict[str, dict[str, Any]] = {
    "sparse": {"linestyle": "-", "marker": ".", "markersize": 4},
    "dense": {"linestyle": "--", "marker": "x", "markersize": 4},
}
WINDOWS = {"sparse": (5, 10, 20, 60, 100, 200), "dense": (5, 10, 20, 40, 60, 100)}


def scorer(base: Path, problems: Callable[[int], Any]) -> tuple[Any, Callable[[], tuple[float, float]]]:
    """Return a model, and what scores it as it is: share solved by greedy decoding, mean probability of the answer.

    Greedy decoding finds the right answer exactly where each of its tokens is the most probable one after the others.
    """
    import torch
    from transformers import AutoModelForCausalLM

    question, answer = problems(PROBLEMS)
    text = torch.cat([question, answer[:, :-1]], 1)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.eval()

    @torch.no_grad()
    def score() -> tuple[float, float]:
        logits = model(input_ids=text).logits[:, question.shape[1] - 1 :]
        chosen = torch.log_softmax(logits, -1).gather(-1, answer[:, :, None])[:, :, 0].sum(-1).exp()
        return float((logits.argmax(-1) == answer).all(1).float().mean()), float(chosen.mean())

    return model, score


def peak_of(points: list[dict[str, float]]) -> float:
    """Return the step of the best probability: of a parabola in the logarithm of the step, through three points."""
    values = [point["probability"] for point in points]
    i = int(np.argmax(values))
    if i in (0, len(values) - 1):
        return points[i]["step"]
    x = [math.log(points[j]["step"]) for j in (i - 1, i, i + 1)]
    a, b, _ = np.polyfit(np.array(x) - x[1], values[i - 1 : i + 2], 2)
    return math.exp(x[1] - b / (2 * a)) if a < 0 else points[i]["step"]


def measured(name: str, folder: Path, window: int, file: Path, model: Any, score: Callable[[], Any]) -> dict[str, Any]:
    """Encode a window and score its line."""
    steps = f"1:{window}"
    relex_codec.encode(folder / "run", file, base=folder / "base", steps=steps, overwrite=True)
    with relex_codec.open(file) as run:
        trust, info = run.trust(window), run.info()
        lines, norms = lines_of(run._reader.container.index), run._measured()
        reached = step_at(lines, norms, TYPICAL)
        predicted = max(float(window), reached if reached is not None else math.inf)
        points = []
        for at in sorted({float(window), *(max(float(window), round(predicted * x)) for x in AROUND)}):
            run.load_into(model, at, tier="line")
            solved, probability = score()
            d = distance(lines.at(at), norms)
            points.append({"step": at, "distance": d, "solved": solved, "probability": probability})
    file.unlink()
    real = peak_of(points)
    row = {
        "run": name, "window": window, "stored_norms": trust.stored, "window_distance": trust.window_distance,
        "predicted_peak": predicted, "band": trust.peak_steps, "real_peak": real,
        "real_distance": distance(lines.at(real), norms), "predicted_over_real": predicted / real,
        "r2": info["r2"]["median"], "explained_variance": info["explained_variance"]["median"], "points": points,
    }  # fmt: skip
    print(json.dumps({key: value for key, value in row.items() if key != "points"}), flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| run | window | D by its end | predicted peak | real peak | predicted / real | D at the real peak | solved: "
        "end of window, best | R^2 | explained variance |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        best = max(point["solved"] for point in row["points"])
        lines.append(
            f"| {row['run']} | {row['window']} | {100 * row['window_distance']:.3f} % | {row['predicted_peak']:,.0f} | "
            f"{row['real_peak']:,.0f} | {row['predicted_over_real']:.2f} | {100 * row['real_distance']:.2f} % | "
            f"{row['points'][0]['solved']:.3f}, {best:.3f} | {row['r2']:.3f} | {row['explained_variance']:.3f} |"
        )
    factors = [abs(math.log(row["predicted_over_real"])) for row in rows]
    lines += ["", f"Predicted over real: root mean square factor {math.exp(np.sqrt(np.mean(np.square(factors)))):.2f}, "
              f"worst {math.exp(max(factors)):.2f}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def picture(rows: list[dict[str, Any]], out: Path) -> None:
    """Draw the curves over the step and over the distance."""
    from matplotlib import pyplot

    shades = {"sparse": colour.BLUE, "dense": colour.RED}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    for axes, key, scale in ((left, "step", 1.0), (right, "distance", 100.0)):
        for row in rows:
            widest = max(other["window"] for other in rows if other["run"] == row["run"])
            axes.plot(
                [scale * point[key] for point in row["points"]], [point["probability"] for point in row["points"]],
                color=shades[row["run"]], alpha=0.35 + 0.65 * row["window"] / widest, linewidth=1.4,
                **STYLES[row["run"]],
            )  # fmt: skip
        axes.set_xscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    right.axvspan(100 * MEASURED.low, 100 * MEASURED.high, color=colour.GREEN, alpha=0.2, linewidth=0)
    right.set_xlim(left=0.01)
    left.set_xlabel("step that the line is read at")
    right.set_xlabel("D: distance from the base, % of the weights' own size")
    left.set_ylabel("mean probability of the right answer")
    left.set_title("Each window's line peaks at another step ...")
    right.set_title("... but at one distance (green: the band)")
    for name, style in STYLES.items():
        windows = ", ".join(str(row["window"]) for row in rows if row["run"] == name)
        left.plot([], [], color=shades[name], label=f"{name}: windows {windows}", **style)
    left.legend(fontsize="small", frameon=False, loc="lower left")
    figure.savefig(out, dpi=130, metadata={"Software": None})


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/relex-sizes"))
    for name, windows in WINDOWS.items():
        parser.add_argument(f"--{name}", default=",".join(map(str, windows)), metavar="WINDOWS")
    args = parser.parse_args()
    sys.path.insert(0, str(args.runs))
    from score import problems

    rows = []
    for name in WINDOWS:
        folder = unpacked(args.runs, args.work, name)
        model, score = scorer(folder / "base", problems)
        for window in filter(None, getattr(args, name).split(",")):
            rows.append(measured(name, folder, int(window), args.work / "trust.relex", model, score))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "trust.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "trust.md").write_text(table(rows))
    picture(rows, RESULTS / "trust.png")
    print(table(rows))


if __name__ == "__main__":
    main()
