"""Reading and checking everything that a file holds."""

from __future__ import annotations

from . import format as f
from .decoder import Decoder
from .index import Part
from .parallel import in_parallel
from .windows import BATCH


def check_all(decoder: Decoder) -> None:
    """Read every chunk, decode every code, check the digests of an embedded base.

    Raises:
        Corrupt: a checksum, frame, code or digest is wrong.
    """
    container, index = decoder.container, decoder.container.index
    for entry in index.entries.values():
        if entry.name not in f.ENTRIES and entry.name not in f.EXACT_ENTRIES:
            container.check_entry(entry)
    for direction in range(len(index.directions)):
        container.coefficients(direction)
    for number, record in enumerate(index.tensors):
        if record["kind"] == f.MOVING:
            for direction in decoder.directions(number):
                _check_direction(decoder, number, direction)
        elif record["kind"] == f.EXACT_SERIES and not index.has_exact:
            for parts in index.distinct_series(number):
                _check_parts(decoder, parts)
        if index.holds_origin(number):
            _check_origin(decoder, number)
    for i in range(len(index.manifest.files)):
        _check_parts(decoder, index.file_parts(i))
    if index.has_exact:
        for keys in decoder.exact.all_blobs():
            for i in range(0, len(keys), BATCH):
                decoder.exact.fetch(keys[i : i + BATCH])


def _check_parts(decoder: Decoder, parts: list[Part]) -> None:
    for i in range(0, len(parts), BATCH):
        decoder.container.pieces(parts[i : i + BATCH], lambda _, raw: len(raw))


def _check_direction(decoder: Decoder, number: int, direction: int) -> None:
    index = decoder.container.index
    tensor = index.manifest.tensors[number]
    factors, parts = index.direction_parts(tensor, direction)
    packing = f.PACKINGS[int(index.directions[direction]["packing"])]
    planes = packing.planes

    _check_parts(decoder, factors)
    for i in range(0, len(parts), BATCH * planes or 1):
        raw = decoder.pieces_of(parts[i : i + BATCH * planes], planes)
        in_parallel(lambda one: decoder.check_piece(number, one[0], packing, one[1]), enumerate(raw, i // planes))


def _check_origin(decoder: Decoder, number: int) -> None:
    size = decoder.container.index.manifest.tensors[number].size
    for start in range(0, size, BATCH * f.PIECE):
        decoder.check_stored(number, start, min(start + BATCH * f.PIECE, size))
