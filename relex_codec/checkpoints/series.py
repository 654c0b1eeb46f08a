"""Runs on disk: slices of one tensor over all steps.

How the checkpoints are found is in checkpoints/discovery.py, how one is opened in checkpoints/checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from relex_codec.core.dtypes import Bits, bits_dtype
from relex_codec.core.text import quote
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.errors import CheckpointError
from relex_codec.storage.hub.revisions import refuse_offline
from relex_codec.storage.urls import Options, options_for

from .checkpoint import Checkpoint as Checkpoint
from .checkpoint import TensorInfo as TensorInfo
from .checkpoint import Tensors
from .checkpoint import open_checkpoint as open_checkpoint
from .discovery import find_checkpoints as find_checkpoints
from .discovery import find_run as find_run
from .naming import select_steps as select_steps


class CheckpointSeries:
    """The checkpoints of a run, opened when first needed and each checked against the first one.

    Parameters
    ----------
    checkpoints : sequence of (step, path)
        As `find_run` returns them.
    storage_options : dict, optional
        For fsspec.
    threads : int
        Concurrent reads.
    """

    def __init__(
        self, checkpoints: Sequence[tuple[int, str]], storage_options: Options = None, *, threads: int = IO_THREADS
    ) -> None:
        if not checkpoints:
            raise CheckpointError("a run needs at least one checkpoint")
        self.steps = [step for step, _ in checkpoints]
        self.paths = [path for _, path in checkpoints]
        self._options, self._threads = storage_options, threads
        self._known: dict[bytes, Tensors] = {}
        self._opened: list[Checkpoint | None] = [None] * len(checkpoints)

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in the order of the first checkpoint."""
        return list(self.checkpoint(0).tensors)

    def info(self, name: str) -> TensorInfo:
        """Return name, dtype and shape of a tensor; where it lies holds for the first checkpoint only."""
        return self.checkpoint(0).info(name)

    def checkpoint(self, index: int) -> Checkpoint:
        """Return checkpoint number `index`, opened and checked against the first.

        Raises
        ------
        CheckpointError
            A tensor is missing, additional, or of another dtype or shape; the message names step and tensor.
        """
        opened = self._opened[index]
        if opened is None:
            step, path = self.steps[index], self.paths[index]
            known = dict(self._known) if index else self._known  # what is not like the first is not kept
            options = options_for(path, self._options)
            refuse_offline(path)
            opened = open_checkpoint(path, options, step=step, known=known)
            if index:
                self._compare(opened, self.checkpoint(0))
                if opened.tensors == self.checkpoint(0).tensors:  # headers may differ in their metadata only
                    opened.tensors = self.checkpoint(0).tensors
            self._opened[index] = opened
        return opened

    def check(self) -> None:
        """Open all checkpoints, so that a run that does not fit together is refused before any work."""
        self.checkpoint(0)
        parallel_map(self.checkpoint, range(len(self.steps)), self._threads)

    def read(self, name: str, lo: int = 0, hi: int | None = None) -> Bits:
        """Return the bits of elements `lo` to `hi` (default: all) of a tensor at all steps: an array [T, hi - lo]."""
        info = self.info(name)
        out: Bits = np.empty((len(self.steps), (info.size if hi is None else hi) - lo), bits_dtype(info.dtype))
        self.read_into(name, lo, out)
        return out

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill the rows of `out`, [rows, elements], from element `lo` on: one row for each of the first steps."""

        def rows(first: int) -> None:
            for index in range(first, len(out), workers):
                self.checkpoint(index).read_into(name, lo, out[index])

        self.checkpoint(0)
        # a task for each thread, not for each step: small tensors cost microseconds a step
        workers = min(self._threads, len(out))
        parallel_map(rows, range(workers), workers)

    def _compare(self, found: Checkpoint, first: Checkpoint) -> None:
        if found.tensors is first.tensors:
            return
        for name in first.tensors.keys() ^ found.tensors.keys():
            here, there = (self.steps[0], found.step) if name in first.tensors else (found.step, self.steps[0])
            raise CheckpointError(f"tensor {quote(name)} is in the checkpoint of step {here}, but not in step {there}")
        for name, expected in first.tensors.items():
            info = found.tensors[name]
            if (info.dtype, info.shape) != (expected.dtype, expected.shape):
                raise CheckpointError(
                    f"tensor {quote(name)} of step {found.step} is {info.dtype} {list(info.shape)}, "
                    f"expected {expected.dtype} {list(expected.shape)} as in step {self.steps[0]}"
                )
