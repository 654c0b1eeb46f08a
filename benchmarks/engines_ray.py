"""The engine of Ray: workers and nodes killed while a run is encoded, and its time beside that of processes.

usage: python benchmarks/engines_ray.py [--kills 50] [--minutes 30] [--rounds 3] [--seed 0]

- kills: a cluster of a head and two nodes of one processor, on this machine. While a run of 48 tensors and 8 steps is
  encoded, with --exact and a unit for each tensor, a busy worker is killed (SIGKILL) at random moments, and each fifth
  time a whole node, whose place a new one takes. The run is encoded again and again until there were so many kills, or
  the minutes are over. Each file has the bytes of the one that this process makes alone. Units that were begun more
  often than once are counted: a kill of a worker may cost the one that it had, a kill of a node also what lay there and
  was not fetched.
- time: the same run, in the processes of one machine and on a cluster of one node that is there already, with two
  workers each, alternately; and the time that starting a cluster for one command takes beside that.

Prints both and writes benchmarks/results/engines_ray.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # for its clusters and small runs
from speed import processor

import relex_codec
from relex_codec.encoding import unit_plan
from relex_codec.engines.protocol import Finished
from relex_codec.engines.ray import RayEngine
from support.checkpoints import write_checkpoint, write_run
from support.ray_clusters import NODE, cluster_of, lose, workers_of
from support.ray_units import Counted
from support.runs import moving
from support.tensors import bf16

RESULTS = Path(__file__).parent / "results"
TENSORS, SHAPE, STEPS = 48, (256, 512), (10, 20, 30, 40, 50, 60, 70, 80)
EVERY_NODE = 5
"""One kill of so many is that of a node."""


class Killer(threading.Thread):
    """Kills a busy worker, or a node, at random moments, until it is told to stop."""

    def __init__(
        self, cluster: Cluster, chances: random.Random, kills: int, longest: float, kinds: Counter[str]
    ) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self._cluster, self._chances, self._kills, self._longest = cluster, chances, kills, longest
        self._kinds = kinds

    def run(self) -> None:
        """Do it; nodes are added by the main thread, as Ray sets a handler of signals then."""
        while sum(self._kinds.values()) < self._kills and not self.stop.wait(self._chances.random() * self._longest):
            nodes = list(self._cluster.worker_nodes)
            node = self._chances.choice(nodes)
            if sum(self._kinds.values()) % EVERY_NODE == EVERY_NODE - 1:
                if len(nodes) > 1:
                    lose(self._cluster, node)
                    self._kinds["node"] += 1
                continue
            busy = [worker for worker in workers_of(node) if " ".join(worker.cmdline()).startswith("ray::tensors")]
            if busy:
                self._chances.choice(busy).kill()
                self._kinds["worker"] += 1


def kill_campaign(root: Path, right: bytes, kills: int, minutes: float, seed: int) -> dict[str, Any]:
    """Encode on a cluster until so many of its workers and nodes were killed; return what came of it."""
    log, submit = root / "begun", RayEngine.submit
    chances, kinds = random.Random(seed), Counter[str]()
    encodes = again = units = 0
    wrong, most = [], 0
    finished = RayEngine.finished
    RayEngine.submit = lambda self, unit: submit(self, Counted(unit, log))  # type: ignore[method-assign]
    try:
        with cluster_of(2) as cluster:

            def complete(self: RayEngine) -> Finished:
                if len(cluster.worker_nodes) < 2:
                    cluster.add_node(wait=False, **NODE)
                return finished(self)

            RayEngine.finished = complete  # type: ignore[method-assign]
            end = time.monotonic() + 60 * minutes
            while sum(kinds.values()) < kills and time.monotonic() < end:
                before = sum(kinds.values())
                killer = Killer(cluster, chances, kills, 2.0, kinds)
                killer.start()
                try:
                    found = encode(root, "killed.relex", engine="ray", address=cluster.address)
                except relex_codec.RelexError as error:
                    found = None
                    wrong.append(f"encode {encodes}: {error}")
                killer.stop.set()
                killer.join()
                encodes += 1
                begun = Counter(log.read_text().split())
                log.unlink()
                units += len(begun)
                again += sum(begun.values()) - len(begun)
                most = max(most, *begun.values())
                if found is not None and found != right:
                    wrong.append(f"encode {encodes}: other bytes")
                print(
                    f"encode {encodes}: {sum(kinds.values()) - before} kills, {len(begun)} units begun "
                    f"{sum(begun.values())} times, {'same bytes' if found == right else 'WRONG'}", flush=True
                )  # fmt: skip
    finally:
        RayEngine.submit, RayEngine.finished = submit, finished  # type: ignore[method-assign]
    return {
        "kills": dict(kinds), "encodes": encodes, "units": units, "units begun again": again,
        "most often": most, "wrong": wrong,
    }  # fmt: skip


def times(root: Path, right: bytes, rounds: int) -> dict[str, Any]:
    """Encode with two workers, as processes and on Ray, alternately."""
    found: dict[str, list[float]] = {"processes": [], "ray": [], "ray, with a cluster of its own": []}
    with cluster_of(0) as cluster:
        cluster.add_node(**{**NODE, "num_cpus": 2})
        for _ in range(rounds):
            for name, seconds in found.items():
                options = {
                    "processes": {"engine": "processes"},
                    "ray": {"engine": "ray", "address": cluster.address},
                    "ray, with a cluster of its own": {"engine": "ray", "address": "local"},
                }[name]
                begun = time.monotonic()
                same = encode(root, "timed.relex", workers=2, **options) == right
                seconds.append(round(time.monotonic() - begun, 2))
                print(f"{name}: {seconds[-1]} s{'' if same else ', WRONG'}", flush=True)
    return {name: {"seconds": seconds, "least": min(seconds)} for name, seconds in found.items()}


def encode(root: Path, name: str, **options: Any) -> bytes:
    """Encode the run; return the file."""
    path = root / name
    relex_codec.encode(root / "run", path, base=root / "base", base_uri="b", exact=True, overwrite=True, **options)
    return path.read_bytes()


def make_run(root: Path) -> None:
    """Write a run and its base."""
    movers = {f"layers.{number:02}.weight": moving(SHAPE, number, bf16) for number in range(TENSORS)}
    write_checkpoint(root / "base", {name: start for name, (start, _) in movers.items()}, shards=2)
    write_run(root / "run", STEPS, lambda step: {name: at(step) for name, (_, at) in movers.items()}, shards=2)


def main() -> None:
    """Do both, print what came of it, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, metavar="N")
    parser.add_argument("--minutes", type=float, default=30, metavar="M", help="for kills")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    options = parser.parse_args()
    unit_plan.SMALLEST_UNIT = 1  # type: ignore[misc]
    with tempfile.TemporaryDirectory(prefix="engines-ray-") as folder:
        root = Path(folder)
        make_run(root)
        right = encode(root, "right.relex", engine="local")
        document: dict[str, Any] = {
            "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
            "load before": round(os.getloadavg()[0], 1),
            "versions": {
                "python": platform.python_version(), "relex-codec": relex_codec.__version__, "ray": ray.__version__,
                "numpy": np.__version__, "numba": importlib.metadata.version("numba"),
            },
            "run": {"tensors": TENSORS, "shape": SHAPE, "steps": len(STEPS), "bytes of the file": len(right)},
        }  # fmt: skip
        document["kills"] = found = kill_campaign(root, right, options.kills, options.minutes, options.seed)
        if options.rounds:
            document["time"] = times(root, right, options.rounds)
    (RESULTS / "engines_ray.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps({name: document[name] for name in ("kills", "time") if name in document}, indent=2))
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
