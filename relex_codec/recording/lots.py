"""The elements that are compared in one call: which there are, and how they come to host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch

from relex_codec.core.dtypes import ITEMSIZE, Bits, bits_dtype
from relex_codec.core.threads import cpu_count
from relex_codec.core.torch_dtypes import DTYPES
from relex_codec.journal.difference import LOT
from relex_codec.journal.format import Part

LOTS: Final = 16
"""Lots in work for each processor."""
STAGE: Final = 1 << 27
"""Bytes of each of the two buffers that tensors of devices are copied to, and those of other dtypes."""
ALIGNED: Final = 64
Lot = tuple[int, int, int]
"""Number of a part, the first of its elements, and the one after the last."""
Read = Callable[[int, int, int], Bits | None]
"""Gives the elements of a lot; None: they are those of the step before."""


class Batch(NamedTuple):
    """Lots that are in work together, in the order of their parts."""

    lots: list[Lot]
    read: Read


def lots_of(parts: Sequence[Part]) -> list[Lot]:
    """Return all lots of some parts."""
    return [
        (number, lo, min(lo + LOT, part.box.elements))
        for number, part in enumerate(parts)
        for lo in range(0, part.box.elements, LOT)
    ]


def batches_of(parts: Sequence[Part], read: Read) -> Iterator[Batch]:
    """Yield all lots of some parts; each is read when it is compared."""
    lots, many = lots_of(parts), LOTS * cpu_count()
    for at in range(0, len(lots), many):
        yield Batch(lots[at : at + many], read)


class Stage:
    """Brings tensors to host memory: as they are, where they lie there in their dtype, else through two buffers.

    While a batch from one buffer is compared, a device fills the other.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []

    def batches(self, parts: Sequence[Part], values: Sequence[torch.Tensor]) -> Iterator[Batch]:
        """Yield all lots of some parts.

        Args:
            values: the elements of each part, on whichever device, in whichever dtype. They stay as they are until all
                lots are taken.
        """
        here: dict[int, Bits] = {}
        away: dict[int, torch.Tensor] = {}
        for number, (part, value) in enumerate(zip(parts, values, strict=True)):
            value = value.detach()
            if value.device.type == "cpu" and value.dtype == DTYPES[part.dtype] and value.is_contiguous():
                here[number] = bits_of(value, part.dtype)
            else:
                away[number] = value
        copied = None
        for turn, lots in enumerate(self._plan(parts, away)):
            copying = self._copy(turn % 2, parts, lots, away)
            if copied is not None:
                yield self._batch(*copied, here)
            copied = lots, *copying
        if copied is not None:
            yield self._batch(*copied, here)

    @staticmethod
    def _plan(parts: Sequence[Part], away: dict[int, torch.Tensor]) -> Iterator[list[Lot]]:
        """Yield lots that are in work together: so many that what is copied of them fits into a buffer."""
        lots: list[Lot] = []
        room, many = STAGE, LOTS * cpu_count()
        for number, lo, hi in lots_of(parts):
            taken = _aligned((hi - lo) * ITEMSIZE[parts[number].dtype]) if number in away else 0
            if lots and (taken > room or len(lots) == many):
                yield lots
                lots, room = [], STAGE
            lots.append((number, lo, hi))
            room -= taken
        if lots:
            yield lots

    def _copy(
        self, turn: int, parts: Sequence[Part], lots: list[Lot], away: dict[int, torch.Tensor]
    ) -> tuple[dict[Lot, Bits], list[torch.cuda.Event]]:
        """Begin to copy lots; return where they will be, and what says that they are."""
        found: dict[Lot, Bits] = {}
        devices, at = set(), 0
        for lot in lots:
            number, lo, hi = lot
            if number not in away:
                continue
            value, dtype = away[number], parts[number].dtype
            size = (hi - lo) * ITEMSIZE[dtype]
            target = self._buffer(turn, value.is_cuda)[at : at + size].view(DTYPES[dtype])
            with torch.no_grad():
                target.copy_(value.reshape(-1)[lo:hi], non_blocking=value.is_cuda)
            if value.is_cuda:
                devices.add(value.device)
            found[lot] = bits_of(target, dtype)
            at += _aligned(size)
        events = [torch.cuda.Event() for _ in devices]  # type: ignore[no-untyped-call]
        for device, event in zip(devices, events, strict=True):
            event.record(torch.cuda.current_stream(device))
        return found, events

    def _buffer(self, turn: int, pinned: bool) -> torch.Tensor:
        if not self._buffers:
            self._buffers = [torch.empty(STAGE, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        return self._buffers[turn]

    @staticmethod
    def _batch(
        lots: list[Lot], copied: dict[Lot, Bits], events: list[torch.cuda.Event], here: dict[int, Bits]
    ) -> Batch:
        for event in events:
            event.synchronize()

        def read(number: int, lo: int, hi: int) -> Bits:
            found = copied.get((number, lo, hi))
            return here[number][lo:hi] if found is None else found

        return Batch(lots, read)


def bits_of(tensor: torch.Tensor, dtype: str) -> Bits:
    """Return the memory of a contiguous tensor of the CPU as its bits, one-dimensional."""
    if not tensor.numel():
        return np.empty(0, bits_dtype(dtype))
    return tensor.reshape(-1).view(torch.uint8).numpy().view(bits_dtype(dtype))


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
