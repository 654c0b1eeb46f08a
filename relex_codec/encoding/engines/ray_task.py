"""What the engine of Ray has done on a worker: a unit, whose result goes back as bytes, or as what it failed with.

Nothing here knows Ray. The function that Ray is given (`remote_unit`) travels with its code, so that it also runs where
this package is missing or another version, and can say so.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.errors import RelexError
from relex_codec.storage.leftovers import ScratchDirectory

from .protocol import Place, Unit, result_path, run_unit

Answer = tuple[str, Any, Any]
"""What a task returns: ``("done", bytes of the result, None)``, ``("failed", pickled error, traceback)``, or ``("other",
what is wrong with the package there, None)``."""


class Done(NamedTuple):
    """What `do_unit` returns; see `Answer`."""

    kind: str
    data: npt.NDArray[np.uint8] | bytes
    trace: str | None = None


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
        trace = None if isinstance(error, RelexError) else traceback.format_exc()
        return Done("failed", _pickled(error), trace)


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
            return "other", "relex-codec is not installed", None
        if found != version:
            return "other", f"relex-codec is {found}", None
        from relex_codec.encoding.engines.ray_task import do_unit

        done = do_unit(pickled, budget, threads)
        return done.kind, done.data, done.trace

    return unit


def _pickled(error: Exception) -> bytes:
    """Return an error as bytes; one that cannot be pickled as a plain one that says the same."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        plain = RelexError if isinstance(error, RelexError) else RuntimeError
        return pickle.dumps(plain(f"{type(error).__name__}: {error}"))
    return data
