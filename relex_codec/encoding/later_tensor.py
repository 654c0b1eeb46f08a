"""One tensor of a file at further steps: coefficients by projection on its stored directions, and its frames.

The stored directions v_j are not of unit length any more, nor quite orthogonal. The coefficients c of a delta D are
those with which the decoded weights come closest to it, by least squares: (V V^T) c = V D. For one direction that is
``D . v / v . v``, which is the coefficient on the direction before it was quantised where D lies along it, as the
levels of a quantiser are centroids.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from relex_codec.checkpoints.checkpoint import CheckpointSeries
from relex_codec.core.dtypes import F32, Bits
from relex_codec.core.steps import name_steps
from relex_codec.core.text import quote
from relex_codec.decoding.origin_reader import converted
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tiers import StepTier
from relex_codec.errors import CheckpointError
from relex_codec.format import constants as f
from relex_codec.format.tensor_record import TensorRecord

from .delta_sums import FEW, widened, working_array
from .fit import F64, deltas
from .frames import TensorFrames
from .step_errors import TIERS, excerpt_spans, measure, scaled
from .stored_vectors import StoredVectors


@dataclass(slots=True)
class LaterTensor:
    """What is known of a tensor at the further steps.

    Attributes:
        coefficients: float64 [k, n].
        segment: the ``segment`` field of its record.
        misses, squares: squared errors of tiers ``track`` and ``line``, [2, n], and squared deltas, [n].
        moves: whether it differs from its origin though it has no directions, so that only frames hold it.
    """

    coefficients: F64
    segment: int
    misses: F64
    squares: F64
    moves: bool = False


@dataclass(slots=True)
class _Sums:
    """What is summed up over the pieces of a tensor that moves."""

    inner: F64
    """[k, n]: products of directions and deltas."""
    gram: F64
    """[k, k]: those of the directions."""
    squares: F64
    stretches: list[tuple[Bits, Bits, list[F32]]] = field(default_factory=list)
    """Origin, further steps and decoded directions of what errors are measured on."""


def project_tensor(
    decoder: TensorDecoder, tensor: TensorRecord, further: CheckpointSeries, frames: TensorFrames | None
) -> LaterTensor:
    """Go once through a tensor at the further steps.

    Args:
        decoder: of the file.
        tensor: no tied one.
        further: has the tensor, or lacks it: then its frames say that it stays what it was.
        frames: takes it to the new segment, if that is to hold it.

    Raises:
        CheckpointError: a step cannot be read, or a tensor that moves has weights there that are not finite.
        BaseMismatch, Corrupt: the file or its base is damaged, or not the one that it was made from.
    """
    count = len(further.steps)
    there = decoder.container.index.layout.get(tensor.name) is tensor  # of several dtypes, the one that they have
    vectors = StoredVectors(decoder.container, tensor)
    sums = _Sums(np.zeros((len(vectors), count)), np.zeros((len(vectors),) * 2), np.zeros(count))
    spans, moves = excerpt_spans(tensor.size), False
    for piece, lo in enumerate(range(0, tensor.size, f.PIECE)):
        hi = min(lo + f.PIECE, tensor.size)
        origin = decoder.origins.read_span(tensor, lo, hi)
        start, new = converted(origin, tensor), further.read(tensor.name, lo, hi) if there else None
        if frames is not None:
            left = _at_left(decoder, tensor, frames.left, lo, hi) if frames.left else start
            frames.add_later(piece, left, standing(left, count) if new is None else new)
        if new is not None and len(vectors):
            decoded = [vectors.piece(j, piece) for j in range(len(vectors))]
            _add(sums, tensor, further, origin, new, decoded)
            for a, b in ((max(lo, a), min(hi, b)) for a, b in spans if a < hi and b > lo):
                part = slice(a - lo, b - lo)
                kept = origin[part].copy(), new[:, part].copy(), [values[part].copy() for values in decoded]
                sums.stretches.append(kept)
        elif new is not None:
            moves = moves or bool((new != start).any())
    segment = frames.end() if frames is not None else tensor.segment
    coefficients: F64 = sums.inner
    if sums.gram.any():  # else the directions are all zeros
        coefficients = np.stack([np.linalg.lstsq(sums.gram, column, rcond=None)[0] for column in sums.inner.T], axis=1)
    if not len(vectors):
        return LaterTensor(coefficients, segment, np.zeros((TIERS, count)), np.zeros(count), moves)
    return LaterTensor(coefficients, segment, _misses(sums, decoder, tensor, further, coefficients), sums.squares)


def add_piece(
    decoder: TensorDecoder, tensor: TensorRecord, further: CheckpointSeries, piece: int, frames: TensorFrames
) -> None:
    """Take one piece of a tensor to the new segment, and do nothing else with it; arguments as of `project_tensor`."""
    lo = piece * f.PIECE
    hi = min(lo + f.PIECE, tensor.size)
    if frames.left:
        left = _at_left(decoder, tensor, frames.left, lo, hi)
    else:
        left = converted(decoder.origins.read_span(tensor, lo, hi), tensor)
    there = decoder.container.index.layout.get(tensor.name) is tensor
    frames.add_later(piece, left, further.read(tensor.name, lo, hi) if there else standing(left, len(further.steps)))


def standing(left: Bits, count: int) -> Bits:
    """Return the elements of a tensor at steps that lack it: what they were."""
    return np.broadcast_to(left, (count, len(left)))


def moves_later(decoder: TensorDecoder, tensor: TensorRecord, further: CheckpointSeries) -> bool:
    """Tell whether a tensor that has stood still so far differs from its origin at a further step."""
    if decoder.container.index.layout.get(tensor.name) is not tensor:
        return False
    for lo in range(0, tensor.size, f.PIECE):
        hi = min(lo + f.PIECE, tensor.size)
        start = converted(decoder.origins.read_span(tensor, lo, hi), tensor)
        if (further.read(tensor.name, lo, hi) != start).any():
            return True
    return False


def _at_left(decoder: TensorDecoder, tensor: TensorRecord, left: int, lo: int, hi: int) -> Bits:
    """Return elements of a tensor at stored step number `left`, bit for bit."""
    index = decoder.container.index
    tier = "exact" if index.has_exact else "track"  # which has the tensors that are stored step by step as they are
    return decoder.read(tensor, StepTier(float(index.steps[left - 1]), tier), lo, hi)


def _add(
    sums: _Sums, tensor: TensorRecord, further: CheckpointSeries, origin: Bits, new: Bits, decoded: list[F32]
) -> None:
    """Add a piece to the sums."""
    wide = [values.astype(np.float64) for values in decoded]
    sums.gram += [[float(one @ other) for other in wide] for one in wide]
    if tensor.size <= FEW:
        products = _plain(tensor, origin, new, wide)
    else:
        products = _compiled(tensor, origin, new, decoded)
        if not np.isfinite(products).all():  # infinities that are the same at the origin are no delta
            products = _plain(tensor, origin, new, wide)
    bad = np.flatnonzero(~np.isfinite(products).all(axis=0))
    if len(bad):
        steps = name_steps([further.steps[int(i)] for i in bad], list(further.steps))
        raise CheckpointError(
            f"tensor {quote(tensor.name)} of {steps} has weights that are not finite, so it has no coefficient "
            "there: leave such steps out, or append with --refit to a file with the exact tier"
        )
    sums.inner += products[:-1]
    sums.squares += products[-1]


def _plain(tensor: TensorRecord, origin: Bits, new: Bits, wide: list[F64]) -> F64:
    """Return the products of each direction with the deltas of each step, and their squares: [k + 1, n]."""
    delta = deltas(new, tensor.dtype, origin, tensor.origin_dtype).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        # step by step: sums are the same whether steps come one at a time or together
        return np.array(
            [[float(row @ other) for row in delta] for other in wide] + [[float(row @ row) for row in delta]]
        )


def _compiled(tensor: TensorRecord, origin: Bits, new: Bits, decoded: list[F32]) -> F64:
    from .loops.deltas import STRIP, project  # numba is only needed here
    from .loops.widening import KINDS

    start, strip = widened(origin, tensor.origin_dtype), working_array("project", (STRIP,), np.float32)
    found = np.empty((len(decoded) + 1, len(new)))
    for i, bits in enumerate(new):
        for j, values in enumerate(decoded):
            found[j, i], found[-1, i] = project(bits, KINDS[tensor.dtype], start, values, strip)
    return found


def _misses(
    sums: _Sums, decoder: TensorDecoder, tensor: TensorRecord, further: CheckpointSeries, coefficients: F64
) -> F64:
    """Return the squared errors of both tiers at the further steps."""
    records = decoder.container.index.directions[tensor.directions.start : tensor.directions.stop]
    steps = np.array(further.steps, np.float64)
    line = records["slope"][:, None] * steps + records["intercept"][:, None]
    factors = np.stack([coefficients, line]).astype(np.float32)
    found, squares = np.zeros((TIERS, len(steps))), np.zeros(len(steps))
    for origin, new, decoded in sums.stretches:
        miss, delta = measure(origin, tensor.origin_dtype, new, tensor.dtype, decoded, factors, few=tensor.size <= FEW)
        found += miss
        squares += delta
    return scaled(found, squares, sums.squares, tensor.size)
