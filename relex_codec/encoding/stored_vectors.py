"""The directions of a tensor of a file, as decoders have them: what the coefficients of further steps belong to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relex_codec.core.dtypes import F32, Bytes
from relex_codec.decoding.stored_pieces import check_piece
from relex_codec.format import constants as f
from relex_codec.format.factors import Factors, from_stream
from relex_codec.format.index import PiecePlace
from relex_codec.format.packing import from_planes
from relex_codec.format.reader import FileReader
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.kernels.interface import PackedDirection
from relex_codec.kernels.reference import direction_piece


@dataclass(frozen=True, slots=True)
class _Stored:
    """A direction without its codes, and where these are, plane by plane of each piece."""

    direction: PackedDirection
    places: list[PiecePlace]


class StoredVectors:
    """The directions of one tensor.

    Args:
        container: the open file.
        tensor: one of it.

    Raises:
        Corrupt, Truncated: the file is damaged.
    """

    def __init__(self, container: FileReader, tensor: TensorRecord) -> None:
        self._container, self._tensor = container, tensor
        self._stored = [self._open(number) for number in tensor.directions]

    def __len__(self) -> int:
        return len(self._stored)

    def piece(self, j: int, piece: int) -> F32:
        """Return direction j over piece number `piece`, float32.

        Raises:
            Corrupt, Truncated: the file is damaged.
        """
        stored, start = self._stored[j], piece * f.PIECE
        packing, count = stored.direction.packing, min(f.PIECE, self._tensor.size - start)
        places = stored.places[piece * packing.planes : (piece + 1) * packing.planes]
        raw: Bytes = np.concatenate([np.empty(0, np.uint8), *self._container.pieces(places, lambda _, part: part)])
        check_piece(self._container, self._tensor, piece, packing, raw)
        return direction_piece(stored.direction, raw, start, count)

    def _open(self, number: int) -> _Stored:
        index = self._container.index
        record = index.directions[number]
        factors, codes = index.direction_places(self._tensor, number)
        pairs: Factors | None = None
        if factors:
            raw = self._container.pieces(factors, lambda _, part: part)
            planes = [np.concatenate(raw[i : i + 2]) for i in range(0, len(raw), 2)]
            stream = np.concatenate([from_planes(two, np.uint16) for two in planes])
            pairs = from_stream(stream, self._tensor.shape, int(record["rank"]))
        packing = f.PACKINGS[int(record["packing"])]
        empty = np.empty(0, np.uint8)
        direction = PackedDirection(pairs, packing, empty, np.float32(record["scale"]), np.float32(record["shift"]))
        return _Stored(direction, codes)
