"""Forked processes: what one inherits of its parent's threads, which it does not have.

A lock that another thread held when the process was forked stays locked in the child for ever. So locks that live long
are made here, and are new in a child. What they guard are dictionaries and counters, which Python changes as a whole.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Final
from weakref import WeakSet

_LOCKS: Final[WeakSet[Any]] = WeakSet()


def new_lock() -> threading.Lock:
    """Return a lock that nobody holds in a forked process."""
    lock = threading.Lock()
    _LOCKS.add(lock)
    return lock


def new_condition() -> threading.Condition:
    """Return a condition that nobody holds or waits for in a forked process."""
    condition = threading.Condition()
    _LOCKS.add(condition)
    return condition


def _renew() -> None:
    for lock in list(_LOCKS):
        lock._at_fork_reinit()  # as the standard library does with its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
