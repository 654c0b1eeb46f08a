"""Kernels on jobs of `kernel_cases`: every element of the memory that targets lie in is compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from relex_codec.format.factors import Factors
from relex_codec.kernels.interface import DecodeJob, PackedDirection, Prepare

from .kernel_cases import Array, Case


def check_numpy(prepare: Prepare, given: Sequence[Case]) -> None:
    """Decode all cases in one call, and compare all memory that targets lie in."""
    memories = [[target.memory.copy() for target in case.targets] for case in given]
    views = [
        [view(memory, case, i) for i, memory in enumerate(of_case)]
        for case, of_case in zip(given, memories, strict=True)
    ]
    before = [case.job.origin.tobytes() for case in given]
    prepare([case.job for case in given])([case.coefficients for case in given], views)
    for case, of_case, origin in zip(given, memories, before, strict=True):
        assert case.job.origin.tobytes() == origin
        for memory, target in zip(of_case, case.targets, strict=True):
            same(memory, target.expected, case.job)


def view(memory: Array, case: Case, i: int) -> Array:
    """Target i of a case, in this memory."""
    target, window = case.targets[i], case.job.window
    strides = tuple(stride * memory.itemsize for stride in target.strides)
    return np.lib.stride_tricks.as_strided(memory[target.at :], (window.rows, window.columns), strides)


def to_torch(array: Array, device: str) -> Any:
    """The same bits as a tensor, signed where torch has no operations otherwise."""
    import torch

    signed = array if array.dtype in (np.uint8, np.float32) else array.view(f"i{array.itemsize}")
    return torch.from_numpy(signed.copy()).to(device)


def torch_job(job: DecodeJob, device: str) -> DecodeJob:
    """The job with torch tensors."""

    def moved(direction: PackedDirection) -> PackedDirection:
        f = direction.factors
        factors = None if f is None else Factors(to_torch(f.a, device), to_torch(f.b, device))
        return dataclasses.replace(direction, factors=factors, packed=to_torch(direction.packed, device))

    directions = [moved(direction) for direction in job.directions]
    return dataclasses.replace(job, origin=to_torch(job.origin, device), directions=directions)


def check_torch(prepare: Prepare, given: Sequence[Case], device: str) -> None:
    """Decode all cases in one call, with targets that are views of tensors, and compare all memory."""
    import torch

    jobs = [torch_job(case.job, device) for case in given]
    memories = [[to_torch(target.memory, device) for target in case.targets] for case in given]
    views = [
        [
            torch.as_strided(memory, (case.job.window.rows, case.job.window.columns), target.strides, target.at)
            for memory, target in zip(of_case, case.targets, strict=True)
        ]
        for of_case, case in zip(memories, given, strict=True)
    ]
    prepare(jobs)([case.coefficients for case in given], views)
    for case, job, of_case in zip(given, jobs, memories, strict=True):
        for memory, target in zip(of_case, case.targets, strict=True):
            same(memory.cpu().numpy().view(target.memory.dtype), target.expected, case.job)
        assert torch.equal(job.origin, to_torch(case.job.origin, device))


def same(got: Array, expected: Array, job: DecodeJob) -> None:
    """Fail with the first element that differs."""
    wrong = np.flatnonzero(got != expected)
    assert not len(wrong), (
        f"{len(wrong)} of {len(got)}, first {wrong[0]}: {got[wrong[0]]:#x}, not {expected[wrong[0]]:#x};"
        f" {job.window}, {[(d.packing.name, d.factors is not None) for d in job.directions]}"
    )
