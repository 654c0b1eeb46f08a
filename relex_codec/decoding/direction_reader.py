"""Reading directions as planned: chunks become factors and packed codes, which kernels take (FORMAT.md section 7)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from relex_codec.core.dtypes import Bytes
from relex_codec.core.threads import parallel_map
from relex_codec.format import constants as f
from relex_codec.format.factors import Factors, from_stream
from relex_codec.format.index import PiecePlace
from relex_codec.format.packing import from_planes, packed_size
from relex_codec.format.reader import FileReader
from relex_codec.kernels.interface import PackedDirection

from .read_plan import KernelBatch
from .scratch import Allocate, fresh
from .stored_pieces import check_piece


def read_directions(
    container: FileReader, batch: KernelBatch, known: Sequence[Factors | None], allocate: Allocate
) -> list[PackedDirection]:
    """Read the directions of a batch; all chunks are read together, and everything is checked.

    Args:
        known: factors of the tensor's directions, which the first batch of a window has read; empty for that one.
        allocate: memory for codes.

    Raises:
        Corrupt, Truncated: the file is damaged.
    """
    tensor = batch.origin.tensor
    records = [container.index.directions[direction.number] for direction in batch.directions]
    packings = [f.PACKINGS[int(record["packing"])] for record in records]
    outs: list[Bytes] = []
    streams: list[Bytes] = []
    packed: list[Bytes] = []
    for direction in batch.directions:
        streams.append(_room(direction.factors, fresh, outs))
        packed.append(_room(direction.remainder, allocate, outs))
    container.pieces(list(batch.places()), lambda i, raw: None, outs)
    _check_codes(container, batch, packings, packed)
    factors = known or [
        _factors(stream, tensor.shape, int(record["rank"])) if len(stream) else None
        for stream, record in zip(streams, records, strict=True)
    ]
    return [
        PackedDirection(pairs, packing, codes, np.float32(record["scale"]), np.float32(record["shift"]))
        for pairs, packing, codes, record in zip(factors, packings, packed, records, strict=True)
    ]


def _room(places: Sequence[PiecePlace], allocate: Allocate, outs: list[Bytes]) -> Bytes:
    """Return memory for `places`, one after another, and add to `outs` that of each."""
    memory = allocate(sum(part.length for part in places))
    at = 0
    for part in places:
        outs.append(memory[at : at + part.length])
        at += part.length
    return memory


def _factors(stream: Bytes, shape: tuple[int, ...], rank: int) -> Factors:
    """Return factors of the raw bytes of all their pieces."""
    raw = [stream[at : at + 2 * f.PIECE] for at in range(0, len(stream), 2 * f.PIECE)]
    return from_stream(np.concatenate([from_planes(planes, np.uint16) for planes in raw]), shape, rank)


def _check_codes(
    container: FileReader, batch: KernelBatch, packings: Sequence[f.Packing], packed: Sequence[Bytes]
) -> None:
    """Check the codes of a batch, piece by piece; kernels trust them."""
    origin = batch.origin
    work = []
    for packing, codes in zip(packings, packed, strict=True):
        width = packed_size(f.PIECE, packing) * packing.planes
        pieces = range(origin.start // f.PIECE, -(-origin.end // f.PIECE)) if len(codes) else ()
        work += [(piece, packing, codes[i * width : (i + 1) * width]) for i, piece in enumerate(pieces)]
    parallel_map(lambda one: check_piece(container, origin.tensor, *one), work)
