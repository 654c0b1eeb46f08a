"""The index of a file: its tables, checked against each other and against the file (FORMAT.md sections 3 to 6).

Pure functions on bytes and arrays; format/reader.py does the reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.steps import name_steps
from relex_codec.core.text import quote
from relex_codec.errors import Corrupt, InvalidArgument

from . import constants as f
from .manifest import Manifest
from .packing import packed_size, piece_lengths
from .safetensors_header import Entry
from .step_layout import StepLayout
from .tensor_record import Span, TensorRecord

Records = npt.NDArray[Any]
_TABLES: Final = {
    f.TENSORS: f.TENSOR_RECORD,
    f.DIRECTIONS: f.DIRECTION_RECORD,
    f.CHUNKS: f.CHUNK_RECORD,
}


class PiecePlace(NamedTuple):
    """One piece: bytes ``offset .. offset + length`` of raw chunk `chunk`."""

    chunk: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Index:
    """Everything of a file but its data.

    Attributes:
        path: of the file, for messages.
        entries: the header's, by name.
        steps: int64 [T].
        tensors: in the file's order; names may occur twice, as steps may differ in what a tensor is.
        directions, chunks: structured arrays, the records of FORMAT.md sections 5 and 6.
        digests: uint8 [G, 16].
        first_chunk: number of the first chunk of each data entry.
    """

    path: str
    metadata: dict[str, str]
    entries: dict[str, Entry]
    steps: npt.NDArray[np.int64]
    manifest: Manifest
    tensors: list[TensorRecord]
    directions: Records
    digests: npt.NDArray[np.uint8]
    chunks: Records
    first_chunk: dict[str, int] = field(default_factory=dict)
    _layouts: dict[int, StepLayout] = field(default_factory=dict, init=False)
    _by_name: dict[tuple[str, str], TensorRecord] = field(default_factory=dict, init=False)

    @property
    def layout(self) -> StepLayout:
        """The layout of tiers ``line`` and ``track``, and of the origin."""
        return self.layout_number(self.manifest.layout)

    def layout_number(self, number: int) -> StepLayout:
        """Return a layout by its number in the manifest."""
        found = self._layouts.get(number)
        return found or self._layouts.setdefault(number, StepLayout(self.manifest, number, self.tensors))

    def layout_of(self, stored: int) -> StepLayout:
        """Return the layout of stored step number `stored`, counted from 1."""
        return self.layout_number(self.manifest.steps[stored - 1].layout)

    def tensor(self, name: str, layout: StepLayout | None = None) -> TensorRecord:
        """Return a tensor of a layout; default: that of tiers ``line`` and ``track``.

        Raises:
            InvalidArgument: it has none of that name; the message says which steps do.
        """
        found = (layout or self.layout).get(name)
        if found is not None:
            return found
        layouts = [number for number in range(len(self.manifest.layouts)) if name in self.layout_number(number)]
        steps = [
            int(at) for at, step in zip(self.steps, self.manifest.steps, strict=True) if step.layout in layouts
        ]  # fmt: skip
        if not steps:
            raise InvalidArgument(f"{self.path} has no tensor {quote(name)}")
        spelled = name_steps(steps, [int(at) for at in self.steps])
        raise InvalidArgument(f"{self.path} has tensor {quote(name)} at {spelled} only, where tier 'exact' restores it")

    def find(self, name: str, dtype: str) -> TensorRecord | None:
        """Return the tensor of a name and a dtype, in whichever layouts it is; None if there is none."""
        if not self._by_name:
            self._by_name.update(((tensor.name, tensor.dtype), tensor) for tensor in self.tensors)
        return self._by_name.get((name, dtype))

    def target(self, tensor: TensorRecord) -> TensorRecord:
        """Return the tensor that is read for another: the same, but for one that is another name of it."""
        return tensor if tensor.target is None else self.tensors[tensor.target]

    @property
    def has_exact(self) -> bool:
        """Whether the file offers tier ``exact``: its frames hold every tensor that changes."""
        return self.manifest.exact

    @property
    def has_frames(self) -> bool:
        """Whether the file has frames, be it of its ``framed`` tensors only."""
        return f.SEGMENTS in self.entries

    @property
    def segments(self) -> int:
        """Number of segments of the frames."""
        return self.entries[f.SEGMENTS].shape[0] if self.has_frames else 0

    def places(self, span: Span, lengths: Sequence[int], data: str) -> list[PiecePlace]:
        """Lay pieces of `lengths` raw bytes out from `span` on, in the chunks of entry `data`.

        Raises:
            Corrupt: a piece crosses the end of a chunk, or the chunks end.
        """
        number, offset = span
        if not lengths:
            if span != (0, 0):
                raise Corrupt(f"{data}: an empty span lies at {tuple(span)}, expected (0, 0)")
            return []
        low, high = self._chunk_range(data)
        raw, places = self.chunks["raw"], []
        for i, length in enumerate(lengths):
            if i and low <= number < high and offset == raw[number]:
                number, offset = number + 1, 0
            if not low <= number < high or offset + length > raw[number] or length == 0:
                raise Corrupt(f"{data}: a span at chunk {span.chunk}, byte {span.offset} leaves its chunks")
            places.append(PiecePlace(number, offset, length))
            offset += length
        return places

    def _chunk_range(self, data: str) -> tuple[int, int]:
        following = f.DATA[f.DATA.index(data) + 1 :]
        return self.first_chunk[data], self.first_chunk[following[0]] if following else len(self.chunks)

    def origin_places(self, tensor: TensorRecord) -> list[PiecePlace]:
        """Parts of a tensor's origin, where the file holds it."""
        return self.places(tensor.origin_span, self._lengths(tensor.size, ITEMSIZE[tensor.origin_dtype]), f.DATA_BASE)

    def direction_places(self, tensor: TensorRecord, direction: int) -> tuple[list[PiecePlace], list[PiecePlace]]:
        """Parts of a direction: those of its factors, and those of its remainder, plane by plane of each piece."""
        record = self.directions[direction]
        packing = f.PACKINGS[record["packing"]]
        factors = self._lengths(factor_count(tensor.shape, int(record["rank"])), 2)
        codes = [packed_size(n, packing) for n in piece_lengths(tensor.size) for _ in range(packing.planes)]
        first = Span(int(record["factor_chunk"]), int(record["factor_offset"]))
        return (
            self.places(first, factors, f.DATA_DIRECTIONS),
            self.places(Span(int(record["chunk"]), int(record["offset"])), codes, f.DATA_DIRECTIONS),
        )

    def file_places(self, number: int) -> list[PiecePlace]:
        """Parts of a file of a checkpoint; none where it is only in the base."""
        entry = self.manifest.files[number]
        if entry.chunk is None or entry.offset is None:
            return []
        return self.places(Span(entry.chunk, entry.offset), self._lengths(entry.length, 1), f.DATA_BASE)

    def all_places(self) -> Iterator[tuple[str, list[PiecePlace]]]:
        """Yield (entry, places) of every span that the file has."""
        for tensor in self.tensors:
            if tensor.origin_held:
                yield f.DATA_BASE, self.origin_places(tensor)
            for direction in tensor.directions:
                factors, codes = self.direction_places(tensor, direction)
                yield f.DATA_DIRECTIONS, factors + codes
        for number in range(len(self.manifest.files)):
            yield f.DATA_BASE, self.file_places(number)

    def _lengths(self, count: int, width: int) -> list[int]:
        """Raw bytes of each plane of each piece of a stream of `count` elements, which must fit the file's chunks."""
        if count * width > len(self.chunks) * f.CHUNK_LIMIT:
            raise Corrupt(f"{f.CHUNKS}: {count} elements are declared, {len(self.chunks)} chunks cannot hold them")
        return [n for n in piece_lengths(count) for _ in range(width)]


def factor_count(shape: Sequence[int], rank: int) -> int:
    """Return the number of factor values of a tensor: H r (m + n')."""
    if not rank:
        return 0
    stack = 1
    for n in shape[:-2]:
        stack *= n
    return stack * rank * (shape[-2] + shape[-1])


def table(name: str, entry: Entry, raw: bytes) -> Records:
    """Return a table as an array of records; reserved fields are checked."""
    dtype = _TABLES[name]
    if entry.dtype != "U8" or len(entry.shape) != 2 or entry.shape[1] != dtype.itemsize:
        raise Corrupt(f"{name} is {entry.dtype} {list(entry.shape)}, expected U8 [any, {dtype.itemsize}]")
    records = np.frombuffer(raw, dtype)
    for column in dtype.names or ():
        if column.startswith("reserved") and records[column].any():
            raise Corrupt(f"{name}: a reserved field is not zero")
    return records
