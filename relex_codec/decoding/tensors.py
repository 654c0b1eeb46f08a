"""Boxes of tensors at some steps, on the CPU or on a device: what is planned to be read ahead, and then decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from relex_codec.checkpoints.base_model import BaseReader
from relex_codec.core.dtypes import Bits, bits_dtype
from relex_codec.core.indexing import Box
from relex_codec.format.manifest import TensorEntry
from relex_codec.kernels.dispatch import device_kernel, is_host
from relex_codec.kernels.windows import windows

from .reading import reading_ahead
from .tensor_decoder import Decoder, Read

if TYPE_CHECKING:
    import torch


class Wanted(NamedTuple):
    """A tensor, the box that is wanted of it, and the shape that the box is given in."""

    name: str
    box: Box
    shape: tuple[int, ...]


def whole(tensor: TensorEntry) -> Wanted:
    """Return all of a tensor as wanted."""
    return Wanted(tensor.name, tuple((0, n) for n in tensor.shape), tensor.shape)


def read_bits(
    decoder: Decoder, base: Callable[[], BaseReader], wanted: Sequence[Wanted], reads: Sequence[Read]
) -> Iterator[list[Bits]]:
    """Yield each wanted box as unsigned integers at each of some steps, in its shape and in memory of its own.

    Base and codes are read once for all steps.

    Args:
        base: gives the reader of the base; called only if a tensor needs it.

    Raises:
        InvalidArgument: no such tensor; a step that is too far out.
        BaseMismatch: the base is not the one that the run was encoded against.
        Corrupt, Truncated: the file is damaged.
    """
    entries = decoder.container.index.tensors
    parts = [(name, windows(entries[decoder.number(name)].shape, box)) for name, box, _ in wanted]
    with reading_ahead(decoder, base, parts, reads):
        for (name, found), (_, _, shape) in zip(parts, wanted, strict=True):
            read = [decoder.read_window(name, reads, window) for window in found]
            dtype = bits_dtype(entries[decoder.number(name)].dtype)
            yield [_joined([part[s] for part in read], dtype).reshape(shape) for s in range(len(reads))]


def _joined(parts: Sequence[Bits], dtype: np.dtype[Any]) -> Bits:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([np.empty(0, dtype), *(part.reshape(-1) for part in parts)])


def read_tensors(
    decoder: Decoder,
    base: Callable[[], BaseReader],
    wanted: Sequence[Wanted],
    reads: Sequence[Read],
    device: Any,
) -> Iterator[list[torch.Tensor]]:
    """Yield each wanted box as a tensor on a device at each of some steps; otherwise as `read_bits`."""
    entries = decoder.container.index.tensors
    if is_host(device):
        from relex_codec.core.torch_dtypes import as_tensor

        for one, found in zip(wanted, read_bits(decoder, base, wanted, reads), strict=True):
            dtype = entries[decoder.number(one.name)].dtype
            yield [as_tensor(bits.reshape(-1), dtype, one.shape) for bits in found]
        return
    from .device_transfer import uploaded

    parts = [(name, windows(entries[decoder.number(name)].shape, box)) for name, box, _ in wanted]
    with reading_ahead(decoder, base, parts, reads):
        yield from uploaded(decoder, wanted, reads, device, device_kernel(device))


def read_weights(
    decoder: Decoder, base: Callable[[], BaseReader], tensors: Sequence[TensorEntry], read: Read, device: Any
) -> Iterator[memoryview]:
    """Yield the bytes of whole tensors at a step as they lie in a safetensors file, decoded on a device."""
    wanted = [whole(tensor) for tensor in tensors]
    if is_host(device):
        for (bits,) in read_bits(decoder, base, wanted, [read]):
            yield bits.reshape(-1).view(np.uint8).data
        return
    from relex_codec.core.torch_dtypes import bytes_of

    for (tensor,) in read_tensors(decoder, base, wanted, [read], device):
        yield bytes_of(tensor.cpu())
