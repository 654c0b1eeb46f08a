"""Pieces that a file holds, as raw bytes, elements or checked codes (FORMAT.md sections 6 and 7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from relex_codec.core.dtypes import Bits, Bytes, bits_dtype
from relex_codec.core.text import quote
from relex_codec.errors import Corrupt
from relex_codec.format import constants as f
from relex_codec.format.index import PiecePlace
from relex_codec.format.packing import check_codes, from_planes
from relex_codec.format.reader import FileReader
from relex_codec.format.tensor_record import TensorRecord

from .read_plan import BATCH


def raw_pieces(container: FileReader, places: Sequence[PiecePlace], planes: int) -> list[Bytes]:
    """Return the raw bytes of pieces of so many planes each, the planes of a piece one after another."""
    raw = iter(container.pieces(places, lambda _, data: data))
    if planes == 1:
        return list(raw)
    return [np.concatenate([next(raw) for _ in range(planes)]) for _ in range(len(places) // max(planes, 1))]


def elements(container: FileReader, places: Sequence[PiecePlace], dtype: str) -> Bits:
    """Return the elements of whole pieces of a tensor, one-dimensional."""
    found = [
        from_planes(planes, bits_dtype(dtype)) for planes in raw_pieces(container, places, bits_dtype(dtype).itemsize)
    ]
    return np.concatenate(found) if found else np.empty(0, bits_dtype(dtype))


def check_piece(container: FileReader, tensor: TensorRecord, piece: int, packing: f.Packing, raw: Bytes) -> None:
    """Check the codes of one piece of a tensor.

    Raises:
        Corrupt: they are not those of as many elements; the message names the tensor.
    """
    try:
        check_codes(raw, min(f.PIECE, tensor.size - piece * f.PIECE), packing)
    except Corrupt as error:
        raise Corrupt(f"{container.source.path}: tensor {quote(tensor.name)}: {error}") from None


def embedded_file(container: FileReader, number: int) -> Iterator[bytes]:
    """Yield the bytes of an embedded file, in bounded memory."""
    places = container.index.file_places(number)
    for i in range(0, len(places), BATCH):
        yield from container.pieces(places[i : i + BATCH], lambda _, raw: raw.tobytes())
