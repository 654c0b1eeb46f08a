"""How a direction is stored: what of it is written, and what every decoder makes of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from relex_codec.core.dtypes import F32, Bytes
from relex_codec.format.chunks import compress
from relex_codec.format.constants import FLOAT32, NONE, PIECE, Packing
from relex_codec.format.factors import Factors, stream
from relex_codec.format.packing import pack_codes, split_planes, to_planes
from relex_codec.kernels.reference import factor_sum, remainder

from .delta_sums import FEW
from .low_rank import ReadElements
from .quantizer import Quantizer


@dataclass(frozen=True, slots=True)
class StoredDirection:
    """How a direction is stored, and what that does to the weights of the last observed step.

    Attributes:
        factors: rounded factors, or None.
        packing: of the remainder.
        quantizer: for packings 2 to 6, or None.
        error_line: relative error of the weights with the direction as it is, not quantised.
        error_stored: the same with the direction as it is stored.
    """

    factors: Factors | None
    packing: Packing
    quantizer: Quantizer | None
    error_line: float = 0.0
    error_stored: float = 0.0

    @property
    def rank(self) -> int:
        """Factor pairs per matrix."""
        return 0 if self.factors is None else self.factors.a.shape[1]

    @property
    def scale(self) -> np.float32:
        """Scale of the quantiser; 0 where there is none."""
        return np.float32(0) if self.quantizer is None else self.quantizer.scale

    @property
    def shift(self) -> np.float32:
        """Shift of the quantiser; 0 where there is none."""
        return np.float32(0) if self.quantizer is None else self.quantizer.shift

    def remainder_piece(self, values: F32, start: int) -> Bytes:
        """Pack the remainder of the elements `values` of the direction, which begin at element `start`: its planes
        one after another, or its blocks."""
        if self.quantizer is not None and len(values) > FEW:
            from .large_direction import packed_codes  # which stands on this class, and needs numba

            return packed_codes(self, values, start)
        rest = values if self.factors is None else values - factor_sum(self.factors, start, start + len(values))
        if self.quantizer is None:
            return to_planes(rest.view(np.uint32))
        return pack_codes(self.quantizer.codes(rest), self.packing)

    def factor_pieces(self) -> list[Bytes]:
        """Return the raw bytes of the factors, plane by plane of each piece."""
        return factor_planes(self.factors)

    def remainder_pieces(self, read: ReadElements, count: int) -> Iterator[Bytes]:
        """Yield the raw bytes of the remainder, plane by plane of each piece."""
        for lo in range(0, count, PIECE) if self.packing is not NONE else ():
            yield from self.remainder_piece(read(lo, min(lo + PIECE, count)), lo).reshape(self.packing.planes, -1)

    def decoded(self, values: F32, start: int) -> F32:
        """Return the stored direction over the elements of `values`, as every decoder will."""
        p = None if self.factors is None else factor_sum(self.factors, start, start + len(values))
        return self.decoded_with(values, p)

    def decoded_with(self, values: F32, p: F32 | None) -> F32:
        """The same where the sum of the factors at these elements is known, if there are factors."""
        if self.packing is NONE:
            return np.zeros(len(values), np.float32) if p is None else p
        if self.quantizer is None:
            return values if p is None else p + (values - p)
        rest = values if p is None else values - p
        value = remainder(self.quantizer.codes(rest), self.scale, self.shift)
        return value if p is None else p + value


def factor_planes(factors: Factors | None) -> list[Bytes]:
    """Return the raw bytes of factors, plane by plane of each piece."""
    if factors is None:
        return []
    bits = stream(factors)
    return [plane for lo in range(0, len(bits), PIECE) for plane in split_planes(bits[lo : lo + PIECE])]


def factor_bytes(factors: Factors | None) -> int:
    """Return how many bytes factors take when they are compressed."""
    return sum(len(compress(plane).data) for plane in factor_planes(factors))


FLOAT32_DIRECTION = StoredDirection(None, FLOAT32, None)
"""The direction as it is, in float32."""
