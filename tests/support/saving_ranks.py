"""One rank of a group that saves a module in every way that trainers do, and how such a group is started.

usage: python saving_ranks.py RANK RANKS FOLDER. What the model is follows from the seed, so that a reader knows it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch


def module() -> torch.nn.Module:
    """Return the module before any training: matrices, a norm of an odd length, a buffer."""
    torch.manual_seed(5)
    made = torch.nn.Sequential(
        torch.nn.Linear(9, 5, dtype=torch.bfloat16),
        torch.nn.Linear(5, 64, bias=False, dtype=torch.bfloat16),
        torch.nn.RMSNorm(64, dtype=torch.bfloat16),
    )
    made.register_buffer("count", torch.tensor(3))
    return made


def trained() -> dict[str, torch.Tensor]:
    """Return what the ranks save."""
    found = module()
    _train(found)
    return dict(found.state_dict())


def _train(found: torch.nn.Module) -> torch.optim.Optimizer:
    """A step on inputs that are the same on all ranks; the signs alone decide, so that all ways of sharding agree."""
    optimizer = torch.optim.SGD(found.parameters(), lr=0.125, momentum=0.5)
    for parameter in found.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def start(ranks: int, folder: Path, timeout: float = 150) -> None:
    """Let a group of ranks save into a folder; a rank that fails or hangs fails here."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    if sys.platform != "linux":
        del environment["GLOO_SOCKET_IFNAME"]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(ranks), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    deadline = time.monotonic() + timeout
    try:
        ends = [process.communicate(timeout=max(1.0, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]


def main(rank: int, ranks: int, folder: Path) -> None:
    """Save as FSDP2, FSDP1 with and without a mesh, DCP of several kinds, slices of safetensors."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardedStateDictConfig, StateDictType, fully_shard

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=60)
    )
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",))

    def save(kind: str, state: Any) -> None:
        (folder / kind).mkdir(exist_ok=True)
        torch.save(state, folder / kind / f"model_world_size_{ranks}_rank_{rank}.pt")

    sharded = module()
    for layer in (sharded[0], sharded[1], sharded):  # type: ignore[index]
        fully_shard(layer, mesh=mesh)
    optimizer = _train(sharded)
    save("fsdp2", sharded.state_dict())
    model, of_optimizer = get_state_dict(sharded, [optimizer])
    app = {"app": {"model": model, "optimizers": of_optimizer, "progress": {"step": 3}}}
    dcp.save(app, checkpoint_id=folder / "dcp")
    if hasattr(dcp, "HuggingFaceStorageWriter"):  # from torch 2.7 on
        writer = dcp.HuggingFaceStorageWriter(str(folder / "slices"), save_distributed=True)
        dcp.save(model, checkpoint_id=folder / "slices", storage_writer=writer)
    for kind, device_mesh in (("fsdp1", None), ("fsdp1 on a mesh", mesh)):
        old = module()
        _train(old)
        wrapped = FullyShardedDataParallel(old, device_id=torch.device("cpu"), device_mesh=device_mesh)
        with FullyShardedDataParallel.state_dict_type(
            wrapped, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(offload_to_cpu=False)
        ):
            save(kind, wrapped.state_dict())
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
