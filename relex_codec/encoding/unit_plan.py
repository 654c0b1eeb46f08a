"""Cutting the work on a run into units, in the order in which its tensors are read. Pure functions, no I/O.

Which units there are depends on the tensors and on the steps alone, not on memory or processors, so that results that
are kept stay good wherever the work goes on. How many are done at the same time, and with how much memory, depends on
these.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from relex_codec.core.dtypes import ITEMSIZE

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo

UNITS: Final = 1024
"""About so many units are made of a large run."""
SMALLEST_UNIT: Final = 8 << 20
LARGEST_UNIT: Final = 4 << 30
"""Bytes of checkpoints in a unit: more overhead for less, longer waits and more to do again for more."""


class TensorSize(NamedTuple):
    """A tensor that is to be encoded.

    Attributes:
        number: of the tensor in the file.
        dtype: of its elements.
        elements: how many.
        framed: whether the new segment of frames holds it.
    """

    number: int
    dtype: str
    elements: int
    framed: bool

    def bytes(self, steps: int) -> int:
        """Bytes of it at all steps."""
        return self.elements * ITEMSIZE[self.dtype] * steps


class PlannedUnit(NamedTuple):
    """A unit.

    Attributes:
        tensors: numbers of its tensors.
        groups: the groups of frames that begin with their parts.
        extra: numbers of further tensors, parts of which are in the last group.
    """

    tensors: tuple[int, ...]
    groups: tuple[tuple[PartInfo, ...], ...] = ()
    extra: tuple[int, ...] = ()


def plan_units(tensors: Sequence[TensorSize], steps: int, limit: int = 0) -> list[PlannedUnit]:
    """Cut the work into units.

    Args:
        tensors: in the order of the file.
        steps: of the run.
        limit: words of a group of frames; not used where the segment holds nothing.

    Returns:
        Units in the order of the file; each tensor is in one of them, and so is each group.
    """
    total = sum(tensor.bytes(steps) for tensor in tensors)
    wanted = min(max(SMALLEST_UNIT, total // UNITS), LARGEST_UNIT)
    cut: list[list[int]] = []
    size = 0
    for tensor in tensors:
        more = tensor.bytes(steps)
        if not cut or size + more > wanted:
            cut.append([])
            size = 0
        cut[-1].append(tensor.number)
        size += more
    groups = _groups(tensors, limit)
    owner = {number: place for place, numbers in enumerate(cut) for number in numbers}
    owned: list[list[tuple[PartInfo, ...]]] = [[] for _ in cut]
    for group in groups:
        owned[owner[group[0].tensor]].append(group)
    found = []
    for numbers, mine in zip(cut, owned, strict=True):
        extra = {part.tensor for part in mine[-1]} - set(numbers) if mine else set()
        found.append(PlannedUnit(tuple(numbers), tuple(mine), tuple(sorted(extra))))
    return found


def shard_of(sizes: Sequence[int], number: int, count: int) -> list[int]:
    """Return which units are part `number` of `count`, from 1 on: parts have about as many bytes each.

    Example:
        >>> [shard_of([5, 1, 1, 3, 4], number, 2) for number in (1, 2)]
        [[0, 1, 2], [4, 3]]
    """
    filled = [0] * count
    found: list[list[int]] = [[] for _ in range(count)]
    for unit in sorted(range(len(sizes)), key=lambda unit: -sizes[unit]):
        least = filled.index(min(filled))
        filled[least] += sizes[unit]
        found[least].append(unit)
    return found[number - 1]


def _groups(tensors: Sequence[TensorSize], limit: int) -> list[tuple[PartInfo, ...]]:
    """Return the groups of the segment that holds the tensors that are framed."""
    framed = [(tensor.number, tensor.dtype, tensor.elements) for tensor in tensors if tensor.framed]
    if not framed:
        return []
    from relex_codec.exact.segments import groups_of, parts_of  # numba is only needed here

    parts = parts_of(framed)
    bounds = groups_of(parts, limit)
    return [tuple(parts[lo:hi]) for lo, hi in itertools.pairwise(bounds)]
