"""Time and size of the page and the picture of a file with as many tensors and steps as a run of an 8B model has.

usage: python benchmarks/report.py [--tensors 398] [--steps 500] [--work DIR]

The tensors are small (a report reads no weights, only the tables, whose size depends on the number of tensors and
steps): names and kinds are those of a Qwen3-8B. Times are processor times of `relex-codec report` and `plot` in
processes of their own, imports included. Writes benchmarks/results/report.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from sizes import RESULTS

import relex_codec

KINDS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn.q_norm",
    "self_attn.k_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
)  # fmt: skip


def names(count: int) -> list[str]:
    """Return names of so many tensors."""

    def all_names() -> Iterator[str]:
        yield from ("model.embed_tokens.weight", "model.norm.weight")
        layer = 0
        while True:
            yield from (f"model.layers.{layer}.{kind}.weight" for kind in KINDS)
            layer += 1

    found = all_names()
    return [next(found) for _ in range(count)]


def write(folder: Path, tensors: int, steps: int) -> None:
    """Write a run of float16 tensors of 24 weights that move along lines, with noise."""
    rng = np.random.default_rng(0)
    start, drift = rng.standard_normal((2, tensors, 4, 6))
    called = names(tensors)
    for step in range(steps + 1):
        place = folder / "base" if step == 0 else folder / "run" / f"global_step_{step}"
        place.mkdir(parents=True, exist_ok=True)
        noise = rng.standard_normal(drift.shape) * 2e-3
        values = (start + (5e-5 * step) * (drift + noise)).astype(np.float16)
        save_file(dict(zip(called, values, strict=True)), place / "model.safetensors", {"format": "pt"})


def timed(*arguments: str) -> dict[str, Any]:
    """Run a command of the package and return its times."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "relex_codec", *arguments]
    # away from any checkout: Python looks for modules where it is started
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"processor_seconds": round(used, 2), "seconds": round(time.perf_counter() - begin, 2)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, default=398)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--work", type=Path, default=Path("/tmp/relex-report"))
    args = parser.parse_args()
    args.work = args.work.resolve()
    file = args.work / "run.relex"
    if not file.exists():
        write(args.work, args.tensors, args.steps)
        relex_codec.encode(args.work / "run", file, base=args.work / "base", quality="micro", progress=True)
    found: dict[str, Any] = {"tensors": args.tensors, "steps": args.steps, "machine": platform.machine()}
    for command, output in (("report", "page.html"), ("plot", "run.png"), ("plot", "run.svg")):
        out = args.work / output
        found[output] = timed(command, str(file), "-o", str(out), "-f") | {"bytes": out.stat().st_size}
        print(json.dumps({output: found[output]}), flush=True)
    (RESULTS / "report.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
