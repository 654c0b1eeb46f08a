"""What factors leave of a direction, and its cheapest quantisers in bytes."""

from __future__ import annotations

from typing import Final

import numpy as np

from relex_codec.core.dtypes import F32
from relex_codec.format.chunks import compress
from relex_codec.format.constants import NONE, PIECE, TERNARY, WORD
from relex_codec.format.factors import Factors
from relex_codec.format.packing import pack_codes

from .quantizer import Quantizer
from .quantizer_search import Magnitudes, cheapest_quantizers
from .stored_direction import StoredDirection, factor_bytes

ZERO: Final = Quantizer(TERNARY, 1.0, 0.5, np.float32(0), np.float32(0), 0.0, 0.0)
"""The quantiser of a remainder that is nothing."""


class Remainder:
    """What factors leave of a direction in the excerpt, and the quantisers for it.

    Args:
        factors: rounded, or None.
        rest: flat.
        size: elements of the tensor.
    """

    def __init__(self, factors: Factors | None, rest: F32, size: int) -> None:
        self.factors, self.magnitudes = factors, Magnitudes(rest)
        self._rest, self._size, self._factor_bytes = rest, size, factor_bytes(factors)
        self._over_entropy: dict[str, float] = {}

    def cheapest(self, bound: float) -> tuple[float, StoredDirection] | None:
        """Return (bytes, how) with the cheapest quantiser whose mean squared error is at most `bound`; None without."""
        magnitudes = self.magnitudes
        if magnitudes.energy <= bound * magnitudes.count:
            return self._factor_bytes, StoredDirection(self.factors, NONE if self.factors else TERNARY, ZERO)
        found = list(cheapest_quantizers(magnitudes, bound)) or list(cheapest_quantizers(magnitudes, bound, (WORD,)))
        if not found:
            return None
        sizes = [q.bits * self._over(q) if len(found) > 1 else q.bits for q in found]
        best = int(np.argmin(sizes))
        cost = sizes[best] * self._size / 8 + self._factor_bytes
        return cost, StoredDirection(self.factors, found[best].packing, found[best])

    def bytes_of(self, quantizer: Quantizer) -> float:
        """Estimate the bytes of all of the tensor by the entropy of the codes."""
        return self._factor_bytes + quantizer.bits * self._size / 8

    def _over(self, quantizer: Quantizer) -> float:
        """Return how many times their entropy codes in this packing take: measured by compressing them, once."""
        packing = quantizer.packing
        if self.magnitudes.few:  # they share a chunk with those of other tensors
            return 1.0
        if packing.name not in self._over_entropy:
            codes = quantizer.codes(self._rest)
            packed = [pack_codes(codes[lo : lo + PIECE], packing) for lo in range(0, len(codes), PIECE)]
            entropy = max(quantizer.bits * len(codes) / 8, 1.0)
            self._over_entropy[packing.name] = sum(len(compress(p).data) for p in packed) / entropy
        return self._over_entropy[packing.name]
