"""The tables of the file that is written, from what is known of its tensors when they have been encoded."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from relex_codec.core.digests import DIGEST
from relex_codec.format import constants as f
from relex_codec.format.manifest import Manifest, TensorEntry
from relex_codec.format.packed_span import PackedSpan
from relex_codec.format.writer import Tables, unknown_figures

from .fit import F64, Fit
from .stored_direction import StoredDirection


@dataclass(slots=True)
class EncodedDirection:
    """A direction as it is stored.

    Attributes:
        record: without its spans.
        factors, remainder: its spans.
        coefficients: float64 [T].
        norm: its 1-norm, of unit length and not quantised; NaN where not known.
    """

    record: Any
    factors: PackedSpan
    remainder: PackedSpan
    coefficients: F64
    norm: float


@dataclass(slots=True)
class EncodedTensor:
    """What is known of one tensor when it has been encoded: all that the file says of it.

    Attributes:
        entry: what the manifest says.
        kind: ``TIED`` for another name of the tensor number `target`; then nothing else is known of it but `entry`,
            whose sources are empty.
        origin: see FORMAT.md section 5.
        span: of the origin, where the file holds it.
        digests: of the origin's pieces, where the base holds it.
        directions: those that are stored.
        segment: the first segment of frames that holds the tensor, from 1 on; 0 if none does.
        target: see `kind`.
        norm: the 1-norm of its origin; NaN where not known.
        not_finite: numbers of the steps, from 0 on, at which it has weights that are not finite.
        squares: float64 [T], of one that moves, the squared norm of its delta at each step; None where not known.
        misses: float64 [2, T], the squared error of tiers ``track`` and ``line`` there.
    """

    entry: TensorEntry
    kind: int
    origin: int
    span: PackedSpan | None = None
    digests: list[bytes] = field(default_factory=list)
    directions: list[EncodedDirection] = field(default_factory=list)
    segment: int = 0
    target: int | None = None
    norm: float = math.nan
    not_finite: Sequence[int] = ()
    squares: F64 | None = None
    misses: F64 | None = None


def errors_of(tensors: Iterable[EncodedTensor], steps: int) -> npt.NDArray[np.float32]:
    """Return the relative errors of tiers ``track`` and ``line`` at each step, over all tensors that move.

    NaN where one of them does not know its own, or where none has moved.
    """
    misses, squares = np.zeros((2, steps)), np.zeros(steps)
    for tensor in tensors:
        if tensor.kind == f.MOVING:
            misses += np.nan if tensor.misses is None else tensor.misses
            squares += np.nan if tensor.squares is None else tensor.squares
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.sqrt(misses / squares)
    return np.where(np.isfinite(errors), errors, np.nan).astype(np.float32)


def tables_of(
    tensors: list[EncodedTensor], steps: Any, manifest: Manifest, errors: npt.NDArray[np.float32] | None = None
) -> Tables:
    """Join the records of all tensors, whose chunks have been written.

    Args:
        errors: of the tiers at each step, as of `Tables`; None: those of the tensors.
    """
    records = np.zeros(len(tensors), f.TENSOR_RECORD)
    rows: list[Any] = []
    digests: list[bytes] = []
    coefficients: list[Any] = []
    for record, tensor in zip(records, tensors, strict=True):
        record["kind"], record["origin"], record["directions"] = tensor.kind, tensor.origin, len(tensor.directions)
        record["first"] = len(rows) if tensor.kind == f.MOVING else tensor.target or 0
        record["segment"] = tensor.segment
        record["digest"] = len(digests) if tensor.origin == f.IN_BASE and tensor.kind != f.TIED else 0
        if tensor.span is not None:
            record["chunk"], record["offset"] = tensor.span.place.resolved()
        digests.extend(tensor.digests)
        for direction in tensor.directions:
            row = direction.record
            row["factor_chunk"], row["factor_offset"] = direction.factors.place.resolved()
            row["chunk"], row["offset"] = direction.remainder.place.resolved()
            rows.append(row)
            coefficients.append(direction.coefficients)
    _, norms = unknown_figures(len(tensors), len(rows), len(steps))
    norms[: len(tensors)] = [tensor.norm for tensor in tensors]
    norms[len(tensors) :] = [direction.norm for tensor in tensors for direction in tensor.directions]
    return Tables(
        steps=steps,
        manifest=manifest,
        tensors=records,
        directions=np.concatenate(rows) if rows else np.zeros(0, f.DIRECTION_RECORD),
        digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST),
        coefficients=np.array(coefficients, np.float64).reshape(-1, len(steps)),
        errors=errors_of(tensors, len(steps)) if errors is None else errors,
        norms=norms,
    )


def direction_record(fitted: Fit, j: int, stored: StoredDirection) -> Any:
    """The record of a direction, but for its spans, which are known when all chunks are written."""
    record = np.zeros(1, f.DIRECTION_RECORD)
    row = record[0]
    row["slope"], row["intercept"] = fitted.slope[j], fitted.intercept[j]
    row["scale"], row["shift"] = stored.scale, stored.shift
    row["rank"], row["packing"] = stored.rank, stored.packing.id
    row["coefficients_crc"] = zlib.crc32(fitted.coefficients[j].astype("<f8").tobytes())
    row["explained"], row["r2"] = fitted.explained[j], fitted.r2[j]
    row["error_line"], row["error_stored"] = stored.error_line, stored.error_stored
    return record
