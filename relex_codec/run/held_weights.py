"""What a resident run holds of its tensors, read into host memory on the way to a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import torch

from relex_codec.core.dtypes import Bits
from relex_codec.core.text import quote
from relex_codec.core.torch_dtypes import as_tensor
from relex_codec.decoding.read_plan import KernelPass, ReadPlan, WindowPlan
from relex_codec.decoding.scratch import Allocate
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tensors import TensorBox, plan_boxes, read_bits
from relex_codec.decoding.tiers import StepTier
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.kernels.interface import DecodeJob
from relex_codec.kernels.windows import copy_window

FRAMED_LIMIT: Final = 1 << 20
"""Bytes that a tensor which is stored step by step may always take."""


class Held(NamedTuple):
    """What is held of a tensor.

    Attributes:
        shape: of what is held, which may be a box of the tensor.
        number: of the tensor that is read for it.
        jobs: one a window, whose origin is the window's elements and nothing else; none where no kernel decodes it.
        values: the tensor itself from a step on, or at every step; empty where there are jobs.
        base: what it is in the base, where `values` are not that.
    """

    dtype: str
    shape: tuple[int, ...]
    number: int
    jobs: list[DecodeJob]
    values: list[tuple[float, torch.Tensor]]
    base: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        total = sum(value.nbytes for _, value in self.values) + (0 if self.base is None else self.base.nbytes)
        for job in self.jobs:
            total += job.origin.nbytes
            for direction in job.directions:
                total += direction.packed.nbytes
                if direction.factors is not None:
                    total += direction.factors.a.nbytes + direction.factors.b.nbytes
        return total


def plan_held(decoder: TensorDecoder, boxes: Sequence[TensorBox]) -> ReadPlan:
    """Plan to read origin and directions of boxes, each window as one batch; of framed tensors the first step."""
    first = float(decoder.container.index.steps[0])
    return plan_boxes(decoder, boxes, [StepTier(first, "line")], whole_windows=True)


def read_held(
    decoder: TensorDecoder, plan: ReadPlan, boxes: Sequence[TensorBox], allocate: Allocate
) -> Iterator[tuple[str, Held]]:
    """Yield name and what is to be held of each box, in host memory.

    Args:
        plan: of `plan_held`.
        allocate: gives memory for origins and codes.

    Raises:
        InvalidArgument: a tensor that is stored step by step changes too often.
    """
    for one, planned in zip(boxes, plan.tensors, strict=True):
        tensor = planned.tensor
        jobs: list[DecodeJob] = []
        values: list[tuple[float, torch.Tensor]] = []
        base = None
        if tensor.kind == f.MOVING:
            jobs = [_job(decoder, window, allocate) for window in planned.windows]
        elif tensor.kind == f.FRAMED:
            values, base = _changes(decoder, one), _read(decoder, one, StepTier(0.0, "base"))
        else:
            values = [(0.0, _read(decoder, one, plan.steps[0]))]
        yield one.tensor.name, Held(tensor.dtype, one.shape, tensor.number, jobs, values, base)


def _read(decoder: TensorDecoder, one: TensorBox, step: StepTier) -> torch.Tensor:
    ((bits,),) = read_bits(decoder, [one], [step])
    return as_tensor(bits.reshape(-1), one.tensor.dtype, one.shape)


def _changes(decoder: TensorDecoder, one: TensorBox) -> list[tuple[float, torch.Tensor]]:
    """Return a framed tensor at each stored step at which it becomes another, the first step included."""
    values: list[tuple[float, torch.Tensor]] = []
    last = b""
    for step in decoder.container.index.steps:
        ((bits,),) = read_bits(decoder, [one], [StepTier(float(step), "line")])
        if not values or bits.tobytes() != last:
            values.append((float(step), as_tensor(bits.reshape(-1), one.tensor.dtype, one.shape)))
            last = bits.tobytes()
        if len(values) * bits.nbytes > max(FRAMED_LIMIT, 2 * bits.nbytes):
            raise InvalidArgument(
                f"{quote(one.tensor.name)} is stored step by step, and changes too often for a run to be resident with "
                "it: use Run.state_dict"
            )
    return values


def _job(decoder: TensorDecoder, planned: WindowPlan, allocate: Allocate) -> DecodeJob:
    """Read everything that decoding a window takes; of the origin keep no more than the window."""
    window, (one,) = planned.window, planned.passes
    assert isinstance(one, KernelPass)
    (job,) = decoder.jobs(window, one, allocate)
    begin = window.row * window.width + window.column
    if window.rows == 1 and (job.first, job.first + job.origin.size) == (begin, begin + window.columns):
        return job
    cropped: Bits = allocate(window.rows * window.columns * job.origin.itemsize).view(job.origin.dtype)
    copy_window(window, job.first, job.origin, cropped.reshape(window.rows, window.columns))
    return replace(job, origin=cropped, at=0, pitch=window.columns)
