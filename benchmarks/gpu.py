"""Decoding on one NVIDIA GPU with the Triton kernel, against a copy on the device in the same run.

usage: python benchmarks/gpu.py [--repeats 20] [--small]

All weights, origins and codes are made up and resident; a figure is the median of the times between two CUDA events
around one call, which decodes all tensors:
  big            four matrices of 268 M weights: 4-bit and ternary codes, also four steps at once, and rank-8 factors
  Qwen2.5-1.5B   the shapes of this model: a whole switch of all parameters, with 4-bit and ternary codes and factors
  Qwen3-8B       the same of this one
Bytes count once: 2 a weight of the origin, the codes, 2 a weight and step written (factors are left out); the copy
reads and writes 2 each. The host's time for a call, until all is queued, is beside it. What was decoded is compared
with the torch kernel's bits.
Writes benchmarks/results/gpu.json. With --small everything is tiny and may run in Triton's interpreter, on the CPU
(TRITON_INTERPRET=1): it shows that the benchmark works, measures nothing and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import triton

from relex_codec.format.constants import NIBBLE, PIECE, TERNARY, Packing
from relex_codec.format.factors import Factors
from relex_codec.format.packing import packed_size, piece_lengths
from relex_codec.kernels import torch_eager
from relex_codec.kernels.interface import DecodeJob, PackedDirection, flat
from relex_codec.kernels.triton import launch

RESULTS = Path(__file__).parent / "results"
Shape = tuple[int, ...]


def qwen2_5_1_5b(layers: int = 28, vocabulary: int = 151936) -> list[Shape]:
    """Shapes of Qwen2.5-1.5B: biases of q, k and v, tied embeddings."""
    hidden, inner, kv = 1536, 8960, 256
    attention = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden), (hidden,), (kv,), (kv,)]
    layer = [*attention, (inner, hidden), (inner, hidden), (hidden, inner), (hidden,), (hidden,)]
    return [(vocabulary, hidden), *layer * layers, (hidden,)]


def qwen3_8b(layers: int = 36, vocabulary: int = 151936) -> list[Shape]:
    """Shapes of Qwen3-8B: norms of q and k, a head of its own."""
    hidden, inner, kv, head = 4096, 12288, 1024, 128
    attention = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden), (head,), (head,)]
    layer = [*attention, (inner, hidden), (inner, hidden), (hidden, inner), (hidden,), (hidden,)]
    return [(vocabulary, hidden), *layer * layers, (hidden,), (vocabulary, hidden)]


class Work(NamedTuple):
    """What is decoded at once."""

    shapes: list[Shape]
    packing: Packing
    rank: int = 0
    steps: int = 1


class Weights:
    """Made-up tensors in device memory: one direction each, and what they are decoded into."""

    def __init__(self, work: Work, device: str) -> None:
        steps = work.steps
        self.generator, self.device = torch.Generator(device).manual_seed(0), device
        self.jobs = [self._job(shape, work.packing, work.rank) for shape in work.shapes]
        self.targets = [
            [torch.empty((1, job.size), dtype=torch.int16, device=device) for _ in range(steps)] for job in self.jobs
        ]
        self.coefficients = [np.linspace(0.5, 1.5, steps, dtype=np.float32)[:, None] for _ in self.jobs]
        self.weights = sum(job.size for job in self.jobs)
        codes = sum(len(job.directions[0].packed) for job in self.jobs)
        self.bytes = 2 * self.weights * (1 + steps) + codes

    def _job(self, shape: Shape, packing: Packing, rank: int) -> DecodeJob:
        n = math.prod(shape)
        origin = torch.randn(n, generator=self.generator, dtype=torch.bfloat16, device=self.device).view(torch.int16)
        size = sum(packed_size(length, packing) for length in piece_lengths(n))
        packed = torch.zeros(size, dtype=torch.uint8, device=self.device)
        for _ in range(packing.per_byte):  # any digits that codes have
            packed *= packing.radix
            packed += torch.randint(
                2 * packing.zero + 1, (size,), generator=self.generator, dtype=torch.uint8, device=self.device
            )
        factors = None
        if rank and len(shape) == 2:
            sides = [torch.randn(1, rank, side, generator=self.generator, device=self.device) for side in shape]
            factors = Factors(*sides)
        direction = PackedDirection(factors, packing, packed, np.float32(1e-3), np.float32(2e-4))
        return DecodeJob(origin, 0, n, "BF16", "BF16", [direction], flat(0, n), 0, n)

    def check(self) -> None:
        """Compare pieces of some tensors with the torch kernel's."""
        some = [*range(min(4, len(self.jobs))), len(self.jobs) - 1]
        for i in some:
            job = self.jobs[i]
            lo = (job.size - 1) // PIECE * PIECE
            for window in (flat(0, min(PIECE, job.size)), flat(lo, job.size)):
                part = DecodeJob(job.origin, window.lo, 0, "BF16", "BF16", job.directions, window, 0, job.size)
                places = [target[:, window.lo : window.hi] for target in self.targets[i]]
                found = [torch.zeros_like(place) for place in places]
                torch_eager.prepare([part])([self.coefficients[i]], [found])
                for expected, got in zip(found, places, strict=True):
                    assert torch.equal(expected, got), f"tensor {i} differs from the torch kernel's"


