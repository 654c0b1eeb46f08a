"""A run held on a device: base and packed directions stay there, and switching steps reads neither disk nor network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from relex_codec.core.dtypes import F32
from relex_codec.core.indexing import Box, TensorIndex
from relex_codec.core.text import quote
from relex_codec.core.threads import prefetched
from relex_codec.core.torch_dtypes import DTYPES, as_tensor
from relex_codec.decoding.device_transfer import AHEAD, DeviceMemory, bits_of
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tensors import TensorBox, box_at
from relex_codec.decoding.tiers import LINEAR, StepTier, as_step, check_reach, choose_tier, coefficient
from relex_codec.errors import InvalidArgument
from relex_codec.format.index import Index
from relex_codec.kernels.dispatch import device_kernel, host_kernel, is_host
from relex_codec.kernels.interface import Decode, DecodeJob, Prepare, Window

from .held_weights import Held, plan_held, read_held
from .module_targets import Names, Target, check_dtypes, match


class Resident:
    """A run on a device, made by `relex_codec.Run.resident`; methods may be called from one thread at a time.

    Keep it as long as work may run that was queued on other streams, or captured in a CUDA graph.

    On a CUDA device work is queued on the current stream. The tiers are ``line`` and ``track``, and the base at 0. The
    exact tier is not held: ``auto`` chooses as in a file without it.

    Args:
        decoder: of the open file, which is not needed any more when this has been made.
        device: as of `relex_codec.Run.resident`, which also says what is raised.
        slices: as of `relex_codec.Run.resident`.

    Attributes:
        device: torch device.
        nbytes: bytes that are held there.

    Examples:
        >>> resident = run.resident()
        >>> resident, resident.nbytes < 2 * run.info()["checkpoint_bytes"]
        (Resident('run.relex', 24 tensors on cpu), True)
        >>> state = resident.state_dict(60)
        >>> state["model.norm.weight"].dtype
        torch.bfloat16
    """

    def __init__(self, decoder: TensorDecoder, device: Any, *, slices: Mapping[str, TensorIndex] | None = None) -> None:
        self._host = is_host(device)
        self._prepare: Prepare = host_kernel if self._host else device_kernel(device)
        self.device = torch.empty(0, device=device).device  # with its index, as tensors there have it
        self._container = decoder.container
        index = decoder.container.index
        chosen = dict(slices or {})
        unknown = next((name for name in chosen if name not in index.layout), None)
        if unknown is not None:
            path = decoder.container.source.path
            raise InvalidArgument(f"{path} has no tensor {quote(unknown)}, of which a slice is wanted")
        boxes = [box_at(tensor, chosen.get(tensor.name, ...)) for tensor in index.layout.tensors]
        shared = _shared(index, boxes)
        boxes = [one for one in boxes if shared[one.tensor.name] == one.tensor.name]
        memory = DeviceMemory(self.device)
        plan = plan_held(decoder, boxes)
        with decoder.fetcher.ahead(plan):
            ready = prefetched(read_held(decoder, plan, boxes, memory.allocate), AHEAD)
            held_once = {name: self._put(held, memory) for name, held in ready}
        memory.wait()
        self._held = {name: held_once[other] for name, other in shared.items()}
        self._rows = {
            direction: self._container.coefficients(direction)[0]
            for held in self._held.values()
            if held.jobs
            for direction in index.tensors[held.number].directions
        }
        self._prepared: dict[tuple[str, ...], Decode] = {}
        self.nbytes = sum(held.nbytes for held in held_once.values())

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise InvalidArgument(
            f"{self!r} cannot be pickled or copied, it holds {self.nbytes:,} bytes there: pickle the Run, and call "
            "resident() where it is needed"
        )

    def __repr__(self) -> str:
        return f"Resident({self._container.source.path!r}, {len(self._held)} tensors on {self.device})"

    def keys(self) -> list[str]:
        """Return the names of the tensors, in the file's order.

        Examples:
            >>> run.resident().keys() == run.keys()
            True
        """
        return list(self._held)

    # -- what is held ----------------------------------------------------------------------------------------------

    def _put(self, held: Held, memory: DeviceMemory) -> Held:
        """Copy what is to be held to the device; on the CPU it is there already."""
        if self._host:
            return held
        jobs = [memory.job(job) for job in held.jobs]
        memory.queued(held)
        values = [(step, value.to(self.device)) for step, value in held.values]
        return held._replace(jobs=jobs, values=values, base=None if held.base is None else held.base.to(self.device))

    # -- reading ---------------------------------------------------------------------------------------------------

    def tier(self, step: float, *, tier: str = "auto") -> str:
        """Return what `step` is decoded from: ``base``, ``track`` or ``line``.

        Args:
            step: any number, as of `Run.tensor`.
            tier: that is asked for: ``line``, ``track`` or ``auto``.

        Raises:
            InvalidArgument: tier ``exact``, or as `Run.tier`.

        Examples:
            >>> resident = run.resident()
            >>> [resident.tier(step) for step in (0, 10, 12.5, 60)]
            ['base', 'track', 'track', 'line']
        """
        if tier == "exact":
            raise InvalidArgument("tier 'exact' is not held on a device: use Run.state_dict or Run.load_into")
        return choose_tier(self._container, as_step(step), tier, exact=False)

    def state_dict(self, step: float, *, tier: str = "auto") -> dict[str, torch.Tensor]:
        """Return all tensors at a step, as `Run.state_dict`, in memory of their own.

        Args:
            step: as of `tier`.
            tier: as of `tier`.

        Raises:
            InvalidArgument: a step or tier that is not there.

        Examples:
            >>> import torch
            >>> found = run.resident().state_dict(60)["model.norm.weight"]
            >>> torch.equal(found, run.tensor("model.norm.weight", 60))
            True
        """
        return self.state_dicts([step], tier=tier)[0]

    def state_dicts(self, steps: Sequence[float], *, tier: str = "auto") -> list[dict[str, torch.Tensor]]:
        """Return all tensors at each of some steps; base and codes are read once for all of them.

        Args:
            steps: as of `tier`, in any order.
            tier: of all of them, as of `tier`.

        Raises:
            InvalidArgument: a step or tier that is not there.

        Examples:
            >>> states = run.resident().state_dicts([12.5, 60, 100])
            >>> len(states), states[0]["model.norm.weight"].shape
            (3, torch.Size([16]))
        """
        chosen = [StepTier(float(step), self.tier(step, tier=tier)) for step in steps]
        self._check_reach(chosen, self._held)
        states = [
            {n: torch.empty(h.shape, dtype=DTYPES[h.dtype], device=self.device) for n, h in self._held.items()}
            for _ in chosen
        ]
        self._write(chosen, states)
        return states

    def iter_tensors(self, step: float, *, tier: str = "auto") -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and tensor at a step, one after another in the file's order, each in memory of its own.

        For a consumer that takes them one by one, as a server's loader does: no more than one is made at a time.

        Args:
            step: as of `tier`; checked before the first tensor is asked for.
            tier: as of `tier`.

        Raises:
            InvalidArgument: a step or tier that is not there.

        Examples:
            >>> for name, tensor in run.resident().iter_tensors(60):
            ...     if name.startswith("model.layers.0.mlp"):
            ...         print(name, tuple(tensor.shape))
            model.layers.0.mlp.down_proj.weight (16, 32)
            model.layers.0.mlp.gate_proj.weight (32, 16)
            model.layers.0.mlp.up_proj.weight (32, 16)
        """
        chosen = [StepTier(float(step), self.tier(step, tier=tier))]
        self._check_reach(chosen, self._held)
        self._coefficients(chosen, list(self._held))

        def made() -> Iterator[tuple[str, torch.Tensor]]:
            for name, held in self._held.items():
                value = torch.empty(held.shape, dtype=DTYPES[held.dtype], device=self.device)
                self._write(chosen, [{name: value}])
                yield name, value

        return made()

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
            module: that has them.
            step: as of `tier`.
            tier: as of `tier`.
            names: as of `Run.load_into`.
            prefix: as of `Run.load_into`.
            non_blocking: on a CUDA device, return when the work is queued on the current stream. Elsewhere the call
                returns when it is done, as with torch's own ``copy_``.

        Raises:
            InvalidArgument: names or shapes of module and run differ; a step or tier that is not there.

        Examples:
            >>> import torch
            >>> norm, resident = torch.nn.RMSNorm(16, dtype=torch.bfloat16), run.resident()
            >>> for step in (20, 60):
            ...     resident.load_into(norm, step, names={"model.norm.weight": "weight"}.get)
            >>> torch.equal(norm.weight, run.tensor("model.norm.weight", 60))
            True
        """
        chosen = [StepTier(float(step), self.tier(step, tier=tier))]
        shapes = {name: held.shape for name, held in self._held.items()}
        targets = match(shapes, module, names, prefix, {name: id(held) for name, held in self._held.items()})
        check_dtypes(targets, {name: DTYPES[held.dtype] for name, held in self._held.items()})
        # Coefficients are computed before anything is written: a step may be too far out.
        self._check_reach(chosen, [target.name for target in targets])
        g = self._coefficients(chosen, [target.name for target in targets])
        direct = {t.name: t.tensor for t in targets if self._is_direct(t)}
        others = [target for target in targets if target.name not in direct]
        with torch.no_grad():
            self._write(chosen, [direct], g)
            for target in others:
                held = self._held[target.name]
                value = torch.empty(held.shape, dtype=DTYPES[held.dtype], device=self.device)
                self._write(chosen, [{target.name: value}], g)
                target.tensor.copy_(value, non_blocking=non_blocking)
        for target in targets:
            torch.autograd.graph.increment_version(target.owner)
        if self.device.type == "cuda" and not non_blocking:
            torch.cuda.current_stream(self.device).synchronize()

    def _check_reach(self, steps: Sequence[StepTier], names: Iterable[str]) -> None:
        index = self._container.index
        for step in steps:
            for name in names:
                check_reach(index, index.tensor(name), step)

    def _is_direct(self, target: Target) -> bool:
        """Whether a kernel can write there, without a copy between."""
        held, tensor = self._held[target.name], target.tensor
        if tensor.device != self.device or tensor.dtype != DTYPES[held.dtype]:
            return False
        return tensor.is_contiguous() or _has_rows(tensor, held.jobs)

    def _coefficients(self, steps: Sequence[StepTier], names: Sequence[str]) -> dict[str, F32]:
        """Return g of each direction of the tensors that a kernel decodes, float32 [S, k], for the linear steps."""
        linear = [step for step in steps if step.tier in LINEAR]
        index, found = self._container.index, {}
        for name in names:
            held = self._held[name]
            if held.jobs and linear:
                directions = index.tensors[held.number].directions
                rows = [(index.directions[d], partial(self._rows.__getitem__, d)) for d in directions]
                found[name] = np.array(
                    [[coefficient(record, row, index.steps, *step) for record, row in rows] for step in linear],
                    np.float32,
                )
        return found

    def _write(
        self,
        steps: Sequence[StepTier],
        outs: Sequence[Mapping[str, torch.Tensor]],
        known: Mapping[str, F32] | None = None,
    ) -> None:
        """Fill ``outs[s][name]`` for each step: all moving tensors by one call of the kernel."""
        names = list(outs[0]) if outs else []
        linear = [s for s, step in enumerate(steps) if step.tier in LINEAR]
        if linear:
            g = self._coefficients(steps, names) if known is None else known
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
        for s, (step, tier) in enumerate(steps):
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

    def _view(self, held: Held, k: int, out: torch.Tensor, rowed: bool) -> Any:
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

    def _copy(self, held: Held, step: float, tier: str, out: torch.Tensor) -> None:
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


def _shared(index: Index, boxes: Sequence[TensorBox]) -> dict[str, str]:
    """Return for each box the name of the first one that is the same part of the same tensor."""
    first: dict[tuple[int, Box], str] = {}
    return {
        one.tensor.name: first.setdefault((index.target(one.tensor).number, one.box), one.tensor.name)
        for one in boxes
    }  # fmt: skip


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
