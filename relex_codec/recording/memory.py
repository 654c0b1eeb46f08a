"""The previous step in host memory, and what changed since: compared by compiled code, on all processors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.core.dtypes import Bits, bits_dtype
from relex_codec.core.text import quote
from relex_codec.core.threads import cpu_count, parallel_map
from relex_codec.core.torch_dtypes import DTYPES
from relex_codec.errors import InvalidArgument
from relex_codec.journal.difference import LOT, Changes, code_changes, find_changes
from relex_codec.journal.format import Part

from .lots import LOTS, Batch, Lot, batches_of, bits_of, lots_of


class Held:
    """Elements of the parts of a rank at one step."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.bits = [np.empty(part.box.elements, bits_dtype(part.dtype)) for part in parts]

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return sum(bits.nbytes for bits in self.bits)

    def fill(self, parts: Sequence[Part], reader: TensorReader) -> None:
        """Read the parts from a step."""
        parallel_map(
            lambda lot: read_box(reader, parts[lot[0]], lot[1], self.bits[lot[0]][lot[1] : lot[2]]), lots_of(parts)
        )


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


def changes(parts: Sequence[Part], previous: Held, batches: Iterable[Batch], keep: bool) -> Iterator[list[Changes]]:
    """Yield, for each batch, what turns the previous step into this one, lot by lot.

    Args:
        keep: whether the previous step stays as it is; otherwise it becomes this one.
    """
    for batch in batches:

        def one(lot: Lot, batch: Batch = batch) -> Changes:
            number, lo, hi = lot
            old, new = previous.bits[number][lo:hi], batch.read(number, lo, hi)
            return find_changes(old, old if new is None else new, parts[number].dtype, keep=keep)

        yield parallel_map(one, batch.lots)


def coded(batches: Iterable[list[Changes]]) -> Iterator[bytes]:
    """Yield the blobs of all chunks, in order."""
    for batch in batches:
        yield from chain.from_iterable(parallel_map(code_changes, batch))


def different(parts: Sequence[Part], held: Held, batches: Iterable[Batch]) -> str | None:
    """Return the name of a tensor of which something else is held than what is read; None: there is none."""
    for batch in batches:

        def differs(lot: Lot, batch: Batch = batch) -> bool:
            number, lo, hi = lot
            new = batch.read(number, lo, hi)
            return new is not None and not np.array_equal(held.bits[number][lo:hi], new)

        found = parallel_map(differs, batch.lots)
        if any(found):
            return parts[batch.lots[found.index(True)][0]].name
    return None


def patched(parts: Sequence[Part], held: Held, patches: Iterable[Any]) -> Iterator[Batch]:
    """Yield all lots of parts as they are after patches.

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
        bits = bits_of(values.detach().cpu().contiguous(), part.dtype)
        if where is None:
            found[number] = bits
            continue
        places = where.detach().cpu().numpy().astype(np.int64)
        if places.size and not 0 <= int(places.min()) <= int(places.max()) < part.box.elements:
            raise InvalidArgument(
                f"a patch of {quote(part.name)} changes what is beyond its {part.box.elements} elements"
            )
        found.setdefault(number, held.bits[number].copy())[places] = bits

    def read(number: int, lo: int, hi: int) -> Bits | None:
        return found[number][lo:hi] if number in found else None

    return batches_of(parts, read)


def same_tensors(one: TensorReader, other: TensorReader) -> bool:
    """Tell whether two checkpoints have the same tensors, bit for bit."""
    described = [{info.name: (info.dtype, info.shape) for info in reader.tensors.values()} for reader in (one, other)]
    if described[0] != described[1]:
        return False
    tasks = [
        (info.name, lo, min(lo + LOT, info.size)) for info in one.tensors.values() for lo in range(0, info.size, LOT)
    ]

    def same(task: tuple[str, int, int]) -> bool:
        return np.array_equal(one.read(*task), other.read(*task))

    many = LOTS * cpu_count()
    return all(all(parallel_map(same, tasks[at : at + many])) for at in range(0, len(tasks), many))
