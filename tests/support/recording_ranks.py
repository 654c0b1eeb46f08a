"""One rank of the tests of recording: records sharded modules and reports as JSON.

usage: python recording_ranks.py RANK RANKS STORE RUN BASE JOURNAL. Started by test_recording_ranks.py; its last line is
its report. RUN has the weights of each step.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import relex_codec
from support.dcp_ranks import Block


def train(module: torch.nn.Module, run: str, step: int) -> None:
    """Give a module the weights of a step, each rank its own part of them."""
    whole = load_file(Path(run) / f"global_step_{step}" / "model.safetensors")
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if isinstance(value, DTensor):
                part = distribute_tensor(whole[name].to(value.dtype), value.device_mesh, value.placements)
                value.to_local().copy_(part.to_local())
            else:
                value.copy_(whole[name])


def held(recorder: relex_codec.Recorder) -> int:
    """How many elements this rank keeps of a step."""
    return sum(part.box.elements for part in recorder._recording.parts)


def main(rank: str, ranks: str, store: str, run: str, base: str, journal: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(ranks), timeout=timedelta(seconds=60)
    )
    mesh = init_device_mesh("cpu", (int(ranks),))
    report: dict[str, Any] = {}

    sharded = Block()
    for layer in (sharded.up, sharded.down, sharded):
        fully_shard(layer, mesh=mesh)
    with relex_codec.Recorder(journal, base=base) as recorder:
        for step in (1, 2, 3):
            train(sharded, run, step)
            recorder.add(step, sharded)
        report["fsdp"] = held(recorder)
        try:
            relex_codec.Recorder(journal, base=base)
        except relex_codec.InvalidArgument as error:
            report["second"] = str(error)
    dist.barrier()

    parallel = parallelize_module(Block(), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    with relex_codec.Recorder(journal, after=2) as recorder:
        for step in (4, 5):
            train(parallel, run, step)
            recorder.add(step, parallel.state_dict())
        report["tensor parallel"] = held(recorder)
    dist.barrier()

    replicated = Block()
    fully_shard(replicated, mesh=init_device_mesh("cpu", (int(ranks), 1), mesh_dim_names=("replicate", "shard")))
    recorder = relex_codec.Recorder(journal)
    train(replicated, run, 6)
    recorder.add(6, replicated)
    report["replicated"] = held(recorder)
    recorder.flush()
    if rank == "0":
        recorder.add(7, {name: torch.zeros_like(value) for name, value in replicated.state_dict().items()})
    else:  # it misses the step, and then records no more: the others have gone on
        for step, bad in ((7, {"up.weight": torch.zeros(3)}), (8, replicated)):
            try:
                recorder.add(step, bad)
            except relex_codec.InvalidArgument as error:
                report.setdefault("missed", []).append(str(error))
    recorder.close()
    dist.barrier()
    report["finish"] = recorder_of(journal).finish(Path(journal).with_suffix(".relex"))
    dist.destroy_process_group()
    sys.stdout.write(json.dumps(report) + "\n")


def recorder_of(journal: str) -> relex_codec.Recorder:
    """A recorder that only finishes."""
    return relex_codec.Recorder(journal)


if __name__ == "__main__":
    main(*sys.argv[1:])
