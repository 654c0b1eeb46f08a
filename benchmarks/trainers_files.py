"""What reading and encoding trainers' own files costs, against whole safetensors of the same run.

usage: python benchmarks/trainers_files.py

Makes a run of six steps of 12.6 million BF16 weights in a temporary directory, once for each kind of checkpoint, and
measures for each: the bytes and requests that reading all of it in slices of 2^18 elements takes on a remote
filesystem, the peak of what Python and numpy allocate meanwhile, and the processor time of reading and of `encode` with
`exact` from the local disk. Then a run of adapters, once as PEFT saves them and once within shards of a model that is
wrapped, and what opening a step costs whose metadata tell of 25,600 chunks. Writes
benchmarks/results/trainers_files.md.
"""

from __future__ import annotations

import pickle
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
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import Shard
from torch.distributed.tensor.placement_types import _StridedShard

import relex_codec
from relex_codec.checkpoints.base_model import open_base
from relex_codec.checkpoints.checkpoint import CheckpointSeries
from relex_codec.checkpoints.dcp import open_dcp
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


def crossed(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Shards of eight ranks, four of FSDP2 over two of tensor parallelism, which cut the same rows."""
    placed = [_StridedShard(0, split_factor=2), Shard(0)]
    write_shards(folder / "actor", tensors, (4, 2), names=("fsdp", "tp"), placements=lambda name: placed)


def shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """FSDP shards of eight ranks."""
    write_shards(folder / "actor", tensors, (8,))


def pickled(folder: Path, tensors: dict[str, Tensor]) -> None:
    """A file of torch.save."""
    folder.mkdir(parents=True)
    torch.save(state_dict(tensors), folder / "pytorch_model.bin")


KINDS: dict[str, Callable[[Path, dict[str, Tensor]], None]] = {
    "whole safetensors": whole, "torch.distributed": distributed, "FSDP shards, 8 ranks": shards,
    "FSDP2 over tensor parallelism, 8 ranks": crossed, "`pytorch_model.bin`": pickled,
}  # fmt: skip


def adapter(folder: Path, tensors: dict[str, Tensor]) -> None:
    """What PEFT saves."""
    write_checkpoint(folder, tensors)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 16, "lora_alpha": 16}')


def wrapped(folder: Path, tensors: dict[str, Tensor]) -> None:
    """FSDP shards of eight ranks, of the whole model with the adapter in it, as verl saves it."""
    inner = {name.replace(".weight", ".default.weight"): tensor for name, tensor in tensors.items()}
    base = {
        f"base_model.model.{name.replace('.weight', '.base_layer.weight')}": tensor
        for name, tensor in weights(0).items()
        if len(SHAPES[name]) == 2
    }
    write_shards(folder / "actor", base | inner, (8,))
    (folder / "actor" / "lora_train_meta.json").write_text('{"r": 16, "lora_alpha": 16}')


ADAPTERS: dict[str, Callable[[Path, dict[str, Tensor]], None]] = {
    "adapters of PEFT": adapter, "adapters within a wrapped model, FSDP shards, 8 ranks": wrapped
}  # fmt: skip


def adapter_weights(step: int) -> dict[str, Tensor]:
    """Return an adapter of rank 16 on each matrix."""
    found = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        if len(shape) == 2:
            for part, sizes in (("A", (16, shape[1])), ("B", (shape[0], 16))):
                random = np.random.default_rng(1000 * step + 10 * number + len(part))
                value = random.standard_normal(sizes, np.float32) * 0.02
                found[f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight"] = bf16(value)
    return found


CHUNKED, CHUNKS = 400, 64
"""Tensors, and chunks of each, of metadata of a large run."""


def write_metadata(folder: Path, step: int, shift: int) -> None:
    """Write what 64 ranks would, the weights being holes in the files."""
    described: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    for number in range(CHUNKED):
        key = f"app.model.model.layers.{number}.weight"
        chunks = [ChunkStorageMetadata(torch.Size([64 * rank, 0]), torch.Size([64, 1024])) for rank in range(CHUNKS)]
        described[key] = TensorStorageMetadata(
            TensorProperties(dtype=torch.bfloat16), torch.Size([64 * CHUNKS, 1024]), chunks
        )
        for rank, chunk in enumerate(chunks):
            at = MetadataIndex(key, chunk.offsets, rank)
            places[at] = _StorageInfo(f"__{rank}_0.distcp", shift + number * 132_000, 132_000)
    about = StorageMeta(checkpoint_id=folder, save_id=f"{step:036d}")
    found = Metadata(described, {key: tuple(key.split(".")) for key in described}, places, about)
    folder.mkdir(parents=True)
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    for rank in range(CHUNKS):
        with (folder / f"__{rank}_0.distcp").open("wb") as file:
            file.truncate(shift + CHUNKED * 132_000)


def opening_steps(root: Path) -> str:
    """Return a line on what opening steps of 25,600 chunks takes, that begin alike or not."""
    names = [f"model.layers.{number}.weight" for number in range(CHUNKED)]
    spent: list[list[float]] = [[], [], []]
    for step, shift in enumerate((0, 0, 64)):
        write_metadata(root / f"step_{step}", step, shift)
    for _ in range(3):
        known: dict[bytes, Any] = {}
        for step, times in enumerate(spent):
            began = time.process_time()
            open_dcp(f"{root}/step_{step}/.metadata", names=names, known=known)
            times.append(time.process_time() - began)
    first, alike, other = map(min, spent)
    return (
        f"Opening a distributed checkpoint of {CHUNKED * CHUNKS:,} chunks takes {first:.2f} s of processor time at the "
        f"first step, {alike:.3f} s at later ones with the same places of chunks, and {other:.2f} s at one where they "
        "lie elsewhere (best of 3).\n"
    )


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


def measured(run: Path, base: Path, file: Path, shapes: Sequence[Sequence[int]]) -> list[str]:
    """Return the cells of one kind; `shapes` are those of the tensors."""

    def opened(root: str) -> CheckpointSeries:
        return open_series(find_run(root, allow_pickle=True), base=open_base(base))

    total = 2 * sum(int(np.prod(shape)) for shape in shapes) * len(STEPS)
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
        f"{(Counted.requests - headers) / len(STEPS) / len(shapes):.1f}", f"{peak / 1e6:.0f} MB",
        f"{reading:.2f} s", f"{encoding:.1f} s",
    ]  # fmt: skip


def check(file: Path, base: Path, tensors_at: Callable[[int], dict[str, Tensor]]) -> None:
    """Check that a file gives every step bit for bit, whatever kind it was read from."""
    with relex_codec.open(file, base=base) as run:
        for step in STEPS:
            for name, (_, bits) in tensors_at(step).items():
                found = run.tensor(name, step=step).view(torch.uint8).numpy()
                assert found.tobytes() == bits.tobytes(), (name, step)


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
        lists: list[tuple[Any, Any]] = [
            (dict([("", whole), *KINDS.items()]), weights), (ADAPTERS, adapter_weights)
        ]  # fmt: skip
        for kinds, tensors_at in lists:  # the first kind of all compiles
            for number, (kind, write) in enumerate(kinds.items()):
                run = root / f"{tensors_at.__name__}-{number}"
                for step in STEPS:
                    write(run / f"step_{step}", tensors_at(step))
                shapes = [bits.shape for _, bits in tensors_at(0).values()]
                cells = measured(run, root / "base", root / "x.relex", shapes)
                check(root / "x.relex", root / "base", tensors_at)
                if kind:
                    rows.append([kind, *cells])
                    print(rows[-1], flush=True)
        line = opening_steps(root / "chunks")
    count = sum(int(np.prod(shape)) for shape in SHAPES.values())
    versions = f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    text = (
        f"Six steps of {count:,} BF16 weights, and of adapters of rank 16 to them; {versions}. Every step "
        "comes back bit for bit from each file.\n\n"
    )
    (RESULTS / "trainers_files.md").write_text(text + table(rows) + f"\n{line}")


if __name__ == "__main__":
    main()
