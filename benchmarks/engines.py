"""Encoding with engines: how it scales, what memory it takes, what plans of large runs look like, and what kills cost.

usage: python benchmarks/engines.py FOLDER [--parameters 100] [--steps 16] [--kills 50] [--only speed,memory,plans]

FOLDER is for scratch files; a run is made there by generator.py, if it has none: 3.2 GB, which should stay in memory.
Results go to results/engines.json, those of a part of it into what is there. Kills are quicker with a small run, in a
folder of its own: --parameters 8 --only kills.

speed   one worker against two, in pairs, alternating: wall clock and processor time of `encode --exact`, for threads
        and for processes. Processor time of all processes says what two workers cost more; wall clock how much faster
        they are, on a machine that does nothing else.
memory  peak of each worker process (VmHWM) beside its part of the budget.
plans   units of 8B x 400 and 70B x 200: how many, of which size, memory a worker, bytes read, and the hours that they
        take with the processor time a gigabyte measured in `speed`, as a function of workers: units are given to
        workers in order, each when it is free.
kills   SIGKILL at random moments of `encode --work-dir` with each engine, and of `merge`: what is lost, how many units
        are done again beyond those in flight, and whether the file is the same at the end.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from generator import write_run

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.encoding.unit_plan import PlannedUnit, TensorSize, plan_units
from relex_codec.encoding.units import THREAD_MEMORY, UNIT_MEMORY, frames_memory
from relex_codec.exact.segments import group_limit
from relex_codec.format.constants import PIECE

RESULTS = Path(__file__).parent / "results" / "engines.json"


def command(root: Path, out: str, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "relex_codec", "encode", str(root / "run"), "--base", str(root / "base"), "--exact",
        "--base-uri", "base", "-o", str(root / out), "-f", *more,
    ]  # fmt: skip


def started(arguments: list[str], stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Begin a command, away from any checkout: Python looks for modules where it is started."""
    return subprocess.Popen(arguments, cwd=tempfile.gettempdir(), stdout=subprocess.DEVNULL, stderr=stderr)


def run(arguments: list[str]) -> None:
    """Run a command to its end.

    Raises:
        SystemExit: it fails.
    """
    process = started(arguments, subprocess.PIPE)
    said = process.communicate()[1].decode()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{said}")


