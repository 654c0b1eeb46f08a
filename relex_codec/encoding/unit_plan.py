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
from relex_codec.format.constants import PIECE

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo

WHOLE: Final = 2 << 30
"""Bytes at all steps of a tensor up to which it is one unit, and read once where a worker has the memory; larger ones
are read in bands, by several workers, and once more when their directions are known."""
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
        line: whether a line is drawn through it.
    """

    number: int
    dtype: str
    elements: int
    framed: bool
    line: bool = True

    def bytes(self, steps: int) -> int:
        """Bytes of it at all steps."""
        return self.elements * ITEMSIZE[self.dtype] * steps


class PlannedUnit(NamedTuple):
    """A unit.

    Attributes:
        tensors: numbers of its tensors.
        groups: the groups of frames that begin with their parts.
        extra: numbers of tensors, parts of which are in the last group though the unit does not have them.
        band: first and last but one piece of its only tensor, if it has not all of it.
    """

    tensors: tuple[int, ...]
    groups: tuple[tuple[PartInfo, ...], ...] = ()
    extra: tuple[int, ...] = ()
    band: tuple[int, int] | None = None


def plan_units(
    tensors: Sequence[TensorSize], steps: int, limit: int = 0, *, bands: bool = False
) -> list[PlannedUnit]:  # fmt: skip
    """Cut the work into units.

    Args:
        tensors: in the order of the file.
        steps: of the run.
        limit: words of a group of frames; not used where the segment holds nothing.
        bands: whether large tensors are cut.

    Returns:
        Units in the order of the file; each tensor is in one of them, or in bands that follow each other, and each
        group is in one.
    """
    total = sum(tensor.bytes(steps) for tensor in tensors)
    wanted = min(max(SMALLEST_UNIT, total // UNITS), LARGEST_UNIT)
    groups = _groups(tensors, limit)
    begins: dict[int, list[int]] = {}
    for group in groups:
        begins.setdefault(group[0].tensor, []).append(group[0].piece)
    cut: list[PlannedUnit] = []
    size = 0
    for tensor in tensors:
        more = tensor.bytes(steps)
        if bands and tensor.line and more > WHOLE:
            cuts = _bands(tensor, steps, wanted, begins.get(tensor.number))
            cut += [PlannedUnit((tensor.number,), band=band) for band in itertools.pairwise(cuts)]
        elif cut and cut[-1].band is None and size + more <= wanted:
            cut[-1] = PlannedUnit((*cut[-1].tensors, tensor.number))
            size += more
        else:
            cut.append(PlannedUnit((tensor.number,)))
            size = more
    owned: list[list[tuple[PartInfo, ...]]] = [[] for _ in cut]
    at = 0
    for group in groups:
        while not _has(cut[at], group[0]):
            at += 1
        owned[at].append(group)
    return [_framed(unit, mine) for unit, mine in zip(cut, owned, strict=True)]


def _bands(tensor: TensorSize, steps: int, wanted: int, begins: Sequence[int] | None) -> list[int]:
    """Return the pieces that bands of a tensor begin with, and the number of pieces.

    Args:
        wanted: bytes of a band.
        begins: the pieces that groups of frames begin with: nothing is read twice where bands do too.
    """
    pieces = -(-tensor.elements // PIECE)
    each = PIECE * ITEMSIZE[tensor.dtype] * steps
    cuts = [0]
    for piece in range(1, pieces) if begins is None else begins:
        if (piece - cuts[-1]) * each >= wanted:
            cuts.append(piece)
    return [*cuts, pieces]


def _has(unit: PlannedUnit, part: PartInfo) -> bool:
    """Tell whether a part is one of a unit's own."""
    return part.tensor in unit.tensors and (unit.band is None or unit.band[0] <= part.piece < unit.band[1])


def _framed(unit: PlannedUnit, groups: Sequence[tuple[PartInfo, ...]]) -> PlannedUnit:
    """Give a unit its groups."""
    extra = {part.tensor for part in groups[-1] if not _has(unit, part)} if groups else set()
    return unit._replace(groups=tuple(groups), extra=tuple(sorted(extra)))


def shard_of(sizes: Sequence[int], number: int, count: int) -> list[int]:
    """Return which units are part `number` of `count`, from 1 on: parts have about as many bytes each.

    Examples:
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
