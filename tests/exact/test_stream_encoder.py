"""Divisions by multiplying, as coding symbols does them; streams themselves are in test_exact_coder.py."""

from __future__ import annotations

import numpy as np
import pytest

from relex_codec.core.jit import compiled
from relex_codec.exact.rans import SCALE
from relex_codec.exact.stream_encoder import divisors, upper_half
from support.plain import Array

DIVISORS = divisors()

MOST = 2**64 - 1


@compiled
def quotients(x: Array, factor: np.uint64, more: np.uint64, shift: np.uint64) -> Array:
    found = np.empty_like(x)
    for i in range(len(x)):
        found[i] = upper_half(x[i] + more, factor) >> shift
    return found


def by_rule(x: int, f: int) -> int:
    factor, more, shift = (int(column[f]) for column in DIVISORS)
    return (x + more) * factor >> 64 >> shift


def edges(f: int) -> list[int]:
    """Multiples of f and what is beside them: the smallest, those around powers of two, and the largest."""
    near = {0, f, MOST // f * f, (MOST // f - 1) * f, f << 52, (f << 52) - f}
    near |= {(1 << k) // f * f for k in range(65)}
    return [x for n in near for x in range(n - 2, n + 3) if 0 <= x < MOST]


def test_every_frequency_divides_exactly() -> None:
    rng = np.random.default_rng(0)
    for f in range(1, SCALE + 1):
        chosen = [*edges(f), MOST - 1, *rng.integers(0, MOST, 20, np.uint64).tolist()]
        chosen += [int(x) >> int(k) for x, k in zip(rng.integers(0, MOST, 20, np.uint64), range(20), strict=True)]
        assert [by_rule(x, f) for x in chosen] == [x // f for x in chosen], f
        assert all(int(column[f]) < 1 << 64 for column in DIVISORS) and DIVISORS.more[f] < 2 and DIVISORS.shift[f] < 64


@pytest.mark.parametrize("f", [1, 2, 3, 7, 641, 2047, 2048, 2049, 3855, 4093, 4095, 4096])
def test_the_machine_multiplies_so(f: int) -> None:
    x = np.array([*edges(f), *np.random.default_rng(f).integers(0, MOST, 1000, np.uint64).tolist()], np.uint64)
    found = quotients(x, *(column[f] for column in DIVISORS))
    assert found.tolist() == [v // f for v in x.tolist()]


def test_the_largest_error_is_within_the_bound() -> None:
    """The proof: m is above 2^(64 + p) / f by no more than it may be, or below it, and then one more is divided."""
    for f in range(3, SCALE):
        if f & (f - 1):
            factor, more, p = int(DIVISORS.factor[f]), int(DIVISORS.more[f]), f.bit_length() - 1
            error = factor * f - (1 << 64 + p)
            assert DIVISORS.shift[f] == p and (0 < error <= 1 << p if not more else -(1 << p) < error < 0)
