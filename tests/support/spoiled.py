"""Bytes with faults, and what decoding spoiled streams gives."""

from __future__ import annotations

import random

import numpy as np

from relex_codec import Corrupt

from .exact_parts import content, part_of, replayed


def mutated(blob: bytes, chances: random.Random) -> bytes:
    data = bytearray(blob)
    for _ in range(chances.choice((1, 1, 2, 8))):
        at = chances.randrange(len(data) + 1)
        match chances.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << chances.randrange(8)
            case 1:
                data[at : at + 4] = chances.randbytes(4)
            case 2:
                del data[at : at + chances.randrange(1, 9)]
            case 3:
                data[at:at] = chances.randbytes(chances.randrange(1, 40))
            case 4:
                data[at : at + 8] = chances.choice((b"\0", b"\xff")) * 8
            case 5:
                data[at:] = chances.randbytes(len(data) - at)
    return bytes(data)


def decoded_streams(rounds: int) -> list[str]:
    """What decoding spoiled streams gives: the sums of the bits, or what is wrong; no other error."""
    chances = random.Random(5)
    found = []
    kinds = (("dense", "BF16", 60), ("noise", "U8", 40), ("sparse", "F32", 300), ("wraps", "I64", 9))
    parts = [part_of(content(name, dtype, size, 4), dtype) for name, dtype, size in kinds]
    for number in range(rounds):
        part = parts[number % len(parts)]
        step, kept = 1 + number // len(parts) % 4, dict(part.streams)
        coding, stream = part.streams[step]
        if number >= 4 * len(parts):  # at first as they are
            part.streams[step] = coding, mutated(stream, chances)
        try:
            decoder = part.decoder()
            bits = [int(decoder.bits().astype(np.uint64).sum()) for _ in replayed(decoder, 1, 4)]
            found.append(str(bits))
        except Corrupt as error:
            found.append(str(error))
        part.streams.clear()
        part.streams.update(kept)
    return found