def milliseconds(function: Callable[[], Any], repeats: int, device: str) -> dict[str, float]:
    """Return medians for a call: on the device between two events, and of the host until it returns."""
    if device != "cuda":
        start = time.perf_counter()
        function()
        taken = round((time.perf_counter() - start) * 1e3, 4)
        return {"ms": taken, "host_ms": taken}
    for _ in range(3):
        function()
    times, host = [], []
    for _ in range(repeats):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start = time.perf_counter()
        before.record()
        function()
        after.record()
        host.append((time.perf_counter() - start) * 1e3)
        torch.cuda.synchronize()
        times.append(before.elapsed_time(after))
    return {"ms": round(statistics.median(times), 4), "host_ms": round(statistics.median(host), 4)}


def copy_rate(weights: int, repeats: int, device: str) -> float:
    """Return the bytes read and written in a second by a copy of so many bf16 weights."""
    source = torch.ones(weights, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    return 4 * weights / milliseconds(lambda: target.copy_(source), repeats, device)["ms"] * 1e3


def figures(work: Work, repeats: int, device: str) -> dict[str, Any]:
    """Measure decoding, and a copy right before and after it."""
    copied = min(1 << 29, sum(math.prod(shape) for shape in work.shapes))
    before = copy_rate(copied, repeats, device)
    weights = Weights(work, device)
    start = time.perf_counter()
    decode = launch.prepare(weights.jobs)
    prepared = (time.perf_counter() - start) * 1e3
    found = milliseconds(lambda: decode(weights.coefficients, weights.targets), repeats, device)
    weights.check()
    copy = statistics.mean([before, copy_rate(copied, repeats, device)])
    rate = weights.bytes / found["ms"] * 1e3
    result = {
        "packing": work.packing.name, "rank": work.rank, "steps": work.steps, "tensors": len(work.shapes),
        "weights": weights.weights, "bytes": weights.bytes, "prepare_ms": round(prepared, 1), **found,
        "gb_per_s": round(rate / 1e9, 1), "copy_gb_per_s": round(copy / 1e9, 1), "of_copy": round(rate / copy, 3),
    }  # fmt: skip
    print(json.dumps(result))
    return result


def machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    return {"gpu": torch.cuda.get_device_name(), "driver": driver.split("\n")[0], "system": platform.platform()}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="tiny tensors, nothing written")
    args = parser.parse_args()
    device = "cpu" if launch.INTERPRETED else "cuda"
    if not args.small and not torch.cuda.is_available():
        parser.error("figures need a GPU; use --small with TRITON_INTERPRET=1")
    big: list[Shape] = [(16384, 16384)] * 4
    models = {"Qwen2.5-1.5B": qwen2_5_1_5b(), "Qwen3-8B": qwen3_8b()}
    if args.small:
        big, models = [(40, 1100)] * 2, {"tiny": [(300, 40), (2000,), (7,)]}
    sets = {"big": [Work(big, NIBBLE), Work(big, TERNARY), Work(big, NIBBLE, rank=8), Work(big, NIBBLE, steps=4)]}
    for name, shapes in models.items():
        sets[name] = [Work(shapes, NIBBLE), Work(shapes, TERNARY), Work(shapes, NIBBLE, rank=8)]
    found = {name: [figures(work, args.repeats, device) for work in of_set] for name, of_set in sets.items()}
    if args.small:
        print("tiny tensors: not figures, nothing written")
        return
    versions = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__,
                "cuda": str(torch.version.cuda)}  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    result = {"machine": machine(), "versions": versions, "repeats": args.repeats, "figures": found}
    (RESULTS / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
