"""Size and speed of the exact tier against what else keeps every checkpoint bit for bit, on one core.

usage: python benchmarks/exact.py RUNS_DIR [--work DIR] [--large 100] [--steps 64] [--case NAME ...]

RUNS_DIR is as for sizes.py. The cases are the two real runs, every 10th step of each, and generated runs of 4 M
parameters and 32 steps in which 0.02 % or 50 % of the values change a step; --large adds a generated run of so many
million parameters and --steps steps, 1 % of whose values change (100 and 64: 30 GB of disk, 20 GB of memory for the
page cache). The peers are those of exact_peers.py, generated runs those of generator.py. For every codec:

  bytes    what is stored of all steps; of relex-codec the exact tier with its index, checksums and digests
  encode   from mapped checkpoints to a file, or files; `encode` is the whole command, which fits directions as well
  restore  one step from a cold handle, median over a few random steps; relex-codec checks the digests of the step
  replay   all steps, from the first to the last; relex-codec checks the digests of all

Files are in the page cache, functions are compiled before (what that takes is measured apart), and every step that is
restored or replayed is compared with its checkpoint outside of the timing. Seconds are of the processor, as nothing
waits for a disk; those by the clock, which are the same where nothing else runs, are in the JSON as well. A peer that
would need more than five minutes for a large run codes 8 steps, spread over it, and is scaled. Writes
benchmarks/results/exact.json and exact.md: cases measured before stay there if machine and versions are the same.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import exact_relex
import numpy as np
import torch
import zstandard
from exact_peers import PEERS, Peer
from exact_source import Source
from exact_table import markdown
from generator import write_run
from sizes import RESULTS, unpacked
from speed import processor

import relex_codec

RESTORED = 5  # random steps
PATIENCE = 300  # seconds for one peer and a large run
SAMPLE = 8  # steps of a peer that would need longer
GENERATED = {"generated-0.0002": 0.0002, "generated-0.5": 0.5}
CASES = ("sparse", "dense", "sparse-10", "dense-10", *GENERATED)
T = TypeVar("T")


@dataclass
class Clock:
    """Adds up the seconds of what runs in `running`, of the processor and by the clock."""

    cpu: float = 0.0
    wall: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time until the block ends."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu

    def each(self, values: Iterable[T]) -> Iterator[T]:
        """Yield `values`, counting the time that they take."""
        iterator = iter(values)
        while True:
            with self.running():
                value = next(iterator, None)
            if value is None:
                return
            yield value


@dataclass
class Row:
    """What one codec needs for one case: seconds of the processor, and by the clock in the same order."""

    codec: str
    bytes: int
    encode: float
    restore: float
    replay: float
    clock: list[float]
    scaled_from: int | None = None
    more: dict[str, Any] = field(default_factory=dict)


def measure_relex(source: Source, positions: list[int], work: Path) -> Row:
    """Measure the exact tier."""
    encoding, whole, replaying = Clock(), Clock(), Clock()
    with encoding.running():
        size = exact_relex.write_tier(source, work / "tier")
    (work / "tier").unlink()
    file = work / "run.relex"
    with whole.running():
        total = exact_relex.write_file(source, file)
    if exact_relex.tier_size(file) != size:
        raise SystemExit(f"the exact tier has {exact_relex.tier_size(file)} bytes in the file, {size} alone")
    restoring = []
    for position in positions:
        restoring.append(Clock())
        with restoring[-1].running():
            tensors = exact_relex.restore(file, source.numbers[position - 1])
        check(exact_relex.equal(tensors, source.read(position), source), exact_relex.NAME, position)
    count = 0
    for count, step in enumerate(replaying.each(exact_relex.replay(file)), 1):
        check(exact_relex.equal(step, source.read(count), source), exact_relex.NAME, count)
    check(count == len(source.numbers), exact_relex.NAME, count)
    more = {"command": whole.cpu, "command_clock": whole.wall, "file": total}
    file.unlink()
    return row(exact_relex.NAME, size, encoding, restoring, replaying, more)


def measure_peer(peer: Peer, source: Source, positions: list[int], work: Path) -> Row:
    """Measure a peer."""
    steps, out = len(source.numbers), work / "peer"
    encoding, restoring, replaying = Clock(), [], Clock()
    with encoding.running():
        peer.encode(source.read, steps, out)
    for position in positions:
        restoring.append(Clock())
        with restoring[-1].running():
            values = peer.restore(out, source.read(0), position)
        check(np.array_equal(values, source.read(position)), peer.name, position)
    for position, values in enumerate(replaying.each(peer.replay(out, source.read(0))), 1):
        check(np.array_equal(values, source.read(position)), peer.name, position)
    size = peer.size(out)
    shutil.rmtree(out)
    return row(peer.name, size, encoding, restoring, replaying, {})


def measure_slow_peer(peer: Peer, source: Source, positions: list[int], work: Path) -> Row:
    """Measure a peer, by steps spread over the run if all would take more than `PATIENCE`."""
    steps = len(source.numbers)
    stride = max(1, steps // SAMPLE)
    sample = range(1 + stride // 2, steps + 1, stride)
    coding, decoding, size = Clock(), Clock(), 0
    for position in sample:
        before, now = source.read(position - 1), source.read(position)
        with coding.running():
            data = peer.pack(before, now)
        values = before.copy()
        with decoding.running():
            values = peer.unpack(data, values)
        check(np.array_equal(values, now), peer.name, position)
        size += len(data)
    decoded = steps + (sum(positions) if peer.chained else len(positions))
    if coding.cpu / len(sample) * steps + decoding.cpu / len(sample) * decoded < PATIENCE:
        return measure_peer(peer, source, positions, work)
    restored = statistics.median(positions) if peer.chained else 1
    factors = steps / len(sample), restored / len(sample), steps / len(sample)
    cpu, clock = (
        [seconds * factor for seconds, factor in zip(times, factors, strict=True)]
        for times in ((coding.cpu, decoding.cpu, decoding.cpu), (coding.wall, decoding.wall, decoding.wall))
    )
    return Row(peer.name, round(size * steps / len(sample)), cpu[0], cpu[1], cpu[2], clock, len(sample))


def row(codec: str, size: int, encoding: Clock, restoring: list[Clock], replaying: Clock, more: dict[str, Any]) -> Row:
    """Return the row of a codec; restoring is the median, 0 if there is none."""
    cpu, wall = (
        statistics.median(times or [0.0])
        for times in ([clock.cpu for clock in restoring], [clock.wall for clock in restoring])
    )
    clock = [encoding.wall, wall, replaying.wall]
    return Row(codec, size, encoding.cpu, cpu, replaying.cpu, clock, more=more)


def check(same: bool, codec: str, position: int) -> None:
    """Stop where a step is not exact."""
    if not same:
        raise SystemExit(f"{codec}: stored step {position} differs from its checkpoint")


def measure(source: Source, work: Path, *, large: bool) -> dict[str, Any]:
    """Measure all codecs on one run."""
    steps = len(source.numbers)
    positions = random.Random(0).sample(range(1, steps + 1), min(RESTORED, steps))
    rows = []
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for name in (exact_relex.NAME, *PEERS):
            source.warm()
            if name == exact_relex.NAME:
                rows.append(measure_relex(source, positions, Path(folder)))
            else:
                measured = measure_slow_peer if large else measure_peer
                rows.append(measured(PEERS[name](), source, positions, Path(folder)))
            print(json.dumps(asdict(rows[-1])), flush=True)
    restored = [source.numbers[position - 1] for position in positions]
    text = json.dumps([asdict(row) for row in rows])
    found = json.loads(text, parse_float=lambda number: float(f"{float(number):.4g}"))
    return {"parameters": source.parameters, "steps": steps, "restored": restored, "rows": found}


def generated(folder: Path, parameters: float, steps: int, changed: float) -> Path:
    """Return the folder of a generated run, written if it is not there yet."""
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_run(folder, int(parameters * 1e6), steps, changed=changed)
        (folder / "done").touch()
    return folder


def source_of(case: str, runs: Path, work: Path) -> Source:
    """Return the run of a case."""
    if case in GENERATED:
        return Source(generated(work / case, 4, 32, GENERATED[case]))
    name, _, every = case.partition("-")
    return Source(unpacked(runs, work, name), every=int(every or 1))


def versions() -> dict[str, str]:
    """Return what was measured, and what with."""
    found = {"python": platform.python_version(), "relex-codec": relex_codec.__version__}
    found |= {name: importlib.metadata.version(name) for name in ("numpy", "numba", "torch", "z4ai", "zstandard")}
    return found | {"zstd": ".".join(map(str, zstandard.ZSTD_VERSION))}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/relex-exact"))
    parser.add_argument("--large", type=float, help="million parameters of a further, generated run")
    parser.add_argument("--steps", type=int, default=64, help="of that run")
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)

    tiny = generated(args.work / "tiny", 0.1, 4, 0.01)
    head: dict[str, Any] = {
        "machine": {"processor": processor(), "cores": 1, "system": platform.platform()},
        "versions": versions(),
    }
    first_use = exact_relex.first_use(tiny)
    print(json.dumps(head | {"first_use": first_use}), flush=True)
    exact_relex.use(Source(tiny))
    args.results.mkdir(parents=True, exist_ok=True)
    file = args.results / "exact.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    cases = kept["cases"] if {name: kept.get(name) for name in head} == head else {}

    def store(case: str, found: dict[str, Any]) -> None:
        cases[case] = found
        document = head | {"first_use": first_use, "cases": cases}
        file.write_text(json.dumps(document, indent=1) + "\n")
        (args.results / "exact.md").write_text(markdown(document))

    for case in args.case:
        print(case, flush=True)
        store(case, measure(source_of(case, args.runs, args.work), args.work, large=False))
    if args.large:
        folder = generated(args.work / "large", args.large, args.steps, 0.01)
        store(f"generated-0.01-{args.large:g}M", measure(Source(folder), args.work, large=True))
        shutil.rmtree(folder)
    print((args.results / "exact.md").read_text())


if __name__ == "__main__":
    main()
