"""Which elements of a tensor a rank holds."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from relex_codec.journal.boxes import Box, tile

sides = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=4)


@given(sides)
def test_places_are_those_of_numpy(drawn: list[tuple[int, int, int]]) -> None:
    shape = tuple(max(n, o + s) for n, o, s in drawn)
    box = Box(shape, tuple(o for _, o, _ in drawn), tuple(s for _, _, s in drawn))
    assert box.fits
    every = np.arange(math.prod(shape)).reshape(shape)
    places = every[tuple(slice(o, o + s) for o, s in zip(box.offset, box.size, strict=True))].reshape(-1)
    assert box.elements == len(places)
    assert box.places(0, len(places)).tolist() == places.tolist()
    for place in range(math.prod(shape) + 1):
        assert box.first_at_or_after(place) == np.searchsorted(places, place)
    if len(places):
        assert box.is_contiguous == (places[-1] - places[0] + 1 == len(places))
        assert box.place(len(places) - 1) == places[-1]


def test_boxes_tile_a_tensor_or_not() -> None:
    shape = (4, 6)
    quarters = [Box(shape, (a, b), (2, 3)) for a, b in itertools.product((0, 2), (0, 3))]
    assert tile(quarters, shape) and tile([Box.whole(shape)], shape) and tile([Box.whole(())], ())
    assert tile([*quarters, Box(shape, (4, 6), (0, 0))], shape)
    assert not tile(quarters[1:], shape)
    assert not tile([*quarters[:3], quarters[0]], shape)
    assert not tile([Box(shape, (0, 0), (4, 3)), Box(shape, (0, 2), (4, 3))], shape)
    assert not Box(shape, (3, 0), (2, 6)).fits and not Box(shape, (0,), (4,)).fits
