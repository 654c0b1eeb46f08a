"""Tensors that are worked on at the same time, on their way to the exact tier, which takes them in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from relex_codec.core.cancellation import POLL_SECONDS, check_cancelled
from relex_codec.core.dtypes import Bits
from relex_codec.format.constants import PIECE

if TYPE_CHECKING:
    from relex_codec.exact.tier_writer import TensorJob


class Turns:
    """Lets tensors that are worked on at the same time do something in their order."""

    def __init__(self) -> None:
        self._ended: set[int] = set()
        self._next = 0
        self._changed = threading.Condition()

    def wait(self, number: int) -> None:
        """Wait until all before `number` have ended their turns.

        Raises:
            Cancelled: the scope of this thread is cancelled, as when one of them has failed.
        """
        with self._changed:
            while not self._changed.wait_for(lambda: self._next >= number, POLL_SECONDS):
                check_cancelled()

    def end(self, number: int) -> None:
        """End the turn of `number`, if it has not ended yet."""
        with self._changed:
            if number >= self._next:
                self._ended.add(number)
            while self._next in self._ended:
                self._ended.remove(self._next)
                self._next += 1
            self._changed.notify_all()


class OrderedPieces:
    """The pieces of a tensor on their way to the exact tier, which takes tensors in the order of the file.

    Args:
        number: of the tensor.
        begin: begins the tensor there, when it is its turn.
        as_in_file: makes of the first element of a piece, the piece at the origin and at all steps, what a file that
            is appended to has at its steps; None where both are the same.
    """

    def __init__(
        self,
        number: int,
        turns: Turns,
        begin: Callable[[], TensorJob],
        as_in_file: Callable[[int, Bits, Bits], Bits] | None = None,
    ) -> None:
        self._number, self._turns, self._begin, self._as_in_file = number, turns, begin, as_in_file
        self._job: TensorJob | None = None

    def add(self, piece: int, origin: Bits, bits: Bits) -> None:
        """Take the next piece; see `exact.tier_writer.TensorJob.add`."""
        if self._as_in_file is not None:
            bits = self._as_in_file(piece * PIECE, origin, bits)
        self._begun().add(piece, origin, bits)

    def add_later(self, piece: int, left: Bits, bits: Bits) -> None:
        """Take the next piece of further steps; see `exact.tier_writer.TensorJob.add_later`."""
        self._begun().add_later(piece, left, bits)

    @property
    def left(self) -> int:
        """Number of the step at the left end of the segment; 0 is the origin."""
        return self._begun().left

    def end(self) -> int:
        """Let the next tensor begin; return the ``segment`` field of this one's record."""
        segment = self._begun().segment
        self._turns.end(self._number)
        return segment

    def _begun(self) -> TensorJob:
        if self._job is None:
            self._turns.wait(self._number)
            self._job = self._begin()
        return self._job
