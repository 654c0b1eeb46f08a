"""Boxes as windows: every element once, in order; ranges of pieces; copies."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_codec.core.indexing import box_of
from relex_codec.errors import InvalidArgument
from relex_codec.format.constants import PIECE
from relex_codec.kernels import windows as module
from relex_codec.kernels.interface import Window
from relex_codec.kernels.windows import copy_window, cut, flat, piece_ranges, windows

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def elements(window: Window) -> np.ndarray[Any, Any]:
    """The elements of a window, [rows, columns], -1 where it is cut off."""
    e = (window.row + np.arange(window.rows))[:, None] * window.width + window.column + np.arange(window.columns)
    return np.where((e >= window.lo) & (e < window.hi), e, -1)


@st.composite
def indices(draw: Any) -> tuple[tuple[int, ...], Any]:
    """A shape and an index of it."""
    shape = draw(SHAPES)
    index: list[Any] = []
    for n in shape[: draw(st.integers(0, len(shape)))]:
        if n and draw(st.booleans()):
            index.append(draw(st.integers(-n, n - 1)))
        else:
            ends = st.one_of(st.none(), st.integers(-n - 1, n + 1))
            index.append(slice(draw(ends), draw(ends)))
    if draw(st.booleans()):
        index.insert(draw(st.integers(0, len(index))), ...)
        # an ellipsis in the middle moves what follows to the last dimensions, which may be shorter
        try:
            np.empty(shape)[tuple(index)]
        except IndexError:
            index = [...]
    return shape, index[0] if len(index) == 1 and draw(st.booleans()) else tuple(index)


@settings(max_examples=500)
@given(indices())
def test_a_box_is_what_numpy_indexes(drawn: tuple[tuple[int, ...], Any]) -> None:
    shape, index = drawn
    every = np.arange(math.prod(shape)).reshape(shape)
    expected = every[index]
    box, kept = box_of(shape, index)
    assert kept == expected.shape
    found = windows(shape, box)
    assert len({(w.rows, w.columns) for w in found}) <= 1
    got = np.concatenate([np.empty(0, int), *(elements(w).ravel() for w in found)])
    assert np.array_equal(got, expected.ravel())
    if expected.size:
        assert all(w.rows and w.columns and 0 <= w.column <= w.width - w.columns for w in found)


@pytest.mark.parametrize(
    ("shape", "box", "count"),
    [
        ((8, 6), ((2, 5), (0, 6)), 1),  # rows
        ((8, 6), ((0, 8), (1, 3)), 1),  # columns
        ((8, 6), ((2, 5), (1, 3)), 1),  # both
        ((4, 8, 6), ((1, 3), (0, 8), (0, 6)), 1),  # experts
        ((4, 8, 6), ((0, 4), (2, 5), (0, 6)), 1),  # rows of each
        ((4, 8, 6), ((1, 3), (2, 5), (0, 6)), 1),
        ((4, 8, 6), ((0, 4), (0, 8), (1, 3)), 1),  # columns of each
        ((4, 8, 6), ((1, 3), (2, 5), (1, 3)), 2),
    ],
)
def test_most_boxes_are_one_window(shape: tuple[int, ...], box: module.Box, count: int) -> None:
    assert len(windows(shape, box)) == count


@pytest.mark.parametrize(
    "index",
    [
        None,
        True,
        [1],
        "a",
        np.arange(2),
        (0, 0, 0),
        5,
        -6,
        slice(0, 5, 2),
        slice(4, 0, -1),
        (..., ...),
        (slice(None), 7),
    ],
)
def test_an_index_that_is_none(index: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"index|step"):
        box_of((5, 7), index)


WINDOWS = st.builds(
    lambda width, row, rows, a, b, lo, hi: Window(
        width, row, rows, min(a, b) % width, min(abs(a - b), width - min(a, b) % width), min(lo, hi), max(lo, hi)
    ),
    st.integers(1, 40), st.integers(0, 9), st.integers(0, 9), st.integers(0, 39), st.integers(0, 39),
    st.integers(0, 700), st.integers(0, 700),
)  # fmt: skip


@settings(max_examples=500)
@given(WINDOWS, st.integers(1, 50))
def test_pieces_and_copies(window: Window, piece: int) -> None:
    """With small pieces: each that the window needs is named once, and copies from them fill the window."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        ranges = list(piece_ranges(window))
    wanted = elements(window)
    needed = sorted({int(e) // piece for e in wanted.ravel() if e >= 0})
    named = list(itertools.chain.from_iterable(range(a, b) for a, b in ranges))
    assert named == needed
    assert all(b < c for (_, b), (c, _) in itertools.pairwise(ranges))
    if window.columns == 1 or window.rows <= 1:
        assert named == needed or window.columns != 1
    out = np.full((window.rows, window.columns), -1)
    for a, b in ranges:
        part = cut(window, a * piece, b * piece)
        copy_window(part, a * piece, np.arange(a * piece, b * piece), out)
    inside = wanted >= 0
    assert np.array_equal(out[inside], wanted[inside])


def test_a_wide_row_skips_pieces() -> None:
    """Columns of rows that are longer than pieces need some of the pieces only."""
    window = Window(10 * PIECE, 0, 3, 2 * PIECE, PIECE, 0, 30 * PIECE)
    assert list(piece_ranges(window)) == [(2, 3), (12, 13), (22, 23)]
    assert list(piece_ranges(flat(5, PIECE))) == [(0, 1)]
    assert list(piece_ranges(flat(7, 7))) == []
