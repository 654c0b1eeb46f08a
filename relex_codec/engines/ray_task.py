"""What the engine of Ray has done on a worker: a unit, whose result goes back as bytes, or as what it failed with.

Nothing here knows Ray. The function that Ray is given (`remote_unit`) travels with its code, so that it also runs where
this package is missing or another version, and can say so.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.storage.leftovers import ScratchDirectory

from .failures import Failure
from .protocol import Place, Unit, result_path, run_unit

Answer = tuple[str, Any, str]
"""What a task returns: ``("done", bytes of the result, "")``, ``("failed", *Failure)``, or ``("other", what is wrong
with the package there, "")``."""


class Done(NamedTuple):
    """What `do_unit` returns; see `Answer`."""

    kind: str
    data: npt.NDArray[np.uint8] | bytes
    trace: str = ""


def do_unit(pickled: bytes, budget: int, threads: int) -> Done:
    """Do a unit in this process.

    Args:
        pickled: the unit.
        budget: bytes of memory for it.
        threads: for it.
    """
    try:
        unit: Unit = pickle.loads(pickled)
        with ScratchDirectory() as scratch:
            path = result_path(scratch.path, "result")
            run_unit(unit, Place(scratch.path, budget, threads), path)
            return Done("done", np.fromfile(path, np.uint8))
    except Exception as error:
        return Done("failed", *Failure.of(error))


def remote_unit() -> Callable[[str, str | None, bytes, int, int], Answer]:
    """Return the function that a task runs. It is local, so that pickling it takes its code along, not its name.

    Ray looks for modules in the working directory of who asks, before all others. That may be one of checkpoints from
    anywhere, so it is taken out again, unless who asks imports from there as well.
    """

    def unit(version: str, unwanted: str | None, pickled: bytes, budget: int, threads: int) -> Answer:
        import sys

        sys.path[:] = [path for path in sys.path if path != unwanted]
        try:
            from relex_codec._version import __version__ as found
        except ImportError:
            return "other", "relex-codec is not installed", ""
        if found != version:
            return "other", f"relex-codec is {found}", ""
        from relex_codec.engines.ray_task import do_unit

        done = do_unit(pickled, budget, threads)
        return done.kind, done.data, done.trace

    return unit
