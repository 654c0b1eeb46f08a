"""Runs that stay open in a worker while it serves: vLLM makes a new loader whenever weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import compress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from relex_codec.core.dtypes import bits_dtype
from relex_codec.core.forks import new_lock
from relex_codec.core.indexing import TensorIndex
from relex_codec.decoding.tensors import box_at, read_tensors
from relex_codec.decoding.tiers import StepTier, check_reach, layout_at
from relex_codec.errors import InvalidArgument
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.run.resident import Resident
from relex_codec.run.run_reader import RunReader

from .request import Request

if TYPE_CHECKING:
    import torch

Needed = Mapping[str, TensorIndex | None]
"""Which part of each tensor a rank takes; None: nothing. What is not in it is taken whole."""

WHOLE: Final[Needed] = {}


class HeldRun:
    """An open run, and what of it is resident.

    Args:
        request: of the step that it is opened for; the step itself plays no role.
        model: path of the model that vLLM was started with.
    """

    def __init__(self, request: Request, model: str) -> None:
        base = model if request.base is None and os.path.isdir(model) else request.base
        options = None if request.storage_options is None else dict(request.storage_options)
        self.reader = RunReader(request.file, base=base, storage_options=options)
        self._resident: Resident | None = None
        self._made_for: Needed | None = None
        self._device, self._wants_resident = request.device, request.resident

    def tier(self, request: Request) -> str:
        """Return what a step is read from.

        Raises:
            InvalidArgument: the file has no such step, in that tier.
        """
        at = self._at(request)
        index = self.reader.container.index
        for tensor in layout_at(index, at).tensors:
            check_reach(index, tensor, at)
        return at.tier

    def _at(self, request: Request) -> StepTier:
        return StepTier(request.step, self.reader.tier(request.step, request.tier))

    @property
    def resident_bytes(self) -> int:
        """Bytes that are resident."""
        return 0 if self._resident is None else self._resident.nbytes

    def entries(self, request: Request) -> list[TensorRecord]:
        """Return name, shape and dtype of the tensors of a step, in the file's order."""
        return list(layout_at(self.reader.container.index, self._at(request)).tensors)

    def tensors(self, request: Request, needed: Needed = WHOLE) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield names and tensors of a step, in the file's order.

        They have their whole shape. What is not needed is zero, and memory that nobody touches.
        """
        from relex_codec.core.torch_dtypes import as_tensor

        entries = self.entries(request)
        wanted = [needed.get(entry.name, ...) for entry in entries]
        parts = self._parts(request, entries, wanted, needed)
        for entry, part in zip(entries, wanted, strict=True):
            if part is ...:
                yield entry.name, next(parts)
                continue
            zeros = np.zeros(entry.size, bits_dtype(entry.dtype))  # pages that are the same one until written
            whole = as_tensor(zeros, entry.dtype, entry.shape)
            if part is not None:
                whole[part] = next(parts)
            yield entry.name, whole

    def _parts(
        self, request: Request, entries: list[TensorRecord], wanted: list[Any], needed: Needed
    ) -> Iterator[torch.Tensor]:
        """Yield the parts that are wanted, from what is resident where that has the tier."""
        at = self._at(request)
        taken = [part is not None for part in wanted]
        resident = None if at.tier == "exact" else self._held(needed)
        if resident is not None:
            tier = at.tier if at.tier != "base" else "auto"
            found = (tensor for _, tensor in resident.iter_tensors(at.step, tier=tier))
            yield from compress(found, taken)
            return
        boxes = [box_at(entry, part) for entry, part in compress(zip(entries, wanted, strict=True), taken)]
        for (tensor,) in read_tensors(self.reader.decoder, boxes, [at], self._device):
            yield tensor

    def _held(self, needed: Needed) -> Resident | None:
        """Return what is resident, made when it is first needed; None if it may not or cannot be."""
        if self._wants_resident and self._made_for != needed:
            slices = {}
            for entry in self.reader.container.index.layout.tensors:
                part = needed.get(entry.name, ...)
                slices[entry.name] = part if part is not None else slice(0, 0) if entry.shape else ...
            self._resident = None  # two at a time may be too much
            try:
                self._resident = Resident(self.reader.decoder, self._device, slices=slices)
            except InvalidArgument as error:
                if "changes too often" not in str(error):
                    raise
            self._made_for = dict(needed)
        return self._resident


_RUNS: Final[dict[Any, HeldRun]] = {}
_LOCK: Final = new_lock()


def held(request: Request, model: str) -> HeldRun:
    """Return the run of a request; it is opened once in each process.

    Args:
        model: path of the model that vLLM was started with.

    Raises:
        InvalidArgument, Corrupt, Truncated, Unsupported: as `relex_codec.open`.
    """
    key = (request.file, request.base, model, request.resident, request.device, repr(request.storage_options))
    with _LOCK:
        if key not in _RUNS:
            _RUNS[key] = HeldRun(request, model)
        return _RUNS[key]
