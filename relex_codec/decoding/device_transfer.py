"""From a file to a device: chunks are read and decompressed on threads while earlier ones are decoded there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from relex_codec.core.dtypes import F32, Bits, Bytes
from relex_codec.core.threads import prefetched
from relex_codec.core.torch_dtypes import DTYPES, as_tensor, signed
from relex_codec.format.factors import Factors
from relex_codec.kernels.interface import DecodeJob, PackedDirection, Prepare

from .read_plan import KernelPass, ReadPlan, TensorPlan
from .tensor_decoder import TensorDecoder

AHEAD: Final = 2
"""Batches that are read before they are needed."""


class DeviceMemory:
    """Memory on a device, and the way there."""

    def __init__(self, device: Any) -> None:
        self.device = torch.device(device)
        self._queued: deque[tuple[Any, Any]] = deque()

    def allocate(self, size: int) -> Bytes:
        """Return host memory for `size` bytes: pinned for CUDA, so that copying it there does not stop the host."""
        memory: Bytes = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda").numpy()
        return memory

    def __call__(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """Copy an array to the device; unsigned integers of more than a byte become signed ones of the same bits."""
        same = signed(array) if array.dtype.kind == "u" and array.dtype.itemsize > 1 else array
        return torch.from_numpy(np.ascontiguousarray(same)).to(self.device, non_blocking=True)

    def job(self, job: DecodeJob) -> DecodeJob:
        """Copy what a job needs to the device."""

        def moved(direction: PackedDirection) -> PackedDirection:
            pairs = direction.factors
            known = None if pairs is None else Factors(self(pairs.a), self(pairs.b))
            return replace(direction, factors=known, packed=self(direction.packed))

        return replace(job, origin=self(job.origin), directions=[moved(d) for d in job.directions])

    def queued(self, host: Any) -> None:
        """Keep host memory until the device has done what was queued so far; only so much is queued at a time."""
        if self.device.type != "cuda":
            return
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call, unused-ignore]
        event.record(torch.cuda.current_stream(self.device))
        self._queued.append((event, host))
        while len(self._queued) > AHEAD:
            self._queued.popleft()[0].synchronize()

    def wait(self) -> None:
        """Wait until the device has done everything."""
        while self._queued:
            self._queued.popleft()[0].synchronize()


class _Ready(NamedTuple):
    """What is ready for the device: a job, or the bits of a window as they are.

    Attributes:
        tensor, window: their numbers in the plan.
        steps: places of the steps that it is for.
        coefficients: of the job.
    """

    tensor: int
    window: int
    steps: Sequence[int]
    job: DecodeJob | None = None
    coefficients: F32 | None = None
    bits: Bits | None = None


def decode_on_device(
    decoder: TensorDecoder, plan: ReadPlan, device: Any, prepare: Prepare
) -> Iterator[list[torch.Tensor]]:
    """Yield what is planned of each tensor on the device, one-dimensional, at each step of the plan.

    Args:
        prepare: the kernel of the device.
    """
    memory = DeviceMemory(device)
    outs: list[torch.Tensor] = []
    number = -1
    for ready in prefetched(_read(decoder, plan, memory.allocate), AHEAD):
        if ready.tensor != number:
            if number >= 0:
                yield outs
            number = ready.tensor
            outs = [_new(plan.tensors[number], memory.device) for _ in plan.steps]
        _decode(ready, plan.tensors[number], outs, memory, prepare)
    if number >= 0:
        yield outs
    memory.wait()


def _new(planned: TensorPlan, device: torch.device) -> torch.Tensor:
    size = sum(one.window.rows * one.window.columns for one in planned.windows)
    return torch.empty(size, dtype=DTYPES[planned.tensor.dtype], device=device)


def _read(decoder: TensorDecoder, plan: ReadPlan, allocate: Callable[[int], Bytes]) -> Iterator[_Ready]:
    """Read everything in the order of the plan; a tensor without elements is ready with nothing."""
    for i, planned in enumerate(plan.tensors):
        if not planned.windows:
            yield _Ready(i, 0, ())
        for k, window in enumerate(planned.windows):
            for one in window.passes:
                steps = [plan.steps[s] for s in one.steps]
                if isinstance(one, KernelPass):
                    g = decoder.coefficients(planned.tensor, steps)
                    for job in decoder.jobs(window.window, one, allocate):
                        yield _Ready(i, k, one.steps, job, g)
                else:
                    yield _Ready(i, k, one.steps, bits=decoder.decode_pass(window, one))


def _decode(
    ready: _Ready, planned: TensorPlan, outs: Sequence[torch.Tensor], memory: DeviceMemory, prepare: Prepare
) -> None:
    count = len(planned.windows)
    if ready.bits is not None:
        found = as_tensor(ready.bits.reshape(-1), planned.tensor.dtype, (ready.bits.size,))
        for step in ready.steps:
            outs[step].view(count, -1)[ready.window].copy_(found)
    elif ready.job is not None and ready.coefficients is not None:
        window = ready.job.window
        targets = [bits_of(outs[s]).view(count, window.rows, window.columns)[ready.window] for s in ready.steps]
        prepare([memory.job(ready.job)])([ready.coefficients], [targets])
        memory.queued(ready.job)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a float tensor as signed integers of its bits."""
    return tensor.detach().view(torch.int16 if tensor.element_size() == 2 else torch.int32)
