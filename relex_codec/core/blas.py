"""BLAS on one thread, for as long as anything here needs that.

The number is one for the whole process. Whoever sets it and puts back what was there before leaves one thread behind
for good, where two encodes overlap: the second finds the one thread of the first. (And ``threadpool_limits`` puts
nothing back on another thread than the one that it was called on.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

from .forks import new_lock

_lock = new_lock()
_users = 0
_before: list[tuple[Any, int | None]] = []


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Let BLAS work on the thread that calls it; the last of those that overlap puts back what the first one found."""
    global _users, _before
    process = os.getpid()
    with _lock:
        if not _users:
            libraries = ThreadpoolController().select(user_api="blas").lib_controllers
            _before = [(library, library.get_num_threads()) for library in libraries]
            _set((library, 1) for library in libraries)
        _users += 1
    try:
        yield
    finally:
        if os.getpid() == process:
            with _lock:
                _users -= 1
                if not _users:
                    _set(_before)


def _put_back() -> None:
    """In a forked process: of those that overlapped there, none is here."""
    global _users
    if _users:
        _users = 0
        _set(_before)


def _set(numbers: Iterable[tuple[Any, int | None]]) -> None:
    for library, threads in numbers:
        library.set_num_threads(threads)
        # from threadpoolctl 3.8 on, whichever thread has set a number keeps others from doing so
        getattr(library, "clear_controlling_thread", lambda: None)()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_put_back)
