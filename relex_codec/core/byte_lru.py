"""A cache in memory, bounded by bytes: what was not used for longest goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from .forks import new_lock

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteLRU(Generic[K, V]):
    """Values by key, together at most `limit` bytes large; all methods may be called from several threads.

    What the last call has put in stays, even if that alone is above the limit: whoever put it in is about to use it.

    Args:
        limit: in bytes.

    Examples:
        >>> cache = ByteLRU(limit=10)
        >>> cache.put_all({"a": ("first", 4), "b": ("second", 4)})
        >>> cache.get("a")  # from now on used later than "b"
        'first'
        >>> cache.put_all({"c": ("third", 4)})
        >>> "a" in cache, "b" in cache, "c" in cache, cache.nbytes
        (True, False, True, 8)
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._nbytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = new_lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self._nbytes

    def __contains__(self, key: object) -> bool:
        """Tell whether there is a value; that does not count as use."""
        with self._lock:
            return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return the value of `key`, which has now been used last, or None."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put_all(self, values: Mapping[K, tuple[V, int]]) -> None:
        """Put values in, each with its size in bytes, in place of what was there under their keys."""
        with self._lock:
            for key, (value, size) in values.items():
                self._replace(key, value, size)
            self._evict(len(values))

    def update(self, key: K, change: Callable[[V | None], tuple[V, int]]) -> None:
        """Replace a value by what `change` makes of it (of None, if there is none), with its size in bytes.

        No other thread changes the value in between; `change` must not call the cache.
        """
        with self._lock:
            found = self._entries.get(key)
            self._replace(key, *change(None if found is None else found[0]))
            self._evict(1)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._nbytes = 0

    def _replace(self, key: K, value: V, size: int) -> None:
        before = self._entries.pop(key, None)
        self._nbytes += size - (0 if before is None else before[1])
        self._entries[key] = value, size

    def _evict(self, spared: int) -> None:
        """Let go of what was not used for longest, but not of the last `spared` values."""
        while self._nbytes > self._limit and len(self._entries) > spared:
            _, (_, size) = self._entries.popitem(last=False)
            self._nbytes -= size
