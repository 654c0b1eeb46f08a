"""What a quantiser is, and quantisers that were evaluated together: values.

A quantiser maps x to a code q, and q back to a value:

    q = sign(x) * min(floor(|x| / width + 1/2 - bias), levels)
    value = q * scale - sign(q) * shift                           # FORMAT.md section 8

Width and bias place the thresholds: a bias above 0 widens the zone that becomes 0. Scale and shift are fitted to the
centroids of the levels by least squares, so they need not be equal to width and bias. A code's cost is its entropy, as
chunks are entropy coded. Sources: thresholds and centroids of S. P. Lloyd, "Least squares quantization in PCM" (1982),
with levels in even distances and entropy as the cost; the wide zone around 0 as in G. J. Sullivan, "Efficient scalar
quantization of exponential and Laplacian random variables" (1996).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import F32
from relex_codec.format.constants import Packing
from relex_codec.format.packing import Codes

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quantizer:
    """One quantiser with what it costs and loses on the sample it was fitted to.

    Attributes:
        packing: that its codes fit.
        width: distance of its thresholds.
        bias: how far they lie beyond the middle between two levels, in units of width.
        scale, shift: what a code stands for, see above.
        bits: order-0 entropy of the codes, bits an element.
        error: mean squared error an element.
    """

    packing: Packing
    width: float
    bias: float
    scale: np.float32
    shift: np.float32
    bits: float
    error: float

    def codes(self, x: F32) -> Codes:
        """Return the codes of float32 values, int32 of the same shape, in ``-zero .. zero`` of the packing.

        Examples:
            >>> from relex_codec.format.constants import QUINARY
            >>> tenths = Quantizer(QUINARY, 0.1, 0.0, np.float32(0.1), np.float32(0), 0.0, 0.0)
            >>> tenths.codes(np.array([0.04, 0.06, -0.21, 7.0], np.float32)).tolist()
            [0, 1, -2, 2]
        """
        levels = np.abs(x)
        levels /= np.float32(self.width)
        levels += np.float32(0.5 - self.bias)
        np.minimum(levels, np.float32(self.packing.zero), out=levels)
        return np.copysign(levels, x, out=levels).astype(np.int32)  # which cuts off the fraction


@dataclass(frozen=True, slots=True)
class Trials:
    """Quantisers that were evaluated together: arrays [packings, pairs of width and bias].

    Attributes:
        packings: one a row.
        width, bias: [pairs].
        scale, shift, bits: as a `Quantizer` has them.
        error: infinite where all codes are 0, or where they fit the packing before.
    """

    packings: tuple[Packing, ...]
    width: F64
    bias: F64
    scale: F32
    shift: F32
    bits: F64
    error: F64

    def cheapest(self, bound: float) -> list[Quantizer]:
        """Return, of each packing that has any, the one of fewest bits whose error is at most `bound`."""
        if not len(self.width):
            return []
        bits = np.where(self.error <= bound, self.bits, np.inf)
        best = bits.argmin(axis=1).tolist()
        return [self.at(row, i) for row, i in enumerate(best) if bits[row, i] < np.inf]

    def least_bits(self, bound: float) -> float:
        """Return the fewest bits of those whose error is at most `bound`; infinite where there are none."""
        return float(np.min(self.bits, where=self.error <= bound, initial=np.inf))

    def at(self, row: int, i: int) -> Quantizer:
        """Return one of them."""
        return Quantizer(
            self.packings[row], float(self.width[i]), float(self.bias[i]), self.scale[row, i], self.shift[row, i],
            float(self.bits[row, i]), float(self.error[row, i]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chosen:
    """Some of the quantisers that were evaluated together, the cheapest first.

    Attributes:
        trials: all of them.
        rows, columns: which.
    """

    trials: Trials
    rows: npt.NDArray[Any]
    columns: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Quantizer:
        return self.trials.at(int(self.rows[i]), int(self.columns[i]))

    def values(self, x: F32) -> F32:
        """Return what becomes of `x`, [n], with each: float32 [count, n], as codes and what decoders make of them."""
        trials, columns = self.trials, self.columns
        zeros = np.array([packing.zero for packing in trials.packings], np.float32)
        levels = np.abs(x) / trials.width[columns, None].astype(np.float32)
        levels += (0.5 - trials.bias[columns, None]).astype(np.float32)
        np.minimum(levels, zeros[self.rows, None], out=levels)
        codes = np.copysign(np.trunc(levels, out=levels), x, out=levels)
        values: F32 = codes * trials.scale[self.rows, columns, None]
        values -= np.sign(codes) * trials.shift[self.rows, columns, None]
        return values
