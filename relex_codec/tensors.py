"""Boxes of tensors at some steps as torch tensors, on the CPU or on a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .decoder import Decoder, Read
from .dtypes import bits_dtype
from .kernels.device import device_kernel, is_host
from .torch_dtypes import as_tensor
from .upload import Wanted, uploaded
from .windows import windows


def read_tensors(
    decoder: Decoder, wanted: Sequence[Wanted], reads: Sequence[Read], device: Any
) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Yield each wanted tensor's name, and its box at each of some steps, in memory of its own.

    Base and codes are read once for all steps.

    Raises:
        InvalidArgument: no such tensor; a step that is too far out.
        BaseMismatch: the base is not the one that the run was encoded against.
        Corrupt, Truncated: the file is damaged.
    """
    if not is_host(device):
        yield from uploaded(decoder, wanted, reads, device, device_kernel(device))
        return
    for name, box, shape in wanted:
        tensor = decoder.container.index.manifest.tensors[decoder.number(name)]
        parts = [decoder.read_window(name, reads, window) for window in windows(tensor.shape, box)]
        found = []
        for s in range(len(reads)):
            flat = [part[s].reshape(-1) for part in parts]
            bits = flat[0] if len(flat) == 1 else np.concatenate([np.empty(0, bits_dtype(tensor.dtype)), *flat])
            found.append(as_tensor(bits, tensor.dtype, shape))
        yield name, found
