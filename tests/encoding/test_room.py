"""What a tensor is worked on with: slices of a piece fit their part of the budget, and are as few as may be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.encoding.room import SMALLEST_SLICE, room_for, slice_within
from relex_codec.format.constants import PIECE


def slices(size: int) -> int:
    return -(-PIECE // size)


@given(st.integers(0, 2 * PIECE))
def test_slices_fit_and_are_few(most: int) -> None:
    size = slice_within(most)
    assert size % SMALLEST_SLICE == 0 and SMALLEST_SLICE <= size <= PIECE
    assert size <= max(SMALLEST_SLICE, most * 9 / 8)
    plain = min(PIECE, max(SMALLEST_SLICE, most // SMALLEST_SLICE * SMALLEST_SLICE))
    assert slices(size) <= slices(plain)


def test_a_piece_that_all_but_fits_is_read_at_once() -> None:
    info = TensorInfo("w", "BF16", (11_534_336,))
    room = room_for(info, "BF16", 16, 1, 256 * 10**6, 1, 2)
    assert not room.held and room.slice == PIECE
