"""The quality setting: how much the weight error may grow over the unquantised rank-1 decode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from relex_codec.errors import InvalidArgument

PRESETS: Final = {"fine": 0.01, "default": 0.05, "small": 0.20}
LARGEST_GROWTH: Final = 100.0
MICRO_RANK: Final = 8
MICRO_GROWTH: Final = 0.20
"""Growth for the tensors of a ``micro`` file that are no matrices and therefore have no factors."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What was asked of the encoder.

    Attributes:
        name: preset, or the number as text.
        growth: bound on the growth of the weight error; None for ``raw`` (float32 directions).
        factor_rank: factor pairs per matrix of a ``micro`` file, which has no remainders of matrices; else None.
    """

    name: str
    growth: float | None
    factor_rank: int | None = None

    @classmethod
    def parse(cls, quality: str | float = "default", factor_rank: int | None = None) -> Quality:
        """Read a preset (``raw fine default small micro``) or a growth such as 0.03.

        Raises:
            InvalidArgument: neither a preset nor a number above 0, or a factor rank without ``micro``.
        """
        if factor_rank is not None and quality != "micro":
            raise InvalidArgument(
                f"a factor rank goes with quality 'micro', not {quality!r}: otherwise ranks are searched"
            )
        if quality == "raw":
            return cls("raw", None)
        if quality == "micro":
            rank = MICRO_RANK if factor_rank is None else factor_rank
            if not 1 <= rank <= 0xFFFF:
                raise InvalidArgument(f"factor rank is {rank}, expected 1 to 65535")
            return cls("micro", MICRO_GROWTH, rank)
        if quality in PRESETS:
            return cls(str(quality), PRESETS[str(quality)])
        try:
            growth = float(quality)
        except ValueError:
            growth = math.nan
        if not 0 < growth <= LARGEST_GROWTH:
            names = ", ".join(("raw", *PRESETS, "micro"))
            raise InvalidArgument(
                f"quality is {quality!r}, expected one of {names}, "
                f"or a growth from 0 to {LARGEST_GROWTH:g} such as 0.03"
            )
        return cls(f"{growth:g}", growth)
