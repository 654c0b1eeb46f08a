"""Scores of steps decoded from a few observed ones, inside and far beyond the run.

usage: python benchmarks/extrapolation.py RUNS_DIR [--work DIR]

RUNS_DIR is as for sizes.py. The sparse run is observed for 60 steps, the dense one for 50; steps are decoded from tier
`line`. Writes benchmarks/results/extrapolation.json and extrapolation.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from sizes import RESULTS, unpacked

import relex_codec

CASES = {"sparse": (60, (60, 390, 800, 1200, 2000)), "dense": (50, (50, 100, 200, 300))}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/relex-sizes"))
    args = parser.parse_args()
    sys.path.insert(0, str(args.runs))
    from score import score

    rows: list[dict[str, Any]] = []
    for name, (observe, steps) in CASES.items():
        folder = unpacked(args.runs, args.work, name)
        trained = {s: folder / f"run/global_step_{s}" for s in steps}
        scores: dict[str, dict[int, float]] = {
            "trained": {s: round(score(str(p)), 4) for s, p in trained.items() if p.exists()}
        }
        for quality in ("raw", "default", "micro"):
            file, out = args.work / "extrapolation.relex", args.work / "extrapolated"
            relex_codec.encode(
                folder / "run", file, base=folder / "base", observe=observe, quality=quality, overwrite=True
            )
            scores[quality] = {}
            with relex_codec.open(file) as run:
                for step in steps:
                    shutil.rmtree(out, ignore_errors=True)
                    run.save(out, step, tier="line")
                    scores[quality][step] = round(score(str(out)), 4)
            file.unlink()
        shutil.rmtree(out, ignore_errors=True)
        rows.append({"run": name, "observed": observe, "scores": scores})
        print(json.dumps(rows[-1]), flush=True)
    lines: list[str] = []
    for row in rows:
        steps = CASES[row["run"]][1]
        lines += [f"| {row['run']}, observed to {row['observed']} | " + " | ".join(map(str, steps)) + " |",
                  "| --- |" + " ---: |" * len(steps)]  # fmt: skip
        for kind, found in row["scores"].items():
            cells = [f"{found[s]:.3f}" if s in found else "" for s in steps]
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        lines.append("")
    (RESULTS / "extrapolation.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "extrapolation.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
