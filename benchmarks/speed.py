"""Time of encoding, decoding and switching against plain safetensors on the same data in the same run.

usage: python benchmarks/speed.py [--parameters 100] [--steps 16] [--work DIR]

Makes a base and a run of one model (millions of bf16 parameters, masters in float32 that drift along one direction with
noise), then reports medians of five:
  import      relex_codec after torch, in a new process, against torch alone
  cold        a new process that opens the file and decodes one step, imports of either side not counted, against one
              that loads a plain checkpoint with load_file and copies each tensor; bytes read by either
  decode      Run.state_dict of one step, against load_file of a plain checkpoint and a copy of each tensor (load_file
              alone maps the file and reads nothing)
  second step Resident.state_dict of another step, when one was decoded, against the same
  switch      Resident.load_into of a module, against load_file and copying each tensor into the module
  one tensor  open and Run.tensor of a 4 M tensor, against safetensors.safe_open, get_tensor and a copy
  save        relex-codec's checkpoint writer, against load_file and save_file of a plain checkpoint
  encode      once, against reading all the run's files once
Everything is in the page cache, and what numba compiles is on disk. Writes benchmarks/results/speed.json.
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import relex_codec

RESULTS = Path(__file__).parent / "results"
SIDE = 2048


def make_run(folder: Path, parameters: int, steps: int) -> None:
    """Write base and run: square matrices of 4 M parameters, one norm each."""
    count = max(1, parameters // (SIDE * SIDE))
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.mlp.weight" for i in range(count)]
    masters = {name: torch.randn(SIDE, SIDE, generator=generator) * 0.02 for name in names}
    masters |= {name.replace("mlp", "norm"): torch.ones(SIDE) for name in names}
    drift = {}
    for name, value in masters.items():
        a, b = torch.randn(value.shape[0], 4, generator=generator), torch.randn(4, value.shape[-1], generator=generator)
        low_rank = (a @ b) / 2 if value.dim() == 2 else torch.randn(value.shape, generator=generator)
        drift[name] = 2e-6 * (low_rank + torch.randn(value.shape, generator=generator))
    for step in range(steps + 1):
        out = folder / ("base" if step == 0 else f"run/global_step_{step}")
        out.mkdir(parents=True)
        weights = {name: (value + step * drift[name]).to(torch.bfloat16) for name, value in masters.items()}
        save_file(weights, out / "model.safetensors", {"format": "pt"})


def median(function: Callable[[], Any], runs: int = 5) -> float:
    """Return the median seconds of `runs` calls after one that is not counted."""
    function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def open_and_read(file: Path, name: str) -> None:
    """One tensor from a cold handle."""
    with relex_codec.open(file) as run:
        run.tensor(name, run.steps[-1])


def plain_read(file: Path, name: str) -> None:
    """The same from a plain checkpoint."""
    with safe_open(file, "pt") as handle:
        handle.get_tensor(name).clone()


COLD = """
import json, sys, time
import torch
def read():
    return int(open("/proc/self/io").read().split("rchar:")[1].split()[0])
start = time.perf_counter()
import relex_codec
imported = time.perf_counter() - start
from safetensors.torch import load_file
kind, path, step = sys.argv[1:]
before = read()
start = time.perf_counter()
if kind == "relex":
    with relex_codec.open(path) as run:
        run.state_dict(int(step))
else:
    for tensor in load_file(path).values():
        tensor.clone()
taken = time.perf_counter() - start
print(json.dumps([imported, taken, read() - before]))
"""
"""Run in a new process: seconds of the import after torch, seconds and bytes of the first step (mapped ones not)."""


def cold(kind: str, path: Path, step: int) -> list[float]:
    """Return median seconds of importing and of the first step, and the bytes that the process read."""
    command = [sys.executable, "-c", COLD, kind, str(path), str(step)]
    found = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    return [statistics.median(column) for column in zip(*found, strict=True)]


def import_seconds() -> float:
    """Return the median seconds of importing torch in a new process."""
    code = "import time; t = time.perf_counter(); import torch; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    return statistics.median(float(subprocess.check_output(command)) for _ in range(5))


def load_copy(file: Path) -> None:
    """Load a plain checkpoint, touching every byte."""
    for tensor in load_file(file).values():
        tensor.clone()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100, help="in millions")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--work", type=Path, default=Path("/tmp/relex-speed"))
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    make_run(args.work, args.parameters * 10**6, args.steps)
    file, plain = args.work / "run.relex", args.work / f"run/global_step_{args.steps}/model.safetensors"
    name = "model.layers.0.mlp.weight"

    start = time.perf_counter()
    relex_codec.encode(args.work / "run", file, base=args.work / "base")
    encoding = time.perf_counter() - start
    start = time.perf_counter()
    size = sum(len(path.read_bytes()) for path in (args.work / "run").rglob("*.safetensors"))
    reading = time.perf_counter() - start

    def save() -> None:
        shutil.rmtree(args.work / "out", ignore_errors=True)
        run.save(args.work / "out", args.steps)

    module = torch.nn.ParameterDict({k.replace(".", "_"): v.clone() for k, v in load_file(plain).items()})
    parameters = dict(module.items())
    places = {k: k.replace(".", "_") for k in load_file(plain)}

    def load_and_copy() -> None:
        with torch.no_grad():
            for key, tensor in load_file(plain).items():
                parameters[places[key]].copy_(tensor)

    ours, theirs = cold("relex", file, args.steps), cold("safetensors", plain, args.steps)
    with relex_codec.open(file) as run, relex_codec.open(args.work / "run.relex") as other:
        resident = other.resident()
        pairs = {
            "import": (ours[0], import_seconds()),
            "cold": (ours[1], theirs[1]),
            "second step": (median(lambda: resident.state_dict(args.steps)), median(lambda: load_copy(plain))),
            "switch": (
                median(lambda: resident.load_into(module, args.steps, names=places)),
                median(load_and_copy),
            ),
            "decode": (median(lambda: run.state_dict(args.steps)), median(lambda: load_copy(plain))),
            "one tensor": (median(lambda: open_and_read(file, name)), median(lambda: plain_read(plain, name))),
            "save": (median(save), median(lambda: save_file(load_file(plain), args.work / "copy.safetensors"))),
            "encode": (encoding, reading),
        }
    result = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "data": {"checkpoint_bytes": plain.stat().st_size, "steps": args.steps, "run_bytes": size,
                 "file_bytes": file.stat().st_size},
        "seconds": {k: {"relex-codec": round(a, 4), "safetensors": round(b, 4), "ratio": round(a / b, 2)}
                    for k, (a, b) in pairs.items()},
        "bytes_read": {
            "cold, relex-codec": int(ours[2]),
            "cold, safetensors": plain.stat().st_size,
        },
        "encode_mb_per_s": round(size / encoding / 1e6, 1),
        "decode_mb_per_s": round(plain.stat().st_size / pairs["decode"][0] / 1e6, 1),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    shutil.rmtree(args.work)


def processor() -> str:
    """Return the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
