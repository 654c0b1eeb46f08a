"""What trainers save with torch: state dicts of plain tensors and of DTensors, as ranks of a group have them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .tensors import Tensor

TORCH = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16,
    "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip


def as_torch(tensor: Tensor) -> torch.Tensor:
    """Return a tensor of torch with these bits."""
    dtype, bits = tensor
    raw = torch.frombuffer(bytearray(np.ascontiguousarray(bits).tobytes() or b"\0" * 8), dtype=torch.uint8)
    return raw[: bits.nbytes].view(TORCH[dtype]).reshape(bits.shape)


def state_dict(tensors: Mapping[str, Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors of torch by name."""
    return {name: as_torch(tensor) for name, tensor in tensors.items()}


@contextmanager
def fake_rank(rank: int, ranks: int) -> Iterator[None]:
    """Be one rank of a group whose others do not exist: enough to make DTensors."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def write_shards(
    folder: Path,
    tensors: Mapping[str, Tensor],
    mesh: Sequence[int],
    *,
    names: Sequence[str] = ("fsdp",),
    placements: Callable[[str], Sequence[Any]] | None = None,
    plain: Sequence[str] = (),
    pad: bool = False,
    change: Callable[[int, dict[str, Any]], None] | None = None,
) -> Path:
    """Write ``model_world_size_W_rank_R.pt`` of every rank, as verl does.

    Args:
        mesh: lengths of the mesh of ranks; `names` are those of its dimensions.
        placements: of each tensor; by default rows along the last dimension of the mesh, alike along the others.
        plain: tensors that are not sharded.
        pad: make all parts of a tensor equally long.
        change: called with each rank and its state dict before that is saved.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    folder.mkdir(parents=True, exist_ok=True)
    ranks = int(np.prod(mesh))
    for rank in range(ranks):
        with fake_rank(rank, ranks):
            device_mesh = init_device_mesh("cpu", tuple(mesh), mesh_dim_names=tuple(names))
            state: dict[str, Any] = {}
            for name, tensor in tensors.items():
                whole = as_torch(tensor)
                if name in plain or not whole.ndim:
                    state[name] = whole
                    continue
                placed = placements(name) if placements else [*[Replicate()] * (len(mesh) - 1), Shard(0)]
                local = whole
                strided = [isinstance(placement, _StridedShard) for placement in placed]
                for axis in sorted(range(len(placed)), key=strided.__getitem__):
                    placement = placed[axis]
                    if isinstance(placement, (Shard, _StridedShard)):
                        parts = torch.chunk(local, mesh[axis], placement.dim)
                        at = np.unravel_index(rank, tuple(mesh))[axis]
                        none = local.narrow(placement.dim, 0, 0)
                        local = parts[at] if at < len(parts) else none
                        if pad:
                            more = list(local.shape)
                            more[placement.dim] = parts[0].shape[placement.dim] - local.shape[placement.dim]
                            local = torch.cat([local, local.new_full(more, 7)], placement.dim)
                state[name] = DTensor.from_local(
                    local.clone(), device_mesh, placed, run_check=False, shape=whole.shape, stride=whole.stride()
                )
            if change:
                change(rank, state)
            torch.save(state, folder / f"model_world_size_{ranks}_rank_{rank}.pt")
    (folder / "fsdp_config.json").write_text(f'{{"FSDP_version": 2, "world_size": {ranks}}}')
    (folder / "huggingface").mkdir(exist_ok=True)
    (folder / "huggingface" / "config.json").write_text('{"model_type": "test"}')
    return folder


def quiet_gloo() -> dict[str, str]:
    """Return the environment of a process that is a rank of a group on this machine."""
    return {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
