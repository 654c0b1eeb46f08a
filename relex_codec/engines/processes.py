"""The engine of this machine: units in processes of their own, each with its part of the memory.

Processes are started anew, not forked: threads, numba and torch do not survive a fork. They are told of units through
a socket, by which they also notice that this process has gone, however it ended, and end themselves.
"""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Pipe, wait
from types import TracebackType
from typing import Final

from relex_codec.core.cancellation import POLL_SECONDS, check_cancelled

from .protocol import Finished, Place, Unit, WorkerLost

ATTEMPTS: Final = 3
"""How often a unit is begun whose worker dies."""
GRACE: Final = 5.0
"""Seconds in which a worker ends that is told to."""
_START: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from relex_codec.engines.worker import main; main(int(sys.argv[1]))"
)


@dataclass(slots=True)
class _Task:
    """A unit that is to be done, as it is sent, and how often it was begun."""

    key: str
    pickled: bytes
    begun: int = 0


class _Worker:
    """A process that does one unit after another."""

    def __init__(self, place: Place, directory: str) -> None:
        self.task: _Task | None = None
        self.connection, there = Pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, str(there.fileno()), json.dumps(sys.path)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(there.fileno(),),
            )  # fmt: skip
        except BaseException:
            self.connection.close()
            raise
        finally:
            there.close()
        self.connection.send((place.directory, place.budget, place.threads, directory))

    def begin(self, task: _Task) -> None:
        """Send a unit; a process that has died by then is noticed when it is waited for."""
        self.task, task.begun = task, task.begun + 1
        with suppress(OSError):
            self.connection.send((task.key, task.pickled))

    def end(self) -> int:
        """Have the process end, whatever it does; return how it did."""
        self.connection.close()
        try:
            return self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class ProcessEngine:
    """Does units in processes.

    Args:
        place: memory and threads of each.
        workers: how many processes there are.
        directory: where results go.
    """

    def __init__(self, place: Place, workers: int, directory: str) -> None:
        self.ahead = workers + 1
        self._place, self._count, self._directory = place, workers, directory
        self._workers: list[_Worker] = []
        self._waiting: deque[_Task] = deque()
        self._ended: deque[Finished] = deque()

    def __enter__(self) -> ProcessEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.connection.close()  # all of them at once, then each is waited for
        while self._workers:
            self._workers.pop().end()

    @property
    def processes(self) -> list[int]:
        """Process numbers of the workers."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, unit: Unit) -> None:
        """Have a unit done, after those that were submitted before."""
        self._waiting.append(_Task(unit.key, pickle.dumps(unit)))
        self._share_out()

    def finished(self) -> Finished:
        """Wait for one that has ended; see `protocol.Engine`."""
        while not self._ended:
            self._share_out()
            for connection in wait([worker.connection for worker in self._workers], POLL_SECONDS):
                self._hear(next(worker for worker in self._workers if worker.connection is connection))
            check_cancelled()
        return self._ended.popleft()

    def _share_out(self) -> None:
        """Give units to workers that have none; the first units start the workers."""
        while self._waiting:
            idle = next((worker for worker in self._workers if worker.task is None), None)
            if idle is None:
                if len(self._workers) >= self._count:
                    return
                idle = _Worker(self._place, self._directory)
                self._workers.append(idle)
            idle.begin(self._waiting.popleft())

    def _hear(self, worker: _Worker) -> None:
        """Take what a worker says, or that it is dead."""
        try:
            key, path, error = worker.connection.recv()
        except (EOFError, OSError):
            self._lost(worker)
            return
        worker.task = None
        self._ended.append(Finished(key, path, None if error is None else error.error("in a process of a worker")))

    def _lost(self, worker: _Worker) -> None:
        """Have the unit of a worker that died done again."""
        self._workers.remove(worker)
        code, task = worker.end(), worker.task
        if task is None:
            return
        if task.begun < ATTEMPTS:
            self._waiting.appendleft(task)
            return
        ended = f"the process that did {task.key} {_how(code)}, {task.begun} times in a row"
        error = WorkerLost(f"{ended}; {_advice(code)}")
        self._ended.append(Finished(task.key, None, error))


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _advice(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the system kills what takes too much memory: give less --memory, or fewer --workers"
    return "try --workers 1"
