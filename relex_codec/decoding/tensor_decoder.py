"""From planned entries and their bytes to jobs of a kernel, and to bits (FORMAT.md sections 7 to 9); no torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from relex_codec.core.dtypes import F32, Bits, bits_dtype
from relex_codec.core.forks import new_lock
from relex_codec.core.threads import parallel_map
from relex_codec.errors import Corrupt
from relex_codec.format import constants as f
from relex_codec.format.factors import Factors
from relex_codec.format.reader import FileReader
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.kernels.dispatch import host_kernel
from relex_codec.kernels.interface import DecodeJob, Prepare, Window, flat
from relex_codec.kernels.windows import copy_window, cut

from .base_locator import BaseLocator
from .direction_reader import read_directions
from .fetching import Fetcher
from .origin_reader import OriginReader, converted
from .planning import plan_reads
from .read_plan import FrameBatch, FramePass, KernelBatch, KernelPass, OriginPass, ReadPlan, WindowPlan
from .scratch import Allocate, ScratchPool, fresh
from .tiers import StepTier, coefficient

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo
    from relex_codec.exact.tier_reader import ExactTier


class TensorDecoder:
    """Decodes tensors of one file: what `plan` plans is decoded inside of ``fetcher.ahead(plan)``, window by window.

    Args:
        base: of the file.
        prepare: the kernel, of numpy arrays.

    Attributes:
        base: where the base is.
        fetcher: reads ahead what is planned.
        origins: reads what tensors start from.
    """

    def __init__(self, container: FileReader, base: BaseLocator, *, prepare: Prepare = host_kernel) -> None:
        self.container, self.base, self._prepare = container, base, prepare
        self.fetcher = Fetcher(container, base)
        self.origins = OriginReader(container, base)
        self._exact: ExactTier | None = None
        self._lock = new_lock()
        self._scratch = ScratchPool()

    @property
    def exact(self) -> ExactTier:
        """The frames of the file, opened when they are first needed; the file must have some."""
        from relex_codec.exact.tier_reader import ExactTier  # numba is only needed here

        with self._lock:
            if self._exact is None:
                self._exact = ExactTier(self.container)
            return self._exact

    # -- plan --------------------------------------------------------------------------------------------------------

    def plan(
        self,
        wanted: Iterable[tuple[TensorRecord, Sequence[Window]]],
        steps: Sequence[StepTier],
        *,
        whole_windows: bool = False,
    ) -> ReadPlan:
        """Plan to read windows of tensors at some steps, as `planning.plan_reads`."""
        return plan_reads(
            self.container.index,
            wanted,
            steps,
            base=self.base.places,
            exact=lambda: self.exact,
            whole_windows=whole_windows,
        )

    # -- bits of a tensor at some steps ------------------------------------------------------------------------------

    def read(self, tensor: TensorRecord, step: StepTier, lo: int = 0, hi: int | None = None) -> Bits:
        """Plan, fetch and decode elements lo .. hi of a tensor at a step: one-dimensional, in memory of their own."""
        plan = self.plan([(tensor, [flat(lo, tensor.size if hi is None else hi)])], [step])
        with self.fetcher.ahead(plan):
            return self.decode_window(plan.tensors[0].windows[0], plan.steps)[0].reshape(-1)

    def decode_window(self, plan: WindowPlan, steps: Sequence[StepTier]) -> list[Bits]:
        """Return the bits of a planned window at each step of its plan, [rows, columns], each in its own memory.

        What several steps are made of is read once for all of them.

        Raises:
            InvalidArgument: a step is too far out.
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged.
        """
        outs = [self._new(plan) for _ in steps]
        for one in plan.passes:
            targets = [outs[i] for i in one.steps]
            if isinstance(one, KernelPass):
                g = self.coefficients(plan.tensor, [steps[i] for i in one.steps])
                with self._scratch.lent() as scratch:
                    for job in self.jobs(plan.window, one, scratch):
                        self._prepare([job])([g], [targets])
                        scratch.clear()
            else:
                self._fill(plan, one, targets)
        return outs

    def decode_pass(self, plan: WindowPlan, one: OriginPass | FramePass) -> Bits:
        """Return the bits of a planned window at the steps of a pass that needs no kernel; otherwise as a window."""
        out = self._new(plan)
        self._fill(plan, one, [out])
        return out

    @staticmethod
    def _new(plan: WindowPlan) -> Bits:
        return np.empty((plan.window.rows, plan.window.columns), bits_dtype(plan.tensor.dtype))

    def _fill(self, plan: WindowPlan, one: OriginPass | FramePass, outs: Sequence[Bits]) -> None:
        """Fill the window in each of `outs`, batch by batch."""
        if isinstance(one, FramePass):
            for batch in one.batches:
                self._restore(batch, one.stored, plan.window, outs)
            return
        for pieces in one.batches:
            found = converted(self.origins.read(pieces), plan.tensor)
            for out in outs:
                copy_window(plan.window, pieces.start, found, out)

    def coefficients(self, tensor: TensorRecord, steps: Sequence[StepTier]) -> F32:
        """Return g of each direction of a ``moving`` tensor at each of some steps, float32 [S, k]."""
        index, numbers = self.container.index, tensor.directions
        read = cache(partial(self.container.coefficients, numbers.start, len(numbers)))  # for tier ``track`` only
        rows = [(index.directions[d], lambda d=d: read()[d - numbers.start]) for d in numbers]
        return np.array(
            [[coefficient(record, row, index.steps, *step) for record, row in rows] for step in steps], np.float32
        )

    # -- what a kernel is given --------------------------------------------------------------------------------------

    def jobs(self, window: Window, planned: KernelPass, allocate: Allocate = fresh) -> Iterator[DecodeJob]:
        """Read batch after batch, and yield jobs that together decode a window.

        Args:
            allocate: memory for origin and codes.
        """
        factors: list[Factors | None] = []
        for batch in planned.batches:
            job = self._job(window, batch, factors, allocate)
            factors = [direction.factors for direction in job.directions]
            yield job

    def _job(
        self, window: Window, batch: KernelBatch, factors: Sequence[Factors | None], allocate: Allocate
    ) -> DecodeJob:
        """Read what decoding a batch takes, the origin and the codes at the same time; all of it is checked."""
        start, end, tensor = batch.origin.start, batch.origin.end, batch.origin.tensor
        found: dict[bool, Any] = {}

        def read(of_origin: bool) -> None:
            if of_origin:
                found[True] = self.origins.read(batch.origin, allocate=allocate)
            else:
                found[False] = read_directions(self.container, batch, factors, allocate)

        parallel_map(read, (True, False))
        origin, directions = found[True], found[False]
        at = window.row * window.width + window.column - start
        return DecodeJob(
            origin, at, window.width, tensor.origin_dtype, tensor.dtype, directions, cut(window, start, end), start,
            tensor.size,
        )  # fmt: skip

    # -- frames ------------------------------------------------------------------------------------------------------

    def _restore(self, batch: FrameBatch, stored: int, window: Window, outs: Sequence[Bits]) -> None:
        """Fill the window in each of `outs` from pieces at stored step number `stored`, all checked."""
        tensor, begin = batch.origin.tensor, batch.origin.start
        tier = self.exact
        blobs = tier.fetch(batch.keys)
        origin = self.origins.read(batch.origin, check=False)  # the digests of the frames cover it

        def unchecked(part: PartInfo) -> Bits:
            at = part.piece * f.PIECE - begin
            return converted(origin[at : at + part.elements], tensor)

        def restore(part: PartInfo) -> None:
            try:
                bits = tier.restored(part, stored, unchecked, blobs)
            except Corrupt:  # from a base that is checked: a BaseMismatch, if it is the base that is wrong
                bits = tier.restored(part, stored, self.part_origin, blobs)
            for out in outs:
                copy_window(window, part.piece * f.PIECE, bits, out)

        parallel_map(restore, batch.parts)

    def part_origin(self, part: PartInfo) -> Bits:
        """Return the elements of a part that the origin has, in the tensor's dtype, checked: for `exact.replay`."""
        tensor, start = self.container.index.tensors[part.tensor], part.piece * f.PIECE
        return converted(self.origins.read_span(tensor, start, start + part.elements), tensor)
