"""Writing only what changes between two steps, where the engine's parameters lie as the checkpoint has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import torch

from .bits import unequal

FEW: Final = 0.25
"""Share of a tensor's elements up to which they are written alone; beyond, all of the tensor is."""
PRODUCT: Final = "cpu_linear"
"""The attribute of a layer that multiplies, on CPUs."""
_TOGETHER: Final = 512 << 20
"""Bytes of tensors that go to the model's loader at a time."""


def takes_patches(model: torch.nn.Module, quantization: str | None) -> bool:
    """Tell whether a model's parameters may be written one by one: they are as the checkpoint has them, and so used.

    Not so where vLLM quantises them, or packs them for oneDNN: what is used would stay what it was.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.platforms import current_platform

    if quantization is not None:
        return False
    for layer in model.modules():
        if current_platform.is_cpu() and is_packed(layer.__dict__.get(PRODUCT)):
            return False
        loaded = get_layerwise_info(layer).restore_metadata[0]
        for name, one in layer.named_parameters(recurse=False):
            meant = loaded.get(name, one)
            if (meant.shape, meant.dtype, meant.stride()) != (one.shape, one.dtype, one.stride()):
                return False
    return True


def is_packed(multiply: Any) -> bool:
    """Whether what a layer multiplies with is something else than its weights: a closure holds what is packed."""
    return bool(getattr(multiply, "__closure__", None))


class Change(NamedTuple):
    """What of a tensor changes, in the fields of vLLM's ``CheckpointWeightPatch`` and of ours.

    Attributes:
        indices: None where `values` are all of the tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: torch.Tensor
    indices: torch.Tensor | None


def change(name: str, before: torch.Tensor, after: torch.Tensor) -> Change | None:
    """Return what makes a tensor another one; None if it is that already.

    All of it where more than `FEW` of its elements change, and where one becomes NaN: to vLLM it then stays as it is.
    """
    changed = unequal(before, after).reshape(-1)
    indices = changed.nonzero().reshape(-1)
    if not len(indices):
        return None
    values = after.reshape(-1)
    if len(indices) > FEW * len(values) or not after.is_floating_point() or bool(values[indices].isnan().any()):
        return Change(name, tuple(after.shape), after.dtype, values, None)
    return Change(name, tuple(after.shape), after.dtype, values[indices], indices)


def changes(before: Iterable[tuple[str, torch.Tensor]], after: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Change]:
    """Yield what changes between two steps of a run that have the same tensors."""
    for (name, old), (_, new) in zip(before, after, strict=True):
        found = change(name, old, new)
        if found is not None:
            yield found


def apply(model: torch.nn.Module, found: Iterable[Change]) -> int:
    """Write changes into a model through its own loaders, and return how many elements that were."""
    from vllm.model_executor.model_loader.checkpoint_weight_patch import (
        CheckpointWeightPatch,
        load_checkpoint_weight_patches,
    )

    written = 0
    for together in _batches(found):
        patches = [CheckpointWeightPatch(*one) for one in together]
        load_checkpoint_weight_patches(model, patches, validate_unique_indices=False)
        written += sum(one.values.numel() for one in together)
    return written


def _batches(found: Iterable[Change]) -> Iterator[list[Change]]:
    """Yield changes in lists of one kind, as vLLM takes either whole tensors or parts of them at a time."""
    waiting: dict[bool, list[Change]] = {True: [], False: []}
    size = {True: 0, False: 0}
    for one in found:
        whole = one.indices is None
        waiting[whole].append(one)
        size[whole] += torch.Size(one.shape).numel() * one.values.element_size()
        if size[whole] > _TOGETHER:
            yield waiting[whole]
            waiting[whole], size[whole] = [], 0
    yield from filter(None, waiting.values())
