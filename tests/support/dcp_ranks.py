"""One rank of the tests of torch.distributed.checkpoint: loads a step into sharded modules and reports as JSON.

usage: python dcp_ranks.py RANK RANKS STORE FILE BASE. Started by test_dcp.py; its last line is its report.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from typing import Any

import fsspec
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fsspec.implementations.local import LocalFileSystem
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import relex_codec

STEP = 7.5


class Counted(LocalFileSystem):
    """Local files that count the bytes that are read."""

    protocol = "counted"
    taken = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:
        return super()._strip_protocol(path.removeprefix("counted://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        data: bytes = super().cat_file(path, start, end, **kwargs)
        Counted.taken += len(data)
        return data


class Block(torch.nn.Module):
    """Two matrices of several pieces, a norm of an odd length, a buffer."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.up = torch.nn.Linear(1024, 1100, bias=False, dtype=dtype)
        self.down = torch.nn.Linear(1100, 1024, bias=False, dtype=dtype)
        self.norm = torch.nn.RMSNorm(51, dtype=dtype)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def load(module: torch.nn.Module, file: str, base: str, **options: Any) -> int:
    """Load the step, and return the bytes that were read for that once the file was open."""
    state = module.state_dict()
    with torch.no_grad():
        for value in state.values():
            value.zero_()
    reader = relex_codec.RelexStorageReader(file, STEP, base=base, **options)
    prefix = options.get("key_prefix", "")
    before = Counted.taken
    dcp.load({prefix + name: value for name, value in state.items()}, storage_reader=reader)
    taken = Counted.taken - before
    reader.close()
    return taken


def same(module: torch.nn.Module, whole: dict[str, torch.Tensor], dims: dict[str, int]) -> bool:
    """Whether every shard has the bits of its part of the whole tensor; `dims` says along which dimension it is cut."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for name, value in module.state_dict().items():
        expected = whole[name].to(value.dtype)
        if isinstance(value, DTensor):
            value = value.to_local()
            if name in dims:
                expected = torch.chunk(expected, ranks, dims[name])[rank]
        if value.shape != expected.shape or not torch.equal(value, expected):
            return False
    return True


def main(rank: str, ranks: str, store: str, file: str, base: str) -> None:
    fsspec.register_implementation("counted", Counted)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(ranks), timeout=timedelta(seconds=60)
    )
    with relex_codec.open(file, base=base) as run:
        whole = run.state_dict(STEP)
    mesh = init_device_mesh("cpu", (int(ranks),))
    report: dict[str, Any] = {}

    plain = Block()
    report["plain"] = [load(plain, file, base), same(plain, whole, {})]

    sharded = Block()
    for layer in (sharded.up, sharded.down, sharded):
        fully_shard(layer, mesh=mesh)
    rows = {"up.weight": 0, "down.weight": 0, "norm.weight": 0}
    report["fsdp"] = [load(sharded, file, base), same(sharded, whole, rows)]

    wide = Block(torch.float32)  # master weights
    fully_shard(wide, mesh=mesh)
    report["fsdp in float32"] = [load(wide, file, base, key_prefix="actor."), same(wide, whole, rows)]

    parallel = parallelize_module(Block(), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    cut = {"up.weight": 0, "down.weight": 1}
    report["tensor parallel"] = [load(parallel, file, base), same(parallel, whole, cut)]

    try:
        load(torch.nn.ModuleDict({"other": torch.nn.Linear(2, 2)}), file, base)
    except dcp.CheckpointException as error:
        report["missing"] = str(error)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
