"""What there is to record: the tensors of a state dict, and which part of each this rank holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

import torch

from relex_codec.core.text import quote
from relex_codec.core.torch_dtypes import DTYPES
from relex_codec.errors import InvalidArgument
from relex_codec.journal.boxes import Box

NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
"""Names of torch's dtypes in safetensors files."""
Names = Mapping[str, str | None] | Callable[[str], str | None] | None
"""What tensors are called in the base that have another name in the state; None for one that is left out."""


class Local(NamedTuple):
    """A tensor of a state, as this rank holds it.

    Attributes:
        dtype: by its safetensors name.
        box: which part of the tensor it is.
        values: the part, on whichever device; None: another rank records it.
        whole: whether each rank that has the tensor has all of it.
    """

    name: str
    dtype: str
    box: Box
    values: torch.Tensor | None
    whole: bool


def tensors_of(state: Any, names: Names, prefix: str, known: Collection[str]) -> dict[str, Local]:
    """Return the tensors of a state dict or a module by the names that they have in the base.

    Args:
        state: see above.
        names: see `Names`.
        prefix: before all names in the state; what does not begin with it is refused.
        known: names of the base. Of tensors that share their memory, those that the base has are kept, or the first.

    Raises:
        InvalidArgument: something in it is no tensor, or cannot be recorded.
    """
    if isinstance(state, torch.nn.Module):
        state = state.state_dict()
    if not isinstance(state, Mapping):
        raise InvalidArgument(f"cannot record a {type(state).__name__}; give a state dict, a module or a directory")
    found: dict[str, Local] = {}
    memory: dict[object, list[str]] = {}
    for key, value in state.items():
        if str(key).endswith("_extra_state"):
            continue
        name = _renamed(str(key), names, prefix)
        if name is None:
            continue
        if not isinstance(value, torch.Tensor):
            raise InvalidArgument(
                f"cannot record {quote(key)}, a {type(value).__name__}: expected tensors by name, as model.state_dict()"
            )
        if name in found:
            raise InvalidArgument(f"two tensors of the state are called {quote(name)}; change `names`")
        found[name] = _local(name, value)
        if (place := _memory_of(value)) is not None:
            memory.setdefault(place, []).append(name)
    for tied in memory.values():
        kept = [name for name in tied if name in known] or tied[:1]
        for name in tied:
            if name not in kept:
                del found[name]
    if not found:
        raise InvalidArgument("the state has no tensors")
    return found


def _renamed(key: str, names: Names, prefix: str) -> str | None:
    if not key.startswith(prefix):
        raise InvalidArgument(f"tensor {quote(key)} of the state does not begin with the prefix {quote(prefix)}")
    name = key[len(prefix) :]
    if names is None:
        return name
    return names(name) if callable(names) else names.get(name, name)


def _memory_of(value: torch.Tensor) -> object | None:
    """Return what is the same for tensors that are the same memory; None for one without elements."""
    local = _to_local(value)
    if not local.numel() or local.is_meta:
        return None
    return local.device, local.data_ptr(), tuple(value.shape), tuple(local.stride()), local.dtype


def _to_local(value: torch.Tensor) -> torch.Tensor:
    to_local = getattr(value, "to_local", None)
    return value if to_local is None else to_local()


def _local(name: str, value: torch.Tensor) -> Local:
    local = _to_local(value).detach()
    if local.is_meta:
        raise InvalidArgument(f"tensor {quote(name)} is on the meta device; record it when it has values")
    if local.is_sparse or local.is_quantized or local.dtype not in NAMES:
        raise InvalidArgument(f"tensor {quote(name)} is {local.dtype} ({local.layout}), which is not supported")
    dtype = NAMES[local.dtype]
    if not hasattr(value, "placements"):
        if hasattr(value, "local_shards"):
            raise InvalidArgument(
                f"tensor {quote(name)} is a ShardedTensor of FSDP1; record a full state dict, or use FSDP2"
            )
        return Local(name, dtype, Box.whole(local.shape), local, True)
    box, mine = _placed(name, value)
    if mine and box.size != tuple(local.shape):
        raise InvalidArgument(f"tensor {quote(name)} has the shape {list(local.shape)} here, expected {list(box.size)}")
    return Local(name, dtype, box, local if mine and box.elements else None, False)


def _placed(name: str, value: Any) -> tuple[Box, bool]:
    """Return which part of a DTensor is here, and whether it is this rank that records it."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = value.device_mesh, value.placements
    coordinate = mesh.get_coordinate()
    shape = tuple(value.shape)
    if coordinate is None:
        return Box(shape, (0,) * len(shape), (0,) * len(shape)), False
    if any(placement.is_partial() for placement in placements):
        raise InvalidArgument(f"tensor {quote(name)} is a sum that is not made yet (Partial); redistribute it first")
    size, offset = compute_local_shape_and_global_offset(value.shape, mesh, placements)
    mine = all(at == 0 for at, one in zip(coordinate, placements, strict=True) if one.is_replicate())
    box = Box(shape, tuple(min(o, n) for o, n in zip(offset, shape, strict=True)), tuple(size))
    return box, mine


def check_same(found: Mapping[str, Local], expected: Iterable[tuple[str, str, Box]], known: Collection[str]) -> None:
    """Refuse a state whose tensors are not those of the steps before.

    Args:
        found: what is to be recorded.
        expected: name, dtype and box of each part that this rank records.
        known: all tensors of the steps before.

    Raises:
        InvalidArgument: names, dtypes, shapes or placements differ; the message names the tensor.
    """
    for name in found:
        if name not in known:
            raise InvalidArgument(f"tensor {quote(name)} is not part of the steps before")
    for name in sorted(known):
        if name not in found:
            raise InvalidArgument(f"tensor {quote(name)} is part of the steps before, but not of this one")
    for name, dtype, box in expected:
        local = found[name]
        if (local.dtype, local.box.shape) != (dtype, box.shape):
            raise InvalidArgument(
                f"tensor {quote(name)} is {local.dtype} {list(local.box.shape)}, "
                f"expected {dtype} {list(box.shape)} as in the steps before"
            )
        if local.box != box or local.values is None:
            raise InvalidArgument(
                f"this rank has another part of tensor {quote(name)} than before: {list(local.box.size)} at "
                f"{list(local.box.offset)}, expected {list(box.size)} at {list(box.offset)}"
            )
