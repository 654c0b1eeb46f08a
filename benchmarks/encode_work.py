"""One piece of work of encode.py, in a process of its own.

usage: python benchmarks/encode_work.py KIND FOLDER OUT [OPTION=VALUE ...]

KIND is one of
  nothing    encode a run of a few numbers with these options: what imports and compiled code take in memory
  read       read every file of the run once, tensor by tensor, and convert it to float32
  relex      what RELEX's two scripts do (arXiv 2605.21468), written anew: the deltas of all steps to disk as float16,
             then of each tensor the first singular vector of its deltas (torch.svd_lowrank with q=1, its fastest way),
             a line through the coefficients, and one extrapolated checkpoint
  encode     relex_codec.encode with these options, on threads: time and peak of processes of its own would be missed
  append     relex_codec.append to FOLDER/all.relex of a checkpoint that is given as `checkpoint`
Prints seconds of processor time and of wall time, without imports, and the peak of resident memory, as JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import relex_codec

AHEAD = 2
"""The extrapolated step, in units of the last one."""


def steps_of(folder: Path) -> list[tuple[int, Path]]:
    """Return steps and their files."""
    found = ((int(path.name.rsplit("_", 1)[1]), path / "model.safetensors") for path in (folder / "run").iterdir())
    return sorted(found)


def read(folder: Path, out: Path) -> None:
    """Read every file once and convert it to float32."""
    for _, path in steps_of(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                file.get_tensor(name).float()


def relex(folder: Path, out: Path) -> None:
    """Do what RELEX's scripts do."""
    scratch = Path(tempfile.mkdtemp(dir=out.parent))
    try:
        steps = steps_of(folder)
        base = folder / "base" / "model.safetensors"
        for step, path in steps:
            with safe_open(path, "pt") as file, safe_open(base, "pt") as start:
                deltas = {
                    name: (file.get_tensor(name).float() - start.get_tensor(name).float()).half()
                    for name in file.keys()  # noqa: SIM118 (it is no dict)
                }
            save_file(deltas, scratch / f"{step}.safetensors")
        handles: list[Any] = [safe_open(scratch / f"{step}.safetensors", "pt") for step, _ in steps]
        t = np.array([step for step, _ in steps], np.float64)
        predicted = {}
        with safe_open(base, "pt") as start:
            for name in start.keys():  # noqa: SIM118 (it is no dict)
                weights = start.get_tensor(name)
                matrix = torch.stack([handle.get_tensor(name).float().reshape(-1) for handle in handles])
                u, s, v = torch.svd_lowrank(matrix, q=1)
                slope, intercept = np.polyfit(t, (u[:, 0] * s[0]).double().numpy(), 1)
                moved = v[:, 0] * float(slope * AHEAD * t[-1] + intercept)
                predicted[name] = (weights.float() + moved.reshape(weights.shape)).to(weights.dtype)
        save_file(predicted, out.with_suffix(".safetensors"), {"format": "pt"})
    finally:
        shutil.rmtree(scratch)


def encode(folder: Path, out: Path, **options: Any) -> None:
    """Encode the run."""
    relex_codec.encode(folder / "run", out, base=folder / "base", overwrite=True, engine="local", **options)


def append(folder: Path, out: Path, checkpoint: str) -> None:
    """Append a checkpoint to the file of the run."""
    relex_codec.append(folder / "all.relex", [checkpoint], base=folder / "base", output=out, overwrite=True)


def nothing(folder: Path, out: Path, **options: Any) -> None:
    """Encode a run of a few numbers, with everything that is compiled."""
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        for step in range(3):
            place = Path(work) / ("base" if step == 0 else f"run/global_step_{step}")
            place.mkdir(parents=True)
            values = torch.linspace(-1, 1, 1 << 17).reshape(256, 512) * (1 + step / 8)
            save_file({"w": values.to(torch.bfloat16)}, place / "model.safetensors")
        encode(Path(work), Path(work) / "x.relex", **options)


def value(text: str) -> Any:
    """Return an option as what it stands for."""
    return {"True": True, "False": False}.get(text, text)


def main() -> None:
    """Do one piece of work and print what it took."""
    kind, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    options = {key: value(text) for key, text in (option.split("=", 1) for option in sys.argv[4:])}
    kinds: dict[str, Callable[..., None]] = {
        "read": read, "relex": relex, "encode": encode, "append": append, "nothing": nothing,
    }  # fmt: skip
    torch.ones(1).to(torch.bfloat16).float()
    nothing(folder, out)  # imports, and what numba has on disk
    wall, processor = time.perf_counter(), time.process_time()
    kinds[kind](folder, out, **options)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"processor": processor, "wall": wall, "peak": peak}))


if __name__ == "__main__":
    main()
