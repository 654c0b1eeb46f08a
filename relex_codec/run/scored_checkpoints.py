"""Steps decoded into a temporary checkpoint, one at a time, and scored there by a command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from relex_codec.storage.leftovers import ScratchDirectory, remove_tree

from .run import Run
from .scoring_command import score_with


@contextmanager
def scored_by(run: Run, command: str, tier: str) -> Iterator[Callable[[float], tuple[str, float]]]:
    """Give what returns the tier and the score of a step, as `sweep.run_sweep` takes it.

    One checkpoint is there at a time, below where TMPDIR says. It goes when the context is left; what a killed process
    left there goes when the next one comes.

    Args:
        command: of the shell, with ``{checkpoint}`` in it.
        tier: as `Run.save`.
    """
    with ScratchDirectory() as scratch:

        def score(step: float) -> tuple[str, float]:
            checkpoint = os.path.join(scratch.path, "checkpoint")
            try:
                read = run.save(checkpoint, step, tier=tier, provenance=True)
                return read, score_with(command, checkpoint, step)
            finally:
                remove_tree(checkpoint)

        yield score
