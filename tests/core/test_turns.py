"""Threads that need the same thing go one after another, others at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from relex_codec.core.cancellation import Cancelled, CancelScope, KeyedLock


def test_the_same_key_is_taken_by_one_at_a_time() -> None:
    turns, inside, most = KeyedLock(), 0, 0

    def take(keys: tuple[int, ...]) -> None:
        nonlocal inside, most
        with turns.of(keys):
            inside += 1  # no two threads are here: all have key 0
            most = max(most, inside)
            threading.Event().wait(0.001)
            inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, [(0, i) for i in range(40)]))
    assert most == 1


def test_other_keys_are_taken_at_the_same_time() -> None:
    turns, together = KeyedLock(), threading.Barrier(3, timeout=10)

    def take(key: int) -> None:
        with turns.of([key]):
            together.wait()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(take, range(3)))


def test_keys_are_given_back_when_work_fails() -> None:
    turns = KeyedLock()
    with pytest.raises(ZeroDivisionError), turns.of("ab"):
        raise ZeroDivisionError
    with turns.of("bc"):
        pass


def test_who_is_stopped_does_not_wait_for_its_turn() -> None:
    turns, stop = KeyedLock(), CancelScope()

    def wait() -> None:
        with turns.of("ab"):
            raise AssertionError

    with turns.of("b"):
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(Cancelled):
            stop.bound(wait)()
    with turns.of("ab"):
        pass
