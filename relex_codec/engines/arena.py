"""Memory for the weights of the tensors that are being encoded: one block, used again and again.

New arrays of a few hundred megabytes cost a page fault for every 4 KB, each time; here it is once. And where the block
is full, the next tensor waits, so that the budget is held whatever the number of threads.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.cancellation import POLL_SECONDS, check_cancelled

ALIGNMENT: Final = 4096


@dataclass(slots=True, eq=False)
class Region:
    """A part of the block, cut into arrays.

    Attributes:
        begin, end: bytes of the block.
    """

    begin: int
    end: int
    _memory: npt.NDArray[np.uint8]
    _at: int = 0

    def array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array that holds anything, in what no other array of the region uses."""
        size = bytes_of(shape, dtype)
        begin, self._at = self._at, self._at + size
        if self._at > self.end - self.begin:
            raise ValueError(f"{self._at} bytes of a region of {self.end - self.begin}")
        return self._memory[begin : begin + math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)


def bytes_of(shape: tuple[int, ...], dtype: npt.DTypeLike) -> int:
    """Return what an array takes of a region."""
    return -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT


class Arena:
    """The block, from which regions are taken by one thread and given back by any.

    Args:
        capacity: bytes. They take memory as they are used.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = -(-capacity // ALIGNMENT) * ALIGNMENT
        self._memory = np.empty(self.capacity, np.uint8)
        self._taken: list[Region] = []
        """By their place."""
        self._changed = threading.Condition()

    def take(self, size: int) -> Region:
        """Return the first region of so many bytes that is free, after waiting for one.

        Raises:
            ValueError: there will never be one.
            Cancelled: the scope of this thread is cancelled.
        """
        size = -(-size // ALIGNMENT) * ALIGNMENT
        if size > self.capacity:
            raise ValueError(f"{size} bytes of an arena of {self.capacity}")
        with self._changed:
            while (found := self._free(size)) is None:
                check_cancelled()
                self._changed.wait(POLL_SECONDS)
            return found

    def give_back(self, region: Region) -> None:
        """Let others have a region; nobody may use its arrays any more."""
        with self._changed:
            self._taken.remove(region)
            self._changed.notify_all()

    def _free(self, size: int) -> Region | None:
        begin = 0
        for place, region in enumerate((*self._taken, None)):
            end = self.capacity if region is None else region.begin
            if end - begin >= size:
                found = Region(begin, begin + size, self._memory[begin : begin + size])
                self._taken.insert(place, found)
                return found
            begin = end if region is None else region.end
        return None