def timed(arguments: list[str]) -> tuple[float, float]:
    """Return wall clock and processor time of a command, its own processes included."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run(arguments)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def speed(root: Path, gigabytes: float, rounds: int) -> dict[str, Any]:
    """One worker against two."""
    kinds = [("local", 1), ("local", 2), ("processes", 1), ("processes", 2)]
    found: dict[str, list[tuple[float, float]]] = {}
    timed(command(root, "x.relex"))  # the first one compiles, where nothing is in numba's cache
    for _ in range(rounds):
        for engine, workers in kinds:
            time_of = timed(command(root, "x.relex", "--engine", engine, "--workers", str(workers)))
            found.setdefault(f"{engine} {workers}", []).append(time_of)
    rows = {
        name: {"wall_s": round(min(w for w, _ in times), 2), "processor_s": round(min(c for _, c in times), 2)}
        for name, times in found.items()
    }
    for engine in ("local", "processes"):
        rows[engine] = {
            "two_against_one": round(rows[f"{engine} 1"]["wall_s"] / rows[f"{engine} 2"]["wall_s"], 2),
            "processor_time_of_two": round(rows[f"{engine} 2"]["processor_s"] / rows[f"{engine} 1"]["processor_s"], 2),
        }
    return {"gigabytes": round(gigabytes, 2), "load": os.getloadavg()[0], **rows}


def memory(root: Path, budgets: Sequence[str] = ("512MB", "1GB", "4GB")) -> dict[str, Any]:
    """Peak of the workers, beside their budget."""
    rows = {}
    for budget in budgets:
        process = started(command(root, "x.relex", "--engine", "processes", "--workers", "2", "--memory", budget))
        peaks: dict[int, int] = {}
        while process.poll() is None:
            for child in _children(process.pid):
                peaks[child] = max(peaks.get(child, 0), _peak(child))
            time.sleep(0.05)
        rows[budget] = {"workers_peak_mb": [round(peak / 1e3) for peak in sorted(peaks.values())]}
    return rows


def _children(number: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
    except OSError:
        return []


def _peak(number: int) -> int:
    try:
        text = Path(f"/proc/{number}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")), 0)


MODELS = {
    "8B x 400": (400, [151_936 * 4096] + ([4096 * 12288] * 3 + [4096 * 4096] * 2 + [4096 * 1024] * 2 + [4096] * 2
                                          + [128] * 2) * 36 + [4096, 151_936 * 4096]),
    "70B x 200": (200, [128_256 * 8192] + ([8192 * 28672] * 3 + [8192 * 8192] * 2 + [8192 * 1024] * 2 + [8192] * 2)
                  * 80 + [8192, 128_256 * 8192]),
}  # fmt: skip
"""Steps, and elements of the tensors (Qwen3-8B, Llama-3-70B)."""


def plans(seconds_a_gigabyte: float) -> dict[str, Any]:
    """Units of large runs, and the hours that they take."""
    rows: dict[str, Any] = {}
    for name, (steps, sizes) in MODELS.items():
        tensors = [TensorSize(number, "BF16", size, True) for number, size in enumerate(sizes)]
        began = time.process_time()
        units = plan_units(tensors, steps, group_limit(steps), bands=True)
        planned = time.process_time() - began
        own = [_bytes(unit, sizes, steps) for unit in units]
        extra = sum(
            part.elements * 2 * steps
            for unit in units
            if unit.groups
            for part in unit.groups[-1]
            if part.tensor not in unit.tensors
            or (unit.band is not None and not unit.band[0] <= part.piece < unit.band[1])
        )
        again = sum(size for unit, size in zip(units, own, strict=True) if unit.band is not None)
        frames = frames_memory("BF16", max(sizes), steps)
        run = sum(own)
        rows[name] = {
            "run_tb": round(run / 1e12, 2),
            "units": len(units),
            "planned_in_s": round(planned, 2),
            "largest_unit_gb": round(max(own) / 1e9, 2),
            "memory_a_worker_mb": round((UNIT_MEMORY + THREAD_MEMORY + frames) / 1e6),
            "read_twice_for_directions_tb": round(again / 1e12, 2),
            "read_twice_for_groups_tb": round(extra / 1e12, 3),
            "hours": {
                str(workers): round(_hours([size * seconds_a_gigabyte / 1e9 for size in own], workers), 2)
                for workers in (1, 2, 8, 32, 64, 128, 256, 512)
            },
        }
    return {"seconds_a_gigabyte": round(seconds_a_gigabyte, 2), **rows}


def _bytes(unit: PlannedUnit, sizes: Sequence[int], steps: int) -> int:
    if unit.band is None:
        return sum(sizes[number] for number in unit.tensors) * ITEMSIZE["BF16"] * steps
    size = sizes[unit.tensors[0]]
    return (min(unit.band[1] * PIECE, size) - unit.band[0] * PIECE) * ITEMSIZE["BF16"] * steps


def _hours(costs: Sequence[float], workers: int) -> float:
    """Return when the last of the workers is done that take units in order."""
    free = [0.0] * workers
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost)
    return max(free) / 3600


def kills(root: Path, count: int) -> dict[str, Any]:
    """Kill encodes and merges, and see what it costs."""
    run(command(root, "one.relex"))
    right = (root / "one.relex").read_bytes()
    rows = {}
    for engine in ("local", "processes"):
        rows[engine] = _kill_encodes(root, engine, count, right)
    for number in (1, 2, 3):
        run(command(root, "p.relex", "--shard", f"{number}/3"))
    rows["merge"] = _kill_merges(root, count, right)
    return rows


def _kill_encodes(root: Path, engine: str, count: int, right: bytes) -> dict[str, Any]:
    chance, workers = random.Random(engine), 2
    work, killed, again, wrong, complete = root / "work", 0, 0, 0, 0
    shutil.rmtree(work, ignore_errors=True)
    arguments = command(root, "k.relex", "--engine", engine, "--workers", str(workers), "--work-dir", str(work))
    whole, _ = timed(arguments)
    while killed < count:
        before = {path.name: path.stat().st_mtime_ns for path in work.glob("*.unit")}
        (root / "k.relex").unlink(missing_ok=True)
        process = started(arguments)
        try:
            process.wait(chance.uniform(0.3, 1.0) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        after = {path.name: path.stat().st_mtime_ns for path in work.glob("*.unit")}
        if process.returncode == 0 or (root / "k.relex").exists():  # or killed when the file was there already
            complete += 1
            wrong += (root / "k.relex").read_bytes() != right
        else:  # what was finished is there, and was not written again
            wrong += any(after.get(name) != time_of for name, time_of in before.items())
            again = max(again, len(list(work.glob("*.part"))))
    run(arguments)
    wrong += (root / "k.relex").read_bytes() != right
    return {"kills": killed, "encodes_completed": complete + 1, "most_units_in_flight": again, "wrong": wrong}


def _kill_merges(root: Path, count: int, right: bytes) -> dict[str, Any]:
    chance, killed, wrong, complete = random.Random(1), 0, 0, 0
    parts = [str(root / f"p.relex.part-{number}-of-3") for number in (1, 2, 3)]
    out = root / "m.relex"
    arguments = [sys.executable, "-m", "relex_codec", "merge", *parts, "-o", str(out), "-f"]
    whole, _ = timed(arguments)
    while killed < count:
        out.unlink(missing_ok=True)
        process = started(arguments)
        try:
            process.wait(chance.uniform(0.3, 1.0) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        complete += process.returncode == 0
        wrong += out.exists() and out.read_bytes() != right
    run(arguments)
    left = [name for name in os.listdir(root) if ".tmp-relex-" in name]
    wrong += out.read_bytes() != right or bool(left)
    return {"kills": killed, "merges_completed": complete + 1, "wrong": wrong}


def main() -> None:
    """Run what is asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parameters", type=float, default=100)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3, help="of speed")
    parser.add_argument("--only", default="speed,memory,plans,kills")
    options = parser.parse_args()
    root, wanted = options.folder.resolve(), options.only.split(",")
    if not (root / "run").exists():
        write_run(root, int(options.parameters * 1e6), options.steps)
    gigabytes = sum(path.stat().st_size for path in (root / "run").rglob("*.safetensors")) / 1e9
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["hardware"] = (
        f"{os.cpu_count()} cores, {_processor()}; numpy {np.__version__}, Python {sys.version.split()[0]}"
    )
    if "speed" in wanted:
        results["speed"] = speed(root, gigabytes, options.rounds)
    if "memory" in wanted:
        results["memory"] = memory(root)
    if "plans" in wanted:
        results["plans"] = plans(results["speed"]["local 1"]["processor_s"] / results["speed"]["gigabytes"])
    if "kills" in wanted:
        results["kills"] = kills(root, options.kills)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown processor")


if __name__ == "__main__":
    main()
