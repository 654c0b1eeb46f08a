"""The tables of the file that is written, from what is known of its tensors when they have been encoded."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from relex_codec.core.digests import DIGEST, digest
from relex_codec.core.filenames import is_document
from relex_codec.format import constants as f
from relex_codec.format.manifest import FileEntry, Layout, Manifest, TensorEntry
from relex_codec.format.writer import PendingSpan, Tables, unknown_figures

from .fit import F64, Fit
from .stored_direction import StoredDirection


@dataclass(slots=True)
class EncodedTensor:
    """What is known of one tensor when it has been encoded.

    Attributes:
        kind: ``TIED`` for another name of the tensor number `target`; then nothing else is known of it but `entry`,
            whose sources are empty, and `shard`.
        shard: number of the file of weights that it is written to in the layout of tiers ``line`` and ``track``.
        norm: the 1-norm of its origin; NaN where not known.
        direction_norms: those of its directions, of unit length and not quantised; empty where not known.
    """

    entry: TensorEntry
    kind: int
    origin: int
    shard: int = 0
    span: PendingSpan | None = None
    digests: list[bytes] = field(default_factory=list)
    directions: list[tuple[Any, PendingSpan, PendingSpan]] = field(default_factory=list)
    """Record of each direction without its spans, and the spans of its factors and of its remainder."""
    coefficients: list[F64] = field(default_factory=list)
    segment: int = 0
    """The first segment of frames that holds it, from 1 on."""
    target: int | None = None
    norm: float = math.nan
    direction_norms: list[float] = field(default_factory=list)


def plain_layout(
    tensors: Sequence[EncodedTensor], shards: Sequence[str], indexed: bool, files: Sequence[int]
) -> Layout:
    """Return the layout of steps that have all tensors, each in its `shard`, and some files."""
    return Layout(list(shards), indexed, [tensor.shard for tensor in tensors], list(files))


def file_entries(files: Iterable[tuple[str, bytes, PendingSpan | None]]) -> list[FileEntry]:
    """Return the entries of files, whose chunks have been written.

    Args:
        files: name, content, and where that was stored; None: only in the base. There, documents may change.
    """
    return [
        FileEntry(
            name,
            len(content),
            None if span is None and is_document(name) else digest(content).hex(),
            *((None, None) if span is None else span.resolved()),
        )
        for name, content, span in files
    ]


def tables_of(
    tensors: list[EncodedTensor], steps: Any, manifest: Manifest, errors: npt.NDArray[np.float32] | None = None
) -> Tables:
    """Join the records of all tensors, whose chunks have been written.

    Args:
        errors: of the tiers at each step, as of `Tables`; None where nobody knows them.
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
            record["chunk"], record["offset"] = tensor.span.resolved()
        digests.extend(tensor.digests)
        for row, factors, remainder in tensor.directions:
            row["factor_chunk"], row["factor_offset"] = factors.resolved()
            row["chunk"], row["offset"] = remainder.resolved()
            rows.append(row)
        coefficients.extend(tensor.coefficients)
    unknown, norms = unknown_figures(len(tensors), len(rows), len(steps))
    norms[: len(tensors)] = [tensor.norm for tensor in tensors]
    norms[len(tensors) :] = [
        norm for tensor in tensors for norm in tensor.direction_norms or [math.nan] * len(tensor.directions)
    ]
    return Tables(
        steps=steps,
        manifest=manifest,
        tensors=records,
        directions=np.concatenate(rows) if rows else np.zeros(0, f.DIRECTION_RECORD),
        digests=np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST),
        coefficients=np.array(coefficients, np.float64).reshape(-1, len(steps)),
        errors=unknown if errors is None else errors,
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
