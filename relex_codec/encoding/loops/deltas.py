"""Gram matrices and directions of deltas, from the bits of the weights: nothing is converted beforehand.

Both go through a tensor in strips of `STRIP` elements, counted from the beginning of what they are given. The deltas of
a strip at all steps stay in the second-level cache. Products are float32, and so are their sums over a strip, which
vector registers hold in parts; sums over strips are float64. Against float64 throughout, the largest eigenvalue of a
Gram matrix is off by 1e-8, and it takes a tenth of the time (RATIONALE.md). A delta is made, squared and stored, or
added to a direction, in one loop: storing and loading it again took a quarter and half of the time.

A strip whose deltas are not finite, or so large or small that float32 does not hold their squares, is left to the
caller, who has float64.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import F32, Bits
from relex_codec.core.jit import compiled, summing
from relex_codec.kernels.cpu.llvm_ops import widen_bf16, widen_f16, widen_f32

from .widening import widen_less

F64 = npt.NDArray[np.float64]

STRIP: Final = 1024
GROUP: Final = 16
"""Steps that a direction adds up in float32 before they are added in float64."""
LARGEST: Final = np.float32(1e30)
SMALLEST: Final = np.float32(1e-24)
"""Between these must be the largest sum of squares of a strip, unless all of its deltas are 0."""


@summing
def _delta_of(bits: Bits, kind: int, origin: F32, out: F32) -> np.float32:
    """Set `out` to the deltas of one step, and return the sum of their squares."""
    total = np.float32(0)
    if kind == 0:
        for j in range(len(out)):
            delta = widen_bf16(np.uint16(bits[j])) - origin[j]
            out[j] = delta
            total += delta * delta
    elif kind == 1:
        for j in range(len(out)):
            delta = widen_f16(np.uint16(bits[j])) - origin[j]
            out[j] = delta
            total += delta * delta
    else:
        for j in range(len(out)):
            delta = widen_f32(np.uint32(bits[j])) - origin[j]
            out[j] = delta
            total += delta * delta
    return total


@summing
def sum_of_magnitudes(values: F32) -> np.float64:
    """Return the sum of the magnitudes: float32 over a strip, float64 over strips, and where float32 overflows."""
    found = np.float64(0)
    for lo in range(0, len(values), STRIP):
        end = min(lo + STRIP, len(values))
        total = np.float32(0)
        for i in range(lo, end):
            total += abs(values[i])
        if np.isfinite(total):
            found += np.float64(total)
        else:
            for i in range(lo, end):
                found += np.float64(abs(values[i]))
    return found


@summing
def _add_products(strip: F32, count: int, gram: F64) -> None:
    """Add the inner products of different rows of a strip to `gram`, below its diagonal, four rows by two at a time."""
    for i in range(0, len(strip), 4):
        a0, a1, a2, a3 = strip[i], strip[i + 1], strip[i + 2], strip[i + 3]
        for k in range(0, i, 2):
            b0, b1 = strip[k], strip[k + 1]
            s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = np.float32(0)
            for j in range(count):
                x, y = b0[j], b1[j]
                p, q, r, s = a0[j], a1[j], a2[j], a3[j]
                s00 += p * x
                s01 += p * y
                s10 += q * x
                s11 += q * y
                s20 += r * x
                s21 += r * y
                s30 += s * x
                s31 += s * y
            gram[i, k] += s00
            gram[i, k + 1] += s01
            gram[i + 1, k] += s10
            gram[i + 1, k + 1] += s11
            gram[i + 2, k] += s20
            gram[i + 2, k + 1] += s21
            gram[i + 3, k] += s30
            gram[i + 3, k + 1] += s31
        s10 = s20 = s21 = s30 = s31 = s32 = np.float32(0)
        for j in range(count):
            p, q, r, s = a0[j], a1[j], a2[j], a3[j]
            s10 += q * p
            s20 += r * p
            s21 += r * q
            s30 += s * p
            s31 += s * q
            s32 += s * r
        gram[i + 1, i] += s10
        gram[i + 2, i] += s20
        gram[i + 2, i + 1] += s21
        gram[i + 3, i] += s30
        gram[i + 3, i + 1] += s31
        gram[i + 3, i + 2] += s32


@compiled
def add_gram(
    bits: Bits, kind: int, at: int, count: int, origin: F32, lo: int, strip: F32, gram: F64, squares: F64
) -> int:
    """Add the Gram matrix of the deltas of `count` elements to `gram`, as far as float32 can.

    Args:
        bits: [T, any]; elements from `at` on are looked at.
        kind: of the bits, as in widening.py.
        origin: float32; has these elements from `lo` on.
        strip: float32 [R, STRIP] to work in, R being T rounded up to a multiple of 4; rows from T on are 0.
        gram: float64 [R, R]; the lower triangle is added to.
        squares: float64 [T]; the sums of squares of each step are added to it.

    Returns:
        How many elements have been added: fewer than `count` where the next strip is not for float32.
    """
    steps = len(bits)
    found = np.zeros(steps, np.float32)
    for begin in range(0, count, STRIP):
        size = min(STRIP, count - begin)
        largest, held, start = np.float32(0), True, origin[lo + begin : lo + begin + size]
        for i in range(steps):
            first = at + begin
            square = _delta_of(bits[i, first : first + size], kind, start, strip[i, :size])
            if not square < LARGEST:  # nor is a NaN
                held = False
            largest = max(largest, square)
            found[i] = square
        if not held:
            return begin
        if largest < SMALLEST:
            for i in range(steps):
                for j in range(size):
                    if strip[i, j] != 0:
                        return begin
            continue
        for i in range(steps):
            squares[i] += found[i]
            gram[i, i] += found[i]
        _add_products(strip, size, gram)
    return count


@summing
def _add_weighted(bits: Bits, kind: int, origin: F32, weight: np.float32, total: F32) -> None:
    """Add the deltas of one step, times its weight."""
    if kind == 0:
        for j in range(len(total)):
            total[j] += weight * (widen_bf16(np.uint16(bits[j])) - origin[j])
    elif kind == 1:
        for j in range(len(total)):
            total[j] += weight * (widen_f16(np.uint16(bits[j])) - origin[j])
    else:
        for j in range(len(total)):
            total[j] += weight * (widen_f32(np.uint32(bits[j])) - origin[j])


@summing
def _add_four(b0: Bits, b1: Bits, b2: Bits, b3: Bits, origin: F32, weights: F32, total: F32) -> None:
    """The same for four steps of kind 0, what most weights are."""
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    for j in range(len(total)):
        start = origin[j]
        d0, d1 = widen_bf16(np.uint16(b0[j])) - start, widen_bf16(np.uint16(b1[j])) - start
        d2, d3 = widen_bf16(np.uint16(b2[j])) - start, widen_bf16(np.uint16(b3[j])) - start
        total[j] += w0 * d0 + w1 * d1 + w2 * d2 + w3 * d3


@compiled
def combine(bits: Bits, kind: int, at: int, origin: F32, weights: F32, part: F32, total: F64, out: F32) -> None:
    """Set `out` to the sum of deltas times `weights`: to a direction, of elements from `at` on.

    `GROUP` steps are added up in float32, such sums in float64.

    Args:
        bits: [K or more, any].
        kind: of the bits, as in widening.py.
        origin: float32, of the same elements as `out`.
        weights: float32 [K].
        part: float32 [STRIP] to work in.
        total: float64 [STRIP] to work in.
        out: float32.
    """
    steps = len(weights)
    for begin in range(0, len(out), STRIP):
        size = min(STRIP, len(out) - begin)
        lo = at + begin
        hi, start, some = lo + size, origin[begin : begin + size], part[:size]
        total[:] = 0
        for group in range(0, steps, GROUP):
            end = min(group + GROUP, steps)
            fours = end - (end - group) % 4 if kind == 0 else group
            some[:] = 0
            for i in range(group, fours, 4):
                b0, b1, b2, b3 = bits[i, lo:hi], bits[i + 1, lo:hi], bits[i + 2, lo:hi], bits[i + 3, lo:hi]
                _add_four(b0, b1, b2, b3, start, weights[i : i + 4], some)
            for i in range(fours, end):
                _add_weighted(bits[i, lo:hi], kind, start, weights[i], some)
            for j in range(size):
                total[j] += np.float64(some[j])
        for j in range(size):
            out[begin + j] = np.float32(total[j])


@summing
def _products(one: F32, other: F32) -> tuple[float, float]:
    inner = square = 0.0
    for j in range(len(one)):
        value = np.float64(one[j])
        inner += value * np.float64(other[j])
        square += value * value
    return inner, square


@compiled
def project(bits: Bits, kind: int, origin: F32, values: F32, strip: F32) -> tuple[float, float]:
    """Return the inner product of the deltas of one step with `values`, and their sum of squares, in float64.

    Args:
        bits: of the step.
        kind: of the bits, as in widening.py.
        origin: float32, of the same elements.
        values: float32, of a direction.
        strip: float32 [STRIP] to work in.
    """
    inner = square = 0.0
    for lo in range(0, len(bits), STRIP):
        hi = min(lo + STRIP, len(bits))
        part = strip[: hi - lo]
        widen_less(bits[lo:hi], kind, origin[lo:hi], part)
        products = _products(part, values[lo:hi])
        inner += products[0]
        square += products[1]
    return inner, square
