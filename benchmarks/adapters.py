"""What adapters of each rank score: two real runs, merged by peft.

usage: python benchmarks/adapters.py RUNS_DIR [--work DIR]      (needs peft and transformers)

RUNS_DIR is as for sizes.py. The first 200 steps of each run are observed; its line at step 390 (sparse) and 300 (dense)
becomes adapters of several ranks, which peft merges into the base, and the result is scored on 4096 problems. Norms,
biases and tied embeddings are left out, as by default. Writes benchmarks/results/adapters.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from sizes import RESULTS, unpacked

import relex_codec

CASES = {"sparse": (390, (1, 4, 8, 16, 64)), "dense": (300, (1, 8, 64))}
OBSERVED = 200


def measure(name: str, root: Path, work: Path, score: Any) -> list[dict[str, Any]]:
    """Return share kept and score of each rank, and the score of the whole step."""
    import torch
    from transformers import AutoModelForCausalLM

    peft: Any = import_module("peft")  # which only this needs
    step, ranks = CASES[name]
    file = work / f"{name}.relex"
    relex_codec.encode(root / "run", file, base=root / "base", observe=OBSERVED)
    rows: list[dict[str, Any]] = []
    with relex_codec.open(file) as run:
        for rank in ranks:
            made = run.save_adapter(work / f"{name}-{rank}", step, rank=rank, tier="line")
            model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.bfloat16)
            merged: Any = peft.PeftModel.from_pretrained(model, work / f"{name}-{rank}").merge_and_unload()
            merged.save_pretrained(work / f"{name}-{rank}-merged")
            found = score(str(work / f"{name}-{rank}-merged"))
            rows.append(
                {"run": name, "step": step, "rank": rank, "kept": round(made.kept, 4), "score": round(found, 4)}
            )
            print(rows[-1])
        run.save(work / f"{name}-whole", step, tier="line")
    rows.append({"run": name, "step": step, "rank": None, "score": round(score(str(work / f"{name}-whole")), 4)})
    print(rows[-1])
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    sys.path.insert(0, str(args.runs))
    from score import score

    with tempfile.TemporaryDirectory(dir=args.work) as name:
        work = Path(name)
        rows = [row for run in CASES for row in measure(run, unpacked(args.runs, work, run), work, score)]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "adapters.json").write_text(json.dumps({"observed": OBSERVED, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
