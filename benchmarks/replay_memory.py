"""Memory of `Run.iter_steps`, in sizes of the model.

usage: python benchmarks/replay_memory.py FILE.relex [...]

FILE has the exact tier and knows where its base is. Replays all steps and prints, and writes to
benchmarks/results/replay_memory.json, the peak of what numpy and Python allocated meanwhile, over one checkpoint.
"""

from __future__ import annotations

import json
import platform
import sys
import tracemalloc
from pathlib import Path

import numba
import numpy as np

import relex_codec

RESULTS = Path(__file__).parent / "results"


def peak(file: str) -> dict[str, object]:
    """Replay a file; returns what was measured."""
    with relex_codec.open(file) as run:
        steps, size = run.steps, run.info()["checkpoint_bytes"]
        for _ in run.iter_steps(start=steps[0], stop=steps[0]):  # compile
            pass
        tracemalloc.start()
        for _ in run.iter_steps():
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return {"file": Path(file).name, "steps": len(steps), "checkpoint_bytes": size, "times": round(most / size, 1)}


def main() -> None:
    """Measure all files of the command line."""
    rows = [peak(file) for file in sys.argv[1:]]
    versions = {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__}
    document = {"relex-codec": relex_codec.__version__, **versions, "files": rows}
    (RESULTS / "replay_memory.json").write_text(json.dumps(document, indent=2) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
