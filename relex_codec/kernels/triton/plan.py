"""What the Triton kernels are told: rows of a table, and which kernel decodes which blocks. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.format.constants import BLOCK, PIECE
from relex_codec.format.packing import packed_size
from relex_codec.kernels.interface import DecodeJob, PackedDirection

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]


class JobField(IntEnum):
    """What a job's row of the table begins with; the fields of `DirectionField` for each direction follow.

    ``START`` to ``PITCH`` are of the window: its first element, rows and columns as in `DecodeJob`. In ``planar`` the
    address of the origin is that of element 0 of the tensor, wherever that would be, in ``general`` that of the
    window's first.
    """

    ELEMENT_0 = 0
    ORIGIN = 1
    LO = 2
    HI = 3
    FIRST_PIECE = 4
    SIZE = 5
    CALL = 6
    DIRECTIONS = 7
    START = 8
    WIDTH = 9
    COLUMNS = 10
    COUNT = 11
    PITCH = 12


class DirectionField(IntEnum):
    """What is stored of a direction: addresses, bytes of a full piece, quantiser, sizes, and its packing's numbers.

    ``ROWS`` is of all matrices together.
    """

    PACKED = 0
    PIECE_BYTES = 1
    SCALE = 2
    SHIFT = 3
    A = 4
    B = 5
    RANK = 6
    M = 7
    N = 8
    ROWS = 9
    PACKING = 10
    PER_BYTE = 11
    RADIX = 12
    ZERO = 13


TARGET_WORDS: Final = 3
"""What a call's row for a job and step begins with: address and strides of the target; a coefficient per direction
follows."""
SEVERAL: Final = -1
"""For ``general``: several directions, whose packings are read from the table."""
FACTORS_FLAG: Final = 8
"""For ``planar``: added to a packing's number where there are factors too; four bits a direction."""

ALIGNMENT: Final = 16
"""Bytes of the widest load or store of a thread."""
UNROLLED: Final = 4
"""Directions that ``planar`` takes; more would make it slow to compile."""
SMALL: Final = 1 << 28
"""Up to this, numbers are computed with in 32 bits; there is room for a sum of some of them."""
GENERAL_TILE: Final = 1024
LONG_TILE, SHORT_TILE = 2048, 1024
"""Bytes of a block that a program of ``planar`` takes: enough loads under way, and few enough registers."""

STRIDED, FLAT, ALIGNED = 0, 1, 2
"""Forms of a job: any; contiguous elements into contiguous ones; and these with all addresses aligned."""


class PlanarClass(NamedTuple):
    """Jobs that one launch of ``planar`` decodes, named as its arguments."""

    ORIGIN: str
    DTYPE: str
    K: int
    DIRECTIONS: int
    CLASSES: int
    TILE: int
    NEAR: bool
    ALIGNED: bool


class GeneralClass(NamedTuple):
    """Jobs that one launch of ``general`` decodes, named as its arguments."""

    ORIGIN: str
    DTYPE: str
    CLASS: int
    WIDE: bool
    TILE: int


Class = PlanarClass | GeneralClass


class Addresses(NamedTuple):
    """Where the arrays of a job are."""

    origin: int
    directions: Sequence[tuple[int, int, int]]
    """Of each direction: packed, a, b; 0 where there is none."""


def extent(job: DecodeJob) -> tuple[int, int]:
    """Return the elements lo .. hi of a flat window that are decoded; lo = hi if there are none."""
    w = job.window
    start = w.row * w.width + w.column
    lo = max(start, w.lo)
    return lo, max(lo, min(start + w.rows * w.columns, w.hi))


def element_0(job: DecodeJob, address: int) -> int:
    """Return where element 0 of the tensor would be if the window's first were at `address`, all contiguous."""
    return address - (job.window.row * job.window.width + job.window.column) * ITEMSIZE[job.origin_dtype]


def digits(job: DecodeJob) -> int | None:
    """Return how many digits a byte of the job's codes has, 1 if it has none in bytes; None if directions differ."""
    found = {d.packing.per_byte for d in job.directions if d.packing.per_byte > 1}
    return None if len(found) > 1 else max(found, default=1)


def static_form(job: DecodeJob, addresses: Addresses) -> int:
    """Return the best form of the job that its targets may have."""
    w = job.window
    if not (w.rows <= 1 or (w.columns == w.width == job.pitch)):
        return STRIDED
    if len(job.directions) > UNROLLED or digits(job) is None:
        return STRIDED
    if any(max(d.factors.a.shape[2], d.factors.b.shape[2]) > SMALL for d in job.directions if d.factors is not None):
        return STRIDED
    starts = [
        element_0(job, addresses.origin + job.at * ITEMSIZE[job.origin_dtype]),
        *(packed for packed, _, _ in addresses.directions),
    ]
    return FLAT if any(start % ALIGNMENT for start in starts) else ALIGNED


