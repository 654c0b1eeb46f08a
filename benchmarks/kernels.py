"""The CPU kernel against copying the result: what decoding costs beyond moving the bytes.

usage: python benchmarks/kernels.py [--weights 256] [--runs 9]

Decodes one BF16 tensor (memory already touched) with one direction, in each packing alone and with eight pairs of
factors, through `kernels.cpu`; each decode is timed between two ``dst.copy_(src)`` of the same output, and its ratio is
to their mean. Medians. Also the peak of the process beyond the arrays while decoding. Rows of the matrix are 4096
long. Writes benchmarks/results/kernels.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from speed import processor

from relex_codec.core.dtypes import F32, Bytes
from relex_codec.format.constants import BYTE, NIBBLE, NONE, PIECE, QUINARY, TERNARY, Packing
from relex_codec.format.factors import Factors, from_stream
from relex_codec.format.packing import packed_size
from relex_codec.kernels.cpu import launch
from relex_codec.kernels.interface import DecodeJob, PackedDirection, flat

RESULTS = Path(__file__).parent / "results"
COLUMNS = 1 << 12


def codes(rng: np.random.Generator, packing: Packing, weights: int) -> Bytes:
    """Packed codes of any values, whole pieces."""
    if packing is NONE:
        return np.empty(0, np.uint8)
    digits = rng.integers(0, 2 * packing.zero + 1, (packing.per_byte, 1 << 22))
    places = packing.radix ** np.arange(packing.per_byte)
    some = (digits * places[:, None]).sum(0).astype(np.uint8)
    return np.resize(some, weights // PIECE * packed_size(PIECE, packing))


def factors(rng: np.random.Generator, rows: int, rank: int) -> Factors | None:
    """Factors of the matrix, as a file gives them."""
    if not rank:
        return None
    values: F32 = rng.standard_normal(rank * (rows + COLUMNS), np.float32) * np.float32(1e-2)
    return from_stream((values.view(np.uint32) >> np.uint32(16)).astype(np.uint16), (rows, COLUMNS), rank)


def seconds(function: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak(*, reset: bool = False) -> int:
    """The largest size of this process since the last reset, bytes (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=256, help="in 2^20")
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    weights = args.weights << 20
    rng = np.random.default_rng(0)
    src = torch.randn(weights // 64).to(torch.bfloat16).repeat(64)
    origin, dst = src.clone(), torch.zeros_like(src)
    target = dst.view(torch.int16).numpy().view(np.uint16).reshape(1, -1)
    g = [np.full((1, 1), 0.37, np.float32)]
    rows = []
    for rank in (0, 8):
        for packing in (TERNARY, NIBBLE, QUINARY, BYTE, *([NONE] if rank else [])):
            scale = 0.0 if packing is NONE else 1e-3
            direction = PackedDirection(
                factors(rng, weights // COLUMNS, rank), packing, codes(rng, packing, weights), np.float32(scale),
                np.float32(scale / 4),
            )  # fmt: skip
            bits = origin.view(torch.int16).numpy().view(np.uint16)
            decode = launch.prepare([DecodeJob(bits, 0, 0, "BF16", "BF16", [direction], flat(0, weights), 0, weights)])
            decode(g, [[target]])  # compiles
            dst.copy_(src)
            before = peak(reset=True)
            ratios, times, copies = [], [], []
            for _ in range(args.runs):
                first = seconds(lambda: dst.copy_(src))
                taken = seconds(partial(decode, g, [[target]]))
                copy = (first + seconds(lambda: dst.copy_(src))) / 2
                ratios.append(taken / copy)
                times.append(taken)
                copies.append(copy)
            rows.append({
                "codes": packing.name, "factor_rank": rank, "copy_ms": round(1e3 * statistics.median(copies), 1),
                "decode_ms": round(1e3 * statistics.median(times), 1), "ratio": round(statistics.median(ratios), 2),
                "lowest_ratio": round(min(ratios), 2), "highest_ratio": round(max(ratios), 2),
                "extra_mb": round((peak() - before) / 1e6, 1),
            })  # fmt: skip
            print(rows[-1], flush=True)
    result = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
                     "numba": numba.__version__},
        "weights": weights, "runs": args.runs, "rows": rows,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kernels.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "kernels.md").write_text(table(result))


def table(result: dict[str, Any]) -> str:
    """Return the result as text."""
    machine = result["machine"]
    lines = [
        f"{result['weights'] >> 20} x 2^20 BF16 weights, {machine['cores']} cores ({machine['processor']}), torch "
        f"{result['versions']['torch']}, numba {result['versions']['numba']}; medians of {result['runs']}:",
        "",
        "| codes | factor pairs | copying the result, ms | decoding, ms | ratio | peak beyond the arrays, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['codes']} | {row['factor_rank']} | {row['copy_ms']} | {row['decode_ms']} | {row['ratio']} "
            f"({row['lowest_ratio']} to {row['highest_ratio']}) | {row['extra_mb']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
