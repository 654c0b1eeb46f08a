"""Colours that people with colour blindness tell apart and that print in grey: those of Okabe and Ito (2008)."""

from __future__ import annotations

from typing import Final

BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
RED: Final = "#D55E00"
GREEN: Final = "#009E73"
PINK: Final = "#CC79A7"
SKY: Final = "#56B4E9"
GREY: Final = "#999999"
INK: Final = "#222222"
SHADE: Final = "#E6EBEF"
"""Behind the observed steps."""
HEAT: Final = "cividis"
"""A scale from dark to light that is the same for all kinds of sight."""
TIERS: Final = {"base": GREY, "trained": INK, "exact": INK, "track": BLUE, "line": ORANGE}