def describe(job: DecodeJob, addresses: Addresses, call: int) -> list[int]:
    """Return the job's row of the table: `JobField`, and `DirectionField` for each direction.

    Args:
        call: words of a call's rows for one step of the jobs before.
    """
    w = job.window
    origin = addresses.origin + job.at * ITEMSIZE[job.origin_dtype]
    lo, hi = extent(job) if w.rows <= 1 or w.columns == w.width else (w.lo, w.hi)
    row = [element_0(job, origin), origin, lo, hi, job.first // PIECE, job.size, call, len(job.directions)]
    row += [w.row * w.width + w.column, w.width, w.columns, w.rows * w.columns, job.pitch]
    for direction, (packed, a, b) in zip(job.directions, addresses.directions, strict=True):
        packing = direction.packing
        row += [packed, packed_size(PIECE, packing) * packing.planes, _bits(direction.scale), _bits(direction.shift)]
        factors = direction.factors
        h, r, m, n = (1, 0, 1, 1) if factors is None else (*factors.a.shape, factors.b.shape[2])
        row += [a, b, r, m, n, h * m]
        row += [packing.id, packing.per_byte, packing.radix, packing.zero]
    return row


def _bits(value: np.float32) -> int:
    return int(np.float32(value).view(np.uint32))


def units(job: DecodeJob, form: int, row: int) -> list[tuple[Class, Int32]]:
    """Return the units of work of a job by class: int32 [units, 2], `row` and the number of a block or tile.

    Args:
        form: of the job with the targets of a call; no better than its `static_form`.
        row: where the job's row begins in the table.
    """
    found = _general(job) if form == STRIDED else _planar(job, form)
    return [
        (of_class, np.column_stack([np.full(len(numbers), row), numbers]).astype(np.int32))
        for of_class, numbers in found
        if len(numbers)
    ]


def _general(job: DecodeJob) -> list[tuple[Class, Int64]]:
    count = job.window.rows * job.window.columns
    if count == 0:
        return []
    of_all = _flags(job.directions[0]) if len(job.directions) == 1 else SEVERAL
    sizes = [max(d.factors.a.shape[2], d.factors.b.shape[2]) for d in job.directions if d.factors is not None]
    if job.window.rows > 1:  # how far apart a tile's elements lie
        sizes.append((GENERAL_TILE // job.window.columns + 2) * max(job.window.width, job.pitch))
    wide = max(sizes, default=0) > SMALL
    of_class = GeneralClass(job.origin_dtype, job.dtype, of_all, wide, GENERAL_TILE)
    return [(of_class, np.arange(-(-count // GENERAL_TILE)))]


def _planar(job: DecodeJob, form: int) -> list[tuple[Class, Int64]]:
    k = digits(job)
    assert k is not None
    lo, hi = extent(job)
    if lo == hi:
        return []
    span, first_piece = BLOCK * k, job.first // PIECE
    per_piece = -(-PIECE // span)

    def block_of(element: int) -> int:
        piece, inside = divmod(element - job.first, PIECE)
        return piece * per_piece + inside // span

    numbers = np.arange(block_of(lo), block_of(hi - 1) + 1)
    piece, place = np.divmod(numbers, per_piece)
    start = (piece + first_piece) * PIECE
    length = np.minimum(job.size - start, PIECE)
    start += place * span
    whole = (length - place * span >= span) & (start >= lo) & (start + span <= hi)
    if any(direction.packing.planes > 1 for direction in job.directions):
        whole &= length % ALIGNMENT == 0  # so far apart are the planes
    if form != ALIGNED:
        whole[:] = False
    classes = sum(_flags(direction) << (4 * d) for d, direction in enumerate(job.directions))
    factors = [d.factors for d in job.directions if d.factors is not None]
    tile = SHORT_TILE if k > 2 or len(job.directions) > 1 or factors else LONG_TILE
    near = bool(factors) and all(f.b.shape[2] >= SHORT_TILE and int(np.prod(f.b.shape)) < SMALL for f in factors)
    fast = PlanarClass(job.origin_dtype, job.dtype, k, len(job.directions), classes, tile, near, True)
    return [(fast, numbers[whole]), (fast._replace(TILE=SHORT_TILE, ALIGNED=False), numbers[~whole])]


def _flags(direction: PackedDirection) -> int:
    return direction.packing.id + FACTORS_FLAG * (direction.factors is not None)


def forms(best: Int64, flat_strides: npt.NDArray[np.bool_], aligned: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8]:
    """Return the form of each job in a call.

    Args:
        best: `static_form` of each job.
        flat_strides, aligned: whether all targets of a job are contiguous, and begin where they must.
    """
    return np.minimum(best, np.where(flat_strides, np.where(aligned, ALIGNED, FLAT), STRIDED)).astype(np.int8)
