"""Threads that need the same thing go one after another, others at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from relex_codec.core.cancellation import Cancelled, CancelScope, KeyedLock


def test_the_same_key_is_held_by_one_at_a_time() -> None:
    lock, inside, most = KeyedLock(), 0, 0

    def take(keys: tuple[int, ...]) -> None:
        nonlocal inside, most
        with lock.hold(keys):
            inside += 1  # no two threads are here: all have key 0
            most = max(most, inside)
            threading.Event().wait(0.001)
            inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, [(0, i) for i in range(40)]))
    assert most == 1


def test_other_keys_are_held_at_the_same_time() -> None:
    lock, together = KeyedLock(), threading.Barrier(3, timeout=10)

    def take(key: int) -> None:
        with lock.hold([key]):
            together.wait()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(take, range(3)))


def test_keys_are_given_back_when_work_fails() -> None:
    lock = KeyedLock()
    with pytest.raises(ZeroDivisionError), lock.hold("ab"):
        raise ZeroDivisionError
    with lock.hold("bc"):
        pass


def test_a_cancelled_thread_does_not_wait_for_the_lock() -> None:
    lock, scope = KeyedLock(), CancelScope()

    def wait() -> None:
        with lock.hold("ab"):
            raise AssertionError

    with lock.hold("b"):
        threading.Timer(0.2, scope.cancel).start()
        with pytest.raises(Cancelled):
            scope.bind(wait)()
    with lock.hold("ab"):
        pass
