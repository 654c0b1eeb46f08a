"""Work on several threads: order, failures, calls inside calls, and what comes after a fork."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from relex_codec.core import threads
from relex_codec.core.threads import at_most_threads, parallel_map
from support.commands import ELSEWHERE


@pytest.mark.parametrize("threads", [None, 1, 2, 16, 1000])
def test_results_are_in_order(threads: int | None) -> None:
    assert parallel_map(lambda x: x * x, range(100), threads) == [x * x for x in range(100)]
    assert parallel_map(lambda x: x, [], threads) == []


def test_as_many_run_at_a_time_as_are_asked_for() -> None:
    together = threading.Barrier(16, timeout=20)
    parallel_map(lambda _: together.wait(), range(32), 16)


def test_one_thread_is_the_callers() -> None:
    seen = parallel_map(lambda _: (time.sleep(0.01), threading.current_thread())[1], range(8), 4)
    assert threading.current_thread() in seen and len(set(seen)) <= 4


def test_no_more_than_at_most_are_taken_unless_asked_for() -> None:
    def who() -> int:
        return len(set(parallel_map(lambda _: (time.sleep(0.01), threading.get_ident())[1], range(16))))

    def four() -> None:
        together = threading.Barrier(4, timeout=20)
        parallel_map(lambda _: together.wait(), range(8), 4)

    with at_most_threads(1):
        assert who() == 1
        with at_most_threads(2):
            assert who() <= 2
        assert who() == 1
        four()
        elsewhere: list[int | None] = []
        thread = threading.Thread(target=lambda: elsewhere.append(getattr(threads._THREAD, "most", None)))
        thread.start()
        thread.join()
        assert elsewhere == [None]
    assert getattr(threads._THREAD, "most", None) is None


def test_calls_inside_calls_do_not_wait_for_each_other() -> None:
    count = 2 * threads.HELPERS

    def inner(x: int) -> int:
        return sum(parallel_map(lambda y: x * y, range(8), 8))

    assert parallel_map(inner, range(count), count) == [28 * x for x in range(count)]


def test_the_first_failure_by_place_is_raised_and_no_more_is_begun() -> None:
    begun: list[int] = []
    gate = threading.Barrier(2, timeout=20)

    def work(x: int) -> None:
        begun.append(x)
        if x < 2:
            gate.wait()
            raise ValueError(f"number {x}")
        time.sleep(0.01)

    with pytest.raises(ValueError, match="number 0"):
        parallel_map(work, range(1000), 2)
    assert len(begun) < 10


def test_an_interruption_of_the_caller_is_raised() -> None:
    caller = threading.current_thread()

    def work(x: int) -> None:
        if threading.current_thread() is caller:
            raise KeyboardInterrupt
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        parallel_map(work, range(100), 2)


def test_an_interruption_goes_before_a_failure() -> None:
    caller, together = threading.current_thread(), threading.Barrier(2, timeout=20)

    def work(x: int) -> None:
        together.wait()
        raise KeyboardInterrupt if threading.current_thread() is caller else ValueError

    for _ in range(10):  # the caller has the first place or the second
        with pytest.raises(KeyboardInterrupt):
            parallel_map(work, range(2), 2)


def test_where_no_more_threads_can_be_started_those_that_run_do_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, left = threads._pool, [1]

    def submit(run: Any) -> Any:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        return pool.submit(run)

    monkeypatch.setattr(threads, "_pool", SimpleNamespace(submit=submit))
    assert parallel_map(lambda x: -x, range(100), 4) == [-x for x in range(100)]
    assert not left


def test_reading_while_python_ends() -> None:
    """Threads of the caller that go on reading get no new threads any more, and need none."""
    code = """
        import threading, time
        from relex_codec.core.threads import parallel_map
        parallel_map(str, range(9), 4)
        def go_on():
            threading.main_thread().join()
            time.sleep(0.1)
            print(parallel_map(str, range(4), 4))
        threading.Thread(target=go_on).start()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ELSEWHERE)
    assert (done.stdout, done.stderr) == ("['0', '1', '2', '3']\n", "")


FORK = """
import os
from relex_codec.core.threads import parallel_map
parallel_map(str, range(100), 8)
child = os.fork()
if child == 0:
    import threading
    together = threading.Barrier(4, timeout=20)
    parallel_map(lambda _: together.wait(), range(4), 4)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_threads_are_made_anew_after_a_fork() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, cwd=ELSEWHERE, timeout=60
    )
    assert done.stdout == "7\n", done


INTERRUPTED = """
import os, signal, threading, time
from relex_codec.core.threads import parallel_map
from relex_codec.core.cancellation import pause

ended = []

def work(i):
    if threading.current_thread() is threading.main_thread():
        time.sleep(0.05)
        return
    try:
        pause(300)
    finally:
        ended.append(i)

threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    parallel_map(work, range(2), 2)
except KeyboardInterrupt:
    print("ended" if ended else "left behind")
"""


def test_an_interruption_while_the_others_are_waited_for_ends_them() -> None:
    """Nothing still writes into memory that the next call uses, and nothing holds up the end of the process."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, cwd=ELSEWHERE, timeout=60
    )
    assert done.stdout == "ended\n", done
