"""One rank of a group that moves the model of the demonstration step by step, and saves it as trainers do.

usage: python sharded_run.py RANK RANKS FOLDER. Each step is saved as accelerate, prime-rl and
NeMo-RL leave it, and as shards.
"""

from __future__ import annotations

import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import relex_codec

BASE = Path(relex_codec.__file__).parent / "demo" / "base"
STEPS = (1, 2, 3)


def move(parameters: Any, step: int) -> None:
    """Change all weights a little, the same on every rank and however they are sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for number, (_, parameter) in enumerate(parameters):
        generator = torch.Generator().manual_seed(1000 * step + number)
        change = 0.01 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if isinstance(parameter, DTensor):
            change = distribute_tensor(change, parameter.device_mesh, parameter.placements)
        with torch.no_grad():
            parameter += change


def main(rank: int, ranks: int, folder: Path) -> None:
    """Save all steps."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from accelerate import PartialState
    from accelerate.utils.fsdp_utils import save_fsdp_model
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import ShardedStateDictConfig, StateDictType, fully_shard
    from transformers import AutoModelForCausalLM

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=120)
    )
    PartialState(cpu=True)  # which accelerate's log wants
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",))
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.5)
    plugin = SimpleNamespace(
        state_dict_type=StateDictType.SHARDED_STATE_DICT, state_dict_config=ShardedStateDictConfig(), fsdp_version=2,
        optim_state_dict_config=None, cpu_ram_efficient_loading=False,
    )  # fmt: skip
    accelerator = SimpleNamespace(num_processes=ranks, process_index=rank, wait_for_everyone=dist.barrier)
    for step in STEPS:
        move(model.named_parameters(), step)
        shards = folder / f"shards/global_step_{step}/actor"
        shards.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), shards / f"model_world_size_{ranks}_rank_{rank}.pt")
        save_fsdp_model(plugin, accelerator, model, str(folder / f"accelerate/checkpoint-{step}"))
        weights, of_optimizer = get_state_dict(model, [optimizer])
        app = {"app": {"model": weights, "optimizers": of_optimizer, "progress": {"step": step}}}
        dcp.save(app, checkpoint_id=folder / f"prime-rl/checkpoints/step_{step}/trainer")
        slices = folder / f"nemo-rl/step_{step}/policy/weights/model"
        writer = HuggingFaceStorageWriter(str(slices), save_distributed=True)
        dcp.save({name: value for name, value in weights.items() if name != "lm_head.weight"},
                 checkpoint_id=slices, storage_writer=writer)  # fmt: skip
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
