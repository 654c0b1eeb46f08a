"""The torch kernel gives the bits of the reference decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from relex_codec.core.dtypes import FLOATS
from relex_codec.format.constants import NONE, PACKINGS, PIECE, Packing
from relex_codec.kernels import torch_eager
from support.kernel_cases import (
    Case,
    block_ends,
    converted,
    far_cases,
    random_case,
    several_cases,
    several_pieces,
    to_be_rounded,
)
from support.kernel_checks import check_torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.slow
@settings(max_examples=300)
@given(several_cases(2))
def test_any_jobs(cases: list[Case]) -> None:
    check_torch(torch_eager.prepare, cases, DEVICE)


@pytest.mark.parametrize("packing", PACKINGS[1:], ids=lambda packing: packing.name)
def test_ends_of_blocks(packing: Packing) -> None:
    check_torch(torch_eager.prepare, block_ends(packing), DEVICE)


def test_several_pieces() -> None:
    cases = [several_pieces(packing, 2 if packing is NONE else 0, (271, 1000)) for packing in PACKINGS]
    check_torch(torch_eager.prepare, cases, DEVICE)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, PIECE + 5), (700, 700), (2, 600, 300)])
def test_windows_across_pieces(shape: tuple[int, ...]) -> None:
    for seed in range(4):
        check_torch(torch_eager.prepare, [random_case(seed, shape, "BF16", "BF16", 1 + seed % 2, 1 + seed % 2)], DEVICE)


def test_elements_beyond_32_bits() -> None:
    check_torch(torch_eager.prepare, far_cases(), DEVICE)


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_rounding(dtype: str) -> None:
    check_torch(torch_eager.prepare, [converted(to_be_rounded(), "F32", dtype)], DEVICE)
    if dtype != "F32":
        check_torch(torch_eager.prepare, [converted(np.arange(1 << 16, dtype="<u2"), dtype, "F32")], DEVICE)


def test_no_jobs() -> None:
    torch_eager.prepare([])([], [])
