"""A sweep that switches one live model, against decoding each step to disk, loading it, and scoring that.

usage: python benchmarks/sweep.py [--parameters 30000000] [--steps 20] [--rounds 3] [--work DIR]

A generated run (generator.py) of four checkpoints is encoded. Then its steps 1 to 20 are scored in both ways, in turns,
in one process: by the loss on 64 tokens, which costs the same in both. Processor time and wall time, the least of the
rounds; the scores must be the same. Scoring alone is measured on a model that stays as it is. Writes
benchmarks/results/sweep.json and sweep.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generator import write_run
from sizes import RESULTS
from speed import processor

import relex_codec


def timed(function: Callable[[], list[float]]) -> tuple[float, float, list[float]]:
    """Return processor seconds, wall seconds, and what a function returned."""
    wall, used = time.perf_counter(), time.process_time()
    found = function()
    return time.process_time() - used, time.perf_counter() - wall, found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=30_000_000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    said: Any = transformers.utils.logging
    said.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        work = Path(name)
        write_run(work, args.parameters, 4)
        file = work / "run.relex"
        relex_codec.encode(work / "run", file, base=work / "base", quality="raw")
        tokens = torch.arange(64)[None] % 97
        steps = list(range(1, args.steps + 1))

        @torch.no_grad()
        def score(model: Any) -> float:
            return -float(model(input_ids=tokens, labels=tokens).loss)

        def load(folder: Path) -> Any:
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
            return model.eval()

        def sweep() -> list[float]:
            with relex_codec.open(file) as run:
                rows = run.sweep(score, steps, model=load(work / "base"), tier="line").rows
            return [float(row.score or 0.0) for row in rows]

        def one_by_one() -> list[float]:
            found = []
            for step in steps:
                with relex_codec.open(file) as run:
                    run.save(work / "step", step, tier="line")
                found.append(score(load(work / "step")))
                shutil.rmtree(work / "step")
            return found

        still = load(work / "base")
        ways = {"sweep": sweep, "decode, load, score": one_by_one, "score alone": lambda: [score(still) for _ in steps]}
        best: dict[str, dict[str, float]] = {}
        for turn in range(args.rounds + 1):  # the first round compiles, and is not counted
            scores = {}
            for way, function in ways.items():
                used, wall, scores[way] = timed(function)
                print(f"{way}: {used:.2f} s of processor time, {wall:.2f} s", file=sys.stderr)
                row = best.setdefault(way, {})
                if turn:
                    row["processor"] = min(used, row.get("processor", used))
                    row["wall"] = min(wall, row.get("wall", wall))
            if scores["sweep"] != scores["decode, load, score"]:
                raise SystemExit("the two ways give different scores")
        parameters = relex_codec.open(file).info()["parameters"]
    document = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__, "relex-codec": relex_codec.__version__},
        "parameters": parameters, "steps": args.steps, "rounds": args.rounds, "seconds": best,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sweep.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "sweep.md").write_text(table(document))


def table(document: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    seconds = document["seconds"]
    lines = [
        f"{document['steps']} steps of {document['parameters']:,} BF16 weights; {document['machine']['processor']}, "
        f"{document['machine']['cores']} cores, least of {document['rounds']} rounds.",
        "",
        "| way | processor time | wall time |",
        "| --- | ---: | ---: |",
        *(f"| {way} | {row['processor']:.2f} s | {row['wall']:.2f} s |" for way, row in seconds.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
