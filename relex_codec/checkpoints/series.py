"""The checkpoints of a run, one after another: opened when they are needed, and read at all steps together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from relex_codec.core.dtypes import Bits
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.errors import CheckpointError, RelexError, Truncated
from relex_codec.storage.hub.revisions import refuse_offline
from relex_codec.storage.urls import Options, options_for

from .boxed import Known
from .broken import broken_steps
from .checkpoint import CheckpointSeries, TensorInfo, TensorReader, check_same_tensors
from .checks import check_against_base
from .opening import open_reader

TABLES: Final = 8
"""Different tables of tensors that are kept to be shared by steps that have the same."""


class ReaderSeries(CheckpointSeries):
    """A run of which each step is a checkpoint of its own, opened when first needed and checked against the first one.

    Args:
        steps: increasing.
        open_step: opens the checkpoint of a step by its number, from 0 on; called from several threads.
        threads: how many steps are read at the same time.
        chosen: whether the user chose the steps from a run, and may leave some out; then messages say how.
        alike: whether steps that differ in their tensors are refused; `names` and `info` are those of the first one.

    Raises:
        CheckpointError: there are no steps.
    """

    def __init__(
        self,
        steps: Sequence[int],
        open_step: Callable[[int], TensorReader],
        *,
        threads: int = IO_THREADS,
        chosen: bool = False,
        alike: bool = True,
    ) -> None:
        if not steps:
            raise CheckpointError("a run needs at least one checkpoint")
        self.steps: list[int] = list(steps)
        self._open, self._threads, self._chosen, self._alike = open_step, threads, chosen, alike
        self._tables: list[Mapping[str, TensorInfo]] = []
        self._opened: list[TensorReader | None] = [None] * len(steps)

    def checkpoint(self, index: int) -> TensorReader:
        """Return the checkpoint of ``steps[index]``; see `CheckpointSeries.checkpoint`."""
        opened = self._opened[index]
        if opened is None:
            opened = self._open(index)
            if index and self._alike:
                first = self.checkpoint(0)
                check_same_tensors(opened.tensors, f"step {self.steps[index]}", first.tensors, f"step {self.steps[0]}")
            # share one table, whatever else their files say
            same = next((table for table in self._tables if table == opened.tensors), None)
            if same is not None:
                opened.tensors = same
            elif len(self._tables) < TABLES:
                self._tables.append(opened.tensors)
            self._opened[index] = opened
        return opened

    def check(self) -> None:
        """Open all checkpoints, several at a time; see `CheckpointSeries.check`.

        Raises:
            CheckpointError, Truncated: steps cannot be read or differ from the first one; all of them are named.
        """
        failures = self.failures()
        if failures:
            raise broken_steps(failures, self.steps, skippable=False, chosen=self._chosen)

    def failures(self) -> dict[int, RelexError]:
        """Return which steps cannot be read, or differ from the first one, and why."""

        def look(index: int, use: Callable[[int], TensorReader] = self.checkpoint) -> RelexError | None:
            try:
                use(index)
            except (CheckpointError, Truncated) as e:
                return e
            return None

        first = look(0)
        # if the first one is broken, there is nothing to compare the others with: they are opened only
        use = self.checkpoint if first is None else self._open
        results = parallel_map(lambda index: look(index, use), range(1, len(self.steps)), self._threads)
        return {step: error for step, error in zip(self.steps, (first, *results), strict=True) if error is not None}

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill the rows of `out` from element `lo` on, several at a time; see `CheckpointSeries.read_into`."""

        def rows(first: int) -> None:
            for index in range(first, len(out), workers):
                self.checkpoint(index).read_into(name, lo, out[index])

        self.checkpoint(0)
        # a task for each thread, not for each step: small tensors cost microseconds a step
        workers = min(self._threads, len(out))
        parallel_map(rows, range(workers), workers)


def open_series(
    checkpoints: Sequence[tuple[int, str]],
    storage_options: Options = None,
    *,
    threads: int = IO_THREADS,
    base: TensorReader | None = None,
    chosen: bool = False,
    alike: bool = True,
    names: Collection[str] = (),
) -> ReaderSeries:
    """Return a run by the steps and paths of its checkpoints, none of which is opened yet.

    Args:
        checkpoints: as `discovery.find_run` and `discovery.find_checkpoints` return them.
        storage_options: for fsspec, for all URLs, or by protocol.
        threads: how many steps are read at the same time.
        base: each checkpoint is compared with it when it is opened (`checks.check_against_base`).
        chosen, alike: as of `ReaderSeries`.
        names: what the model's tensors are called, where there is no base that tells.

    Raises:
        CheckpointError: there are none.
    """
    known: Known = {}
    names = names or (() if base is None else base.tensors)

    def open_step(index: int) -> TensorReader:
        step, path = checkpoints[index]
        options = options_for(path, storage_options)
        refuse_offline(path)
        # of the others, tables that differ from the first one are not kept
        opened = open_reader(path, options, known=dict(known) if index else known, names=names)
        if base is not None:
            check_against_base(opened, base, f"step {step}")
        return opened

    return ReaderSeries([step for step, _ in checkpoints], open_step, threads=threads, chosen=chosen, alike=alike)
