"""What directions and origins hold, as numbers and part by part: for what measures them instead of decoding a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from relex_codec.core.dtypes import F32, to_float32
from relex_codec.decoding.direction_reader import read_directions
from relex_codec.decoding.read_plan import DirectionPieces, KernelBatch, KernelPass, OriginPass, OriginPieces
from relex_codec.decoding.scratch import fresh
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tiers import StepTier
from relex_codec.format import constants as f
from relex_codec.format.factors import Factors
from relex_codec.format.reader import FileReader
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.kernels.dispatch import host_kernel
from relex_codec.kernels.interface import DecodeJob, PackedDirection, Window, flat

PART: Final = 16 * f.PIECE
"""Elements that are in memory at a time."""


def parts_of(size: int) -> list[Window]:
    """Return windows that cover a tensor of so many elements, whole pieces each."""
    return [flat(lo, min(lo + PART, size)) for lo in range(0, size, PART)]


def direction_parts(decoder: TensorDecoder, tensor: TensorRecord) -> Iterator[tuple[F32, F32]]:
    """Yield origin, float32 [x], and stored directions, float32 [k, x], part by part, of a tensor that moves.

    Raises:
        BaseMismatch, CheckpointError: the base cannot be used.
        Corrupt, Truncated: the file is damaged.
    """
    plan = decoder.plan([(tensor, parts_of(tensor.size))], [StepTier(1.0, "line")])
    with decoder.fetcher.ahead(plan):
        for window in plan.tensors[0].windows:
            for one in window.passes:
                assert isinstance(one, KernelPass)  # which is what a tensor with directions has in tier ``line``
                for job in decoder.jobs(window.window, one):
                    origin = job.origin[job.at : job.at + job.window.columns]
                    yield to_float32(origin, job.origin_dtype), _directions_of(job)


def _directions_of(job: DecodeJob) -> F32:
    """Decode with an origin of zeros, for each direction with coefficient 1 for it and 0 for the others."""
    count = len(job.directions)
    alone = replace(job, origin=np.zeros(len(job.origin), np.uint32), origin_dtype="F32", dtype="F32")
    found = np.empty((count, job.window.rows, job.window.columns), np.uint32)
    host_kernel([alone])([np.eye(count, dtype=np.float32)], [list(found)])
    return found.reshape(count, -1).view(np.float32)


def origin_parts(decoder: TensorDecoder, tensor: TensorRecord) -> Iterator[F32]:
    """Yield the origin of a tensor of floats, float32 [x], part by part; errors are those of `direction_parts`."""
    plan = decoder.plan([(tensor, parts_of(tensor.size))], [StepTier(0.0, "base")])
    with decoder.fetcher.ahead(plan):
        for window in plan.tensors[0].windows:
            for one in window.passes:
                assert isinstance(one, OriginPass)  # which is what every tensor has in tier ``base``
                for pieces in one.batches:
                    yield to_float32(decoder.origins.read(pieces), tensor.origin_dtype)


def is_factored(container: FileReader, tensor: TensorRecord) -> bool:
    """Tell whether all directions of a tensor that moves are stored as factors and nothing else."""
    records = container.index.directions[tensor.directions.start : tensor.directions.stop]
    return all(f.PACKINGS[int(one["packing"])] is f.NONE and int(one["rank"]) > 0 for one in records)


def stored_factors(container: FileReader, tensor: TensorRecord) -> list[Factors]:
    """Read the factors of a tensor's directions, and nothing else: no remainder, no origin.

    Args:
        tensor: one that `is_factored`.

    Raises:
        Corrupt, Truncated: the file is damaged.
    """
    found = _read(container, tensor, 0, 0, [])
    return [direction.factors for direction in found if direction.factors is not None]


def mixed_directions(container: FileReader, tensor: TensorRecord, mix: F32) -> F32:
    """Read a tensor's directions, without its origin, and add them up.

    Args:
        mix: float32 [J, k], how much of each direction is in each sum.

    Returns:
        float32 [J, size].

    Raises:
        Corrupt, Truncated: the file is damaged.
    """
    out = np.empty((len(mix), tensor.size), np.float32)
    known: list[Factors | None] = []
    for window in parts_of(tensor.size):
        lo, hi = window.lo, window.hi
        directions = _read(container, tensor, lo, hi, known)
        known = [direction.factors for direction in directions]
        zeros = np.zeros(hi - lo, np.uint32)
        job = DecodeJob(zeros, 0, window.width, "F32", "F32", directions, window, lo, tensor.size)
        host_kernel([job])([mix], [[row[None, lo:hi].view(np.uint32) for row in out]])
    return out


def _read(
    container: FileReader, tensor: TensorRecord, lo: int, hi: int, known: list[Factors | None]
) -> list[PackedDirection]:
    """Read the directions of elements lo .. hi, whole pieces; of factors that are not known all."""
    pieces = []
    for number in tensor.directions:
        planes = f.PACKINGS[int(container.index.directions[number]["packing"])].planes
        factors, remainder = container.index.direction_places(tensor, number)
        wanted = remainder[lo // f.PIECE * planes : -(-hi // f.PIECE) * planes]
        pieces.append(DirectionPieces(number, () if known else factors, wanted))
    return read_directions(container, KernelBatch(OriginPieces(tensor, lo, hi, (), ()), pieces), known, fresh)
