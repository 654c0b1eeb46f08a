"""The engine of this process: units on threads."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType

from relex_codec.core.cancellation import POLL_SECONDS, Cancelled, CancelScope, check_cancelled

from .protocol import Finished, Place, Unit, result_path, run_unit


class LocalEngine:
    """Does units in this process.

    Args:
        place: memory and threads, for all units together.
        directory: where results go.
    """

    def __init__(self, place: Place, directory: str) -> None:
        self.ahead = place.units + 1
        self._place, self._directory = place, directory
        self._done: queue.Queue[Finished] = queue.Queue()
        self._scope = CancelScope()
        self._pool = ThreadPoolExecutor(place.units, "relex-unit")

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope.cancel()
        self._pool.shutdown(cancel_futures=True)

    def submit(self, unit: Unit) -> None:
        """Have a unit done, after those that were submitted before."""
        self._pool.submit(self._scope.bind(self._run), unit)

    def finished(self) -> Finished:
        """Wait for one that has ended; see `protocol.Engine`."""
        while True:
            with suppress(queue.Empty):
                return self._done.get(timeout=POLL_SECONDS)
            check_cancelled()

    def _run(self, unit: Unit) -> None:
        if self._scope.is_cancelled():
            return
        path = result_path(self._directory, unit.key)
        try:
            run_unit(unit, self._place, path)
        except Cancelled:
            return
        except BaseException as e:
            self._done.put(Finished(unit.key, None, e))
        else:
            self._done.put(Finished(unit.key, path))
