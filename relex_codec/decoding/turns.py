"""What threads that decode one file tell each other: what one of them has in hand, and what is planned."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator
from contextlib import contextmanager

from relex_codec.core.cancellation import SLICE, go_on


class Turns:
    """Gives each of several things to one thread at a time, so that the next one finds what the last one has left."""

    def __init__(self) -> None:
        self._taken: set[Hashable] = set()
        self._changed = threading.Condition()

    @contextmanager
    def of(self, keys: Collection[Hashable]) -> Iterator[None]:
        """Wait until nobody has any of `keys`, and have them all for the time of the context.

        Raises:
            Stopped: nobody waits for this thread any more.
        """
        with self._changed:
            while not self._changed.wait_for(lambda: self._taken.isdisjoint(keys), SLICE):
                go_on()  # who has them may wait for a network as long as it likes
            self._taken.update(keys)
        try:
            yield
        finally:
            with self._changed:
                self._taken.difference_update(keys)
                self._changed.notify_all()


class Plans:
    """What is being read ahead, so that nobody plans it again on the way."""

    def __init__(self) -> None:
        self._planned: Counter[Hashable] = Counter()
        self._lock = threading.Lock()

    def cover(self, parts: Iterable[Hashable]) -> bool:
        """Tell whether each of `parts` is planned."""
        with self._lock:
            return all(self._planned[part] for part in parts)

    @contextmanager
    def of(self, parts: Collection[Hashable]) -> Iterator[None]:
        """Count `parts` as planned for the time of the context."""
        with self._lock:
            self._planned.update(parts)
        try:
            yield
        finally:
            with self._lock:
                self._planned.subtract(parts)
                self._planned = +self._planned
