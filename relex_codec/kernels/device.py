"""Which kernel decodes on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..dtypes import ITEMSIZE, Bits
from ..errors import InvalidArgument

if TYPE_CHECKING:
    from ..decoder import Kernel


def kernel_for(device: Any) -> Kernel:
    """Return the numpy kernel for the CPU, torch operations for any other device.

    Raises:
        InvalidArgument: there is no such device.
    """
    if str(device) == "cpu":
        from .numpy_cpu import decode_piece

        return decode_piece
    import torch

    from ..torch_dtypes import signed
    from . import torch_ops

    try:
        torch.zeros(1, device=device).cpu().item()
    except (AssertionError, RuntimeError) as error:
        raise InvalidArgument(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from None

    def decode(origin: Bits, origin_dtype: str, dtype: str, terms: Any, start: int) -> Bits:
        bits = torch.from_numpy(signed(np.array(origin))).to(device)
        return torch_ops.decode_piece(bits, origin_dtype, dtype, terms, start).cpu().numpy().view(f"u{ITEMSIZE[dtype]}")

    return decode
