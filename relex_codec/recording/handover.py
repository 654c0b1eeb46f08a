"""What the trainer's thread hands to the one that writes: a step as it is found, bounded in memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Handover(Generic[T]):
    """Items from one thread to another, in order.

    The other one begins when all items are there, or when there is no more room for them: so its work does not take the
    processors from the first one, which training waits for.

    Args:
        room: sizes of the items that wait, together; a single item may have more.
    """

    def __init__(self, room: int) -> None:
        self._room, self._size = room, 0
        self._items: deque[tuple[T, int]] = deque()
        self._changed = threading.Condition()
        self._is_full = self._is_whole = self._is_broken = self._is_left = False

    def put(self, item: T, size: int) -> bool:
        """Hand over an item, when there is room for it.

        Returns:
            Whether the other thread still takes items: when its work has failed, it does not.
        """
        with self._changed:
            if self._items and self._size + size > self._room:
                self._is_full = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._is_left or not self._items or self._size + size <= self._room)
            if self._is_left:
                return False
            self._items.append((item, size))
            self._size += size
            self._changed.notify_all()
            return True

    def end(self, *, broken: bool = False) -> None:
        """Say that there are no more items; `broken`: that those that were there are not all."""
        with self._changed:
            self._is_whole, self._is_broken = True, broken
            self._changed.notify_all()

    def leave(self) -> None:
        """Say that nobody takes items any more."""
        with self._changed:
            self._is_left = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Yield the items.

        Raises:
            Broken: they do not become all.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_whole or (self._is_full and self._items))
                if self._is_broken:
                    raise Broken
                if not self._items:
                    return
                item, size = self._items.popleft()
                self._size -= size
                self._changed.notify_all()
            yield item


class Broken(Exception):
    """The thread that hands over has failed."""
