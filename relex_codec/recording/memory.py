"""The previous step in host memory, and what changed since: compared by compiled code, on all processors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final

import numpy as np
import torch

from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.core.dtypes import Bits, bits_dtype
from relex_codec.core.text import quote
from relex_codec.core.threads import cpu_count, parallel_map
from relex_codec.core.torch_dtypes import DTYPES
from relex_codec.errors import InvalidArgument
from relex_codec.journal.difference import encode_difference
from relex_codec.journal.format import CHUNK, Part

BATCH: Final = 8
"""Chunks in work for each processor."""
Read = Callable[[int, int, int], Bits]
"""Gives elements of a part: its number, the first one, and the one after the last."""


class Held:
    """Elements of the parts of a rank at one step.

    Args:
        parts: which.
        pinned: whether a device copies to them.
    """

    def __init__(self, parts: Sequence[Part], pinned: bool) -> None:
        self.tensors = [
            torch.empty(part.box.size, dtype=DTYPES[part.dtype], pin_memory=pinned and part.box.elements > 0)
            for part in parts
        ]
        self.bits = [_bits(tensor, part.dtype) for tensor, part in zip(self.tensors, parts, strict=True)]

    def copy(self, values: Sequence[torch.Tensor]) -> None:
        """Copy the parts as they are now; those of devices at the same time."""
        devices = {value.device for value in values if value.is_cuda}
        with torch.no_grad():
            for target, value in zip(self.tensors, values, strict=True):
                target.copy_(value, non_blocking=value.is_cuda)
        for device in devices:
            torch.cuda.current_stream(device).synchronize()

    def fill(self, parts: Sequence[Part], reader: TensorReader) -> None:
        """Read the parts from a step."""
        tasks = [(number, lo, hi) for number, part in enumerate(parts) for lo, hi in chunks_of(part)]
        parallel_map(
            lambda task: read_box(reader, parts[task[0]], task[1], self.bits[task[0]][task[1] : task[2]]), tasks
        )


def _bits(tensor: torch.Tensor, dtype: str) -> Bits:
    """Return the memory of a tensor as its bits, one-dimensional."""
    if not tensor.numel():
        return np.empty(0, bits_dtype(dtype))
    return tensor.reshape(-1).view(torch.uint8).numpy().view(bits_dtype(dtype))


def bits_of_values(value: torch.Tensor, dtype: str) -> Bits:
    """Return the bits of a tensor in a dtype and in host memory, without a copy where it is so already."""
    return _bits(value.detach().to("cpu", DTYPES[dtype]).contiguous(), dtype)


def chunks_of(part: Part) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the chunks of a part."""
    for lo in range(0, part.box.elements, CHUNK):
        yield lo, min(lo + CHUNK, part.box.elements)


def tasks_of(parts: Sequence[Part]) -> list[tuple[int, int, int]]:
    """Return number of the part, begin and end of each chunk."""
    return [(number, lo, hi) for number, part in enumerate(parts) for lo, hi in chunks_of(part)]


def read_box(reader: TensorReader, part: Part, lo: int, out: Bits) -> None:
    """Fill `out` with elements of a part from `lo` on."""
    box = part.box
    if not out.size:
        return
    begin = box.place(lo)
    if box.is_contiguous:
        reader.read_into(part.name, begin, out)
        return
    places = box.places(lo, lo + out.size)
    out[:] = reader.read(part.name, begin, int(places[-1]) + 1)[places - begin]


def differences(parts: Sequence[Part], previous: Held, read: Read, keep: bool) -> Iterator[Iterator[bytes]]:
    """Yield, for each part, the blobs that turn the previous step into what is read: to be taken in this order.

    Args:
        keep: whether the previous step stays as it is; otherwise it becomes what is read.
    """

    def one(task: tuple[int, int, int]) -> bytes:
        number, lo, hi = task
        old, new = previous.bits[number][lo:hi], read(number, lo, hi)
        blob = encode_difference(old, new, parts[number].dtype)
        if blob and not keep:
            old[:] = new
        return blob

    tasks, batch = tasks_of(parts), BATCH * cpu_count()
    batches = (parallel_map(one, tasks[at : at + batch]) for at in range(0, len(tasks), batch))
    blobs = chain.from_iterable(batches)
    return (islice(blobs, part.chunks) for part in parts)


def different(parts: Sequence[Part], held: Held, read: Read) -> str | None:
    """Return the name of a tensor of which something else is held than what is read; None: there is none."""

    def differs(task: tuple[int, int, int]) -> bool:
        number, lo, hi = task
        return not np.array_equal(held.bits[number][lo:hi], read(number, lo, hi))

    tasks, batch = tasks_of(parts), BATCH * cpu_count()
    for at in range(0, len(tasks), batch):
        found = parallel_map(differs, tasks[at : at + batch])
        if any(found):
            return parts[tasks[at + found.index(True)][0]].name
    return None


def patched(parts: Sequence[Part], held: Held, patches: Iterable[Any]) -> dict[int, Bits]:
    """Return the parts that patches change, by their numbers, as they are afterwards.

    Raises:
        InvalidArgument: a patch is not one of these parts.
    """
    numbers = {part.name: number for number, part in enumerate(parts)}
    found: dict[int, Bits] = {}
    for patch in patches:
        number = numbers.get(patch.name)
        if number is None:
            raise InvalidArgument(f"a patch is of tensor {quote(patch.name)}, which is not part of the run")
        part = parts[number]
        values, where = patch.values, patch.indices
        size = part.box.elements if where is None else len(where)
        if values.dtype != DTYPES[part.dtype] or values.numel() != size:
            raise InvalidArgument(
                f"a patch of {quote(part.name)} has {values.numel()} values of {values.dtype}, expected {size} of "
                f"{DTYPES[part.dtype]}"
            )
        bits = bits_of_values(values, part.dtype)
        if where is None:
            found[number] = bits
            continue
        places = where.detach().cpu().numpy().astype(np.int64)
        if places.size and not 0 <= int(places.min()) <= int(places.max()) < part.box.elements:
            raise InvalidArgument(
                f"a patch of {quote(part.name)} changes what is beyond its {part.box.elements} elements"
            )
        found.setdefault(number, held.bits[number].copy())[places] = bits
    return found


def same_tensors(one: TensorReader, other: TensorReader) -> bool:
    """Tell whether two checkpoints have the same tensors, bit for bit."""
    described = [{info.name: (info.dtype, info.shape) for info in reader.tensors.values()} for reader in (one, other)]
    if described[0] != described[1]:
        return False
    tasks = [
        (info.name, lo, min(lo + CHUNK, info.size))
        for info in one.tensors.values()
        for lo in range(0, info.size, CHUNK)
    ]

    def same(task: tuple[str, int, int]) -> bool:
        return np.array_equal(one.read(*task), other.read(*task))

    batch = BATCH * cpu_count()
    return all(all(parallel_map(same, tasks[at : at + batch])) for at in range(0, len(tasks), batch))
