"""Where the time of a first step in a new process goes, and that of decoding a step from the file.

usage: python benchmarks/cold_start.py [--parameters 100] [--work DIR]

The model and the run of speed.py. Everything is processor time, in milliseconds, the least of five new processes, with
the page cache warm and compiled code on disk. What is done inside of decoding is measured per thread, in calls. Writes
benchmarks/results/cold_start.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import llvmlite
import numba
import numpy as np
import torch
from speed import RESULTS, make_run, processor

import relex_codec

STEPS = 4
STAGES = """
import json, sys, time
import torch
found, start = {}, time.process_time()
def lap(name):
    global start
    found[name], start = time.process_time() - start, time.process_time()
    start = time.process_time()
import relex_codec
lap("import relex_codec")
if sys.argv[2] == "numba":
    import numba
    lap("import numba")
    numba.njit(lambda x: x + 1)(1)
    lap("first function of numba")
import llvmlite.binding
lap("import llvmlite")
from relex_codec.format.chunks import count_flags, expand
from relex_codec.kernels.cpu.machine_code import decode
for code in (count_flags, expand, decode):
    code._loaded()
lap("load machine code")
assert ("numba" in sys.modules) == (sys.argv[2] == "numba")
run = relex_codec.open(sys.argv[1])
lap("open")
run.state_dict(run.steps[-1])
lap("decode, the first time")
run.state_dict(run.steps[-1])
lap("decode, again")
print(json.dumps(found))
"""
PARTS = """
import collections, functools, json, sys, time
import torch, relex_codec
from relex_codec.checkpoints import base_model, safetensors
from relex_codec.decoding import direction_reader
from relex_codec.format import chunks, reader
from relex_codec.kernels.cpu import launch
from relex_codec.storage.source import LocalSource
found = collections.Counter()
run = relex_codec.open(sys.argv[1])
run.state_dict(run.steps[-1])
def timed(place, name, label):
    function = getattr(place, name)
    @functools.wraps(function)
    def call(*args, **options):
        start = time.thread_time()
        try:
            return function(*args, **options)
        finally:
            found[label] += time.thread_time() - start
    setattr(place, name, call)
timed(base_model, "digest", "hashing the base")
timed(safetensors.SafetensorsCheckpoint, "read_into", "reading the base")
timed(LocalSource, "read", "reading chunks")
timed(reader, "decompress", "decompressing chunks")
timed(reader.zlib, "crc32", "checksums of chunks")
timed(direction_reader, "check_piece", "checking codes")
timed(launch, "decode", "the kernel, and first use of the memory that it fills")
start = time.process_time()
run.state_dict(run.steps[-1])
found["all of it"] = time.process_time() - start
print(json.dumps(found))
"""


def least(code: str, *arguments: str) -> dict[str, float]:
    """Return the least milliseconds of each figure that five new processes print."""
    command = [sys.executable, "-c", code, *arguments]
    runs = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    return {key: round(1000 * min(run[key] for run in runs), 1) for key in runs[0]}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100, help="in millions")
    parser.add_argument("--work", type=Path, default=Path("/tmp/relex-cold-start"))
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    make_run(args.work, args.parameters * 10**6, STEPS)
    file = args.work / "run.relex"
    relex_codec.encode(args.work / "run", file, base=args.work / "base")
    with relex_codec.open(file) as run:
        run.state_dict(STEPS)  # compiles what is not on disk
    result = {
        "machine": {"processor": processor(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
                     "numba": numba.__version__, "llvmlite": llvmlite.__version__},
        "first step, ms": least(STAGES, str(file), "none"),
        "the same where numba is imported, ms": least(STAGES, str(file), "numba"),
        "decoding, ms": least(PARTS, str(file)),
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cold_start.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
