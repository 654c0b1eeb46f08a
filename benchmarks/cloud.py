"""Reading from S3 over the loopback interface: requests, bytes and time, against s3fs fetching the same ranges.

usage: python benchmarks/cloud.py [--parameters 500] [--server moto|s3rver] [--runs 3] [--work DIR] [--keep]

Makes a base (shards of at most 134 MB), a run of two steps and its file, all of made-up bf16 weights, and puts base and
file on an S3 server that runs here. Then, in this order:
  counted   through a proxy that counts: opening, opening the base, one tensor, a whole step, a second step
  latency   through the same proxy, which answers each request 50 ms late, and in turn without that: opening file and
            base and reading one tensor; the difference in round trips
  timed     straight at the server, the shortest of `runs`, taken in turn: s3fs fetching the very ranges of the whole
            step with one call of cat_ranges and throwing them away; the same blocks fetched ahead and thrown away;
            state_dict, and of a second step; state_dict of the same files on the local disk, which is decoding alone;
            and the same two for one tensor
With --keep what was made stays in DIR, and is used again by the next run of the same size.
Bytes needed are the directions' entry of the file and the base's tensors. Needs the test extra, and for s3rver
tools/servers.sh. Writes benchmarks/results/cloud_SERVER.json and .md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from speed import RESULTS, processor

import relex_codec
from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.decoding.tensors import box_at, plan_boxes
from relex_codec.decoding.tiers import StepTier
from relex_codec.format import constants as f
from relex_codec.format.index import Index
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.storage.header_cache import HEADER_CACHE

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.servers import programs
from support.servers.counting import CountingServer, proxy_of

SIDE = 2048
SHARD = 16
"""Matrices a shard."""
LATENCY = 0.05
BUCKET = "bench"
Row = dict[str, Any]


def make_run(folder: Path, parameters: int) -> None:
    """Write base and run: square matrices of 4 M parameters (smaller ones, if there are fewer), one norm each."""
    side = min(SIDE, 64 * max(1, math.isqrt(parameters) // 64))
    count = max(1, parameters // side**2)
    shards = -(-count // SHARD)
    generator = torch.Generator().manual_seed(0)
    for step in (0, 8, 16):
        (folder / ("base" if step == 0 else f"run/global_step_{step}")).mkdir(parents=True)
    where: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        weights: dict[int, dict[str, torch.Tensor]] = {0: {}, 8: {}, 16: {}}
        for i in range(shard * SHARD, min(count, (shard + 1) * SHARD)):
            start = torch.randn(side, side, generator=generator) * 0.02
            drift = torch.randn(side, 4, generator=generator) @ torch.randn(4, side, generator=generator) / 2
            drift = 2e-6 * (drift + torch.randn(side, side, generator=generator))
            for step, found in weights.items():
                found[f"model.layers.{i:03d}.mlp.weight"] = (start + step * drift).to(torch.bfloat16)
                found[f"model.layers.{i:03d}.norm.weight"] = torch.full((side,), 1 + step * 0.01, dtype=torch.bfloat16)
        for step, found in weights.items():
            out = folder / ("base" if step == 0 else f"run/global_step_{step}")
            save_file(found, out / name, {"format": "pt"})
        where |= dict.fromkeys(weights[0], name)
    for out in (folder / "base", *(folder / "run").iterdir()):
        (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        (out / "config.json").write_text("{}")


def taken(proxy: CountingServer) -> list[tuple[str, int, int]]:
    """Key and range of each read since the last call, which forgets them."""
    reads = []
    for seen in proxy.seen:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", seen.range or "")
        if found and seen.method == "GET":
            reads.append((seen.path.removeprefix(f"/{BUCKET}/"), int(found[1]), int(found[2]) + 1))
    return reads


def counted(proxy: CountingServer, needed: int | None = None) -> Row:
    """Requests and bytes since the last call, which forgets them."""
    lengths = [end - start for _, start, end in taken(proxy)]
    row: Row = {"requests": len(proxy.seen), "bytes": proxy.sent, "most_at_a_time": proxy.most}
    row["largest_read"] = max(lengths, default=0)
    if needed is not None:
        row |= {"needed": needed, "fetched_over_needed": round(sum(lengths) / needed, 5)}
    proxy.clear()
    return row


Reads = list[tuple[str, int, int]]


def count(
    proxy: CountingServer, open_run: Callable[[], relex_codec.Run], name: str
) -> tuple[dict[str, Row], Reads, Reads]:
    """Count the requests of each task; returns rows, and the reads of one tensor and of a whole step."""
    HEADER_CACHE.clear()
    proxy.clear()
    rows: dict[str, Row] = {}
    with open_run() as run:
        index = run._reader.container.index
        rows["open"] = counted(proxy)
        run._reader.base_reader()
        rows["open the base"] = counted(proxy) | {"shards": len(run._reader.base_reader().checkpoint.shards)}
        run._reader.bits(name, 12)
        tensor_reads = taken(proxy)
        rows["one tensor"] = counted(proxy, tensor_bytes(index, index.tensor(name)))
        entry = index.entries[f.DATA_DIRECTIONS]
        base = sum(tensor.size * ITEMSIZE[tensor.origin_dtype] for tensor in index.tensors)
        run.state_dict(12)
        reads = taken(proxy)
        rows["a whole step"] = counted(proxy, entry.end - entry.begin + base)
        run.state_dict(400)
        rows["a second step"] = counted(proxy, entry.end - entry.begin + base)
    with open_run():
        rows["open again"] = counted(proxy)
    return rows, tensor_reads, reads


def tensor_bytes(index: Index, tensor: TensorRecord) -> int:
    """Bytes of a tensor: its chunks in the file, and what the base has of it."""
    chunks = set()
    for direction in tensor.directions:
        factors, remainder = index.direction_places(tensor, direction)
        chunks |= {part.chunk for part in (*factors, *remainder)}
    return sum(int(index.chunks[chunk]["stored"]) for chunk in chunks) + tensor.size * ITEMSIZE[tensor.origin_dtype]


def late(proxy: CountingServer, open_run: Callable[[], relex_codec.Run], name: str, runs: int) -> Row:
    """Open and read one tensor from nothing kept, with latency and, in turn, without: the difference is waiting."""
    best = {0.0: math.inf, LATENCY: math.inf}
    for _ in range(runs):
        for latency in best:
            HEADER_CACHE.clear()
            proxy.clear()
            proxy.latency = latency
            began = time.perf_counter()
            with open_run() as run:
                run._reader.bits(name, 12)
            best[latency] = min(best[latency], time.perf_counter() - began)
    proxy.latency = 0.0
    seconds, without = best[LATENCY], best[0.0]
    return {
        "latency": LATENCY,
        "requests": len(proxy.seen),
        "seconds": round(seconds, 4),
        "seconds_without": round(without, 4),
        "round_trips": round((seconds - without) / LATENCY, 2),
    }


def timed(tasks: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Shortest seconds of each task; all of them take turns."""
    best = dict.fromkeys(tasks, math.inf)
    for _ in range(runs):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: round(seconds, 4) for name, seconds in best.items()}


