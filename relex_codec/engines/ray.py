"""The engine of Ray: units as tasks on the nodes of a cluster, whose results come here as bytes, one after another.

A task takes the description of a unit and reads what it needs where it runs. Ray does it again where its worker or its
node dies; a unit gives the same bytes wherever it is done. This process asks for one result at a time, so that what is
in memory, and in Ray's object store, is what is under way and not yet fetched.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import ray

from relex_codec._version import __version__
from relex_codec.core.cancellation import POLL_SECONDS, check_cancelled
from relex_codec.core.progress import note
from relex_codec.core.sizes import spell_bytes
from relex_codec.core.text import one_line
from relex_codec.errors import InvalidArgument, RelexError

from .failures import Failure
from .protocol import Finished, Unit, WorkerLost, result_path
from .ray_cluster import Cluster, connected
from .ray_task import remote_unit
from .unit_files import OpenFiles, UnitFile

RETRIES: Final = 5
"""How often a unit is begun again whose worker dies."""
QUEUED: Final = 2
"""Units for each that the cluster can do at the same time: some wait, which also makes an autoscaler add nodes."""
SMALLEST_QUEUE: Final = 8
LOOK_EVERY: Final = 5.0
"""Seconds after which the size of the cluster is looked at again."""
GRACE: Final = 10.0
"""Seconds in which tasks end that are cancelled, before their processes are killed."""
INTERPRETER: Final = 256 << 20
"""Bytes that a worker takes before it has begun: Python, libraries, Ray, compiled code."""
WEIGHTS: Final = 3
"""A unit takes at most so many times its checkpoints, and no more than its budget."""


@dataclass(frozen=True)
class RayOptions:
    """What the user says of a cluster.

    Attributes:
        address: as `ray.init` takes it; see `ray_cluster.connected`.
        workers: units at the same time; None: as many as the cluster has room for.
        cpus: processors, and threads, for each.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1


class RayEngine:
    """Does units on a cluster.

    Args:
        options: about the cluster.
        budget: bytes of memory for each unit.
        directory: where results go.
    """

    def __init__(self, options: RayOptions, budget: int, directory: str) -> None:
        self.ahead = 1
        self._options, self._budget, self._directory = options, budget, directory
        self._stack = ExitStack()
        self._units: dict[Any, tuple[str, int]] = {}
        """Keys of the units that are under way, and the memory of each, by what Ray calls their results."""
        self._looked = 0.0
        self._waits = False

    def __enter__(self) -> RayEngine:
        options = self._options
        cpus = None if options.workers is None else options.workers * options.cpus
        self._cluster: Cluster = self._stack.enter_context(connected(options.address, cpus))
        self._remote = ray.remote(remote_unit())
        here = os.path.abspath(os.curdir)
        self._unwanted = None if here in map(os.path.abspath, sys.path) else here
        self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self._cancel()

    def submit(self, unit: Unit) -> None:
        """Have a unit done, after those that were submitted before."""
        memory, cpus = self._memory(unit), self._options.cpus
        task = self._remote.options(
            name=unit.key, num_cpus=cpus, memory=memory, max_retries=RETRIES, retry_exceptions=False
        )
        reference = task.remote(__version__, self._unwanted, pickle.dumps(unit), self._budget, cpus)
        self._units[reference] = unit.key, memory

    def finished(self) -> Finished:
        """Wait for one that has ended; see `protocol.Engine`."""
        while True:
            ready, _ = ray.wait(list(self._units), num_returns=1, timeout=POLL_SECONDS)
            if ready:
                with suppress(ray.exceptions.GetTimeoutError):
                    return self._take(ready[0])
            check_cancelled()
            if time.monotonic() - self._looked > LOOK_EVERY:
                self._look()

    def _memory(self, unit: Unit) -> int:
        """Return the bytes that a unit is given a place for."""
        least = unit.memory(self._options.cpus)
        most = max(least, min(self._budget, least + WEIGHTS * unit.input_bytes)) + INTERPRETER
        if self._cluster.owned:  # nothing else runs there, and no node will be added
            return min(most, self._cluster.most_memory())
        return most

    def _look(self) -> None:
        """Look how many units the cluster can do, and say so where it can do none: it may wait for ever."""
        self._looked = time.monotonic()
        workers = self._options.workers
        places = self._cluster.cpus // self._options.cpus
        self.ahead = max(SMALLEST_QUEUE, QUEUED * places) if workers is None else workers
        least = min((memory for _, memory in self._units.values()), default=0)
        fits = self._cluster.fits(self._options.cpus, least)
        if not fits and not self._waits:
            what = "1 processor" if self._options.cpus == 1 else f"{self._options.cpus} processors"
            note(
                f"no node of the Ray cluster has {what} and {spell_bytes(least)} for a unit: waiting for one; add one, "
                "or stop and give less --memory"
            )
        self._waits = not fits

    def _take(self, reference: Any) -> Finished:
        """Fetch a result, of which Ray makes a new one where it was lost with its node."""
        key, _ = self._units[reference]
        try:
            kind, data, trace = ray.get(reference, timeout=POLL_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise
        except ray.exceptions.RayError as error:
            del self._units[reference]
            return Finished(key, None, _lost(key, error))
        del self._units[reference]
        if kind == "done":
            return Finished(key, self._store(key, data))
        if kind == "other":
            return Finished(key, None, _other(data))
        return Finished(key, None, _told(Failure(data, trace).error("on a worker of the Ray cluster")))

    def _store(self, key: str, data: Any) -> str:
        """Write a result to its place, where it appears when it is complete."""
        path = result_path(self._directory, key)
        temporary = f"{path}.{os.getpid()}.part"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with closing(OpenFiles()) as files:
                UnitFile(temporary, files).check()
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        return path

    def _cancel(self) -> None:
        """Have everything end that is under way."""
        left = list(self._units)
        self._units.clear()
        for force, seconds in ((False, GRACE), (True, GRACE)):
            if not left:
                return
            with suppress(ray.exceptions.RayError, ValueError):
                for reference in left:
                    ray.cancel(reference, force=force)
                _, left = ray.wait(left, num_returns=len(left), timeout=seconds, fetch_local=False)


def _lost(key: str, error: Exception) -> RelexError:
    """Return what is said where Ray gives up."""
    if isinstance(error, ray.exceptions.TaskUnschedulableError | ray.exceptions.RuntimeEnvSetupError):
        return InvalidArgument(f"Ray cannot run {key}: {one_line(error)}")
    advice = (
        "give less --memory, or workers more"
        if isinstance(error, ray.exceptions.OutOfMemoryError)
        else ("look at the logs of Ray (`ray logs`) for what happened to it")
    )
    return WorkerLost(
        f"the worker that did {key} was lost, {RETRIES + 1} times in a row ({type(error).__name__}: "
        f"{one_line(error)}); {advice}"
    )


def _other(found: str) -> RelexError:
    return InvalidArgument(
        f"{found} on a worker of the Ray cluster, {__version__} here: have the same on every node "
        f"(pip install 'relex-codec=={__version__}'), or submit the command as a job whose runtime_env installs it"
    )


def _told(error: BaseException) -> BaseException:
    """Return an error of a unit; where it misses a file, with what that means on a cluster."""
    if isinstance(error, FileNotFoundError) and isinstance(error, RelexError):
        words = "workers of the Ray cluster read the run themselves: it needs the same path or URL on every node"
        return type(error)(f"{error} ({words})")
    return error
