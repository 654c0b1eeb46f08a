"""Time and memory of encoding, against RELEX's scripts and against reading the files once.

usage: python benchmarks/encode.py [--parameters 100] [--steps 16] [--small 4] [--work DIR]
                                    [--only PART ..] [--draw]

Generated runs (generator.py), in the page cache. Everything is measured in new processes (encode_work.py), after
imports and after what numba compiles was loaded; each of the three ways runs twice, in both orders, and the mean
counts. Measured are processor time and wall time of `encode` at default quality against both peers, peak memory at
several budgets, over that of a process that encodes next to nothing with the same options (with the exact tier the
first half of the steps), and, on runs of --small million parameters, the cost by the number of steps and by that of
parameters, and of appending one step. Writes benchmarks/results/encode.json, encode.md and encode.png (which needs the
extra `plot`). With --only peers, memory or sizes, these parts of the results are replaced, and others stay; --draw
makes the last two files again of the first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from generator import write_run
from speed import processor

import relex_codec

RESULTS = Path(__file__).parent / "results"
BUDGETS = ("256MB", "1GB", "4GB")
STEPS = (25, 50, 100, 200)
FACTORS = (1, 2, 4)
PARTS = ("peers", "memory", "sizes")


def work(kind: str, folder: Path, **options: Any) -> dict[str, float]:
    """Do one piece of work in a new process."""
    out = folder.parent / "out.relex"
    words = [f"{key}={value}" for key, value in options.items()]
    script = Path(__file__).parent / "encode_work.py"
    command = [sys.executable, str(script), kind, str(folder), str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    print(f"{kind:8} {folder.name:12} {' '.join(words):24} {found}", flush=True)
    return found


def means(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each figure."""
    return {key: round(statistics.mean(run[key] for run in runs), 3) for key in runs[0]}


def against_peers(folder: Path) -> dict[str, Any]:
    """Return figures of the three ways, in both orders, and ratios."""
    runs: dict[str, list[dict[str, float]]] = {"read": [], "relex": [], "encode": []}
    for order in (("read", "relex", "encode"), ("encode", "relex", "read")):
        for kind in order:
            runs[kind].append(work(kind, folder))
    found = {kind: means(times) for kind, times in runs.items()}
    ratios = {
        f"{what}, {peer}": round(found["encode"][what] / found[peer][what], 3)
        for what in ("processor", "wall")
        for peer in ("relex", "read")
    }
    return {"ways": found, "encode over": ratios, "file": (folder.parent / "out.relex").stat().st_size}


def memory(folder: Path) -> dict[str, Any]:
    """Return peaks by budget, and that of next to nothing."""
    half = f"1:{max(int(path.name.rsplit('_', 1)[1]) for path in (folder / 'run').iterdir()) // 2}"
    # the first one may compile
    least, with_exact = (min(work("nothing", folder, exact=exact)["peak"] for _ in range(2)) for exact in (False, True))
    peaks = {budget: work("encode", folder, memory=budget)["peak"] for budget in BUDGETS}
    exact = {budget: work("encode", folder, memory=budget, exact=True, steps=half)["peak"] for budget in BUDGETS}
    return {
        "least": int(least),
        "exact_least": int(with_exact),
        "over_least": {budget: int(peak - least) for budget, peak in peaks.items()},
        "exact_over_least": {budget: int(peak - with_exact) for budget, peak in exact.items()},
    }


def by_size(root: Path, small: int) -> dict[str, Any]:
    """Return the cost of encoding by steps and by parameters, and of appending one step by steps."""
    folder = root / "steps"
    write_run(folder, small, STEPS[-1] + 1, every=4)
    steps: list[dict[str, Any]] = []
    appended: list[dict[str, Any]] = []
    for count in STEPS:
        wanted = f"1:{4 * count}"
        steps.append({"steps": count, **work("encode", folder, steps=wanted)})
        work("encode", folder, steps=wanted, exact=True)
        shutil.move(root / "out.relex", folder / "all.relex")
        checkpoint = folder / "run" / f"global_step_{4 * (count + 1)}"
        if not appended:
            work("append", folder, checkpoint=checkpoint)  # on a new machine numba compiles here: not counted
        appended.append({"steps": count, **work("append", folder, checkpoint=checkpoint)})
    shutil.rmtree(folder)
    parameters = []
    for factor in FACTORS:
        folder = root / f"times_{factor}"
        write_run(folder, small * factor, STEPS[1], every=4)
        parameters.append({"parameters": small * factor, **work("encode", folder)})
        shutil.rmtree(folder)
    return {"parameters": small, "by_steps": steps, "by_parameters": parameters, "append_one_step": appended}


