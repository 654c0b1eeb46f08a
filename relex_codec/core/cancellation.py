"""Cancelling work on other threads: scopes, as in anyio or trio, for plain threads.

Only the main thread gets Ctrl-C, while requests wait on threads of a pool, and a pool is waited for before the
interruption goes on. Whoever starts threads makes a `CancelScope` and runs them in it; whoever waits for a network
waits with `wait_for`, which raises `Cancelled` when the scope that its thread runs in is cancelled, or one around it.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from .forks import new_condition

T = TypeVar("T")
R = TypeVar("R")
POLL_SECONDS: Final = 0.1
"""How often a thread that waits looks whether it was cancelled."""


class Cancelled(BaseException):
    """The scope was cancelled; not an Exception, so that nothing reports it as a failure."""


class CancelScope:
    """Is cancelled once, with all threads that run in it, and all scopes that were made in it.

    Examples:
        >>> scope = CancelScope()
        >>> scope.cancel()
        >>> try:
        ...     scope.bind(check_cancelled)()
        ... except Cancelled:
        ...     print("cancelled")
        cancelled
    """

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._parent = current_scope()

    def cancel(self) -> None:
        """Let everything that runs in it end as soon as it waits or checks."""
        self._cancelled.set()

    def is_cancelled(self) -> bool:
        """Tell whether it was cancelled, or one around it."""
        return self._cancelled.is_set() or (self._parent is not None and self._parent.is_cancelled())

    def bind(self, function: Callable[..., R]) -> Callable[..., R]:
        """Return `function` as one that runs in this scope, on whichever thread it is called."""

        def run(*arguments: Any) -> R:
            outer = current_scope()
            _THREAD.scope = self
            try:
                return function(*arguments)
            finally:
                _THREAD.scope = outer

        return run


_THREAD: Final = threading.local()


def current_scope() -> CancelScope | None:
    """Return the scope that this thread runs in, if there is one."""
    return getattr(_THREAD, "scope", None)


def check_cancelled() -> None:
    """Return if the scope of this thread is not cancelled: to be called before something new is begun.

    Raises:
        Cancelled: it is.
    """
    scope = current_scope()
    if scope is not None and scope.is_cancelled():
        raise Cancelled


def wait_for(future: Future[T]) -> T:
    """Return the result of `future`, or raise its error.

    Raises:
        Cancelled: the scope of this thread is cancelled; what the future stands for may still be under way.
    """
    scope = current_scope()
    while scope is not None and not future.done():  # also where it was cancelled, which `wait` does not count
        with suppress(concurrent.futures.TimeoutError):
            return future.result(POLL_SECONDS)
        if not future.done():
            check_cancelled()
    return future.result()


def pause(seconds: float) -> None:
    """Wait so many seconds.

    Raises:
        Cancelled: as `wait_for`.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check_cancelled()
        time.sleep(left if current_scope() is None else min(left, POLL_SECONDS))


def run_abandonable(call: Callable[[], T]) -> T:
    """Return what `call` returns, for calls that cannot be interrupted: in a scope they get a thread of their own.

    Raises:
        Cancelled: as `wait_for`; the call goes on, abandoned, and the end of the process does not wait for it.
    """
    if current_scope() is None:
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
    """A lock for each key: threads that need the same thing take turns, others work at the same time."""

    def __init__(self) -> None:
        self._held: set[Hashable] = set()
        self._process = os.getpid()
        self._changed = new_condition()

    @contextmanager
    def hold(self, keys: Collection[Hashable]) -> Iterator[None]:
        """Hold all of `keys` within the context, after waiting until no other thread holds any of them.

        Raises:
            Cancelled: as `wait_for`.
        """
        with self._changed:
            if os.getpid() != self._process:  # forked: those who held them are threads of another process
                self._held, self._process = set(), os.getpid()
            while not self._changed.wait_for(lambda: self._held.isdisjoint(keys), POLL_SECONDS):
                check_cancelled()  # the thread that holds them may wait for a network for as long as it likes
            self._held.update(keys)
        try:
            yield
        finally:
            with self._changed:
                self._held.difference_update(keys)
                self._changed.notify_all()
