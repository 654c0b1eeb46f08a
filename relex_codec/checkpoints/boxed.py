"""Checkpoints whose tensors lie in boxes: of one file or of many, within storages of `torch.save` or plain.

What trainers leave that is not whole safetensors comes to this: dcp.py, shards.py, slices.py and pickled.py find out
which box of which tensor lies where, and here ranges of elements are read from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from relex_codec.core.dtypes import ITEMSIZE, Bits
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import CheckpointError
from relex_codec.storage.open import open_source
from relex_codec.storage.remote import CONCURRENT_REQUESTS
from relex_codec.storage.source import LocalSource, Source
from relex_codec.storage.urls import Options

from .boxes import Box, Overlap, Sizes, boxes_of_range, fault_of, overlap, row_major
from .checkpoint import TensorInfo, TensorReader
from .files import SideFile, read_side_file, side_file_sizes
from .torch_values import extent
from .zip_directory import LOCAL_HEADER, Member, data_begin

SPARSE: Final = 4
"""A stretch of a storage is read in one where it has at most so many times the elements that are wanted of it."""
BATCH: Final = 1024
"""Stretches that are read together where they lie apart."""

Known = dict[bytes, Any]
"""What was found out of files with equal bytes: the checkpoints of a run share it."""


class Storage(NamedTuple):
    """Where the elements of one or more boxes lie.

    Attributes:
        file: number of the file.
        begin: first byte; of a member of a zip archive where its header begins; of an archive its own first byte.
        size: bytes; of an archive its own.
        name_length: of a member, bytes of its name; 0 for anything else.
        is_archive: whether it is an archive of `torch.save` with one tensor in it.
    """

    file: int
    begin: int
    size: int
    name_length: int = 0
    is_archive: bool = False

    @property
    def member(self) -> Member:
        """It, as a member of a zip archive."""
        return Member(self.begin, self.size, self.name_length)


class StoredBox(NamedTuple):
    """A box of a tensor and where it lies.

    Attributes:
        first: element of the storage that is the first one of the box.
        strides: in elements of the storage; None: row-major, which for an archive it says itself.
    """

    box: Box
    storage: Storage
    first: int = 0
    strides: Sizes | None = None


class Place(NamedTuple):
    """Where the elements of a box are: byte of the first one, and strides in elements."""

    begin: int
    strides: Sizes


OpenArchive = Callable[[Source, Storage, TensorInfo, Box], Place]
"""Finds the tensor in an archive."""
Table = tuple[Mapping[str, TensorInfo], Mapping[str, Sequence[StoredBox]]]


class BoxedCheckpoint(TensorReader):
    """A checkpoint of which each tensor lies in boxes.

    Args:
        path: for messages.
        table: tensors, and the boxes of each, which together are the tensor (`check_boxes`).
        sources: what reads the files, by their numbers.
        open_archive: needed where storages are archives.
        copies: further boxes that must have the same elements as the tensor, where it is on several ranks.
        side_files: the files beside the weights.
        notes: as of `TensorReader`.
    """

    def __init__(
        self,
        path: str,
        table: Table,
        sources: Sequence[Source],
        *,
        open_archive: OpenArchive | None = None,
        copies: Mapping[str, Sequence[StoredBox]] | None = None,
        side_files: Mapping[str, SideFile] | None = None,
        storage_options: Options = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.path, self.notes = path, notes
        self.tensors, self._boxes = table
        self.sources = sources
        self.side_files = list(side_files or ())
        if not notes:  # nothing in its files was left out
            self.read_whole = [source.path.rpartition("/")[2] for source in sources]
        self._open_archive, self._copies = open_archive, copies or {}
        self._side_files, self._options = side_files or {}, storage_options
        self._places: dict[tuple[str, int], Place] = {}

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out` with the bits of a tensor from element `lo` on; see `TensorReader.read_into`."""
        info = self.check_range(name, lo, out.size)
        if not out.size:
            return
        for at, wanted in boxes_of_range(info.shape, lo, lo + out.size):
            target = out[at : at + wanted.size].reshape(wanted.sizes)
            for number, stored in enumerate(self._boxes[name]):
                common = overlap(wanted, stored.box)
                if common is not None:
                    self._fill(info, number, stored, common, target[common.here] if common.here else target)
        for number, stored in enumerate(self._copies.get(name, ()), len(self._boxes[name])):
            copy = np.empty_like(out)
            for at, wanted in boxes_of_range(info.shape, lo, lo + out.size):
                target = copy[at : at + wanted.size].reshape(wanted.sizes)
                self._fill(info, number, stored, Overlap((), wanted.offsets, wanted.sizes), target)
            if not np.array_equal(copy, out):
                raise CheckpointError(
                    f"{self.path}: tensor {quote(name)} is not sharded and differs between "
                    f"{self.sources[self._boxes[name][0].storage.file].path} and "
                    f"{self.sources[stored.storage.file].path}, expected the same on all ranks; save it again"
                )

    def renamed(self, names: Mapping[str, str], notes: Sequence[str] = ()) -> BoxedCheckpoint:
        """Return a checkpoint of some of the tensors, under other names.

        Args:
            names: what each is called here, by its new name.
            notes: added to those of this one.
        """
        infos = {new: replace(self.tensors[name], name=new) for new, name in names.items()}
        boxes = {new: self._boxes[name] for new, name in names.items()}
        copies = {new: self._copies[name] for new, name in names.items() if name in self._copies}
        return BoxedCheckpoint(
            self.path, (infos, boxes), self.sources, open_archive=self._open_archive, copies=copies,
            side_files=self._side_files, storage_options=self._options, notes=[*self.notes, *notes],
        )  # fmt: skip

    @property
    def own_side_files(self) -> Mapping[str, SideFile]:
        """The files beside the weights, and where they lie."""
        return self._side_files

    def take_side_files(self, side_files: Mapping[str, SideFile]) -> None:
        """Let these be the files beside the weights."""
        self.side_files, self._side_files = list(side_files), side_files

    def read_files(self, names: Sequence[str]) -> Iterable[bytes]:
        """Return the bytes of several of `side_files`; remote ones are read at the same time."""
        sides = [self._side_files[name] for name in names]
        return parallel_map(lambda side: read_side_file(side, self._options), sides, CONCURRENT_REQUESTS)

    def file_sizes(self) -> dict[str, int]:
        """Return the bytes of each of `side_files` by name, without reading them."""
        return side_file_sizes(self._side_files, self._options)

    def _fill(self, info: TensorInfo, number: int, stored: StoredBox, common: Overlap, target: Bits) -> None:
        """Fill `target` with what a stored box has of it."""
        source, width = self.sources[stored.storage.file], ITEMSIZE[info.dtype]
        place = self._places.get((info.name, number))
        if place is None:
            if self._first_read(info, number, stored, common, target):
                return
            place = self._places[info.name, number]
        runs = list(_runs(place.strides, common.there, common.sizes, target))
        for at in range(0, len(runs), BATCH):
            batch = runs[at : at + BATCH]
            if len(batch) == 1 and batch[0].is_plain:
                run = batch[0]
                source.read_into(place.begin + run.first * width, run.target.reshape(-1).view(np.uint8).data)
                continue
            ranges = [(place.begin + r.first * width, place.begin + (r.first + r.length) * width) for r in batch]
            for run, raw in zip(batch, source.read_many(ranges), strict=True):
                run.put(np.frombuffer(raw, target.dtype))

    def _first_read(self, info: TensorInfo, number: int, stored: StoredBox, common: Overlap, target: Bits) -> bool:
        """Find where a box lies; tell whether `target` was filled on the way."""
        storage, source = stored.storage, self.sources[stored.storage.file]
        width, filled = ITEMSIZE[info.dtype], False
        strides = row_major(stored.box.sizes) if stored.strides is None else stored.strides
        if storage.is_archive:
            assert self._open_archive is not None
            place = self._open_archive(source, storage, info, stored.box)
        elif not storage.name_length:
            place = Place(storage.begin + stored.first * width, strides)
        else:
            # the header is read with the first elements, which torch.save puts where they are expected: one request
            ranges = [(storage.begin, storage.begin + LOCAL_HEADER)]
            runs = list(_runs(strides, common.there, common.sizes, target))
            likely = storage.member.likely_begin()
            at_end = likely + storage.size > source.size
            if not isinstance(source, LocalSource) and len(runs) == 1 and not at_end:
                first = likely + (stored.first + runs[0].first) * width
                ranges.append((first, first + runs[0].length * width))
            raw = source.read_many(ranges)
            begin = data_begin(storage.member, raw[0], source.path)
            if begin + storage.size > source.size:
                raise CheckpointError(
                    f"{source.path} is damaged: {quote(info.name)} would end after byte {source.size}"
                )
            place = Place(begin + stored.first * width, strides)
            if len(ranges) > 1 and begin == likely:
                runs[0].put(np.frombuffer(raw[1], target.dtype))
                filled = True
        self._places[info.name, number] = place
        return filled


