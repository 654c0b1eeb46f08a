"""Which kernel decodes on a device."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from relex_codec.errors import InvalidArgument

from . import reference
from .interface import Decode, DecodeJob, Prepare

SMALL: Final = 1 << 20
"""Elements up to which nothing is compiled or loaded for decoding: the reference takes 20 ms for so many."""


def host_kernel(jobs: Sequence[DecodeJob]) -> Decode:
    """Prepare jobs over numpy arrays: for the compiled kernel or, for little work where that is not loaded, for numpy.

    Returns:
        What decodes them; see `relex_codec.kernels.interface`.
    """
    elements = sum(job.window.rows * job.window.columns for job in jobs)
    compiling = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
    if not compiling or (elements <= SMALL and f"{__package__}.cpu" not in sys.modules):
        return reference.prepare(jobs)
    from .cpu import launch

    return launch.prepare(jobs)


def is_host(device: Any) -> bool:
    """Whether a device is the CPU, whose kernels work on numpy arrays."""
    return str(device).partition(":")[0] == "cpu"


def device_kernel(device: Any) -> Prepare:
    """Return the kernel for torch tensors on a device other than the CPU: Triton's for CUDA, else torch's own.

    Raises:
        InvalidArgument: there is no such device.
    """
    import torch

    try:
        torch.zeros(1, device=device).cpu().item()
    except (AssertionError, RuntimeError, TypeError) as error:
        raise InvalidArgument(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from None
    if torch.device(device).type == "cuda" and importlib.util.find_spec("triton") is not None:
        from .triton.launch import prepare as by_triton

        return by_triton
    from . import torch_eager

    return torch_eager.prepare
