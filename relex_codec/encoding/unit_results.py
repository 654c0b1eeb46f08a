"""What a unit says of its tensors, as part of a `unit_files` file, and back."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from relex_codec.core.digests import DIGEST
from relex_codec.engines.unit_files import COPY, UnitFile, UnitWriter
from relex_codec.format import constants as f
from relex_codec.format.manifest import TensorEntry
from relex_codec.format.packed_span import ChunkRow, PackedSpan

from .tables import EncodedDirection, EncodedTensor

if TYPE_CHECKING:
    from relex_codec.exact.segment_writer import Blobs, CodedGroup


def put_tensor(out: UnitWriter, tensor: EncodedTensor) -> dict[str, Any]:
    """Write a tensor; returns what the document says of it. Its spans are let go of."""
    return {
        "kind": tensor.kind,
        "origin": tensor.origin,
        "segment": tensor.segment,
        "span": None if tensor.span is None else _put_span(out, tensor.span),
        "digests": out.data(b"".join(tensor.digests)),
        "directions": [_put_direction(out, one) for one in tensor.directions],
        "norm": out.array(np.array([tensor.norm], "<f8")),
        "not_finite": [int(step) for step in tensor.not_finite],
        "squares": None if tensor.squares is None else out.array(tensor.squares),
        "misses": None if tensor.misses is None else out.array(tensor.misses),
    }


def get_tensor(unit: UnitFile, row: dict[str, Any], entry: TensorEntry) -> EncodedTensor:
    """Return what `put_tensor` wrote; large spans are read when they are written.

    Args:
        entry: what the manifest says of the tensor.
    """
    digests = unit.data(row["digests"])
    return EncodedTensor(
        entry,
        row["kind"],
        row["origin"],
        None if row["span"] is None else _get_span(unit, row["span"]),
        [digests[at : at + DIGEST] for at in range(0, len(digests), DIGEST)],
        [_get_direction(unit, one) for one in row["directions"]],
        row["segment"],
        norm=float(unit.array(row["norm"])[0]),
        not_finite=row["not_finite"],
        squares=None if row["squares"] is None else unit.array(row["squares"]),
        misses=None if row["misses"] is None else unit.array(row["misses"]),
    )


def put_groups(out: UnitWriter, groups: Sequence[tuple[int, Blobs]]) -> list[dict[str, Any]]:
    """Say where groups were written, and what is known of their blobs."""
    return [
        {"at": at, "length": out.array(blobs["length"]), "crc": out.array(blobs["crc"])} for at, blobs in groups
    ]  # fmt: skip


def get_groups(unit: UnitFile, rows: Sequence[dict[str, Any]]) -> list[CodedGroup]:
    """Return the groups that `put_groups` tells of."""
    from relex_codec.exact.segment_writer import BLOB, CodedGroup  # numba is only needed here

    found = []
    for row in rows:
        lengths, crcs = unit.array(row["length"]), unit.array(row["crc"])
        blobs = np.zeros(len(lengths), BLOB)
        blobs["length"], blobs["crc"] = lengths, crcs
        found.append(CodedGroup(unit.read, row["at"], blobs))
    return found


def _put_direction(out: UnitWriter, one: EncodedDirection) -> dict[str, Any]:
    return {
        "record": out.data(one.record.tobytes()),
        "factors": _put_span(out, one.factors),
        "remainder": _put_span(out, one.remainder),
        "coefficients": out.array(one.coefficients),
        "norm": out.array(np.array([one.norm], "<f8")),
    }


def _get_direction(unit: UnitFile, row: dict[str, Any]) -> EncodedDirection:
    return EncodedDirection(
        np.frombuffer(unit.data(row["record"]), f.DIRECTION_RECORD).copy(),
        _get_span(unit, row["factors"]),
        _get_span(unit, row["remainder"]),
        unit.array(row["coefficients"]),
        float(unit.array(row["norm"])[0]),
    )


def _put_span(out: UnitWriter, span: PackedSpan) -> dict[str, Any]:
    row: dict[str, Any] = {"size": span.size, "pool": span.pool, "match": span.match}
    if span.shares:
        row["parts"] = [out.data(np.ascontiguousarray(part).data) for part in span.parts]
    elif span.data is not None:
        at = out.at
        with span.data as data:
            data.seek(0)
            shutil.copyfileobj(data, out, COPY)
        row["data"], row["rows"] = [at, out.at - at], out.array(np.array(span.rows, "<u8").reshape(-1, 5))
        span.data = None
    return row


def _get_span(unit: UnitFile, row: dict[str, Any]) -> PackedSpan:
    span = PackedSpan(row["size"], row["pool"], row["match"])
    if "parts" in row:
        span.parts = [np.frombuffer(unit.data(part), np.uint8) for part in row["parts"]]
    if "data" in row:
        span.rows = [ChunkRow(*(int(value) for value in values)) for values in unit.array(row["rows"])]
        span.data = cast(IO[bytes], unit.part(row["data"]))
    return span