class _Run(NamedTuple):
    """A stretch of a storage and what is made of it.

    Attributes:
        first: element of the storage that it begins with, counted from the first one of the box.
        length: elements of the storage.
        strides: of the elements that are taken of it.
        target: what they fill.
    """

    first: int
    length: int
    strides: Sizes
    target: Bits

    @property
    def is_plain(self) -> bool:
        """Whether the stretch is the target, byte for byte."""
        same = self.length == self.target.size and _is_row_major(self.strides, self.target.shape)
        return same and self.target.flags.c_contiguous

    def put(self, elements: Bits) -> None:
        """Fill the target from the elements of the stretch."""
        width = elements.itemsize
        self.target[...] = as_strided(elements, self.target.shape, [stride * width for stride in self.strides])


def _runs(strides: Sizes, there: Sizes, sizes: Sizes, target: Bits) -> Iterator[_Run]:
    """Yield the stretches of a storage that a part of a box takes, few and not much longer than what is wanted."""
    first = sum(at * stride for at, stride in zip(there, strides, strict=True))
    length = extent(sizes, strides)
    if length <= SPARSE * math.prod(sizes):
        yield _Run(first, length, strides, target)
        return
    axis = max((stride, axis) for axis, stride in enumerate(strides) if sizes[axis] > 1)[1]
    for i in range(sizes[axis]):
        moved = (*there[:axis], there[axis] + i, *there[axis + 1 :])
        one = (*sizes[:axis], 1, *sizes[axis + 1 :])
        index = (*[slice(None)] * axis, slice(i, i + 1))
        yield from _runs(strides, moved, one, target[index])


