"""What is summed up over a tensor that is read in bands: each piece by itself, then all in their order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .fit import F64


@dataclass(slots=True)
class Gathered:
    """What is summed up over a tensor, or over some of its pieces, when it is read.

    Attributes:
        grams: float64 [pieces, T, T], inner products of the deltas.
        squares: float64 [pieces, T], squared norms of the deltas.
        infinite: bool [T], whether a delta is not finite.
        digests: of the pieces of the origin.
        norms: float64 [pieces], sums of the magnitudes of the origin.
        moved: whether an observed step differs from the origin in the run's dtype.
    """

    grams: F64
    squares: F64
    infinite: npt.NDArray[np.bool_]
    digests: list[bytes]
    norms: F64
    moved: bool


@dataclass(slots=True)
class Summed:
    """What is known of a tensor when all of it has been read in bands.

    Attributes:
        gram: float64 [T, T], inner products of the deltas.
        squares: float64 [pieces, T], squared norms of the deltas.
        infinite: bool [T], whether a delta is not finite.
        digests: of the pieces of the origin.
        norm: sum of the magnitudes of the origin.
        moved: whether an observed step differs from the origin in the run's dtype.
    """

    gram: F64
    squares: F64
    infinite: npt.NDArray[np.bool_]
    digests: list[bytes]
    norm: float
    moved: bool

    @classmethod
    def of(cls, bands: Iterable[Gathered]) -> Summed:
        """Add up bands in the order of their pieces, so that sums are to the last bit those of one process."""
        gram, infinite = np.zeros((1, 1)), np.zeros(1, bool)
        squares, digests, norm, moved = [], [], 0.0, False
        for band in bands:
            for matrix, value in zip(band.grams, band.norms, strict=True):
                gram = gram + matrix
                norm += float(value)
            infinite = infinite | band.infinite
            squares.append(band.squares)
            digests += band.digests
            moved = moved or band.moved
        return cls(gram, np.concatenate(squares), infinite, digests, norm, moved)
