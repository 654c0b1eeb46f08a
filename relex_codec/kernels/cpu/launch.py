"""The CPU kernel: compiled loops on threads, one pass over the data, no temporary of a tensor's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.threads import cpu_count, parallel_map
from relex_codec.errors import InvalidArgument
from relex_codec.format.constants import PIECE
from relex_codec.kernels.interface import (
    FLUSHED,
    TINY,
    Coefficients,
    Decode,
    DecodeJob,
    PackedDirection,
    Targets,
    Window,
)

from . import tables
from .machine_code import decode
from .tables import remainder_constants

SHARES: Final = 8
"""Units of work a thread: small enough that threads end together, large enough that handing them out costs nothing."""


def prepare(jobs: Sequence[DecodeJob]) -> Decode:
    """Prepare jobs over numpy arrays; see `relex_codec.kernels.interface` for what they are.

    Decoding raises:
        InvalidArgument: the thread takes subnormal numbers for zeros, which would change the result.
    """
    jobs, rowed = list(jobs), [_by_rows(job) for job in jobs]
    starts = np.cumsum([0, *(len(job.directions) for job in jobs)])
    directions = [direction for job in jobs for direction in job.directions]
    table = np.array([_row(job, int(start)) for job, start in zip(rowed, starts[:-1], strict=True)], np.int64)
    rows = np.array([_direction_row(direction) for direction in directions], np.int64)
    known = np.array([(*remainder_constants(d.packing, d.scale, d.shift), d.scale) for d in directions], np.float32)
    work = _shares(jobs)

    def decode_all(coefficients: Coefficients, targets: Targets) -> None:
        if not jobs:
            return
        each = zip(jobs, rowed, targets, strict=True)
        places = np.array([[_target(x, *pair) for x in target] for *pair, target in each], np.int64)
        g = np.concatenate(coefficients, axis=1, dtype=np.float32)
        arrays = [array.ctypes.data for array in (table, rows, known, places, g)]

        def some(items: npt.NDArray[np.int64]) -> int:
            buffers = np.empty(3 * tables.SPAN + tables.LINE, np.float32)
            aligned = -(-buffers.ctypes.data // tables.LINE) * tables.LINE
            return decode(*arrays, items.ctypes.data, aligned, len(rows), len(g), len(items), TINY)

        if not all(parallel_map(some, work)):
            raise InvalidArgument(FLUSHED)

    return decode_all


def _by_rows(job: DecodeJob) -> DecodeJob:
    """Return a job with factors row by row of its matrices, also where its window is one long row."""
    window, factors = job.window, job.directions[0].factors
    if window.rows != 1 or factors is None:
        return job
    width = factors.b.shape[2]
    begin = window.row * window.width + window.column
    lo, hi = max(window.lo, begin), min(window.hi, begin + window.columns)
    row = lo // width
    rows = Window(width, row, max(0, -(-hi // width) - row), 0, width, lo, hi)
    return replace(job, at=job.at + row * width - begin, pitch=width, window=rows)


def _row(job: DecodeJob, start: int) -> tuple[int, ...]:
    window = job.window
    return (
        job.origin.ctypes.data, job.at, job.pitch, window.width, window.row, window.rows, window.column,
        window.columns, window.lo, window.hi, job.first, job.size, start, len(job.directions),
        tables.CODES[job.origin_dtype], tables.CODES[job.dtype],
    )  # fmt: skip


def _direction_row(direction: PackedDirection) -> tuple[int, ...]:
    factors = direction.factors
    a, b, rank, m, n, pitch = 0, 0, 0, 1, 1, 1
    if factors is not None:
        a, b = factors.a.ctypes.data, factors.b.ctypes.data
        (_, rank, m), n, pitch = factors.a.shape, factors.b.shape[2], factors.b.strides[1] // 4
    return direction.packed.ctypes.data, direction.packing.id, rank, a, b, m, n, pitch


def _target(target: npt.NDArray[Any], job: DecodeJob, rowed: DecodeJob) -> tuple[int, ...]:
    size = target.itemsize
    row, column = target.strides[0] // size, target.strides[1] // size
    if rowed is job:
        return target.ctypes.data, row, column
    ahead = rowed.window.row * rowed.window.width - (job.window.row * job.window.width + job.window.column)
    return target.ctypes.data + ahead * target.strides[1], rowed.window.width * column, column


def _shares(jobs: Sequence[DecodeJob]) -> list[npt.NDArray[np.int64]]:
    """Cut the jobs into units of work of about the same number of elements, at the ends of pieces."""
    pieces = []
    for number, job in enumerate(jobs):
        lo, hi = job.window.lo, job.window.hi
        ends = [*range((lo // PIECE + 1) * PIECE, hi, PIECE), hi]
        pieces += [(number, begin, end) for begin, end in pairwise([lo, *ends]) if begin < end]
    sizes = np.cumsum([0, *(end - begin for _, begin, end in pieces)])
    count = min(len(pieces), SHARES * cpu_count() if sizes[-1] > PIECE else 1)
    cuts = np.searchsorted(sizes, np.linspace(0, sizes[-1], count + 1)) if count else np.zeros(1, np.int64)
    shares = [np.array(pieces[a:b], np.int64) for a, b in pairwise(cuts) if a < b]
    return shares
