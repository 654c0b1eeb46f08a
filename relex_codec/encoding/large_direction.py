"""What `StoredDirection` does with a piece of a large tensor, compiled: decoding and packing, bit for bit the same."""

from __future__ import annotations

import numpy as np

from relex_codec.core.dtypes import F32, Bytes
from relex_codec.format.constants import NONE, PIECE, WORD
from relex_codec.format.packing import pack_codes, pack_digits

from .delta_sums import working_array
from .stored_direction import StoredDirection


def decoded_values(stored: StoredDirection, values: F32, start: int) -> F32:
    """Return what `StoredDirection.decoded` does, in an array that this thread uses again."""
    return decoded_over(stored, values, _factor_sums(stored, start, len(values)))


def decoded_over(stored: StoredDirection, values: F32, sums: F32) -> F32:
    """Return what `StoredDirection.decoded_with` does, in `sums`, which are zeros where there are no factors."""
    from .loops.weights import quantised

    quantizer = stored.quantizer
    if stored.packing is NONE:
        return sums
    if quantizer is None:
        return values if stored.factors is None else sums + (values - sums)
    width, offset, most = np.float32(quantizer.width), np.float32(0.5 - quantizer.bias), stored.packing.zero
    quantised(values, sums, width, offset, np.float32(most), quantizer.scale, quantizer.shift)
    return sums


def packed_codes(stored: StoredDirection, values: F32, start: int) -> Bytes:
    """Return what `StoredDirection.remainder_piece` does, of a direction that has a quantiser."""
    from .loops.weights import digits_of

    quantizer, sums = stored.quantizer, _factor_sums(stored, start, len(values))
    assert quantizer is not None
    if stored.packing is WORD:
        return pack_codes(quantizer.codes(values - sums), stored.packing)
    digits: Bytes = working_array("digits", (PIECE,), np.uint8)[: len(values)]
    width, offset = np.float32(quantizer.width), np.float32(0.5 - quantizer.bias)
    digits_of(values, sums, width, offset, np.float32(stored.packing.zero), digits)
    packed = pack_digits(digits, stored.packing)
    return packed.copy() if packed is digits else packed


def _factor_sums(stored: StoredDirection, start: int, count: int) -> F32:
    from .loops.weights import sum_of_factors  # numba is only needed here

    out: F32 = working_array("decoded", (PIECE,), np.float32)[:count]
    if stored.factors is None:
        out[:] = 0
    else:
        sum_of_factors(stored.factors.a, stored.factors.b, start, out)
    return out
