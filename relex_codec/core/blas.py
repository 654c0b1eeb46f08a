"""BLAS on one thread, for as long as anything here needs that.

threadpoolctl sets the number for the whole process and puts back what it found: of two encodes that overlap on two
threads, the second would find the one thread of the first, and leave that behind for good.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import threadpool_limits

from .forks import new_lock

_lock = new_lock()
_users = 0
_limits: Any = None


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Let BLAS work on the thread that calls it; the last of those that overlap puts back what the first one found."""
    global _users, _limits
    process = os.getpid()
    with _lock:
        if not _users:
            _limits = threadpool_limits(1, "blas")
        _users += 1
    try:
        yield
    finally:
        if os.getpid() == process:
            with _lock:
                _users -= 1
                if not _users:
                    _limits.restore_original_limits()


def _put_back() -> None:
    """In a forked process: of those that overlapped there, none is here."""
    global _users
    if _users:
        _users = 0
        _limits.restore_original_limits()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_put_back)