def over_s3fs(seconds: dict[str, float]) -> dict[str, float]:
    """Each of some times over that of s3fs."""
    return {task: round(value / seconds["s3fs, same ranges"], 3) for task, value in seconds.items()}


def fetch_ahead(run: relex_codec.Run) -> None:
    """Fetch what a whole step needs, and throw it away."""
    boxes = [box_at(tensor) for tensor in run._reader.container.index.tensors]
    decoder = run._reader.decoder
    with decoder.fetcher.ahead(plan_boxes(decoder, boxes, [StepTier(12.0, "line")])) as ahead:
        for block in ahead._order:
            block.source.read_many([(block.start, block.end)])


def measure(work: Path, parameters: int, server: str, runs: int) -> dict[str, Any]:
    """Make everything and measure it."""
    import fsspec

    if not (work / "run.relex").exists():
        shutil.rmtree(work, ignore_errors=True)
        make_run(work, parameters)
        relex_codec.encode(work / "run", work / "run.relex", base=work / "base")
    name = "model.layers.000.mlp.weight"
    with getattr(programs, server)() as s3, proxy_of(s3.host, s3.port) as proxy:
        filesystem = fsspec.filesystem("s3", **s3.options())
        filesystem.call_s3("create_bucket", Bucket=BUCKET)
        for path in (work / "run.relex", *(work / "base").iterdir()):
            filesystem.put_file(str(path), f"{BUCKET}/{path.relative_to(work)}")

        def opener(endpoint: str | None) -> Callable[[], relex_codec.Run]:
            return lambda: relex_codec.open(
                f"s3://{BUCKET}/run.relex", base=f"s3://{BUCKET}/base", storage_options=s3.options(endpoint)
            )

        rows, tensor_reads, reads = count(proxy, opener(proxy.url), name)
        latency = late(proxy, opener(proxy.url), name, max(runs, 3))

        def s3fs(ranges: Reads) -> Callable[[], Any]:
            keys, starts, ends = (list(column) for column in zip(*ranges, strict=True))
            paths = [f"{BUCKET}/{key}" for key in keys]
            return lambda: filesystem.cat_ranges(paths, starts, ends, on_error="raise")

        with opener(None)() as run, relex_codec.open(work / "run.relex", base=work / "base") as local:
            run._reader.base_reader()
            seconds = timed(
                {
                    "s3fs, same ranges": s3fs(reads),
                    "fetched ahead only": lambda: fetch_ahead(run),
                    "state_dict from S3": lambda: run.state_dict(12),
                    "second step from S3": lambda: run.state_dict(400),
                    "state_dict from disk": lambda: local.state_dict(12),
                },
                runs,
            )
            tensor_seconds = timed(
                {"s3fs, same ranges": s3fs(tensor_reads), "one tensor from S3": lambda: run._reader.bits(name, 12)},
                5 * runs,
            )
    return {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "numpy": np.__version__}
        | {package: version(package) for package in ("torch", "fsspec", "s3fs", "aiobotocore")}
        | {server: server_version(server)},
        "server": server,
        "data": {
            "parameters": parameters,
            "file_bytes": (work / "run.relex").stat().st_size,
            "base_bytes": sum(path.stat().st_size for path in (work / "base").iterdir()),
        },
        "counted": rows,
        "latency": latency,
        "seconds": seconds,
        "over_s3fs": over_s3fs(seconds),
        "tensor_seconds": tensor_seconds,
        "tensor_over_s3fs": over_s3fs(tensor_seconds),
    }


