"""What turns a chunk into what it is at the next step."""

from __future__ import annotations

import random

import numpy as np
import pytest

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.errors import Corrupt
from relex_codec.journal.difference import apply_difference, encode_difference
from relex_codec.journal.format import CHUNK
from support.spoiled import mutated
from support.tensors import Array, bf16, random_bits


def changed(old: Array, share: float, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    other = np.frombuffer(rng.bytes(old.nbytes), old.dtype)
    return np.where(rng.random(len(old)) < share, other, old)


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_every_dtype_and_share(dtype: str) -> None:
    if dtype in ("F8_E4M3FNUZ", "F8_E5M2FNUZ"):
        old = random_bits("U8", (5001,), 1)[1]
    else:
        old = random_bits(dtype, (5001,), 1)[1]
    for count in (0, 1, 7, 64, 65, 999, 5001):
        for number, share in enumerate((0, 0.001, 0.02, 0.2, 1)):
            before = old[:count].copy()
            after = changed(before, share, number)
            blob = encode_difference(before, after, dtype)
            assert (not blob) == bool((before == after).all())
            row = before.copy()
            apply_difference(blob, row, 0, count, dtype)
            assert (row == after).all()
            lo, hi = count // 3, count - count // 4
            part = before[lo:hi].copy()
            apply_difference(blob, part, lo, count, dtype)
            assert (part == after[lo:hi]).all()


def test_a_whole_chunk() -> None:
    old = random_bits("BF16", (CHUNK,), 3)[1]
    for share in (1e-5, 0.01, 1):
        new = changed(old, share, 5)
        row = old.copy()
        apply_difference(encode_difference(old, new, "BF16"), row, 0, CHUNK, "BF16")
        assert (row == new).all()


def test_neighbours_take_few_bits() -> None:
    """Weights that move to the next number of BF16 cost little more than where they are."""
    rng = np.random.default_rng(1)
    old = bf16(rng.standard_normal(CHUNK) * 0.02)[1]
    moves = rng.random(CHUNK) < 0.01
    new = old + np.where(moves, rng.choice([-1, 1], CHUNK), 0).astype(np.uint16)
    blob = encode_difference(old, new, "BF16")
    assert 8 * len(blob) < 10.5 * moves.sum()  # the entropy of where is 8.1 bits, that of which way is 1


def test_spoiled_blobs_are_corrupt_or_give_something() -> None:
    """Whatever the bytes, there is a result or one kind of error, in little memory."""
    chances = random.Random(3)
    old = random_bits("BF16", (3000,), 1)[1]
    blobs = [encode_difference(old, changed(old, share, 2), "BF16") for share in (0.003, 0.05, 0.9)]
    wrong = []
    for number in range(600):
        row = old.copy()
        try:
            apply_difference(mutated(blobs[number % 3], chances), row, 0, 3000, "BF16")
        except Corrupt as error:
            wrong.append(str(error))
    assert len(wrong) > 400 and not any("\n" in message for message in wrong)
