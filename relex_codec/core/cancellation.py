"""Telling threads that nobody waits for them any more.

Only the main thread gets Ctrl-C, while requests are waited for on others: of a pool, which is waited for before the
interruption goes on. Whoever starts threads makes a `CancelScope` and runs them under it; whoever waits for a network
waits with `wait_for`, which ends when the `CancelScope` it runs under is set, or one that this one was made under.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")
SLICE: Final = 0.1
"""Seconds after which a thread that waits looks whether anyone still waits for it."""


class Cancelled(BaseException):
    """Nobody waits for the result; not an Exception, so that nothing reports it as a failure."""


class CancelScope:
    """Is set once, for all threads that run under it, and under what was made there."""

    def __init__(self) -> None:
        self._set = threading.Event()
        self._above = current()

    def set(self) -> None:
        """Let everything under it end."""
        self._set.set()

    def is_set(self) -> bool:
        """Tell whether it, or one above it, is set."""
        return self._set.is_set() or (self._above is not None and self._above.is_set())

    def bound(self, function: Callable[..., R]) -> Callable[..., R]:
        """Return `function` as one that runs under this."""

        def run(*arguments: Any) -> R:
            before = current()
            _HERE.stop = self
            try:
                return function(*arguments)
            finally:
                _HERE.stop = before

        return run


_HERE: Final = threading.local()


def current() -> CancelScope | None:
    """Return what this thread runs under, if anything."""
    return getattr(_HERE, "stop", None)


def check_cancelled() -> None:
    """Return if somebody still waits for what this thread does: to be called before something new is begun.

    Raises:
        Stopped: nobody does.
    """
    stop = current()
    if stop is not None and stop.is_set():
        raise Cancelled


def wait_for(future: Future[T]) -> T:
    """Return the result of `future`, or raise its error.

    Raises:
        Stopped: nobody waits for it any more; it may still be under way.
    """
    stop = current()
    while stop is not None and not future.done():  # also where it was cancelled, which `wait` does not count
        with suppress(concurrent.futures.TimeoutError):
            return future.result(SLICE)
        if not future.done():
            check_cancelled()
    return future.result()


def pause(seconds: float) -> None:
    """Wait.

    Raises:
        Stopped: as `wait_for`.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check_cancelled()
        time.sleep(left if current() is None else min(left, SLICE))


def run_abandonable(call: Callable[[], T]) -> T:
    """Return what `call` returns: on a thread of its own, if that is what it takes not to wait for its end.

    Raises:
        Stopped: as `wait_for`; what was begun goes on, and its end is not waited for at the end of the process.
    """
    if current() is None:
        return call()
    check_cancelled()
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as e:
            future.set_exception(e)

    threading.Thread(target=work, daemon=True).start()
    return wait_for(future)


class KeyedLock:
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
                check_cancelled()  # who has them may wait for a network as long as it likes
            self._taken.update(keys)
        try:
            yield
        finally:
            with self._changed:
                self._taken.difference_update(keys)
                self._changed.notify_all()
