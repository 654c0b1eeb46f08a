"""Threads that nobody waits for any more end, and what failed first is what is raised."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future

import pytest

from relex_codec.core.cancellation import Cancelled, CancelScope, current_scope, pause, run_abandonable, wait_for
from relex_codec.core.threads import parallel_map, prefetched
from relex_codec.storage.config import StorageConfig
from relex_codec.storage.stores.base import Answer, ObjectStore


def test_without_a_scope_results_and_errors_are_those_of_the_future() -> None:
    done: Future[int] = Future()
    done.set_result(3)
    assert current_scope() is None and wait_for(done) == 3
    failed: Future[int] = Future()
    failed.set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        CancelScope().bind(wait_for)(failed)


def test_what_waits_in_a_scope_ends_when_it_or_one_around_it_is_cancelled() -> None:
    outer = CancelScope()
    inner = outer.bind(CancelScope)()
    assert outer.bind(current_scope)() is outer and current_scope() is None
    never: Future[int] = Future()
    threading.Timer(0.2, outer.cancel).start()
    with pytest.raises(Cancelled):
        inner.bind(wait_for)(never)
    assert inner.is_cancelled() and outer.is_cancelled()
    with pytest.raises(Cancelled):
        inner.bind(pause)(60)
    other = CancelScope()
    other.cancel()
    assert not CancelScope().is_cancelled()


def test_a_pause_without_a_scope_is_a_pause() -> None:
    began = time.monotonic()
    pause(0.05)
    assert time.monotonic() - began >= 0.05


def test_a_call_is_left_behind_only_where_it_may_be() -> None:
    here = threading.current_thread()
    assert run_abandonable(threading.current_thread) is here
    scope, gate = CancelScope(), threading.Event()
    assert scope.bind(run_abandonable)(threading.current_thread) is not here
    with pytest.raises(ZeroDivisionError):
        scope.bind(run_abandonable)(lambda: 1 // 0)
    threading.Timer(0.2, scope.cancel).start()
    with pytest.raises(Cancelled):
        scope.bind(run_abandonable)(gate.wait)
    gate.set()


def test_a_failure_ends_the_waits_of_other_threads_and_is_what_is_raised() -> None:
    never: Future[int] = Future()

    def work(i: int) -> int:
        if i == 0:
            raise ValueError("this one")
        return parallel_map(lambda _: wait_for(never), range(2), 2)[0]

    with pytest.raises(ValueError, match="this one"):
        parallel_map(work, range(3), 3)


def test_values_made_ahead_are_let_go_of_when_the_reader_ends() -> None:
    never: Future[int] = Future()
    values = prefetched((wait_for(never) if i else i for i in range(3)), 2)
    assert next(values) == 0
    values.close()  # type: ignore[attr-defined]


def test_a_future_that_is_cancelled_ends_the_wait() -> None:
    cancelled: Future[int] = Future()
    cancelled.cancel()
    with pytest.raises(CancelledError):
        CancelScope().bind(wait_for)(cancelled)


def test_nothing_is_begun_in_a_cancelled_scope() -> None:
    scope, begun = CancelScope(), []
    scope.cancel()
    with pytest.raises(Cancelled):
        scope.bind(run_abandonable)(lambda: begun.append(1))
    with pytest.raises(Cancelled):
        scope.bind(Idle._run)(Idle(None, "x", StorageConfig()), begin, begun)
    assert begun == []


class Idle(ObjectStore):
    """Has no event loop: nothing may be asked of it."""

    def get(self, start: int, end: int, version: object) -> Answer:
        raise NotImplementedError

    def head(self) -> None:
        raise NotImplementedError


async def begin(begun: list[int]) -> None:
    begun.append(1)
