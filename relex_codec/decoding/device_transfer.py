"""From a file to a device: chunks are read and decompressed on threads while earlier ones are decoded there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from relex_codec.core.dtypes import F32, Bits, Bytes
from relex_codec.core.threads import prefetched
from relex_codec.core.torch_dtypes import DTYPES, as_tensor, signed
from relex_codec.format.factors import Factors
from relex_codec.kernels.interface import DecodeJob, PackedDirection, Prepare
from relex_codec.kernels.windows import windows

from .tensor_decoder import Decoder, Read

if TYPE_CHECKING:
    from .tensors import Wanted

AHEAD: Final = 2
"""Batches that are read before they are needed."""


class _Batch(NamedTuple):
    """What is ready for the device: a job with its coefficients, or the bits of a whole tensor at one of the steps."""

    wanted: int
    window: int
    job: DecodeJob | None
    coefficients: F32 | None
    read: int
    bits: Bits | None


class Place:
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


def uploaded(
    decoder: Decoder, wanted: Sequence[Wanted], reads: Sequence[Read], device: Any, prepare: Prepare
) -> Iterator[list[torch.Tensor]]:
    """Yield each wanted box on the device, at each of some steps.

    Args:
        prepare: the kernel of the device.
    """
    place = Place(device)
    outs: list[torch.Tensor] = []
    number = -1
    for batch in prefetched(_batches(decoder, wanted, reads, place.allocate), AHEAD):
        if batch.wanted != number:
            if number >= 0:
                yield outs
            number = batch.wanted
            outs = [_new(decoder, wanted[number], place.device) for _ in reads]
        _decode(decoder, batch, wanted[number], reads, outs, place, prepare)
    if number >= 0:
        yield outs
    place.wait()


def _new(decoder: Decoder, wanted: Wanted, device: torch.device) -> torch.Tensor:
    dtype = decoder.container.index.tensors[decoder.number(wanted.name)].dtype
    return torch.empty(wanted.shape, dtype=DTYPES[dtype], device=device)


def _batches(
    decoder: Decoder, wanted: Sequence[Wanted], reads: Sequence[Read], allocate: Callable[[int], Bytes]
) -> Iterator[_Batch]:
    """Read everything, in the order of `wanted`; an empty tensor is a batch of nothing."""
    for i, (name, box, _) in enumerate(wanted):
        number = decoder.number(name)
        tensor = decoder.container.index.tensors[number]
        found = windows(tensor.shape, box)
        linear = [read for read in reads if decoder.is_linear(number, read[1])]
        if not found:
            yield _Batch(i, 0, None, None, 0, None)
        for k, window in enumerate(found):
            if linear:
                g = decoder.coefficients(number, linear)
                for job in decoder.jobs(number, window, allocate):
                    yield _Batch(i, k, job, g, 0, None)
            for s, read in enumerate(reads):
                if read not in linear:
                    yield _Batch(i, k, None, None, s, decoder.read_window(name, [read], window)[0])


def _decode(
    decoder: Decoder,
    batch: _Batch,
    wanted: Wanted,
    reads: Sequence[Read],
    outs: Sequence[torch.Tensor],
    place: Place,
    prepare: Prepare,
) -> None:
    tensor = decoder.container.index.tensors[decoder.number(wanted.name)]
    count = len(windows(tensor.shape, wanted.box))
    if batch.bits is not None:
        whole = outs[batch.read].view(count, -1)[batch.window]
        whole.copy_(as_tensor(batch.bits.reshape(-1), tensor.dtype, (batch.bits.size,)))
    elif batch.job is not None and batch.coefficients is not None:
        window = batch.job.window
        linear = [s for s, read in enumerate(reads) if decoder.is_linear(decoder.number(wanted.name), read[1])]
        targets = [bits_of(outs[s]).view(count, window.rows, window.columns)[batch.window] for s in linear]
        prepare([place.job(batch.job)])([batch.coefficients], [targets])
        place.queued(batch.job)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a float tensor as signed integers of its bits."""
    return tensor.detach().view(torch.int16 if tensor.element_size() == 2 else torch.int32)
