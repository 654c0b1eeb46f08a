"""Reading and checking everything that a file holds."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

from relex_codec.core.digests import DIGEST
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.decoding.read_plan import BATCH
from relex_codec.decoding.stored_pieces import check_piece, embedded_file, raw_pieces
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.errors import Corrupt
from relex_codec.format import constants as f
from relex_codec.format.index import PiecePlace
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.storage.prefetch import prefetching, ranges_to_fetch


def check_all(decoder: TensorDecoder) -> None:
    """Read every chunk, decode every code, check the digests of an embedded base.

    Raises:
        Corrupt: a checksum, frame, code or digest is wrong, those of stored files included.
    """
    source = decoder.container.source
    with prefetching(ranges_to_fetch([(source, 0, source.size)])):
        _check_entries(decoder)


def check_exact(decoder: TensorDecoder, count: int, on_bytes: Callable[[int], Any]) -> None:
    """Restore all `count` stored steps of every tensor, and check all digests.

    Args:
        on_bytes: called with how many bytes of weights have been checked since the last call.

    Raises:
        Corrupt, BaseMismatch: as `TensorDecoder.decode_window`.
    """
    from relex_codec.exact.replay import replay_all  # numba is only needed here

    numbers = range(1, count + 1)
    plan = decoder.fetcher.replay_plan(decoder.exact, numbers)
    replay_all(decoder.exact, numbers, decoder.part_origin, on_bytes=on_bytes, plan=plan)


def _check_entries(decoder: TensorDecoder) -> None:
    container, index = decoder.container, decoder.container.index
    for entry in index.entries.values():
        if entry.name not in f.ENTRIES and entry.name not in f.FRAME_ENTRIES:
            container.check_entry(entry)
    for direction in range(len(index.directions)):
        container.coefficients(direction)
    for tensor in index.tensors:
        for direction in tensor.directions:
            _check_direction(decoder, tensor, direction)
        if tensor.origin_held:
            _check_origin(decoder, tensor)
    container.errors(), container.norms()
    for i, file in enumerate(index.manifest.files):
        if file.stored:
            _check_file(decoder, i)
    if index.has_frames:
        for keys in decoder.exact.all_blobs():
            for i in range(0, len(keys), BATCH):
                decoder.exact.fetch(keys[i : i + BATCH])


def _check_file(decoder: TensorDecoder, number: int) -> None:
    file, found = decoder.container.index.manifest.files[number], sha256()
    for data in embedded_file(decoder.container, number):
        found.update(data)
    if file.digest is not None and found.digest()[:DIGEST].hex() != file.digest:
        raise Corrupt(f"{decoder.container.source.path}: {quote(file.name)} differs from its digest")


def _check_places(decoder: TensorDecoder, places: list[PiecePlace]) -> None:
    for i in range(0, len(places), BATCH):
        decoder.container.pieces(places[i : i + BATCH], lambda _, raw: len(raw))


def _check_direction(decoder: TensorDecoder, tensor: TensorRecord, direction: int) -> None:
    index = decoder.container.index
    factors, places = index.direction_places(tensor, direction)
    packing = f.PACKINGS[int(index.directions[direction]["packing"])]
    planes = packing.planes

    _check_places(decoder, factors)
    for i in range(0, len(places), BATCH * planes or 1):
        raw = raw_pieces(decoder.container, places[i : i + BATCH * planes], planes)
        parallel_map(
            lambda one: check_piece(decoder.container, tensor, one[0], packing, one[1]), enumerate(raw, i // planes)
        )


def _check_origin(decoder: TensorDecoder, tensor: TensorRecord) -> None:
    for start in range(0, tensor.size, BATCH * f.PIECE):
        decoder.origins.check_held(tensor, start, min(start + BATCH * f.PIECE, tensor.size))
