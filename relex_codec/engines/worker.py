"""A process of `processes.ProcessEngine`: does units that it is told of, one after another.

A thread of it reads what it is told, so that it ends at once when the other end of the socket is closed, even where
that is because the process there was killed.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
from multiprocessing.connection import Connection

from .failures import Failure
from .protocol import Place, Unit, result_path, run_unit


def main(number: int) -> None:
    """Work until the other end of a socket is closed.

    Args:
        number: of the socket's file descriptor.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    connection = Connection(number)
    scratch, budget, threads, directory = connection.recv()
    units: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                units.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    place = Place(scratch, budget, threads)
    while True:
        connection.send(_done(*units.get(), place, directory))


def _done(
    key: str, pickled: bytes, place: Place, directory: str
) -> tuple[str, str | None, Failure | None]:  # fmt: skip
    """Do a unit; return its key, and the path of its result or what it failed with."""
    try:
        unit: Unit = pickle.loads(pickled)
        path = result_path(directory, key)
        run_unit(unit, place, path)
        return key, path, None
    except BaseException as error:
        return key, None, Failure.of(error)