def table(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    ways = result["peers"]["ways"]
    lines = ["| | processor s | wall s | peak MB |", "| --- | ---: | ---: | ---: |"]
    names = {"read": "read once, to float32", "relex": "RELEX's two scripts", "encode": "`encode`"}
    for kind, name in names.items():
        row = ways[kind]
        lines.append(f"| {name} | {row['processor']:.1f} | {row['wall']:.1f} | {row['peak'] / 1e6:,.0f} |")
    lines += ["", "| budget | peak over next to nothing, MB | with `--exact`, MB |", "| --- | ---: | ---: |"]
    found = result["memory"]
    for budget, peak in found["over_least"].items():
        held = found["exact_over_least"].get(budget)  # None where measuring was cut short
        exact = "" if held is None else f"{held / 1e6:,.0f}"
        lines.append(f"| {budget} | {peak / 1e6:,.0f} | {exact} |")
    lines += ["", "| steps | `encode`, processor s | `append` of one more, processor s |", "| ---: | ---: | ---: |"]
    for one, other in zip(result["sizes"]["by_steps"], result["sizes"]["append_one_step"], strict=True):
        lines.append(f"| {one['steps']} | {one['processor']:.2f} | {other['processor']:.2f} |")
    lines += ["", "| parameters | `encode`, processor s |", "| ---: | ---: |"]
    lines += [f"| {row['parameters']:,} | {row['processor']:.2f} |" for row in result["sizes"]["by_parameters"]]
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the cost by steps and by parameters, and that of appending a step, each with a line through 0."""
    from matplotlib.figure import Figure

    sizes = result["sizes"]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = (
        ("encode", "steps", 1, sizes["by_steps"]),
        ("encode", "parameters", 1e6, sizes["by_parameters"]),
        ("append of one step", "steps", 1, sizes["append_one_step"]),
    )
    for axes, (title, key, unit, rows) in zip(figure.subplots(1, 3), panels, strict=True):
        x, y = [row[key] / unit for row in rows], [row["processor"] for row in rows]
        axes.plot(x, y, "o-", color="#1f5fa8", clip_on=False)
        if title == "encode":
            axes.plot([0, x[-1]], [0, y[-1]], "--", color="0.6", linewidth=1)
            axes.text(x[-1], y[-1] * 0.3, "dashed: in proportion", color="0.4", ha="right", va="top", fontsize=8)
        axes.set(title=title, xlabel=key if unit == 1 else f"million {key}", xlim=(0, None), ylim=(0, 1.1 * max(y)))
        axes.set_xticks(x)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("processor time, s")
    figure.savefig(path, dpi=120)


def write(result: dict[str, Any]) -> None:
    """Write the table and the picture."""
    (RESULTS / "encode.md").write_text(table(result))
    draw(result, RESULTS / "encode.png")
    print(table(result))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=100, help="in millions, against the peers")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--small", type=float, default=4, help="in millions, for the cost by size")
    parser.add_argument("--work", type=Path, default=Path("/tmp/relex-encode"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--draw", action="store_true", help="table and picture of the results that there are")
    args = parser.parse_args()
    if args.draw:
        write(json.loads((RESULTS / "encode.json").read_text()))
        return
    shutil.rmtree(args.work, ignore_errors=True)
    folder = args.work / "run"
    result = {} if set(args.only) == set(PARTS) else json.loads((RESULTS / "encode.json").read_text())
    result |= {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform(),
                    "load": os.getloadavg()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
                     "numba": numba.__version__, "relex-codec": relex_codec.__version__},
    }  # fmt: skip
    if {"peers", "memory"} & set(args.only):
        write_run(folder, int(args.parameters * 1e6), args.steps, every=10)
    for part, measure in (("peers", against_peers), ("memory", memory)):
        if part in args.only:
            read = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
            data = {"parameters": int(args.parameters * 1e6), "steps": args.steps, "run_bytes": read}
            result[part] = {"data": data, **measure(folder)}
    shutil.rmtree(folder, ignore_errors=True)
    if "sizes" in args.only:
        args.work.mkdir(parents=True, exist_ok=True)
        result["sizes"] = by_size(args.work, int(args.small * 1e6))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "encode.json").write_text(json.dumps(result, indent=1) + "\n")
    write(result)
    shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
