"""What a recorder costs a GRPO training, in time and in bytes, beside none and beside a checkpoint each step.

usage: python benchmarks/recording.py [--blocks 30] [--steps 4] [--threads 1]

The demonstration's training (its base of 1.58 M parameters, float32 weights with AdamW, 64 questions of 8 answers a
step) three times in one process, from the same seed and so with the same weights: alone, with a `Recorder` that rounds
to bf16, and with a bf16 checkpoint each step (`save_file`, without `fsync`). They take turns by blocks of steps, in an
order that changes from block to block; a block of the recorder ends when its steps are on disk. Reported are medians
over the blocks of the time of a step, as wall and as processor time of all threads, and of the ratio to the block that
trained alone on the same steps; and bytes. In the end, the weights must be the same bit for bit, and those that the
journal has the last checkpoint's. Writes benchmarks/results/recording.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

import relex_codec
from relex_codec.demo import grpo, task
from relex_codec.demo.run_demo import BASE

RESULTS = Path(__file__).parent / "results"
KINDS = ("alone", "recorder", "checkpoints")


class Training:
    """One of the trainings."""

    def __init__(self, steps: int) -> None:
        self.model = task.load(BASE)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=grpo.LEARNING_RATE, weight_decay=0.0)
        self.sampler = torch.Generator().manual_seed(0)
        self.asked, self.answers = task.problems(grpo.QUESTIONS * steps, 0)

    def step(self, number: int) -> None:
        """Train a step."""
        batch = slice((number - 1) * grpo.QUESTIONS, number * grpo.QUESTIONS)
        grpo._update(self.model, self.optimizer, self.asked[batch], self.answers[batch], grpo.GROUP, self.sampler)


def measure(root: Path, blocks: int, steps: int) -> dict[str, Any]:
    """Train, and time all blocks."""
    trainings = {kind: Training(blocks * steps + 1) for kind in KINDS}
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with relex_codec.Recorder(root / "journal", base=BASE, dtype="base") as recorder:

        def keep(kind: str, number: int) -> None:
            if kind == "recorder":
                recorder.add(number, trainings[kind].model)
            elif kind == "checkpoints":
                grpo.save_checkpoint(trainings[kind].model, BASE, root / "run" / f"global_step_{number}")

        for kind in KINDS:  # what is compiled, loaded and read once
            trainings[kind].step(1)
            keep(kind, 1)
        recorder.flush()
        for block in range(blocks):
            turn = block % 3
            for kind in (*KINDS[turn:], *KINDS[:turn]):
                wall, processor = time.perf_counter(), time.process_time()
                for number in range(2 + block * steps, 2 + (block + 1) * steps):
                    trainings[kind].step(number)
                    keep(kind, number)
                recorder.flush()
                times[kind].append(((time.perf_counter() - wall) / steps, (time.process_time() - processor) / steps))
    last = blocks * steps + 1
    for kind in KINDS[1:]:
        for one, other in zip(trainings["alone"].model.parameters(), trainings[kind].model.parameters(), strict=True):
            assert torch.equal(one, other), "the trainings are not the same"
    relex_codec.encode(root / "journal", root / "run.relex", base=BASE, exact=True)
    with relex_codec.open(root / "run.relex", base=BASE) as run:
        kept = load_file(root / "run" / f"global_step_{last}" / "model.safetensors")
        assert all(torch.equal(run.tensor(name, step=last), value) for name, value in kept.items())
    sizes = {
        "checkpoints": sum(path.stat().st_size for path in (root / "run").glob("*/model.safetensors")),
        "journal": sum(path.stat().st_size for path in (root / "journal").iterdir()),
        "relex_exact": (root / "run.relex").stat().st_size,
    }
    alone = times["alone"]
    return {
        "steps": last,
        "step_ms": {
            kind: {
                "wall": round(1e3 * statistics.median(wall for wall, _ in found), 1),
                "processor": round(1e3 * statistics.median(processor for _, processor in found), 1),
            }
            for kind, found in times.items()
        },
        "to_alone": {
            kind: {
                clock: round(statistics.median(x[i] / y[i] for x, y in zip(times[kind], alone, strict=True)), 4)
                for i, clock in enumerate(("wall", "processor"))
            }
            for kind in KINDS[1:]
        },
        "bytes": sizes,
        "bytes_a_step": {name: round(size / last) for name, size in sizes.items()},
    }


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=4, help="in a block")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.blocks, arguments.steps)
    document = {
        "machine": {
            "processor": next(
                (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?"
            ),
            "cores": os.cpu_count(),
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "relex-codec": relex_codec.__version__,
        },
        "threads": arguments.threads,
        **found,
    }
    print(json.dumps(document, indent=1))
    (RESULTS / "recording.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
