"""Being connected to a cluster of Ray: joining one that runs, or starting one here, and leaving it as it was found."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import ray

from relex_codec.core.text import one_line
from relex_codec.errors import InvalidArgument

LOCAL: Final = "local"
"""The address that stands for a cluster of this machine alone, which ends with the program."""
ANSWER: Final = 10.0
"""Seconds in which a cluster answers."""
NO_STATISTICS: Final = "RAY_USAGE_STATS_ENABLED"
"""Environment variable: a cluster that is started here tells nobody about it, unless the user says so."""


class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        owned: whether it was started here, and ends here.
    """

    def __init__(self, *, owned: bool) -> None:
        self.owned = owned

    @property
    def cpus(self) -> int:
        """Processors of all nodes that are there now."""
        return int(ray.cluster_resources().get("CPU", 0))

    def fits(self, cpus: int, memory: int) -> bool:
        """Tell whether there is a node that could hold a task, if it had nothing else to do."""
        return any(
            node["Resources"].get("CPU", 0) >= cpus and node["Resources"].get("memory", 0) >= memory
            for node in ray.nodes()
            if node["Alive"]
        )

    def most_memory(self) -> int:
        """Return the bytes that Ray gives away of the largest node."""
        return max((int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]), default=0)


@contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[Cluster]:
    """Be connected to a cluster within the context.

    Args:
        address: of the cluster, as `ray.init` takes it; ``local``: a new one, on this machine. None: the one that this
            process is connected to, or belongs to (RAY_ADDRESS, or one that runs here), or a new one.
        cpus: processors of a new one; None: all.

    Raises:
        InvalidArgument: there is no such cluster, or it cannot be joined.
    """
    if ray.is_initialized():  # by who called us; it is theirs to end
        if address is not None:
            raise InvalidArgument("this process is connected to a Ray cluster already: leave out address")
        yield Cluster(owned=False)
        return
    with _signals_kept():
        owned = _join(address, cpus)
    try:
        yield Cluster(owned=owned)
    finally:
        with _signals_kept():
            ray.shutdown()


def _join(address: str | None, cpus: int | None) -> bool:
    """Connect to a cluster; return whether it was started for that."""
    if address != LOCAL:
        given = address or os.environ.get("RAY_ADDRESS")
        try:
            _look_for(given or "")
            _init(address=address or "auto")
            return False
        except ConnectionError as error:
            if given:
                said = "" if address else ", which RAY_ADDRESS says"
                raise InvalidArgument(
                    f"no Ray cluster at {given}{said}: start one with `ray start --head`, or use --address {LOCAL} "
                    f"({one_line(error)})"
                ) from None
    before = os.environ.get(NO_STATISTICS)
    os.environ.setdefault(NO_STATISTICS, "0")
    try:
        _init(address=LOCAL, num_cpus=cpus, include_dashboard=False)
    finally:
        if before is None:
            del os.environ[NO_STATISTICS]
    return True


def _look_for(address: str) -> None:
    """Connect to what should be a cluster, and hang up: Ray itself tries for a minute and then ends the process.

    Raises:
        ConnectionError: nobody answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(one_line(error)) from None


def _init(**arguments: Any) -> None:
    """Connect.

    Raises:
        ConnectionError: there is nothing to connect to.
        InvalidArgument: it fails otherwise.
    """
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **arguments)
    except ConnectionError:
        raise
    except (RuntimeError, ValueError, OSError, TimeoutError) as error:  # other versions of Ray or Python, above all
        raise InvalidArgument(f"Ray cannot be used: {one_line(error)}") from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the handlers of signals as they are: Ray sets its own, which end the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Callable[..., Any] | int | None] = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
