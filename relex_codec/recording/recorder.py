"""The recorder: each step's weights go in while a run trains, and a journal of exact differences comes out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from relex_codec.checkpoints.base_model import open_base
from relex_codec.checkpoints.checkpoint import TensorInfo, is_placeholder, placeholder_message
from relex_codec.checkpoints.checks import check_against_base
from relex_codec.checkpoints.discovery import find_checkpoints
from relex_codec.checkpoints.safetensors import open_checkpoint
from relex_codec.core.dtypes import FLOATS, Bits, as_dtype
from relex_codec.core.progress import note
from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument, RelexError
from relex_codec.format.constants import STEP_LIMIT
from relex_codec.journal.reader import Journal
from relex_codec.journal.writer import JournalLock
from relex_codec.storage.urls import Options, PathLike

from .begin import Begun, begin
from .lots import batches_of
from .memory import patched
from .rank_recorder import RankRecorder, read_later
from .ranks import Ranks
from .state import Local, Names, tensors_of

if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor] | torch.nn.Module | PathLike


class Recorder:
    """Records the steps of a run while it trains; a context manager.

    Each step is kept as its exact difference to the one before, in a directory called a journal. A step is committed
    when all of it is on disk: whenever the process ends, every committed step is whole. `encode` reads a journal as a
    run of checkpoints; so does `finish`.

    `add` compares the weights with the step before, which is in host memory, and returns; what changed is compressed
    and written on a thread, while training goes on. What goes wrong there is raised by the next call, or at the end.
    In host memory are the step before and, until it is written, what changed: at most an eighth of that (64 MiB, if
    that is more). Where more than that changed, `add` waits for the rest to be written.

    In a process group of torch.distributed, all ranks make a recorder of the same path, and each records what it holds
    (DTensors of FSDP2 and tensor parallelism; a tensor that all ranks have is recorded by the first). Whoever reads the
    journal need not have as many ranks, or any.

    Args:
        path: of the journal, a local directory that all ranks see. A journal that is there already is continued.
        base: the model that training started from: directory, ``.safetensors`` file, URL or
            ``hf://org/name@revision``. Default: what the journal says.
        after: the step that training resumes from. The journal continues after its last step up to this one; later
            steps, which an earlier process recorded, are left behind. Default: the journal's last step.
        names: for tensors that the state calls otherwise than the base: a mapping or function from the state's name to
            the base's, or to None for a tensor that is left out.
        prefix: before all names in the state (``module.``, ``_orig_mod.``).
        dtype: ``state``: weights are recorded as they are. ``base``: floats are rounded to the dtype that the base has,
            as trainers do that keep float32 weights and save bfloat16 ones.
        background: whether `add` returns before the step is compressed and written.
        distributed: False: this process records alone, though it is one of a group.
        base_uri: where the journal shall say that its base is; empty: nowhere. Default: as `encode` has it.
        storage_options: for fsspec, if the base is at a URL.

    Attributes:
        path: of the journal.

    Raises:
        InvalidArgument: another recorder writes to the journal, or it cannot be written.
        CheckpointError: the base cannot be read.
        Corrupt, Truncated: the journal is damaged.

    Examples:
        >>> state = dict(relex_codec.open("run.relex").state_dict(10))
        >>> with relex_codec.Recorder("new.journal", base="base/") as recorder:
        ...     recorder.add(10, state)  # after each step of training
        ...     recorder.add(20, "ckpts/global_step_20")
        ...     size = recorder.finish("recorded.relex")
        >>> relex_codec.open("recorded.relex").steps
        [10, 20]
    """

    def __init__(
        self,
        path: PathLike,
        *,
        base: PathLike | None = None,
        after: int | None = None,
        names: Names = None,
        prefix: str = "",
        dtype: str = "state",
        background: bool = True,
        distributed: bool = True,
        base_uri: str | None = None,
        storage_options: Options = None,
    ) -> None:
        if dtype not in ("state", "base"):
            raise InvalidArgument(f"dtype is {quote(dtype)}, expected state or base")
        self._names, self._prefix, self._background = names, prefix, background
        self._rounds = dtype == "base"
        self._options = storage_options
        self._ranks = Ranks(distributed)
        self._lock: JournalLock | None = None
        self._rank: RankRecorder | None = None
        self._failed: RelexError | None = None
        self._job: Future[None] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        try:
            begun = self._ranks.from_first(lambda: self._begin(path, base, after, base_uri))
            self.path, self._base_path = begun.folder, begun.base
            self._base = self._ranks.all_or_none(lambda: open_base(begun.base, storage_options))
            self._rank = RankRecorder(begun, self._base, self._ranks)
        except BaseException:
            self._release()
            raise

    def _begin(self, path: PathLike, base: PathLike | None, after: int | None, base_uri: str | None) -> Begun:
        begun, self._lock = begin(path, base, after, base_uri, self._options)
        return begun

    # -- recording ---------------------------------------------------------------------------------------------------

    @property
    def last_step(self) -> int | None:
        """The last step that is committed on this rank; None: there is none yet.

        Examples:
            >>> with relex_codec.Recorder("new.journal", base="base/") as recorder:
            ...     print(recorder.last_step)
            ...     recorder.add(10, "ckpts/global_step_10")
            ...     print(recorder.last_step)
            None
            10
        """
        return self._recording.committed

    def add(self, step: int, state: State, *, verify: bool = False) -> None:
        """Record a step.

        Args:
            step: later than the last one.
            state: a state dict, a module, or the directory of a checkpoint, which is read before this returns.
            verify: read the step back from the journal, and compare it with the directory, before this returns.

        Raises:
            InvalidArgument: the step is not later than the last one, or its tensors are not those of the steps before:
                then it is not recorded, and the journal is as it was. Or a step before could not be written: then that
                one is not in the journal, the steps before it are, and it may be added again.
            CheckpointError: a directory cannot be read.
            Corrupt: what was read back is not what the directory has.
            BaseMismatch: the base is not the journal's.

        Examples:
            >>> with relex_codec.Recorder("new.journal", base="base/") as recorder:
            ...     recorder.add(10, run.state_dict(10))
            ...     recorder.add(10, run.state_dict(10))
            Traceback (most recent call last):
            relex_codec.errors.InvalidArgument: step 10 is recorded already; ...
        """
        self._check_usable()
        self._wait()
        self._check_step(step)
        if verify and self._ranks.world > 1:
            raise InvalidArgument("verify is for one process; a step of several is verified from the journal")
        if verify and not isinstance(state, str | os.PathLike):
            raise InvalidArgument("verify compares with a directory, and none was given")
        with self._all_or_failed():
            if isinstance(state, str | os.PathLike):
                self._add_directory(step, state, verify)
            else:
                self._add_state(step, state)

    def patch(self, step: int, patches: Iterable[Any]) -> None:
        """Record a step that is given as what changed since the last one, as weight syncs of trainers have it.

        Args:
            step: later than the last one. In the first step of a journal, what changed is against the base; the run
                then has the base's tensors.
            patches: with ``name``, ``values`` (one-dimensional) and ``indices`` (flat, None: ``values`` is the whole
                tensor) each: vLLM's ``CheckpointWeightPatch``, or what `Run.patches` yields. A tensor may have several.

        Raises:
            InvalidArgument: as `add`, or a patch is not one of a tensor of the run.

        Examples:
            >>> with relex_codec.Recorder("new.journal", base="base/") as recorder:
            ...     recorder.add(10, run.state_dict(10))
            ...     recorder.patch(20, run.patches(10, 20))
            ...     size = recorder.finish("recorded.relex")
            >>> relex_codec.open("recorded.relex").verify_against("ckpts/", steps="10,20").ok
            True
        """
        self._check_usable()
        self._wait()
        self._check_step(step)
        if self._ranks.world > 1:
            raise InvalidArgument("patches are recorded by one process; give it distributed=False")
        rank = self._recording
        if not rank.started:
            infos: Mapping[str, TensorInfo] = self._base.tensors
            if rank.committed is not None:
                infos = Journal(self.path).tensors
            rank.start(read_later(infos))
        rank.commit(step, patched(rank.parts, rank.previous(), patches))

    def flush(self) -> None:
        """Wait until all steps are committed.

        Raises:
            InvalidArgument: as `add`: one could not be written.

        Examples:
            >>> with relex_codec.Recorder("new.journal", base="base/") as recorder:
            ...     recorder.add(10, run.state_dict(10))
            ...     recorder.flush()
            ...     print(recorder.last_step)
            10
        """
        self._check_usable()
        self._wait()

    def finish(self, output: PathLike, *, exact: bool = True, **options: Any) -> int:
        """Write all that the journal has to a ``.relex`` file, and close the recorder; the journal stays.

        In a process group all ranks call it, and the first one writes.

        Args:
            output: as of `relex_codec.encode`.
            exact: store every step bit for bit.
            options: further arguments of `relex_codec.encode`.

        Returns:
            The size of the file in bytes; 0 on ranks other than the first.

        Raises:
            InvalidArgument, CheckpointError: as `relex_codec.encode`, or a step could not be written.

        Examples:
            >>> recorder = relex_codec.Recorder("new.journal", base="base/")
            >>> recorder.add(10, "ckpts/global_step_10")
            >>> recorder.add(20, "ckpts/global_step_20")
            >>> size = recorder.finish("recorded.relex")
            >>> relex_codec.open("recorded.relex").info()["tiers"]
            ['line', 'track', 'exact']
        """
        from relex_codec.encoding.encode import encode

        self._ranks.all_or_none(self.flush)
        self.close()

        def write() -> int:
            chosen = {"base": self._base_path, "storage_options": self._options, **options}
            return encode(self.path, output, exact=exact, **chosen)

        size = self._ranks.from_first(write)
        return size if self._ranks.rank == 0 else 0

    def close(self) -> None:
        """Wait until all steps are committed, and release the journal; closing it again does nothing.

        Raises:
            InvalidArgument: one could not be written.

        Examples:
            >>> recorder = relex_codec.Recorder("new.journal", base="base/")
            >>> recorder.close()
            >>> recorder.add(10, "ckpts/global_step_10")
            Traceback (most recent call last):
            relex_codec.errors.InvalidArgument: the recorder of ...new.journal is closed; make another one to go on
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._wait()
        finally:
            self._release()

    def __enter__(self) -> Recorder:
        self._check_usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except RelexError as own:
            if error is None:
                raise
            note(f"the recorder failed too: {own}")

    def _check_step(self, step: int) -> None:
        if type(step) is not int or not 0 <= step <= STEP_LIMIT:
            raise InvalidArgument(f"step is {quote(step)}, expected an integer from 0 to 2^53")
        last = self._recording.committed
        if last is not None and step <= last:
            where = "recorded already" if step == last else f"before the last one that was recorded, {last}"
            raise InvalidArgument(
                f"step {step} is {where}; to record again from there on, make a Recorder with after={step - 1}"
            )

    def _check_usable(self) -> None:
        if self._closed:
            raise InvalidArgument(f"the recorder of {self.path} is closed; make another one to go on")
        if self._failed is not None:
            raise self._failed

    def _release(self) -> None:
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown()
        if self._rank is not None:
            self._rank.close()
        if self._lock is not None:
            self._lock.close()

    def _wait(self) -> None:
        """Wait for the step in work, and raise what went wrong with it."""
        job, self._job = self._job, None
        if job is None:
            return
        with self._all_or_failed():
            job.result()

    # -- one step ----------------------------------------------------------------------------------------------------

    def _add_state(self, step: int, state: Any) -> None:
        rank = self._recording
        found = self._rounded(tensors_of(state, self._names, self._prefix, self._base.tensors))
        if not rank.started:
            rank.start(found)
        rank.check(found)
        if not self._background:
            rank.commit(step, rank.batches(found))
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "relex-recorder")
        self._job = rank.commit_later(step, rank.batches(found), self._pool)

    def _add_directory(self, step: int, path: PathLike, verify: bool) -> None:
        rank = self._recording
        ((_, folder),) = find_checkpoints([path], self._options, step=step)
        checkpoint = open_checkpoint(folder, self._options)
        check_against_base(checkpoint, self._base, f"step {step}")
        found = self._rounded(read_later(checkpoint.tensors))
        if not rank.started:
            rank.start(found)
        rank.check(found)
        dtypes = [checkpoint.info(part.name).dtype for part in rank.parts]

        def read(number: int, lo: int, hi: int) -> Bits:
            part = rank.parts[number]
            return as_dtype(checkpoint.read(part.name, lo, hi), dtypes[number], part.dtype)

        rank.commit(step, batches_of(rank.parts, read), keep=verify)
        if verify:
            rank.verify(step, batches_of(rank.parts, read), folder)

    def _rounded(self, found: dict[str, Local]) -> dict[str, Local]:
        """Return the tensors with the dtypes that are recorded."""
        for name, local in found.items():
            there = self._base.tensors.get(name)
            if there is None:
                continue
            if is_placeholder(TensorInfo(name, local.dtype, local.box.shape), there):
                raise InvalidArgument(placeholder_message(name, "the state"))
            if self._rounds and {there.dtype, local.dtype} <= FLOATS:
                found[name] = local._replace(dtype=there.dtype)
        return found

    @property
    def _recording(self) -> RankRecorder:
        assert self._rank is not None  # it is only while a recorder is being made
        return self._rank

    @contextmanager
    def _all_or_failed(self) -> Iterator[None]:
        """Let a rank that has missed a step record no more, since the others may have it."""
        try:
            yield
        except RelexError as error:
            if self._ranks.world > 1:
                self._failed = error
            raise
