"""Processor time of encoding many small tensors.

usage: python benchmarks/small_tensors.py [--tensors 1000 19000] [--elements 256] [--steps 3] [--quality raw default]

Makes a base and a run of N tensors of so many elements (bf16, float32 masters that drift along one direction with
noise), encodes it in a new process that has imported everything, and reports its processor time, all threads
together, per tensor too, how many quantisers the search evaluated, and the size of the file. Writes
benchmarks/results/small_tensors.json if the numbers of tensors are those above.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from speed import processor

import relex_codec

RESULTS = Path(__file__).parent / "results"
TENSORS = (1000, 19_000)

ENCODE = """
import json, sys, time
import relex_codec
from relex_codec.encoding import pipeline
searches, search = [0, 0], pipeline.DirectionSearch.run
def counted(self, *args):
    found = search(self, *args)
    searches[0] += 1
    searches[1] += self.trials
    return found
pipeline.DirectionSearch.run = counted
run, base, file, quality = sys.argv[1:]
wall, start = time.perf_counter(), time.process_time()
relex_codec.encode(run, file, base=base, quality=quality, overwrite=True)
print(json.dumps([time.process_time() - start, time.perf_counter() - wall, *searches]))
"""


def write_run(folder: Path, tensors: int, elements: int, steps: int) -> None:
    """Write base and run: square matrices, as near as the number of elements allows."""
    side = next(side for side in range(int(elements**0.5), 0, -1) if elements % side == 0)
    generator = torch.Generator().manual_seed(0)
    masters = torch.randn(tensors, side, elements // side, generator=generator) * 0.02
    masters = masters.to(torch.bfloat16).float()
    drift = torch.randn(masters.shape, generator=generator)
    for step in range(steps + 1):
        if step:
            masters += 2e-5 * (drift + 0.3 * torch.randn(masters.shape, generator=generator))
        out = folder / ("base" if step == 0 else f"run/global_step_{step}")
        out.mkdir(parents=True)
        rounded = masters.to(torch.bfloat16)
        weights = {f"model.layers.0.mlp.experts.{i}.weight": rounded[i].clone() for i in range(tensors)}
        save_file(weights, out / "model.safetensors", {"format": "pt"})


def measure(folder: Path, tensors: int, quality: str) -> dict[str, Any]:
    """Encode once; return a row of the result."""
    file = folder / f"{quality}.relex"
    command = [sys.executable, "-c", ENCODE, str(folder / "run"), str(folder / "base"), str(file), quality]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, wall, searches, trials = json.loads(found)
    row = {
        "tensors": tensors,
        "quality": quality,
        "processor_seconds": round(seconds, 2),
        "wall_seconds": round(wall, 2),
        "processor_ms_per_tensor": round(1000 * seconds / tensors, 3),
        "quantisers_per_search": round(trials / max(searches, 1), 1),
        "file_bytes": file.stat().st_size,
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, nargs="*", default=list(TENSORS))
    parser.add_argument("--elements", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--quality", nargs="*", default=["raw", "default"])
    args = parser.parse_args()
    rows = []
    for tensors in args.tensors:
        with tempfile.TemporaryDirectory() as folder:
            write_run(Path(folder), tensors, args.elements, args.steps)
            rows += [measure(Path(folder), tensors, quality) for quality in args.quality]
    result = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
                     "relex-codec": relex_codec.__version__},
        "data": {"elements": args.elements, "steps": args.steps},
        "rows": rows,
    }  # fmt: skip
    if tuple(args.tensors) == TENSORS:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "small_tensors.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
