"""Ordered words: bits of elements as integers whose order is that of the values (FORMAT.md section 14)."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from ..dtypes import ITEMSIZE, Bits


class Layout(NamedTuple):
    """How the elements of a dtype become words.

    Attributes:
        width: bytes of a word.
        per_element: words of an element.
        mantissa: bits below the exponent; the word's bits where there is none.
        sign: ``float`` (sign and magnitude), ``two`` (two's complement) or ``none``.
    """

    width: int
    per_element: int
    mantissa: int
    sign: str

    @property
    def half(self) -> int:
        """Half of the number of words."""
        return 1 << (8 * self.width - 1)


_FLOATS: Final = {"BF16": 7, "F16": 10, "F32": 23, "C64": 23, "F8_E4M3": 3, "F8_E5M2": 2, "F8_E4M3FNUZ": 3, "F8_E5M2FNUZ": 2}


def layout_of(dtype: str) -> Layout:
    """Return the layout of a safetensors dtype."""
    size = ITEMSIZE[dtype]
    width = min(size, 4)
    if dtype in _FLOATS:
        return Layout(width, size // width, _FLOATS[dtype], "float")
    return Layout(width, size // width, 8 * width, "two" if dtype in ("I8", "I16", "I32") else "none")


def to_words(bits: Bits, layout: Layout) -> Bits:
    """Return the ordered words of elements: a new array."""
    words = np.array(np.ascontiguousarray(bits).view(f"<u{layout.width}"))
    top = words.dtype.type(layout.half)
    if layout.sign == "float":  # a set sign bit flips all bits, a clear one itself
        words ^= (words >> words.dtype.type(8 * layout.width - 1)) * words.dtype.type(2 * layout.half - 1) | top
    elif layout.sign == "two":
        words ^= top
    return words


def from_words(words: Bits, layout: Layout, dtype: str) -> Bits:
    """Return the elements of ordered words: the inverse of `to_words`."""
    bits = np.array(words)
    top = bits.dtype.type(layout.half)
    if layout.sign == "float":
        positive = bits >> bits.dtype.type(8 * layout.width - 1)
        bits ^= (positive ^ positive.dtype.type(1)) * bits.dtype.type(2 * layout.half - 1) | top
    elif layout.sign == "two":
        bits ^= top
    return bits.view(f"<u{ITEMSIZE[dtype]}")
