"""Whether a model's weights are those of a step: a reload that compares where it would write.

vLLM's own loaders say where a tensor of a checkpoint goes, what of it a rank takes and how it is converted or
quantised. So the model is reloaded by them, while a mode of torch's dispatcher compares the bits that would be written
into the engine's tensors with those that are there. Nothing of the engine is changed, and a layer's memory is taken at
a time.

On CPUs vLLM packs matrices for oneDNN and throws them away. What is packed is read back by multiplying it with the
identity, which is exact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from relex_codec.errors import Unsupported

from .bits import differing, sha256
from .patching import PRODUCT, is_packed

_ROWS = 256
"""Rows of the identity that packed matrices are multiplied with at a time."""
_WRITES = {torch.ops.aten.copy_.default, torch.ops.aten.fill_.Scalar, torch.ops.aten.zero_.default}


@dataclass
class Compared:
    """What a comparison found.

    Attributes:
        different: names of the engine's tensors that are not as they should be, and how many elements of each.
        unchecked: parameters that nothing of the step goes to.
        digest: SHA-256 of names and bits of all that was compared, as it is in the engine.
        values: number of elements that were compared.
    """

    different: dict[str, int] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    digest: str = ""
    values: int = 0


class _Comparing(TorchDispatchMode):
    """Turns writes into the engine's tensors into comparisons."""

    def __init__(self, live: dict[int, str]) -> None:
        super().__init__()
        self._live = live
        self.found: dict[str, int] = {}
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for at, declared in enumerate(func._schema.arguments):
            if declared.alias_info is None or not declared.alias_info.is_write:
                continue
            target = args[at] if at < len(args) else kwargs.get(declared.name)
            name = self._live.get(_address(target)) if isinstance(target, torch.Tensor) else None
            if name is None:
                continue
            if func not in _WRITES:
                raise Unsupported(f"the engine's {name} is written by {func}, which is not known to be comparable")
            wanted = torch.empty_like(target)
            func(wanted, *args[1:], **kwargs)
            self.found[name] = self.found.get(name, 0) + differing(wanted, target)
            self.values += target.numel()
            return target
        return func(*args, **kwargs)


def compare(model: torch.nn.Module, model_config: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> Compared:
    """Compare a model's weights with those of a checkpoint.

    Args:
        model_config: vLLM's, of the model.
        weights: names and tensors of the checkpoint.

    Raises:
        Unsupported: a loader writes in a way that cannot be compared.
    """
    from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_reload, initialize_layerwise_reload

    live = {_address(tensor): (name, tensor) for name, tensor in _named(model) if tensor.numel()}
    parameters = {name for name, one in model.named_parameters() if one.numel()}
    compared = Compared()
    digests: dict[str, str] = {}
    with torch.no_grad(), _attributes_kept(model) as kept:
        with _Comparing({address: name for address, (name, _) in live.items()}) as comparing:
            initialize_layerwise_reload(model)
            try:
                model.load_weights(weights)  # type: ignore[operator]
            finally:
                finalize_layerwise_reload(model, model_config)
        found, compared.values = comparing.found, comparing.values
        for name, tensor in live.values():
            if name in found:
                digests[name] = sha256([tensor])
        for name, layer in model.named_modules():
            in_use, loaded = kept[layer].get(PRODUCT), layer.__dict__.get(PRODUCT)
            if not is_packed(in_use):  # it multiplies with the weights, which are compared above
                continue
            blocks = list(_unpacked(layer, in_use))
            if in_use is not loaded:
                expected = list(_unpacked(layer, loaded))
            elif layer.weight.numel():  # a head whose weights are those of the embedding, which is compared
                expected = list(_unpacked(layer, torch.nn.functional.linear))
            else:
                compared.unchecked.append(f"{name}.weight")
                continue
            label = f"{name}.weight, packed"
            found[label] = sum(map(differing, blocks, expected))
            digests[label] = sha256(blocks)
            compared.values += sum(block.numel() for block in blocks)
    compared.different = {name: count for name, count in found.items() if count}
    compared.unchecked += sorted(parameters - set(found))
    compared.digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    return compared


def _named(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _address(tensor: torch.Tensor) -> int:
    """What all views of a tensor have in common."""
    return 0 if tensor.device.type == "meta" else int(tensor.untyped_storage().data_ptr())


@contextmanager
def _attributes_kept(model: torch.nn.Module) -> Iterator[dict[torch.nn.Module, dict[str, Any]]]:
    """Give the attributes of all modules, and put them back: what loaders make of weights often is one."""
    torchs = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
    kept = {layer: {k: v for k, v in layer.__dict__.items() if k not in torchs} for layer in model.modules()}
    try:
        yield kept
    finally:
        for layer, attributes in kept.items():
            for name in set(layer.__dict__) - torchs - set(attributes):
                del layer.__dict__[name]
            layer.__dict__.update(attributes)


def _unpacked(layer: torch.nn.Module, multiply: Any) -> Iterator[torch.Tensor]:
    """Yield a matrix that vLLM has packed, in rows of its transpose: products with one are exact."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    shaped = get_layerwise_info(layer).restore_metadata[0].get("weight", layer.weight)
    columns = shaped.shape[1]
    for lo in range(0, columns, _ROWS):
        rows = torch.zeros(min(_ROWS, columns - lo), columns, dtype=shaped.dtype)
        rows[:, lo:].fill_diagonal_(1)
        yield multiply(rows, layer.weight, None)
