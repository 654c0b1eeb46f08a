"""One tensor of a file: what manifest and table say of it, in one value (FORMAT.md sections 4 and 5)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy.typing as npt

from relex_codec.errors import Corrupt

from . import constants as f
from .manifest import BaseRange, Manifest


class Span(NamedTuple):
    """Where a list of pieces lies: it begins at byte `offset` of raw chunk `chunk`."""

    chunk: int
    offset: int


class TensorRecord(NamedTuple):
    """A tensor of a file; `Index.tensors` has them in the file's order, a `StepLayout` finds one by its name.

    Attributes:
        number: its place in the order of the file, from 0.
        dtype, origin_dtype: of the tensor and of what it starts from, as safetensors calls them.
        size: number of elements.
        sources: what it starts from in the base, one after another; empty unless it is `in_base`.
        kind: ``SAME``, ``MOVING``, ``FRAMED`` or ``TIED`` of format/constants.py.
        origin: ``IN_BASE`` or ``STORED``, likewise; says nothing of a ``TIED`` one.
        origin_held: whether the file itself has the origin, stored or in an embedded base.
        origin_span: where, if it has.
        directions: numbers of its direction records; empty unless it is ``MOVING``.
        digests: numbers of its digests of the base; empty unless the origin is ``IN_BASE``.
        segment: the first segment that holds the tensor, from 1 on, or 0.
        target: number of the tensor that a ``TIED`` one is another name of; None otherwise.
    """

    number: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    origin_dtype: str
    sources: tuple[BaseRange, ...]
    kind: int
    origin: int
    origin_held: bool
    origin_span: Span
    directions: range
    digests: range
    segment: int
    target: int | None

    @property
    def in_base(self) -> bool:
        """Whether it starts from the base."""
        return self.kind != f.TIED and self.origin == f.IN_BASE


def join(manifest: Manifest, table: npt.NDArray[Any]) -> list[TensorRecord]:
    """Join the rows of manifest and table; what they say, format/validate.py checks.

    Args:
        table: records of the entry ``relex.tensors``.

    Raises:
        Corrupt: there are not as many of the one as of the other.
    """
    if len(table) != len(manifest.tensors):
        raise Corrupt(f"{f.TENSORS} has {len(table)} records, the manifest {len(manifest.tensors)} tensors")
    columns = {name: table[name].tolist() for name in table.dtype.names or () if name != "reserved"}
    found = []
    for number, entry in enumerate(manifest.tensors):
        row = {name: values[number] for name, values in columns.items()}
        tied = row["kind"] == f.TIED
        in_base = not tied and row["origin"] == f.IN_BASE
        first = 0 if tied else row["first"]
        digests = -(-entry.size // f.PIECE) if in_base else 0
        found.append(
            TensorRecord(
                number, entry.name, entry.dtype, entry.shape, entry.size, entry.origin_dtype, entry.sources,
                row["kind"], row["origin"], row["origin"] == f.STORED or (in_base and manifest.embedded),
                Span(row["chunk"], row["offset"]), range(first, first + row["directions"]),
                range(row["digest"], row["digest"] + digests), row["segment"], row["first"] if tied else None,
            )
        )  # fmt: skip
    return found
