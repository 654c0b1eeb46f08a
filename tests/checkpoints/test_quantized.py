"""Codes and scales are known by their names, and only where there are codes."""

from __future__ import annotations

import pytest

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.checkpoints.quantized import held_together


def infos(dtypes: dict[str, str]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, dtype, (4, 4)) for name, dtype in dtypes.items()}


@pytest.mark.parametrize(
    ("codes", "companions"),
    [
        ({"x.weight": "F8_E4M3"}, {"x.weight_scale_inv": "F32"}),
        ({"x.weight": "F8_E4M3"}, {"x.weight_scale": "BF16", "x.input_scale": "F32"}),
        ({"x.weight_packed": "I32"}, {"x.weight_scale": "BF16", "x.weight_shape": "I64", "x.weight_zero_point": "I32"}),
        ({"x.qweight": "I32"}, {"x.qzeros": "I32", "x.scales": "F16", "x.g_idx": "I32"}),
        ({"x.experts.down_proj_blocks": "U8"}, {"x.experts.down_proj_scales": "U8"}),
        ({"x.experts.gate_up_proj": "F8_E4M3"}, {"x.experts.gate_up_proj_scale_inv": "F32"}),
        ({"x.weight": "U8"}, {"x.weight.absmax": "F32", "x.weight.quant_state.bitsandbytes__nf4": "U8"}),
        ({"x.weight": "I8"}, {"x.SCB": "F32"}),
        ({"x.W_q": "U8"}, {"x.scale": "F16", "x.zero": "F16"}),
        ({"x.weight_packed": "U8"}, {"x.weight_scale": "F8_E4M3", "x.weight_global_scale": "F32"}),
    ],
)
def test_codes_and_what_they_are_read_with(codes: dict[str, str], companions: dict[str, str]) -> None:
    other = {"y.weight": "BF16", "y.bias": "F32", "y.weight_scale": "F32", "norm.scale": "F32", "positions": "I64"}
    (owner,) = codes
    held = held_together(infos(codes | companions | other))
    assert held == dict.fromkeys((owner, *companions), owner)


def test_without_codes_nothing_is_held() -> None:
    assert not held_together(infos({"x.weight": "BF16", "x.weight_scale": "BF16", "x.scales": "F32", "x.mask": "I64"}))
