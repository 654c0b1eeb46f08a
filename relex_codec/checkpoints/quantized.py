"""Which tensors of a quantised checkpoint only make sense together: codes, and the scales that they are read with.

A line through scales alone, while the codes stay those of the last step, gives weights that never were. So neither gets
one. Names are those of compressed-tensors, FP8 as DeepSeek and transformers save it, GPTQ, AWQ, MXFP4, bitsandbytes,
HQQ and torchao. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from relex_codec.core.dtypes import FLOATS

from .checkpoint import TensorInfo

CODES: Final = ("", "_packed", "_blocks", ".weight", ".weight_packed", ".qweight", ".W_q", "_quantized", ".qdata")
"""Ends of names of codes, after what they share with their scales."""
COMPANIONS: Final = (
    "_scale", "_scale_inv", "_scales", "_scale_2", "_global_scale", "_zero_point", "_zeros", "_g_idx", "_shape",
    "_scale_and_zero", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state", ".SCB", ".scale",
    ".scales", ".zero", ".zeros", ".qzeros", ".g_idx", ".zero_point", ".SCB_format", ".weight_format",
    ".input_scale", ".output_scale", ".input_zero_point",
)  # fmt: skip
"""Ends of names of what codes are read with, likewise; ``.quant_state`` with more after it."""


def held_together(tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Return the tensors that no line goes through, because they are codes or what codes are read with.

    Args:
        tensors: of one checkpoint.

    Returns:
        By the name of each, the codes that it belongs to: itself, if it is them.

    Examples:
        >>> names = {"a.weight": "F8_E4M3", "a.weight_scale_inv": "F32", "b.weight": "BF16", "b.weight_scale": "F32"}
        >>> held_together({name: TensorInfo(name, dtype, (8,)) for name, dtype in names.items()})
        {'a.weight_scale_inv': 'a.weight', 'a.weight': 'a.weight'}
    """
    codes = {name for name, info in tensors.items() if info.dtype not in FLOATS}
    found: dict[str, str] = {}
    for name in tensors:
        owner = _codes_of(name, codes)
        if owner is not None:
            found[name] = found[owner] = owner
    return found


def _codes_of(name: str, codes: set[str]) -> str | None:
    """Return the codes that a tensor of this name is read with."""
    before, mark, _ = name.partition(".quant_state.")
    ends = [before] if mark else [name.removesuffix(end) for end in COMPANIONS if name.endswith(end)]
    for stem in ends:
        # a.weight_scale belongs to a.weight, a.scales to a.qweight
        owner = next((stem + end for end in CODES if stem + end in codes and stem + end != name), None)
        if owner is not None:
            return owner
    return None
