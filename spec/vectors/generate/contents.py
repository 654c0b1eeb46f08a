"""What the vectors are filled with: bits, codes and values that follow from a name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import reference_decoder as ref

Bits = npt.NDArray[Any]


def noise(seed: str, n: int) -> npt.NDArray[np.int64]:
    """n integers from 0 to 65535."""
    return np.frombuffer(hashlib.shake_256(seed.encode()).digest(2 * n), "<u2").astype(np.int64)


def codes(seed: str, n: int, z: int) -> npt.NDArray[np.int32]:
    """n codes of all sizes, many of them 0."""
    q = noise(seed, n) % (2 * z + 1) - z
    q[noise(seed + " zeros", n) % 3 == 0] = 0
    return q.astype(np.int32)


def floats(seed: str, shape: Sequence[int], dtype: str, scale: float = 1.0) -> Bits:
    """Bits of values between -scale and scale."""
    values = ((noise(seed, math.prod(shape)) - 32768) / 32768 * scale).astype(np.float32)
    return from_floats(values, dtype)


def from_floats(values: Any, dtype: str) -> Bits:
    """Bits of f32 values in a float dtype."""
    raw = ref.narrow(np.asarray(values, np.float32).reshape(-1), dtype)
    return np.frombuffer(raw, f"<u{ref.WIDTH[dtype]}")


def integers(values: Any, dtype: str) -> Bits:
    """Bits of integers in an integer dtype."""
    width = ref.WIDTH[dtype]
    return np.asarray(values, f"<i{width}").reshape(-1).view(f"<u{width}")


def bits(seed: str, n: int, dtype: str) -> Bits:
    """Any bits; of floats, those of values between -1 and 1."""
    if dtype in ref.FLOAT:
        return floats(seed, [n], dtype)
    width = ref.WIDTH[dtype]
    raw: Bits = noise(seed, n * width).astype(np.uint8).view(f"<u{width}")
    return raw & 1 if dtype == "BOOL" else raw


def mantissas(seed: str, n: int, dtype: str, low: int, high: int) -> Bits:
    """Bits of floats with a random sign, a random mantissa, and an exponent from 2^low to 2^high."""
    size, bias = {"BF16": (7, 127), "F16": (10, 15), "F32": (23, 127)}[dtype]
    width = ref.WIDTH[dtype]
    random = noise(seed, 2 * n).astype(np.uint64)
    fraction = (random[:n] << np.uint64(16) | random[n:]) & np.uint64((1 << size) - 1)
    choice = noise(seed + " exponents", n)
    exponent = (choice % (high - low + 1) + low + bias).astype(np.uint64)
    sign = (choice >> 15).astype(np.uint64)
    result: Bits = (sign << np.uint64(8 * width - 1) | exponent << np.uint64(size) | fraction).astype(f"<u{width}")
    return result


def drift(seed: str, start: Bits, count: int, share: int = 3, reach: int = 1, still: int = 0) -> list[Bits]:
    """Bits that move from step to step: about one of `share`, by up to `reach`, after `still` steps of rest."""
    rows = [start]
    for t in range(1, count + 1):
        r = noise(f"{seed} {t}", len(start))
        move = np.where((r % share == 0) & (t > still), r // share % (2 * reach + 1) - reach, 0)
        rows.append(rows[-1] + move.astype(f"<i{start.itemsize}").view(start.dtype))
    return rows


def pieces_of(elements: Bits) -> Iterator[Bits]:
    """The pieces of an array."""
    return (elements[at : at + ref.PIECE] for at in range(0, len(elements), ref.PIECE))


def planes_of(elements: Bits) -> list[bytes]:
    """The planes of all pieces of an array."""
    return [
        plane.tobytes()
        for piece in pieces_of(np.ascontiguousarray(elements))
        for plane in piece.view(np.uint8).reshape(-1, piece.itemsize).T
    ]


def pack(q: Bits, packing: int) -> list[bytes]:
    """The pieces of codes, or their planes, by section 7."""
    if packing == ref.WORD:
        return planes_of((np.asarray(q, np.int64) + 32767).astype("<u2"))
    per_byte, radix, zero = ref.RADIX[packing]
    result = []
    for piece in pieces_of(np.asarray(q, np.int64) + zero):
        blocks = []
        for start in range(0, len(piece), 4096 * per_byte):
            digits = piece[start : start + 4096 * per_byte]
            size = -(-len(digits) // per_byte)
            full = np.full(per_byte * size, zero)
            full[: len(digits)] = digits
            blocks.append((radix ** np.arange(per_byte) @ full.reshape(per_byte, size)).astype(np.uint8).tobytes())
        result.append(b"".join(blocks))
    return result


SPECIAL = {
    "BF16": "0000 8000 0001 8001 007f 0080 3f80 bf80 7f7f ff7f 7f80 ff80 7fc0 ff81 7fff 3f81",
    "F16": "0000 8000 0001 8001 03ff 0400 3c00 bc00 7bff fbff 7c00 fc00 7e00 fc01 7fff 3c01",
    "F32": "00000000 80000000 00000001 80000001 007fffff 00800000 3f800000 bf800000 7f7fffff ff7fffff 7f800000 ff800000"
    " 7fc00000 ff800001 477ff000 33000001",
}


def special(dtype: str) -> Bits:
    """Sixteen patterns: zeros, subnormals, ones, the largest numbers, infinities, NaNs and ties."""
    return np.array([int(word, 16) for word in SPECIAL[dtype].split()], f"<u{ref.WIDTH[dtype]}")
