"""The norms that distances are made of: those that a file brings, or computed by reading base and directions."""

from __future__ import annotations

from typing import Final

import numpy as np

from relex_codec.core.dtypes import FLOATS
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.format import constants as f
from relex_codec.format.index import Index
from relex_codec.format.reader import FileReader
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.trust.figures import Lines, Norms, distance

from .directions import direction_parts, origin_parts

LARGEST_WEIGHT: Final = 1e4
"""The mean of a tensor that does not move above which it is no weight but a mask, such as one of -3e38."""


def lines_of(index: Index) -> Lines:
    """Return the lines of all directions, in the file's order."""
    return Lines(index.directions["slope"].astype(np.float64), index.directions["intercept"].astype(np.float64))


def stored_norms(container: FileReader) -> Norms | None:
    """Return the norms that the file brings, of unquantised directions; None where one is missing that is needed.

    Raises:
        Corrupt, Truncated: the file is damaged.
    """
    origins, directions = container.norms()
    needed = [tensor.number for tensor in container.index.tensors if tensor.directions]
    if np.isnan(directions).any() or np.isnan(origins[needed]).any():
        return None
    size = sum(
        float(origins[tensor.number]) for tensor in container.index.tensors if _counts(tensor, origins[tensor.number])
    )
    return Norms(size, directions)


def read_norms(decoder: TensorDecoder) -> Norms:
    """Compute the norms of origins and stored directions, which takes about as long as decoding a step.

    Raises:
        BaseMismatch, CheckpointError: the base cannot be used.
        Corrupt, Truncated: the file is damaged.
    """
    index = decoder.container.index
    base, directions = 0.0, np.zeros(len(index.directions))
    for tensor in index.tensors:
        norm = 0.0
        if tensor.directions:
            for origin, values in direction_parts(decoder, tensor):
                norm += _l1(origin)
                for number, row in zip(tensor.directions, values, strict=True):
                    directions[number] += _l1(row)
        elif tensor.kind != f.TIED and tensor.origin_dtype in FLOATS:
            norm = sum(map(_l1, origin_parts(decoder, tensor)))
        base += norm if _counts(tensor, norm) else 0.0
    return Norms(base, directions, read=True)


def _counts(tensor: TensorRecord, norm: float) -> bool:
    """Tell whether a tensor counts as weights: masks do not, which hold infinities or the largest numbers there are."""
    return bool(np.isfinite(norm)) and (bool(tensor.directions) or norm <= LARGEST_WEIGHT * tensor.size)


def tensor_distance(tensor: TensorRecord, lines: Lines, container: FileReader, step: float) -> float | None:
    """Return the distance of one tensor from its origin at a step of the line, as `trust.figures.distance` of it alone.

    Returns:
        None where the file does not bring the norms.
    """
    origins, directions = container.norms()
    rows = slice(tensor.directions.start, tensor.directions.stop)
    part = Lines(lines.slope[rows], lines.intercept[rows])
    found = distance(part.at(step), Norms(float(origins[tensor.number]), directions[rows]))
    return found if np.isfinite(found) else None


def _l1(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    return float(np.abs(values).sum(dtype=np.float64))
