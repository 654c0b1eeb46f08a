"""One rank of a group whose model is saved by verl's own FSDPCheckpointManager.

usage: python verl_run.py RANK RANKS FOLDER

Leaves runs of what verl trains: FSDP2, LoRA with whole models and with the adapter alone, and with more than one rank
FSDP1; with four, groups of two that hold the same (HSDP), and tensor parallelism below FSDP2. Beside these last ones,
which verl's model_merger does not read, lie the whole tensors that torch makes of them.
"""

from __future__ import annotations

import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

import relex_codec

BASE = Path(relex_codec.__file__).parent / "demo" / "base"
STEPS = (1, 2)
SCALING = {"r": 3, "lora_alpha": 6}


def move(model: Any, step: int) -> None:
    """Change the weights that are trained a little, the same on every rank and however they are sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    for number, (_, parameter) in enumerate(model.named_parameters()):
        if not parameter.requires_grad:
            continue
        generator = torch.Generator().manual_seed(1000 * step + number)
        change = 0.01 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        if isinstance(parameter, DTensor):
            # all of it on each rank first: of a tensor cut twice, `distribute_tensor` makes the parts in another order
            with torch.no_grad():
                whole = parameter.full_tensor() + change
                parameter.copy_(_cut_alike(whole, parameter, distribute_tensor))
        else:
            with torch.no_grad():
                parameter += change


def _cut_alike(whole: Any, like: Any, distribute: Any) -> Any:
    from torch.distributed.tensor import Replicate

    same = distribute(whole, like.device_mesh, [Replicate()] * like.device_mesh.ndim, src_data_rank=None)
    return same.redistribute(like.device_mesh, like.placements)


def loaded() -> Any:
    """Return the model of the demonstration."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16)


def with_adapter() -> Any:
    """Return it with an adapter in its own dtype: verl's model_merger rounds everything to BF16."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    config = LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **SCALING)  # type: ignore[arg-type]
    return get_peft_model(loaded(), config, autocast_adapter_dtype=False)


def sharded(model: Any, mesh: Any) -> Any:
    """Shard a model as verl does, layer by layer."""
    from torch.distributed.fsdp import fully_shard

    inner = model.base_model.model if hasattr(model, "peft_config") else model
    for layer in inner.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(model: Any, mesh: Any) -> Any:
    """Cut the matrices of a model between ranks, along rows or columns."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {
        "mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel(),
        "self_attn.q_proj": ColwiseParallel(), "self_attn.o_proj": RowwiseParallel(),
    }  # fmt: skip
    for layer in model.model.layers:
        parallelize_module(layer, mesh, plan)
    return model


def save(folder: Path, model: Any, *, lora_only: bool = False, whole: bool = False) -> None:
    """Save all steps.

    Args:
        whole: also save what torch makes of the shards.
    """
    from torch.distributed.tensor import DTensor
    from transformers import AutoTokenizer
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    manager = FSDPCheckpointManager(
        model=model, optimizer=optimizer, lr_scheduler=scheduler,
        processing_class=AutoTokenizer.from_pretrained(BASE),
        checkpoint_config={"save_contents": ["model", "optimizer", "extra"], "save_lora_only": lora_only},
    )  # fmt: skip
    for step in STEPS:
        move(model, step)
        manager.save_checkpoint(str(folder / f"global_step_{step}" / "actor"), global_step=step)
        if whole:
            state = {
                name: value.full_tensor() if isinstance(value, DTensor) else value
                for name, value in model.state_dict().items()
            }
            if torch.distributed.get_rank() == 0:
                torch.save(state, folder.parent / f"{folder.name}-{step}.pt")


def main(rank: int, ranks: int, folder: Path) -> None:
    """Save all runs."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=120)
    )
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",))
    save(folder / "fsdp2", sharded(loaded(), mesh))
    save(folder / "lora", sharded(with_adapter(), mesh))
    save(folder / "lora-only", sharded(with_adapter(), mesh), lora_only=True)
    if ranks > 1:
        model = loaded()
        for step in STEPS:
            move(model, step)
        wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"), device_mesh=mesh, use_orig_params=True)
        save(folder / "fsdp1", wrapped)
    if ranks == 4:
        groups = init_device_mesh("cpu", (2, 2), mesh_dim_names=("ddp", "fsdp"))
        save(folder / "hsdp", sharded(loaded(), groups), whole=True)
        both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
        save(folder / "tp", sharded(tensor_parallel(loaded(), both["tp"]), both["fsdp"]), whole=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
