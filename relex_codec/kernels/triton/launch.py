"""The Triton kernel: prepared jobs decoded by a few launches, whatever their number, on a CUDA device.

Codes lie in device memory as in the file's raw pieces and are unpacked as they are used. `prepare` puts addresses,
quantisers and sizes of all jobs into one table on the device, and sorts their blocks into classes, each of which is one
launch. A call transfers the addresses of targets and the coefficients, one small copy, and launches. With
``TRITON_INTERPRET=1`` in the environment before triton is imported, everything runs on CPU tensors, slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.errors import InvalidArgument
from relex_codec.format.constants import BLOCK
from relex_codec.kernels.interface import Coefficients, Decode, DecodeJob, Targets

from . import plan
from .plan import TARGET_WORDS

try:
    import triton

    from . import kernels
except ImportError as error:
    if error.name is None or error.name.split(".")[0] != "triton":
        raise
    raise InvalidArgument(
        "the kernel for GPUs needs triton, which is not installed; install relex-codec[gpu], or the package triton"
    ) from None

INTERPRETED: Final = not isinstance(kernels.planar, triton.JITFunction)
OPTIONS: Final = {"num_warps": 4, "enable_fp_fusion": False}
"""Of every launch. Fused, the last bit of a weight would be another."""
PLANS: Final = 8
"""How many plans are kept: one for each pattern of contiguous and strided targets that calls came with."""


class Launch(NamedTuple):
    """One launch."""

    kernel: Any
    grid: tuple[int]
    units: torch.Tensor
    constants: dict[str, Any]


def prepare(jobs: Sequence[DecodeJob]) -> Decode:
    """Prepare to decode jobs whose arrays are torch tensors on one CUDA device.

    The result enqueues on the current stream and does not wait. The first call compiles. It may be called again at
    once, with targets of other strides too. After a call with targets of the same strides it may be captured in a CUDA
    graph, which decodes again with the coefficients of the capture, into its targets.

    Raises:
        InvalidArgument: the tensors are not on one CUDA device (or, interpreted, on the CPU), or not contiguous.
    """
    if not jobs:
        return _nothing
    return Prepared(jobs)


def _nothing(coefficients: Coefficients, targets: Targets) -> None:
    """Decode no jobs."""


class Prepared:
    """Jobs with their table on the device. Keeps their tensors alive."""

    def __init__(self, jobs: Sequence[DecodeJob]) -> None:
        self.jobs = tuple(jobs)
        self.device = _device_of(jobs)
        addresses = [_addresses(job) for job in jobs]
        directions = np.array([len(job.directions) for job in jobs])
        self._words = int((directions + TARGET_WORDS).sum())
        """Of a call's rows for one step."""
        self._call = np.cumsum(directions + TARGET_WORDS) - (directions + TARGET_WORDS)
        self._directions = directions
        rows = [plan.describe(job, at, int(call)) for job, at, call in zip(jobs, addresses, self._call, strict=True)]
        self._rows = np.cumsum([0, *map(len, rows)])
        self._best = np.array([plan.static_form(job, at) for job, at in zip(jobs, addresses, strict=True)])
        windows = np.array([(w.rows, w.columns, w.row * w.width + w.column) for w in (job.window for job in jobs)])
        self._height, self._columns, start = windows.reshape(-1, 3).T
        self._start = start * np.array([ITEMSIZE[job.dtype] for job in jobs])
        self._plans: dict[bytes, list[Launch]] = {}
        self._captured: list[torch.Tensor] = []
        self._places: tuple[int, Any, Any] = (0, None, None)
        with self._on_device():
            self._table = torch.tensor([word for row in rows for word in row], dtype=torch.int64).to(self.device)
            self._plan(self._best.astype(np.int8))

    def __call__(self, coefficients: Coefficients, targets: Targets) -> None:
        steps = len(targets[0])
        of_targets = np.array([(t.data_ptr(), *t.stride()) for of_job in targets for t in of_job], np.int64).reshape(
            len(self.jobs), steps, TARGET_WORDS
        )
        if steps == 0:
            return
        rows, columns = of_targets[:, :, 1], of_targets[:, :, 2]
        contiguous = ((columns == 1) | (self._columns <= 1)[:, None]) & (
            (rows == self._columns[:, None]) | (self._height <= 1)[:, None]
        )
        # Where element 0 of the tensor would be, if targets were contiguous.
        zeros = of_targets[:, :, 0] - self._start[:, None]
        aligned = (zeros % plan.ALIGNMENT == 0).all(axis=1)
        forms = plan.forms(self._best, contiguous.all(axis=1), aligned)
        of_targets[:, :, 0] = np.where((forms == plan.STRIDED)[:, None], of_targets[:, :, 0], zeros)
        with self._on_device():
            call = self._transfer(of_targets, coefficients, steps)
            for launch in self._plan(forms):
                launch.kernel[launch.grid](launch.units, self._table, call, steps, **launch.constants, **OPTIONS)

    def _transfer(self, of_targets: npt.NDArray[np.int64], coefficients: Coefficients, steps: int) -> torch.Tensor:
        """Copy the rows of a call to the device.

        The pinned buffer is a fresh one: torch's allocator of pinned memory gives it to nobody else before the copy is
        done. A graph that is being captured copies from it at every replay, so then it is kept.
        """
        cuda = self.device.type == "cuda"
        buffer = torch.empty(self._words * steps, dtype=torch.int64, pin_memory=cuda)
        words = buffer.numpy()
        for_targets, for_coefficients = self._places_of(steps)
        words[for_targets] = of_targets.reshape(-1)
        g = np.concatenate([np.asarray(x, np.float32).reshape(-1) for x in coefficients])
        words[for_coefficients] = g.view(np.uint32)
        if not cuda:
            return buffer
        if torch.cuda.is_current_stream_capturing():
            self._captured.append(buffer)
        return buffer.to(self.device, non_blocking=True)

    def _places_of(self, steps: int) -> tuple[Any, Any]:
        """Where targets and coefficients go in a call's words: for each job, steps rows."""
        known, for_targets, for_coefficients = self._places
        if known != steps:
            width = self._directions + TARGET_WORDS
            rows = (self._call * steps)[:, None] + width[:, None] * np.arange(steps)
            for_targets = (rows[:, :, None] + np.arange(TARGET_WORDS)).reshape(-1)
            of_jobs = zip(rows, self._directions, strict=True)
            after = [(of_job[:, None] + TARGET_WORDS + np.arange(k)).reshape(-1) for of_job, k in of_jobs]
            for_coefficients = np.concatenate(after)
            self._places = (steps, for_targets, for_coefficients)
        return for_targets, for_coefficients

    def _plan(self, forms: npt.NDArray[np.int8]) -> list[Launch]:
        """The launches for jobs in these forms."""
        key = forms.tobytes()
        if key not in self._plans:
            while len(self._plans) >= PLANS:
                del self._plans[next(iter(self._plans))]
            by_class: dict[plan.Class, list[plan.Int32]] = {}
            for job, form, row in zip(self.jobs, forms, self._rows, strict=False):
                for of_class, units in plan.units(job, int(form), int(row)):
                    by_class.setdefault(of_class, []).append(units)
            self._plans[key] = [self._launch(c, np.concatenate(u)) for c, u in by_class.items()]
        return self._plans[key]

    def _launch(self, of_class: plan.Class, units: plan.Int32) -> Launch:
        planar = isinstance(of_class, plan.PlanarClass)
        kernel = kernels.planar if planar else kernels.general
        programs = len(units) * (BLOCK // of_class.TILE if planar else 1)
        return Launch(kernel, (programs,), torch.from_numpy(units).to(self.device), of_class._asdict())

    def _on_device(self) -> AbstractContextManager[Any]:
        """Make the device the current one, which Triton launches on; the interpreter's numpy has nothing to warn of."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else np.errstate(all="ignore")


def _addresses(job: DecodeJob) -> plan.Addresses:
    directions = [
        (d.packed.data_ptr(), *((0, 0) if d.factors is None else (d.factors.a.data_ptr(), d.factors.b.data_ptr())))
        for d in job.directions
    ]
    return plan.Addresses(job.origin.data_ptr(), directions)


def _device_of(jobs: Sequence[DecodeJob]) -> torch.device:
    """Return the device of all arrays, which the kernels read as flat memory."""
    arrays: list[torch.Tensor] = [job.origin for job in jobs]
    for direction in (direction for job in jobs for direction in job.directions):
        arrays.append(direction.packed)
        if direction.factors is not None:
            arrays += [direction.factors.a, direction.factors.b]
    found = {x.device for x in arrays}
    wanted = "cpu" if INTERPRETED else "cuda"
    if len(found) > 1 or next(iter(found)).type != wanted:
        names = ", ".join(sorted(map(str, found)))
        raise InvalidArgument(f"tensors on {names}, but this kernel decodes on one {wanted} device; move them there")
    if not all(x.is_contiguous() for x in arrays):
        raise InvalidArgument("an origin, codes or factors are not contiguous; pass contiguous tensors")
    return next(iter(found))
