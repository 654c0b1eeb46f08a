"""Boxes of tensors at some steps, planned, fetched and decoded: as bits, or as tensors on the CPU or on a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from relex_codec.core.dtypes import Bits, bits_dtype
from relex_codec.core.indexing import Box, TensorIndex, box_of
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.kernels.dispatch import device_kernel, is_host
from relex_codec.kernels.windows import windows

from .read_plan import ReadPlan
from .tensor_decoder import TensorDecoder
from .tiers import StepTier

if TYPE_CHECKING:
    import torch


class TensorBox(NamedTuple):
    """A box of a tensor.

    Attributes:
        shape: that it is given in.
    """

    tensor: TensorRecord
    box: Box
    shape: tuple[int, ...]


def box_at(tensor: TensorRecord, index: TensorIndex = ...) -> TensorBox:
    """Return what ``tensor[index]`` chooses.

    Raises:
        InvalidArgument: the tensor has no such elements.
    """
    return TensorBox(tensor, *box_of(tensor.shape, index))


def plan_boxes(
    decoder: TensorDecoder, boxes: Sequence[TensorBox], steps: Sequence[StepTier], *, whole_windows: bool = False
) -> ReadPlan:
    """Plan to read boxes at some steps, one after another; otherwise as `TensorDecoder.plan`."""
    wanted = ((tensor, windows(tensor.shape, box)) for tensor, box, _ in boxes)
    return decoder.plan(wanted, steps, whole_windows=whole_windows)


def read_bits(decoder: TensorDecoder, boxes: Sequence[TensorBox], steps: Sequence[StepTier]) -> Iterator[list[Bits]]:
    """Yield each box as unsigned integers at each of some steps, in its shape and in memory of its own.

    Base and codes are read once for all steps.

    Raises:
        InvalidArgument: a step that is too far out.
        BaseMismatch: the base is not the one that the run was encoded against.
        Corrupt, Truncated: the file is damaged.
    """
    plan = plan_boxes(decoder, boxes, steps)
    with decoder.fetcher.ahead(plan):
        for one, planned in zip(boxes, plan.tensors, strict=True):
            found = [decoder.decode_window(window, steps) for window in planned.windows]
            dtype = bits_dtype(one.tensor.dtype)
            yield [_joined([bits[s] for bits in found], dtype).reshape(one.shape) for s in range(len(steps))]


def _joined(parts: Sequence[Bits], dtype: np.dtype[Any]) -> Bits:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([np.empty(0, dtype), *(part.reshape(-1) for part in parts)])


def read_tensors(
    decoder: TensorDecoder, boxes: Sequence[TensorBox], steps: Sequence[StepTier], device: Any
) -> Iterator[list[torch.Tensor]]:
    """Yield each box as a tensor on a device at each of some steps; otherwise as `read_bits`."""
    if is_host(device):
        from relex_codec.core.torch_dtypes import as_tensor

        for one, bits in zip(boxes, read_bits(decoder, boxes, steps), strict=True):
            yield [as_tensor(value.reshape(-1), one.tensor.dtype, one.shape) for value in bits]
        return
    from .device_transfer import decode_on_device

    plan = plan_boxes(decoder, boxes, steps)
    with decoder.fetcher.ahead(plan):
        for one, found in zip(boxes, decode_on_device(decoder, plan, device, device_kernel(device)), strict=True):
            yield [tensor.view(one.shape) for tensor in found]


def read_weights(
    decoder: TensorDecoder, tensors: Sequence[TensorRecord], step: StepTier, device: Any
) -> Iterator[memoryview]:
    """Yield the bytes of whole tensors at a step as they lie in a safetensors file, decoded on a device."""
    boxes = [box_at(tensor) for tensor in tensors]
    if is_host(device):
        for (bits,) in read_bits(decoder, boxes, [step]):
            yield bits.reshape(-1).view(np.uint8).data
        return
    from relex_codec.core.torch_dtypes import bytes_of

    for (tensor,) in read_tensors(decoder, boxes, [step], device):
        yield bytes_of(tensor.cpu())
