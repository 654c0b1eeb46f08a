"""Reading and checking everything that a file holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relex_codec.core.threads import parallel_map
from relex_codec.decoding.tensor_decoder import Decoder
from relex_codec.format import constants as f
from relex_codec.format.index import Part
from relex_codec.kernels.windows import BATCH
from relex_codec.storage.prefetch import reading, remote


def check_all(decoder: Decoder) -> None:
    """Read every chunk, decode every code, check the digests of an embedded base.

    Raises:
        Corrupt: a checksum, frame, code or digest is wrong.
    """
    source = decoder.container.source
    with reading(remote([(source, 0, source.size)])):
        _check_entries(decoder)


def check_exact(decoder: Decoder, count: int, on_bytes: Callable[[int], Any]) -> None:
    """Restore all `count` stored steps of every tensor, and check all digests.

    Args:
        on_bytes: called with how many bytes of weights have been checked since the last call.

    Raises:
        Corrupt, BaseMismatch: as `Decoder.read_window`.
    """
    from relex_codec.exact.replay import replay_all  # numba is only needed here

    numbers = range(1, count + 1)
    replay_all(decoder.exact, numbers, decoder.part_origin, on_bytes=on_bytes, plan=replay_plan(decoder, numbers))


def _check_entries(decoder: Decoder) -> None:
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
        parallel_map(lambda one: decoder.check_piece(number, one[0], packing, one[1]), enumerate(raw, i // planes))


def _check_origin(decoder: Decoder, number: int) -> None:
    size = decoder.container.index.manifest.tensors[number].size
    for start in range(0, size, BATCH * f.PIECE):
        decoder.check_stored(number, start, min(start + BATCH * f.PIECE, size))
