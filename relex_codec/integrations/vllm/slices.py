"""Which parts of a checkpoint's tensors a rank takes, found by a load that copies nothing.

vLLM has no list of them: each parameter's loader narrows what it is given. So the model loads tensors without memory
(device ``meta``), while a mode of torch's dispatcher follows views of them and keeps copies from being made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from relex_codec.core.indexing import Box, TensorIndex
from relex_codec.core.torch_dtypes import DTYPES
from relex_codec.format.tensor_record import TensorRecord

_COPY = torch.ops.aten.copy_.default


class _Followed(TorchDispatchMode):
    """Notes which box of each followed tensor is copied, and copies none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes: dict[str, Box | None] = {}
        self._kept: list[torch.Tensor] = []
        self._storages: dict[int, tuple[str, tuple[int, ...]]] = {}

    def follow(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor without memory whose views are followed."""
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        self._storages[_storage(tensor)] = name, shape
        self._kept.append(tensor)  # or another would get its storage's address
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _COPY and self._known(args[1]):
            self._took(args[1])
            return args[0]
        found = func(*args, **kwargs)
        followed = [one for one in _tensors((args, kwargs)) if self._known(one)]
        if followed:
            made = {_storage(one) for one in _tensors(found)}
            for one in followed:
                if made - {_storage(one)}:  # a value made of it, which may be copied from anywhere
                    self._took(one, whole=True)
            for one in _tensors(found):
                if not self._known(one) and one.device.type == "meta":
                    self._storages[_storage(one)] = self._storages[_storage(followed[0])]
                    self._kept.append(one)
        return found

    def _known(self, tensor: Any) -> bool:
        return isinstance(tensor, torch.Tensor) and tensor.device.type == "meta" and _storage(tensor) in self._storages

    def _took(self, view: torch.Tensor, *, whole: bool = False) -> None:
        name, shape = self._storages[_storage(view)]
        full = tuple((0, size) for size in shape)
        box = full if whole else box_of_view(shape, view.storage_offset(), view.shape, view.stride())
        before = self.boxes.get(name)
        self.boxes[name] = full if box is None else box if before is None else _around(before, box)


def box_of_view(shape: tuple[int, ...], offset: Any, size: Iterable[Any], stride: Iterable[Any]) -> Box | None:
    """Return the smallest box of a contiguous tensor that holds a view of it; None if strides do not tell.

    Examples:
        >>> box_of_view((6, 4), 8, (2, 4), (4, 1))  # rows 2 and 3
        ((2, 4), (0, 4))
        >>> box_of_view((6, 4), 2, (6, 2), (4, 1))  # the last two columns
        ((0, 6), (2, 4))
    """
    steps = [math.prod(shape[at + 1 :]) for at in range(len(shape))]
    low, rest = [], offset
    for step, length in zip(steps, shape, strict=True):
        low.append(rest // step if step else 0)
        rest -= low[-1] * step
        if length and low[-1] >= length:
            return None
    high = [at + 1 for at in low]
    for length, distance in zip(size, stride, strict=True):
        if length == 1 or distance == 0:
            continue
        if distance not in steps:
            return None
        high[steps.index(distance)] += length - 1
    if any(end > length for end, length in zip(high, shape, strict=True)):
        return None
    return tuple(zip(low, high, strict=True))


def find(model: torch.nn.Module, entries: Iterable[TensorRecord]) -> dict[str, TensorIndex | None]:
    """Return which part of each tensor the model's loader takes on this rank; None: nothing; not in it: all of it.

    The model must not be in use, as when it has just been made: loaders may fill what lies around a shard.
    """
    entries = list(entries)
    with _Followed() as followed:
        load: Any = model.load_weights
        load((one.name, followed.follow(one.name, one.shape, DTYPES[one.dtype])) for one in entries)
    needed: dict[str, TensorIndex | None] = {}
    for entry in entries:
        box = followed.boxes.get(entry.name)
        if box is None:
            needed[entry.name] = None
        elif any(one != (0, size) for one, size in zip(box, entry.shape, strict=True)):
            needed[entry.name] = tuple(slice(lo, hi) for lo, hi in box)
    return needed


def _around(a: Box, b: Box) -> Box:
    return tuple((min(x[0], y[0]), max(x[1], y[1])) for x, y in zip(a, b, strict=True))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(nested: Any) -> list[torch.Tensor]:
    from torch.utils._pytree import tree_leaves

    return [one for one in tree_leaves(nested) if isinstance(one, torch.Tensor)]
