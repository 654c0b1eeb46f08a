"""What reading and encoding trainers' own files costs, against whole safetensors of the same run.

usage: python benchmarks/trainers_files.py

Makes a run of six steps of 12.6 million BF16 weights in a temporary directory, once for each kind of checkpoint, and
measures for each: the bytes and requests that reading all of it in slices of 2^18 elements takes on a remote
filesystem, the peak of what Python and numpy allocate meanwhile, and the processor time of reading and of `encode` with
`exact` from the local disk. Writes benchmarks/results/trainers_files.md.
"""

from __future__ import annotations

import platform
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem
from torch.distributed.checkpoint.state_dict_saver import save

import relex_codec
from relex_codec.checkpoints.base_model import open_base
from relex_codec.checkpoints.checkpoint import CheckpointSeries
from relex_codec.checkpoints.discovery import find_run
from relex_codec.checkpoints.series import open_series
from support.checkpoints import write_checkpoint
from support.tensors import Tensor, bf16
from support.torch_files import state_dict, write_shards

RESULTS = Path(__file__).parent / "results"
STEPS = (10, 20, 30, 40, 50, 60)
SLICE = 1 << 18
SIDE = 2048
SHAPES = {f"model.layers.{i}.weight": (SIDE, SIDE) for i in range(3)} | {"model.norm.weight": (SIDE,)}


class Counted(LocalFileSystem):  # type: ignore[misc]
    """Local files, read as if they were remote; what is asked for is counted."""

    protocol = "counted"
    taken = 0
    requests = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:
        return super()._strip_protocol(path.removeprefix("counted://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Read a range."""
        data: bytes = super().cat_file(path, start, end, **kwargs)
        Counted.taken += len(data)
        Counted.requests += 1
        return data


def whole(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Whole safetensors."""
    write_checkpoint(folder, tensors)


def distributed(folder: Path, tensors: dict[str, Tensor]) -> None:
    """A checkpoint of torch.distributed, with optimizer states of twice the model's size."""
    model = state_dict(tensors)
    states = {name: {"exp_avg": tensor.float()} for name, tensor in model.items()}
    app = {"app": {"model": model, "optimizers": {"state": states}}}
    save(app, checkpoint_id=folder / "trainer", no_dist=True)


def shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """FSDP shards of eight ranks."""
    write_shards(folder / "actor", tensors, (8,))


def pickled(folder: Path, tensors: dict[str, Tensor]) -> None:
    """A file of torch.save."""
    folder.mkdir(parents=True)
    torch.save(state_dict(tensors), folder / "pytorch_model.bin")


KINDS: dict[str, Callable[[Path, dict[str, Tensor]], None]] = {
    "whole safetensors": whole, "torch.distributed": distributed, "FSDP shards, 8 ranks": shards,
    "`pytorch_model.bin`": pickled,
}  # fmt: skip


def weights(step: int) -> dict[str, Tensor]:
    """Return the weights of a step: sparse moves, as of RLVR runs in BF16."""
    found = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        start = np.random.default_rng(number).standard_normal(shape, np.float32) * 0.02
        drift = np.random.default_rng(100 + number).standard_normal(shape, np.float32) * 1e-6
        found[name] = bf16(start + step * drift)
    return found


def read_all(series: CheckpointSeries) -> None:
    """Read every tensor at all steps, slice by slice, as encoding does."""
    for name in series.names:
        size = series.info(name).size
        for lo in range(0, size, SLICE):
            series.read(name, lo, min(lo + SLICE, size))


def measured(run: Path, base: Path, file: Path) -> list[str]:
    """Return the cells of one kind."""

    def opened(root: str) -> CheckpointSeries:
        return open_series(find_run(root, allow_pickle=True), base=open_base(base))

    total = 2 * sum(int(np.prod(shape)) for shape in SHAPES.values()) * len(STEPS)
    Counted.taken = Counted.requests = 0
    series = opened(f"counted://{run}")
    series.check()
    headers = Counted.requests
    read_all(series)
    tracemalloc.start()
    read_all(opened(str(run)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    began = time.process_time()
    read_all(opened(str(run)))
    reading = time.process_time() - began
    began = time.process_time()
    relex_codec.encode(run, file, base=base, base_uri="base", exact=True, allow_pickle=True, overwrite=True)
    encoding = time.process_time() - began
    return [
        f"{Counted.taken / total:.3f}", f"{headers / len(STEPS):.1f}",
        f"{(Counted.requests - headers) / len(STEPS) / len(SHAPES):.1f}", f"{peak / 1e6:.0f} MB",
        f"{reading:.2f} s", f"{encoding:.1f} s",
    ]  # fmt: skip


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    head = ["kind", "bytes read / bytes of weights", "requests to open a step", "requests a tensor and step",
            "peak of memory", "reading, processor time", "encoding with exact, processor time"]  # fmt: skip
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Measure all kinds."""
    warnings.simplefilter("ignore")
    fsspec.register_implementation("counted", Counted)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_checkpoint(root / "base", weights(0))
        contents = set()
        for number, (kind, write) in enumerate([("", whole), *KINDS.items()]):  # the first one compiles
            run = root / f"run{number}"
            for step in STEPS:
                write(run / f"step_{step}", weights(step))
            cells = measured(run, root / "base", root / "x.relex")
            contents.add((root / "x.relex").read_bytes())
            if kind:
                rows.append([kind, *cells])
                print(rows[-1], flush=True)
        assert len(contents) == 1, "the file is not the same for all kinds"
    count = sum(int(np.prod(shape)) for shape in SHAPES.values())
    versions = f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    text = f"Six steps of {count:,} BF16 weights; {versions}. The file is the same, byte for byte, for all kinds.\n\n"
    (RESULTS / "trainers_files.md").write_text(text + table(rows))


if __name__ == "__main__":
    main()