def server_version(server: str) -> str:
    """Return the version of a server of `programs`."""
    if server == "moto":
        return version("moto")
    package = json.loads((programs.INSTALLED.parent / server / "package.json").read_text())
    return str(package["version"])


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    data, latency, machine = result["data"], result["latency"], result["machine"]
    lines = [
        f"{data['parameters'] / 1e6:.0f} M parameters: file {data['file_bytes']:,} bytes, base {data['base_bytes']:,}; "
        f"{result['server']} on the loopback interface; {machine['processor']}, {machine['cores']} cores; "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items()),
        "",
        "| task | requests | bytes | over needed | largest read | at a time |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for task, row in result["counted"].items():
        over = row.get("fetched_over_needed", "")
        lines.append(
            f"| {task} | {row['requests']} | {row['bytes']:,} | {over} | {row['largest_read']:,} "
            f"| {row['most_at_a_time']} |"
        )
    lines += ["", "| whole step | seconds | over s3fs |", "| --- | ---: | ---: |"]
    lines += [f"| {task} | {value} | {result['over_s3fs'][task]} |" for task, value in result["seconds"].items()]
    lines += ["", "| one tensor | seconds | over s3fs |", "| --- | ---: | ---: |"]
    lines += [
        f"| {task} | {value} | {result['tensor_over_s3fs'][task]} |" for task, value in result["tensor_seconds"].items()
    ]
    lines += [
        "",
        f"With {1000 * latency['latency']:.0f} ms of latency, opening file and base and reading one tensor take "
        f"{latency['requests']} requests and {latency['seconds']} s, without it {latency['seconds_without']} s: "
        f"{latency['round_trips']} round trips more.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=500, help="in millions")
    parser.add_argument("--server", choices=["moto", "s3rver"], default="moto")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("/tmp/relex-cloud"))
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    work = args.work / f"{args.parameters:g}"
    try:
        result = measure(work, int(args.parameters * 1e6), args.server, args.runs)
    finally:
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)
    args.out.mkdir(exist_ok=True)
    (args.out / f"cloud_{args.server}.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / f"cloud_{args.server}.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