def _is_row_major(strides: Sizes, sizes: Sizes) -> bool:
    return all(n == 1 or a == b for a, b, n in zip(strides, row_major(sizes), sizes, strict=True))


def check_boxes(path: str, table: Table) -> None:
    """Check that the boxes of each tensor make it up.

    Raises:
        CheckpointError: they do not; the message names the tensor.
    """
    tensors, boxes = table
    if not tensors:
        raise CheckpointError(f"{path} has no tensors of a model")
    for name, info in tensors.items():
        fault = fault_of(info.shape, [stored.box for stored in boxes[name]])
        if fault is not None:
            raise CheckpointError(f"{path}: tensor {quote(name)} is not whole: {fault}; save it again")


def open_sources(paths: Sequence[str], options: Options) -> list[Source]:
    """Open files for reading, remote ones at the same time."""

    def opened(path: str) -> Source:
        return open_source(path, options, keep_open=False, error=CheckpointError)

    return list(parallel_map(opened, paths, CONCURRENT_REQUESTS))


def shared(table: Table, known: Known | None) -> Table:
    """Return the table of an earlier checkpoint of the run if it is equal, so that a run has one in memory."""
    if known is None:
        return table
    for found in known.values():
        if found == table:
            earlier: Table = found
            return earlier
    known[b"table %d" % len(known)] = table
    return table
