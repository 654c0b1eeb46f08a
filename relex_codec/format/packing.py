"""Codes and elements to raw bytes and back: planes and radix blocks (FORMAT.md sections 6 and 7).

Pure functions on arrays: no I/O. The layouts are those of one *piece* (at most ``PIECE`` elements). Raw bytes become
chunks in chunks.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bytes
from relex_codec.errors import Corrupt

from .constants import BLOCK, PIECE, Packing

Codes = npt.NDArray[np.int32]


def piece_lengths(count: int) -> list[int]:
    """Return the lengths, in elements, of the pieces of `count` elements: ``PIECE`` each, but for the last one."""
    full, rest = divmod(count, PIECE)
    return [PIECE] * full + ([rest] if rest else [])


def packed_size(count: int, packing: Packing) -> int:
    """Return how many bytes one plane, or all blocks, of a piece of a remainder take.

    Args:
        count: elements of the piece.
        packing: of the remainder.

    Examples:
        >>> from relex_codec.format.constants import TERNARY
        >>> packed_size(1000, TERNARY)  # five codes in a byte
        200
    """
    if packing.per_byte:
        full, rest = divmod(count, BLOCK * packing.per_byte)
        return full * BLOCK + -(-rest // packing.per_byte)
    return count if packing.planes else 0


def to_planes(bits: npt.NDArray[Any]) -> Bytes:
    """Split elements of w bytes into w planes, the lowest byte first.

    Returns:
        uint8, flat: the planes one after another.

    Examples:
        >>> to_planes(np.array([0x1122, 0x3344], np.uint16)).tobytes().hex(" ")
        '22 44 11 33'
    """
    little = np.ascontiguousarray(bits).astype(bits.dtype.newbyteorder("<"), copy=False)
    width = little.dtype.itemsize
    return np.ascontiguousarray(little.view(np.uint8).reshape(-1, width).T).ravel()


def split_planes(bits: npt.NDArray[Any]) -> list[Bytes]:
    """Return the planes of a piece one by one: each is a piece of its own in a chunk."""
    return list(to_planes(bits).reshape(bits.dtype.itemsize, -1))


def from_planes(raw: Bytes, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Join planes to elements: the inverse of `to_planes`.

    Returns:
        Flat, of little-endian `dtype`.
    """
    target = np.dtype(dtype).newbyteorder("<")
    return np.ascontiguousarray(raw.reshape(target.itemsize, -1).T).reshape(-1).view(target)


def pack_codes(codes: Codes, packing: Packing) -> Bytes:
    """Pack one piece of codes as FORMAT.md section 7 says.

    K digits q + zero share a byte as ``d_0 + d_1 * radix + ... + d_(K-1) * radix^(K-1)``: digit j of a byte is from the
    j-th of K stretches of a block, so that a kernel reads and writes elements side by side.

    Args:
        codes: flat int32, at most ``PIECE`` long, in ``-zero .. zero`` of `packing`; the caller guarantees the range.
        packing: one of the five for codes.

    Returns:
        uint8, flat.

    Examples:
        >>> from relex_codec.format.constants import TERNARY
        >>> packed = pack_codes(np.array([-1, 0, 1, 1, 0, -1], np.int32), TERNARY)
        >>> packed.tolist()
        [123, 115]
        >>> unpack_codes(packed, 6, TERNARY).tolist()
        [-1, 0, 1, 1, 0, -1]
    """
    if packing.name == "word":
        return to_planes((codes + packing.zero).astype("<u2"))
    return pack_digits((codes + packing.zero).astype(np.uint8), packing)


def pack_digits(digits: Bytes, packing: Packing) -> Bytes:
    """Pack one piece of codes of at most a byte, to each of which `zero` of the packing was added; see `pack_codes`.

    Returns:
        uint8, flat; `digits` itself, where each has a byte.
    """
    k = packing.per_byte
    if k == 1:
        return digits
    full = len(digits) // (BLOCK * k) * (BLOCK * k)
    parts = [_pack_blocks(digits[:full].reshape(-1, k, BLOCK), packing)]
    if rest := len(digits) - full:
        width = -(-rest // k)
        tail = np.full(k * width, packing.zero, np.uint8)
        tail[:rest] = digits[full:]
        parts.append(_pack_blocks(tail.reshape(1, k, width), packing))
    return np.concatenate(parts)


def _pack_blocks(digits: Bytes, packing: Packing) -> Bytes:
    """(blocks, K, P) digits to flat bytes, digit j of a byte from plane j."""
    packed = digits[:, packing.per_byte - 1].copy()
    for j in range(packing.per_byte - 2, -1, -1):
        packed *= np.uint8(packing.radix)
        packed += digits[:, j]
    return packed.ravel()


def unpack_codes(raw: Bytes, count: int, packing: Packing) -> Codes:
    """Unpack a piece of codes that `check_codes` accepts: the inverse of `pack_codes`.

    Args:
        raw: uint8, flat.
        count: codes of the piece.
        packing: of the remainder.

    Returns:
        int32 codes, flat.
    """
    if packing.name == "word":
        return from_planes(raw, np.uint16).astype(np.int32) - np.int32(packing.zero)
    codes = _digits(raw, count, packing)[:count].astype(np.int32)
    codes -= np.int32(packing.zero)
    return codes


def check_codes(raw: Bytes, count: int, packing: Packing) -> None:
    """Check the raw bytes of a piece of a remainder; float32 has nothing to check.

    Args:
        raw: uint8, flat, of the length that `packed_size` says.
        count: elements of the piece.
        packing: of the remainder.

    Raises:
        Corrupt: a digit outside the packing's range, or padding that is not the zero code.
    """
    k = packing.per_byte
    outside = f"a {packing.name} code lies outside -{packing.zero} .. {packing.zero}"
    if packing.name == "word" and len(raw) and int((raw[:count] & raw[count:]).max()) == 0xFF:
        raise Corrupt(outside)
    if not k:
        return
    most = packing.radix**k - 1 if k > 2 else 255
    if k != 2 and len(raw) and int(raw.max()) > most - (k == 1):
        raise Corrupt(f"byte {int(raw.max())} in {packing.name} codes, at most {most - (k == 1)} is possible")
    if k == 2 and (((raw & 0x0F) == 0x0F) | (raw >= 0xF0)).any():
        raise Corrupt(outside)
    begin = count // (BLOCK * k) * (BLOCK * k)
    if count > begin and (_digits(raw[begin // k :], count - begin, packing)[count - begin :] != packing.zero).any():
        raise Corrupt(f"the padding of {packing.name} codes is not zero")


def _digits(raw: Bytes, count: int, packing: Packing) -> Bytes:
    """The digits of blocks of `count` elements, those beyond the last element included."""
    k = packing.per_byte
    full = count // (BLOCK * k) * BLOCK
    digits = np.empty((k * len(raw)), np.uint8)
    _unpack_blocks(raw[:full].reshape(-1, BLOCK), digits[: k * full].reshape(-1, k, BLOCK), packing)
    if full < len(raw):
        _unpack_blocks(raw[None, full:], digits[k * full :].reshape(1, k, -1), packing)
    return digits


def _unpack_blocks(raw: Bytes, digits: Bytes, packing: Packing) -> None:
    if packing.per_byte == 1:
        digits[:, 0] = raw
        return
    rest = raw
    for j in range(packing.per_byte):
        quotient = rest // np.uint8(packing.radix)
        digits[:, j] = rest - quotient * np.uint8(packing.radix)
        rest = quotient
