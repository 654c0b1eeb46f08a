"""A run held on a device: base and packed directions stay there, and switching steps reads neither disk nor network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from relex_codec.checkpoints.base_model import BaseReader
from relex_codec.core.dtypes import F32, Bits, bits_dtype
from relex_codec.core.indexing import Box, TensorIndex, box_of
from relex_codec.core.text import quote
from relex_codec.core.threads import prefetched
from relex_codec.core.torch_dtypes import DTYPES, as_tensor
from relex_codec.decoding.device_transfer import AHEAD, Place, bits_of
from relex_codec.decoding.reading import reading_ahead
from relex_codec.decoding.tensor_decoder import Decoder, Read
from relex_codec.decoding.tiers import LINEAR, as_step, choose_tier, coefficient
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.kernels.dispatch import device_kernel, host_kernel, is_host
from relex_codec.kernels.interface import Decode, DecodeJob, Prepare, Window
from relex_codec.kernels.windows import copy_window, pieces, windows

from .module_targets import Names, Target, check_dtypes, match


class _Held(NamedTuple):
    """What is held of a tensor.

    Attributes:
        shape: of what is held, which may be a box of the tensor.
        number: of the tensor; -1 where no kernel decodes it.
        jobs: one a window, whose origin is the window's elements and nothing else.
        values: the tensor itself from a step on, or at every step; empty where there are jobs.
        base: what it is in the base, where `values` are not that.
    """

    dtype: str
    shape: tuple[int, ...]
    number: int
    jobs: list[DecodeJob]
    values: list[tuple[float, torch.Tensor]]
    base: torch.Tensor | None = None


class Resident:
    """A run on a device, made by `relex_codec.Run.resident`; methods may be called from one thread at a time.

    Keep it as long as work may run that was queued on other streams, or captured in a CUDA graph.

    On a CUDA device work is queued on the current stream. The tiers are ``line`` and ``track``, and at 0 the base:
    ``auto`` is what it is in a file without the exact tier, whose frames are not held.

    Args:
        decoder: of the open file, which is not needed any more when this has been made.
        base: gives the reader of its base; called only if a tensor needs it.
        device, slices: as `relex_codec.Run.resident`, which also says what is raised.

    Attributes:
        device: torch device.
        nbytes: bytes that are held there.
    """

    def __init__(
        self,
        decoder: Decoder,
        base: Callable[[], BaseReader],
        device: Any,
        *,
        slices: Mapping[str, TensorIndex] | None = None,
    ) -> None:
        self._host = is_host(device)
        self._prepare: Prepare = host_kernel if self._host else device_kernel(device)
        self.device = torch.empty(0, device=device).device  # with its index, as tensors there have it
        self._container = decoder.container
        chosen = dict(slices or {})
        unknown = next((name for name in chosen if name not in decoder.numbers), None)
        if unknown is not None:
            path = self._container.source.path
            raise InvalidArgument(f"{path} has no tensor {quote(unknown)}, of which a slice is wanted")
        shapes = {tensor.name: tensor.shape for tensor in self._container.index.manifest.tensors}
        boxes = {name: box_of(shape, chosen.get(name, ...)) for name, shape in shapes.items()}
        place = Place(self.device)
        parts = [(name, windows(shapes[name], box)) for name, (box, _) in boxes.items()]
        with reading_ahead(decoder, base, parts, [(0.0, "line")]):
            self._held = {
                name: self._put(held, place) for name, held in prefetched(self._read(decoder, boxes, place), AHEAD)
            }
        place.wait()
        self._rows = {
            direction: self._container.coefficients(direction)[0]
            for held in self._held.values()
            if held.jobs
            for direction in decoder.directions(held.number)
        }
        self._prepared: dict[tuple[str, ...], Decode] = {}
        self.nbytes = sum(map(_nbytes, self._held.values()))

    def __repr__(self) -> str:
        return f"Resident({self._container.source.path!r}, {len(self._held)} tensors on {self.device})"

    def keys(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return list(self._held)

    # -- what is held ----------------------------------------------------------------------------------------------

    def _read(
        self, decoder: Decoder, boxes: Mapping[str, tuple[Box, tuple[int, ...]]], place: Place
    ) -> Iterator[tuple[str, _Held]]:
        """Yield what is to be held of each tensor, in host memory."""
        index = decoder.container.index
        for name, (box, shape) in boxes.items():
            number = decoder.number(name)
            tensor = index.tensors[number]
            found = windows(tensor.shape, box)
            if tensor.kind == f.MOVING:
                jobs = [self._job(decoder, number, window, place) for window in found]
                yield name, _Held(tensor.dtype, shape, number, jobs, [])
                continue

            def read(name: str, step: float, tier: str, found: list[Window] = found) -> Bits:
                bits = [decoder.read_window(name, [(step, tier)], window)[0].reshape(-1) for window in found]
                dtype = bits_dtype(index.tensors[decoder.number(name)].dtype)
                return np.concatenate([np.empty(0, dtype), *bits])

            values: list[tuple[float, torch.Tensor]] = []
            last = b""
            for step in self._changes(decoder, number):
                whole = read(name, step, "line")
                if (there := whole.tobytes()) != last or not values:
                    values.append((step, as_tensor(whole, tensor.dtype, shape)))
                    last = there
                if len(values) * whole.nbytes > max(FRAMED_LIMIT, 2 * whole.nbytes):
                    raise InvalidArgument(
                        f"{quote(name)} is stored step by step, and changes too often for a run to be resident with "
                        "it: use Run.state_dict"
                    )
            base = None
            if tensor.kind == f.FRAMED:
                base = as_tensor(read(name, 0.0, "base"), tensor.dtype, shape)
            yield name, _Held(tensor.dtype, shape, -1, [], values, base)

    @staticmethod
    def _changes(decoder: Decoder, number: int) -> list[float]:
        """Steps at which a tensor that no kernel decodes may become another, the first one included."""
        index = decoder.container.index
        if index.tensors[number].kind != f.FRAMED:
            return [0.0]
        return [float(step) for step in index.steps]

    def _job(self, decoder: Decoder, number: int, window: Window, place: Place) -> DecodeJob:
        """Everything that decoding a window takes, in host memory; of the origin no more than the window."""
        runs = list(pieces(window))
        size = decoder.container.index.tensors[number].size
        start, end = runs[0][0] * f.PIECE, min(runs[-1][1] * f.PIECE, size)
        job = decoder.job(number, window, start, end, allocate=place.allocate)
        begin = window.row * window.width + window.column
        if window.rows == 1 and (start, end) == (begin, begin + window.columns):
            return job
        cropped: Bits = place.allocate(window.rows * window.columns * job.origin.itemsize).view(job.origin.dtype)
        copy_window(window, start, job.origin, cropped.reshape(window.rows, window.columns))
        return replace(job, origin=cropped, at=0, pitch=window.columns)

    def _put(self, held: _Held, place: Place) -> _Held:
        """Copy what is to be held to the device; on the CPU it is there already."""
        if self._host:
            return held
        jobs = [place.job(job) for job in held.jobs]
        place.queued(held)
        values = [(step, value.to(self.device)) for step, value in held.values]
        return held._replace(jobs=jobs, values=values, base=None if held.base is None else held.base.to(self.device))

    # -- reading ---------------------------------------------------------------------------------------------------

    def tier(self, step: float, *, tier: str = "auto") -> str:
        """Return what `step` is decoded from: ``base``, ``track`` or ``line``.

        Raises:
            InvalidArgument: tier ``exact``, or as `Run.tier`.
        """
        if tier == "exact":
            raise InvalidArgument("tier 'exact' is not held on a device: use Run.state_dict or Run.load_into")
        return choose_tier(self._container, as_step(step), tier, exact=False)

    def state_dict(self, step: float, *, tier: str = "auto") -> dict[str, torch.Tensor]:
        """Return all tensors at a step, as `Run.state_dict`, in memory of their own."""
        return self.state_dicts([step], tier=tier)[0]

    def state_dicts(self, steps: Sequence[float], *, tier: str = "auto") -> list[dict[str, torch.Tensor]]:
        """Return all tensors at each of some steps; base and codes are read once for all of them."""
        reads = [(float(step), self.tier(step, tier=tier)) for step in steps]
        states = [
            {n: torch.empty(h.shape, dtype=DTYPES[h.dtype], device=self.device) for n, h in self._held.items()}
            for _ in reads
        ]
        self._write(reads, states)
        return states

    def load_into(
        self,
        module: torch.nn.Module,
        step: float,
        *,
        tier: str = "auto",
        names: Names = None,
        prefix: str = "",
        non_blocking: bool = False,
    ) -> None:
        """Write a step into the parameters and buffers of `module`, whose addresses stay what they are.

        The module is as it was if anything is missing or of another shape. Parameters of the file's dtype on
        this device are written without a copy between, wherever their elements lie.

        Args:
            step, tier: as `tier`.
            names, prefix: as `Run.load_into`.
            non_blocking: on a CUDA device, return when the work is queued on the current stream. Elsewhere the call
                returns when it is done, as with torch's own ``copy_``.

        Raises:
            InvalidArgument: names or shapes of module and run differ; a step or tier that is not there.
        """
        reads = [(float(step), self.tier(step, tier=tier))]
        targets = match({name: held.shape for name, held in self._held.items()}, module, names, prefix)
        check_dtypes(targets, {name: DTYPES[held.dtype] for name, held in self._held.items()})
        # Coefficients are computed before anything is written: a step may be too far out.
        g = self._coefficients(reads, [target.name for target in targets])
        direct = {t.name: t.tensor for t in targets if self._is_direct(t)}
        others = [target for target in targets if target.name not in direct]
        with torch.no_grad():
            self._write(reads, [direct], g)
            for target in others:
                held = self._held[target.name]
                value = torch.empty(held.shape, dtype=DTYPES[held.dtype], device=self.device)
                self._write(reads, [{target.name: value}], g)
                target.tensor.copy_(value, non_blocking=non_blocking)
        for target in targets:
            torch.autograd.graph.increment_version(target.owner)
        if self.device.type == "cuda" and not non_blocking:
            torch.cuda.current_stream(self.device).synchronize()

    def _is_direct(self, target: Target) -> bool:
        """Whether a kernel can write there, without a copy between."""
        held, tensor = self._held[target.name], target.tensor
        if tensor.device != self.device or tensor.dtype != DTYPES[held.dtype]:
            return False
        return tensor.is_contiguous() or _has_rows(tensor, held.jobs)

    def _coefficients(self, reads: Sequence[Read], names: Sequence[str]) -> dict[str, F32]:
        """Return g of each direction of the tensors that a kernel decodes, float32 [S, k], for the linear reads."""
        linear = [read for read in reads if read[1] in LINEAR]
        index, found = self._container.index, {}
        for name in names:
            held = self._held[name]
            if held.jobs and linear:
                directions = index.tensors[held.number].directions
                rows = [(index.directions[d], partial(self._rows.__getitem__, d)) for d in directions]
                found[name] = np.array(
                    [[coefficient(record, row, index.steps, *read) for record, row in rows] for read in linear],
                    np.float32,
                )
        return found

    def _write(
        self,
        reads: Sequence[Read],
        outs: Sequence[Mapping[str, torch.Tensor]],
        known: Mapping[str, F32] | None = None,
    ) -> None:
        """Fill ``outs[s][name]`` for each read: all moving tensors by one call of the kernel."""
        names = list(outs[0]) if outs else []
        linear = [s for s, read in enumerate(reads) if read[1] in LINEAR]
        if linear:
            g = self._coefficients(reads, names) if known is None else known
            moving = [name for name in names if self._held[name].jobs]
            rowed = tuple(name for name in moving if not all(outs[s][name].is_contiguous() for s in linear))
            decode = self._decode((*moving, "", *rowed), moving, set(rowed))
            coefficients, targets = [], []
            for name in moving:
                held = self._held[name]
                for k in range(len(held.jobs)):
                    coefficients.append(g[name])
                    targets.append([self._view(held, k, outs[s][name], name in rowed) for s in linear])
            decode(coefficients, targets)
        for s, (step, tier) in enumerate(reads):
            for name in names:
                if not self._held[name].jobs or tier not in LINEAR:
                    self._copy(self._held[name], step, tier, outs[s][name])

    def _decode(self, key: tuple[str, ...], moving: Sequence[str], rowed: set[str]) -> Decode:
        """The kernel, prepared for some tensors; jobs of strided targets are those of their rows."""
        if key not in self._prepared:  # kept for good: there are as many as kinds of targets, and graphs may use them
            jobs = [
                _by_rows(job, self._held[name].shape[-1]) if name in rowed else job
                for name in moving
                for job in self._held[name].jobs
            ]
            self._prepared[key] = self._prepare(jobs)
        return self._prepared[key]

    def _view(self, held: _Held, k: int, out: torch.Tensor, rowed: bool) -> Any:
        """The part of a target that window k goes to, as bits, [rows, columns]."""
        bits = bits_of(out)
        if rowed:
            matrix = bits.view(-1, held.shape[-1])
            rows = matrix.shape[0] // len(held.jobs)
            part = matrix[k * rows : (k + 1) * rows]
        else:
            window = held.jobs[k].window
            part = bits.view(len(held.jobs), window.rows, window.columns)[k]
        return part.numpy().view(f"u{part.element_size()}") if self._host else part

    def _copy(self, held: _Held, step: float, tier: str, out: torch.Tensor) -> None:
        """Fill a target from what needs no arithmetic."""
        if tier == "base" and held.base is not None:
            out.copy_(held.base)
        elif held.values:
            at = [value for first, value in held.values if first <= step]
            out.copy_(at[-1] if at else held.values[0][1])
        elif out.numel():
            origin_dtype = held.jobs[0].origin_dtype
            origins = [self._as_tensor(job.origin, origin_dtype) for job in held.jobs]
            whole = origins[0] if len(origins) == 1 else torch.cat(origins)
            if origin_dtype != held.dtype:
                whole = _converted(whole, held.dtype)
            out.copy_(whole.view(held.shape))

    def _as_tensor(self, origin: Any, dtype: str) -> torch.Tensor:
        tensor: torch.Tensor = as_tensor(origin, dtype, origin.shape) if self._host else origin.view(DTYPES[dtype])
        return tensor


FRAMED_LIMIT: Final = 1 << 20
"""Bytes that a tensor which is stored step by step may always take."""


def _converted(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """FORMAT.md section 8: float32 of the origin, rounded to the tensor's dtype; one NaN."""
    from relex_codec.kernels import torch_eager

    bits: torch.Tensor = torch_eager.from_float32(values.to(torch.float32), dtype)
    return bits.view(DTYPES[dtype])


def _has_rows(tensor: torch.Tensor, jobs: Sequence[DecodeJob]) -> bool:
    """Whether a target is rows of its last dimension at even distances, and the windows are made of such rows."""
    try:
        tensor.detach().view(-1, tensor.shape[-1])
    except RuntimeError:
        return False
    last = tensor.shape[-1]
    return all((w.rows == 1 or w.columns == last) and w.rows * w.columns % last == 0 for w in (j.window for j in jobs))


def _by_rows(job: DecodeJob, width: int) -> DecodeJob:
    """Return a job of one long row as one of rows of `width` elements, for a target whose rows lie apart."""
    window = job.window
    rows = window.columns // width
    if window.rows != 1 or rows == 1:
        return job
    rect = Window(width, window.column // width, rows, 0, width, window.lo, window.hi)
    return replace(job, window=rect, pitch=width)


def _nbytes(held: _Held) -> int:
    total = sum(value.nbytes for _, value in held.values) + (0 if held.base is None else held.base.nbytes)
    for job in held.jobs:
        total += job.origin.nbytes
        for direction in job.directions:
            total += direction.packed.nbytes
            if direction.factors is not None:
                total += direction.factors.a.nbytes + direction.factors.b.nbytes
    return total
